"""Both networks drawn as graphs of their blocks: `networks.png` of a run."""

import math
from collections.abc import Mapping

import ml_collections
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from inpaint_jax import models, task
from inpaint_jax.network_graph import Blocks, Edge, Edges, block_graph, neighbours

_TIMES = "\N{MULTIPLICATION SIGN}"

# Lengths in pixels of the picture.
_DOTS_PER_INCH, _LARGEST = 100, 30_000
_MARGIN, _GAP, _TURN, _TRACK = 24, 14, 10, 10
_LINE_HEIGHT, _ROW_GAP, _TITLE_HEIGHT = 15, 22, 34
_FAMILY = "DejaVu Sans"  # comes with matplotlib, so the picture is the same everywhere
_FONT = FontProperties(family=_FAMILY, size=8.5)
_BOLD = FontProperties(family=_FAMILY, size=8.5, weight="bold")
_SMALL = FontProperties(family=_FAMILY, size=7.5)
_TITLE = FontProperties(family=_FAMILY, size=12, weight="bold")
_GREY, _INK = "#e4e4e4", "#333333"
_COLOURS = ("#cfe3f5", "#d3efd2", "#fbe0c3", "#e6d7f2", "#f9d3d6", "#d2eeee", "#f3ecc0", "#e3dbd3")


def draw_networks(config: ml_collections.ConfigDict) -> np.ndarray:
    """Draws the graph of the generator and, below it, that of the discriminator, if there is one.

    Returns:
        uint8 (H, W, 3), the same for the same config; as wide as the networks need, about 1600 pixels for a U-Net of
        128x128 pixels.
    """
    shapes = task.input_shapes(config)
    networks = {"Generator": (models.build_generator(config), shapes["generator"])}
    if (discriminator := models.build_discriminator(config)) is not None:
        networks["Discriminator"] = (discriminator, shapes["discriminator"])
    canvas = FigureCanvasAgg(figure := Figure(dpi=_DOTS_PER_INCH, facecolor="white"))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    colours = {"input": _GREY, "output": _GREY, "operation": "white"}
    right = bottom = 0
    for name, (module, shape) in networks.items():
        blocks, edges = block_graph(module, shape)
        for block in blocks.values():
            colours.setdefault(block["kind"], _COLOURS[(len(colours) - 3) % len(_COLOURS)])
        count = sum(block["parameters"] for block in blocks.values())
        title = f"{name}: {type(module).__name__}, {count:,} parameters"
        axes.text(_MARGIN, bottom + _TITLE_HEIGHT, title, fontproperties=_TITLE, va="center")
        end, bottom = _draw_graph(axes, canvas, blocks, edges, bottom + 1.5 * _TITLE_HEIGHT, colours)
        right = max(right, end, 2 * _MARGIN + _text_width(canvas, title, _TITLE))
    explained = {kind: colour for kind, colour in colours.items() if colour not in (_GREY, "white")}
    end, bottom = _draw_legend(axes, canvas, bottom, explained)
    width, height = math.ceil(max(right, end)), math.ceil(bottom)
    figure.set_size_inches(width / _DOTS_PER_INCH, height / _DOTS_PER_INCH)
    # Of hundreds of blocks, smaller: matplotlib refuses pictures of 2^16 pixels.
    figure.set_dpi(min(_DOTS_PER_INCH, _DOTS_PER_INCH * _LARGEST / max(width, height)))
    axes.set(xlim=(0, width), ylim=(height, 0))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _text_width(canvas: FigureCanvasAgg, text: str, font: FontProperties) -> float:
    return canvas.get_renderer().get_text_width_height_descent(text, font, False)[0]


def _lines(block: dict) -> list[tuple[str, FontProperties]]:
    if block["kind"] == "operation":
        return [(block["label"], _SMALL)]
    shape = "" if block["kind"] == "parameter" else _TIMES.join(str(extent) for extent in block["shape"])
    count = "" if block["kind"] in ("input", "output") else f"{block['parameters']:,}"
    return [(block["label"], _BOLD), *((text, _FONT) for text in (shape, count) if text)]


def _rows(blocks: Blocks, edges: Edges) -> dict[str, int]:
    """Returns the row of each block: its resolution where the network goes up again, otherwise its branch."""
    before, after = neighbours(edges)
    heights = {n: b["shape"][0] for n, b in blocks.items() if len(b["shape"]) == 3 and b["kind"] != "parameter"}
    top = max(height for name, height in heights.items() if blocks[name]["kind"] == "input")
    level = {}
    for name in blocks:
        level[name] = max((level[source] for source in before[name]), default=0)
        if name in heights:
            level[name] = round(math.log2(top / heights[name]))
    for name, block in blocks.items():
        if block["kind"] == "parameter":
            level[name] = min((level[user] for user in after[name]), default=0)
    if any(level[target] < level[source] for source, target in edges):
        ranks = {value: rank for rank, value in enumerate(sorted(set(level.values())))}
        return {name: ranks[value] for name, value in level.items()}
    row, continued = {}, set()
    for name in blocks:
        ends = [source for source in before[name] if source not in continued]
        source = min(ends, key=row.get, default=None)
        continued.add(source)
        row[name] = max(row.values(), default=-1) + 1 if source is None else row[source]
    return row


def _places(blocks: Blocks, edges: Edges, row: dict[str, int], width: dict[str, float]) -> dict[str, float]:
    """Returns the centre of each block along x: right of what it needs, and of what is already in its row."""
    before, _ = neighbours(edges)
    centre, end = {}, {}
    for name in blocks:
        left = end.get(row[name], _MARGIN - _GAP) + _GAP
        for source in before[name]:
            if row[source] < row[name]:
                left = max(left, centre[source] + _TURN)
            elif row[source] > row[name]:
                left = max(left, centre[source] + width[source] / 2 + _TURN - width[name] / 2)
            else:
                left = max(left, centre[source] + width[source] / 2 + _GAP)
        centre[name] = left + width[name] / 2
        end[row[name]] = left + width[name]
    return centre


def _tracks(edges: Edges, row: dict[str, int], centre: dict[str, float]) -> dict[Edge, int]:
    """Returns the edges that must pass over other blocks of their row, each with its height above it, 0 lowest."""
    over = []
    for source, target in edges:
        # The part along a row is in the lower of the two rows.
        along, first, last = max(row[source], row[target]), centre[source], centre[target]
        if any(row[name] == along and first < x < last and name != target for name, x in centre.items()):
            over.append((last - first, source, target))
    track = {}
    for _, source, target in sorted(over):
        beside = [e for e in track if row[e[0]] == row[source]]
        taken = {track[a, b] for a, b in beside if centre[a] < centre[target] and centre[source] < centre[b]}
        track[source, target] = next(height for height in range(len(over)) if height not in taken)
    return track


def _draw_graph(
    axes, canvas: FigureCanvasAgg, blocks: Blocks, edges: Edges, top: float, colours: Mapping[str, str]
) -> tuple[float, float]:
    """Draws one graph below `top` and returns its right and its lower end, margins included."""
    lines = {name: _lines(block) for name, block in blocks.items()}
    width = {name: max(_text_width(canvas, *line) for line in lines[name]) + 10 for name in blocks}
    height = {name: _LINE_HEIGHT * len(lines[name]) + 6 for name in blocks}
    row = _rows(blocks, edges)
    centre = _places(blocks, edges, row, width)
    track = _tracks(edges, row, centre)
    middle, bottom = {}, top
    for number in sorted(set(row.values())):
        above = {height for (source, _), height in track.items() if row[source] == number}
        tallest = max(height[name] for name in blocks if row[name] == number)
        bottom += _ROW_GAP + _TRACK * len(above) + tallest
        middle[number] = bottom - tallest / 2
    place = {n: (centre[n], middle[row[n]], width[n] / 2, height[n] / 2) for n in blocks}
    for source, target in edges:
        path = Path(_route(source, target, place, track))
        style = {"color": _INK, "linewidth": 0.9, "zorder": 1}
        axes.add_patch(FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=8, **style))
    for name, block in blocks.items():
        x, y, half_width, half_height = place[name]
        style = {"facecolor": colours[block["kind"]], "edgecolor": _INK, "linewidth": 0.9, "zorder": 2}
        style["boxstyle"] = "round,pad=0,rounding_size=" + ("9" if block["kind"] == "operation" else "4")
        axes.add_patch(FancyBboxPatch((x - half_width, y - half_height), 2 * half_width, 2 * half_height, **style))
        for number, (text, font) in enumerate(lines[name]):
            line = y + (number - (len(lines[name]) - 1) / 2) * _LINE_HEIGHT
            axes.text(x, line, text, fontproperties=font, ha="center", va="center_baseline", zorder=3)
    return max(x + half for x, _, half, _ in place.values()) + _MARGIN, bottom


def _route(source: str, target: str, place: Mapping[str, tuple], track: Mapping[Edge, int]) -> list:
    """Returns the corners of an arrow: straight along a row, over it, or around one corner to another row."""
    (x1, y1, w1, h1), (x2, y2, w2, h2) = place[source], place[target]
    if (source, target) in track:
        start, end = (_top_end(name, (source, target), place, track) for name in (source, target))
        tallest = max(h for _, y, _, h in place.values() if y == y1)
        over = y1 - tallest - _TRACK * (track[source, target] + 1)
        if y1 == y2:
            return [(start, y1 - h1), (start, over), (end, over), (end, y2 - h2)]
        if y1 > y2:
            return [(start, y1 - h1), (start, over), (x2, over), (x2, y2 + h2)]
        beside = x2 - w2 - _GAP / 2
        return [(start, y1 - h1), (start, over), (beside, over), (beside, y2), (x2 - w2, y2)]
    if y1 == y2:
        return [(x1 + w1, y1), (x2 - w2, y2)]
    if y1 < y2:
        return [(x1, y1 + h1), (x1, y2), (x2 - w2, y2)]
    return [(x1 + w1, y1), (x2, y1), (x2, y2 + h2)]


def _top_end(name: str, edge: Edge, place: Mapping[str, tuple], track: Mapping[Edge, int]) -> float:
    """Returns where on top of a block an arrow ends: arriving ones left of leaving ones, longer ones outside."""
    order = {e: (1, -track[e]) if e[0] == name else (0, track[e]) for e in track if name in e}
    return place[name][0] + 8 * (sorted(order, key=order.get).index(edge) - (len(order) - 1) / 2)


def _draw_legend(axes, canvas: FigureCanvasAgg, top: float, colours: Mapping[str, str]) -> tuple[float, float]:
    """Draws what the colours and the lines of text mean, and returns the right and the lower end."""
    x, y = _MARGIN, top + 2 * _ROW_GAP
    for kind, colour in colours.items():
        axes.add_patch(FancyBboxPatch((x, y - 6), 18, 12, boxstyle="round,pad=0", facecolor=colour, edgecolor=_INK))
        axes.text(x + 26, y, kind, fontproperties=_FONT, va="center_baseline")
        x += 26 + _text_width(canvas, kind, _FONT) + _MARGIN
    text = f"In a box: name, output height {_TIMES} width {_TIMES} channels, parameters"
    axes.text(x, y, text, fontproperties=_FONT, va="center_baseline")
    return x + _text_width(canvas, text, _FONT) + _MARGIN, y + _ROW_GAP
