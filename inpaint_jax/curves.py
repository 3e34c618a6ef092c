"""Curves of a run: robust axes, drawing as inline SVG, and the epoch after which training gains little."""

import bisect
import io
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

Series = tuple[list[float], list[float | None]]  # epochs, and values, None where a value was not finite
Band = tuple[str, float, float]  # phase, first epoch, last epoch

DIMINISHING_RATE = 0.005  # of the running best, per epoch
# A value is beyond the axis if it lies further from the middle 80% of its curve than three times their spread.
MIDDLE_SHARE = 0.8
OUTLYING = 3.0
LOG_RATIO = 100.0  # positive values over a larger range get a logarithmic axis
POINTS = 400  # drawn of one curve at most, or somewhat more where values are missing
LABELLED_BANDS = 12
MARKED_POINTS = 40  # of one curve at most; the points of a longer one are not marked

# Curves of training: heading, title, label of the vertical axis, the names as a regular expression, and what to know.
# A name belongs to the first that it matches; the group is its label.
HEALTH = "GAN health and learning rates"
PANELS = (
    ("Losses", "Totals", "loss", "loss/(generator|discriminator)", "What each network minimises."),
    ("Losses", "Terms, weighted", "weight x loss", "loss/(.+)_weighted", "They add up to the generator's total."),
    ("Losses", "Discriminator's parts", "loss", "loss/(discriminator_.+)", ""),
    ("Losses", "Terms, raw", "loss", "loss/(.+)", "Before their weights."),
    (HEALTH, "Learning rates", "learning rate", "learning_rate/(.+)", "By parameter group."),
    (HEALTH, "Discriminator logits", "mean logit", "discriminator/logit_(.+)", "Over 0: taken for real."),
    (HEALTH, "Discriminator accuracy", "share judged rightly", "discriminator/(accuracy)",
     "0.5: it cannot tell filled pictures from real ones; 1: it always can."),
    (HEALTH, "Gradient norms", "L2 norm", "gradient_norm/(.+)", "By parameter group."),
    (HEALTH, "Update norms", "L2 norm", "update_norm/(.+)", "How far one step moves the parameters, by group."),
    (HEALTH, "Skipped updates", "updates", "guard/(skipped|surges)", "Not finite, or a surge; nothing was changed."),
    ("Other", "Other values", "value", "(.+)", ""),
)  # fmt: skip

# Colours of Okabe and Ito, "Color Universal Design", 2008, apart for colour-blind readers too; the dashes and the
# order keep the first curves apart in black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
SHADES = ("#ffffff", "#e6e6e6", "#f3f3f3", "#d9d9d9")
TICK_STEPS = (1, 2, 2.5, 5, 10)
WIDTH = 5.2  # inches; shown as wide as its column, so that text keeps a readable size on a phone
STYLE = {
    "svg.hashsalt": "inpaint_jax",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def is_number(value: Any) -> bool:
    """Returns whether a value out of a JSON file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def series_of(rows: Sequence[Mapping[str, Any]], split: str) -> dict[str, Series]:
    """Collects the curves of one split from the rows of `metrics.jsonl`.

    Args:
        rows: with "epoch" and "split"; null or a number that is not finite marks a missing value.
        split: "train", "val" or another that the rows name.

    Returns:
        `{name: (epochs, values)}`, sorted by name; what is text is left out.
    """
    rows = [row for row in rows if row.get("split") == split and is_number(row.get("epoch"))]
    found: dict[str, Series] = {}
    for name in sorted({name for row in rows for name in row} - {"step", "epoch", "split"}):
        own = [row for row in rows if name in row]
        if all(row[name] is None or isinstance(row[name], int | float) for row in own):
            values = [float(row[name]) if is_number(row[name]) else None for row in own]
            found[name] = ([float(row["epoch"]) for row in own], values)
    return found


def panels(names: Iterable[str]) -> list[tuple[str, str, str, str, dict[str, str]]]:
    """Sorts the names of training curves into drawings.

    Returns:
        For each entry of `PANELS`, in their order: heading, title, label of the axis, note, and {name: label}, which
        is empty where nothing of that kind is logged.
    """
    left, found = sorted(names), []
    for heading, title, axis, pattern, note in PANELS:
        own = {name: match[1] for name in left if (match := re.fullmatch(pattern, name))}
        left = [name for name in left if name not in own]
        found.append((heading, title, axis, note, own))
    return found


def phase_bands(rows: Sequence[Mapping[str, Any]]) -> list[Band]:
    """Returns the phases of the training rows in turn; empty if there is no more than one.

    A phase begins where the last row of the one before it stands.
    """
    rows = [row for row in rows if row.get("split") == "train" and "phase" in row and is_number(row.get("epoch"))]
    bands: list[Band] = []
    for phase, group in itertools.groupby(rows, key=lambda row: str(row["phase"])):
        start = bands[-1][2] if bands else 0.0
        bands.append((phase, start, float(list(group)[-1]["epoch"])))
    return bands if len(bands) > 1 else []


def running_best(values: Sequence[float | None], direction: str) -> list[float | None]:
    """Returns the best value so far at every position; None before the first value.

    Raises:
        ValueError: the direction is neither "min" nor "max".
    """
    if direction not in ("min", "max"):
        raise ValueError(f"unknown direction {direction!r}: use 'min' or 'max'")
    choose = min if direction == "min" else max
    best: list[float | None] = []
    for value in values:
        earlier = best[-1] if best else None
        known = [v for v in (earlier, value) if v is not None]
        best.append(choose(known) if known else None)
    return best


def diminishing_returns(
    epochs: Sequence[float], values: Sequence[float | None], direction: str, rate: float = DIMINISHING_RATE
) -> float | None:
    """Finds the epoch after which the running best gains less than a rate, whichever later point it is compared with.

    It is the first validated epoch e, the last one excepted, such that for every later validated epoch f the running
    best b changes by less than `rate * |b(e)| * (f - e)`, or not at all.

    Args:
        epochs: of the validations, rising.
        values: of the metric; None where it was not finite.
        direction: "min" or "max", which is better.
        rate: least gain that counts, as a share of the running best per epoch; 0 asks for the epoch of the best value.

    Returns:
        The epoch, or None if gains stayed at or above the rate up to the last validation.

    Raises:
        ValueError: an unknown direction, or lists of different lengths.
    """
    best = running_best(values, direction)
    points = [(epoch, value) for epoch, value in zip(epochs, best, strict=True) if value is not None]
    for position, (epoch, value) in enumerate(points[:-1]):
        gains = ((abs(later - value), rate * abs(value) * (e - epoch)) for e, later in points[position + 1 :])
        if all(gain == 0 or gain < allowed for gain, allowed in gains):
            return epoch
    return None


def robust_limits(values: Sequence[float]) -> tuple[float, float]:
    """Returns the range that an axis should show: everything, unless a few values would flatten the rest.

    Left out are values that lie further from the middle 80% than three times the spread of those: at most a tenth of
    the values at each end (at least one, of four or more). Of fewer than twenty values the middle says less, and they
    must lie further out in proportion. Where the middle is constant there is nothing to flatten.

    Args:
        values: finite, at least one.

    Returns:
        Lowest and highest value to show.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    if len(ordered) >= 4:
        cut = math.ceil((1 - MIDDLE_SHARE) / 2 * len(ordered))
        low, high = ordered[cut], ordered[-1 - cut]
        reach = OUTLYING * max(1.0, 20 / len(ordered)) * (high - low)
        if reach > 0:
            ordered = ordered[(ordered >= low - reach) & (ordered <= high + reach)]
    return float(ordered[0]), float(ordered[-1])


def axis_limits(curves: Sequence[Sequence[float | None]]) -> tuple[str, float, float]:
    """Chooses the scale and the limits of an axis for several curves, every one by its own robust range.

    Args:
        curves: values, None where there is none; at least one value in all.

    Returns:
        "log" or "linear", and the lowest and the highest value of the axis, margins included. Logarithmic if every
        value is positive and the robust range spans more than two decades.
    """
    known = [[value for value in values if value is not None] for values in curves]
    known = [values for values in known if values]
    if all(value > 0 for values in known for value in values):
        ranges = [robust_limits(np.log10(values)) for values in known]
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
        if high - low > math.log10(LOG_RATIO):
            margin = 0.05 * (high - low)
            return "log", 10 ** (low - margin), 10 ** (high + margin)
    ranges = [robust_limits(values) for values in known]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return "linear", low - margin, high + margin


def thin(epochs: Sequence[float], values: Sequence[float | None], points: int = POINTS) -> Series:
    """Leaves out points of a long curve that a reader would not see: of each stretch, least and greatest value stay.

    A missing value in a stretch stays missing.
    """
    if len(values) <= points:
        return list(epochs), list(values)
    edges = np.linspace(0, len(values), points // 2 + 1).astype(int)
    keep: set[int] = set()
    for start, stop in itertools.pairwise(edges.tolist()):
        known = [i for i in range(start, stop) if values[i] is not None]
        if known:
            keep |= {min(known, key=values.__getitem__), max(known, key=values.__getitem__)}
        if len(known) < stop - start:
            keep.add(next(i for i in range(start, stop) if values[i] is None))
    return [epochs[i] for i in sorted(keep)], [values[i] for i in sorted(keep)]


def beside(series: Series, other: Series) -> list[tuple[float, float, float]]:
    """Returns (epoch, value, mean of the other) for each value; the other's since the value before, both known.

    So a validation is compared with the training since the last one. The epochs of both rise.
    """
    points, start = [], 0
    for epoch, value in zip(*series, strict=True):
        stop = bisect.bisect_right(other[0], epoch)
        own = [v for v in other[1][start:stop] if v is not None]
        if value is not None and own:
            points.append((epoch, value, sum(own) / len(own)))
        start = stop
    return points


def best_point(series: Series, direction: str) -> tuple[float, float] | None:
    """Returns epoch and value of the best point, the first of equals; None without a value."""
    points = [(epoch, value) for epoch, value in zip(*series, strict=True) if value is not None]
    if not points:
        return None
    return (min if direction == "min" else max)(points, key=lambda point: point[1])


def remark(curves: Sequence[Sequence[float | None]]) -> str:
    """Says how many values of a drawing lie beyond its axis or are missing; "" if none."""
    known = [value for values in curves for value in values if value is not None]
    missing = sum(len(values) for values in curves) - len(known)
    parts = []
    if known:
        _, low, high = axis_limits(curves)
        beyond = [value for value in known if not low <= value <= high]
        if beyond:
            furthest = max(beyond, key=abs)
            marks = "triangle at the edge" if len(beyond) == 1 else "triangles at the edges"
            parts.append(f"Beyond the axis ({marks}): {len(beyond)}, furthest {furthest:.4g}.")
    if missing:
        parts.append(f"Not finite (crosses at the bottom): {missing}.")
    return " ".join(parts)


def draw(
    series: Mapping[str, Series],
    *,
    name: str,
    y_label: str,
    last_epoch: float,
    bands: Sequence[Band] = (),
    best: str = "",
) -> str:
    """Draws curves over epochs as an SVG element to stand inside an HTML page; no reference leaves it.

    Args:
        series: curves by label; one that has no value at all is left out.
        name: letters and digits, unique on the page: begins all names inside the SVG.
        y_label: quantity and unit.
        last_epoch: end of the horizontal axis.
        bands: phases, shaded and labelled.
        best: "min" or "max" marks the best point of each curve with a star; "" marks none.

    Returns:
        `<svg ...>...</svg>`, the same text for the same arguments; "" if no curve has a value.
    """
    series = {label: own for label, own in series.items() if any(value is not None for value in own[1])}
    if not series:
        return ""
    legend_rows = math.ceil(len(series) / 2) if len(series) > 1 else 0
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 2.5 + 0.19 * legend_rows + 0.15 * bool(bands)), layout="constrained")
        axes = figure.subplots()
        scale, low, high = axis_limits([values for _, values in series.values()])
        _set_axes(axes, scale, (low, high), y_label, last_epoch)
        _draw_bands(axes, bands)
        lines = [_draw_curve(axes, own, number, scale, (low, high), best) for number, own in enumerate(series.values())]
        if len(series) > 1:
            # A label that begins with an underscore would be hidden.
            labels = [f" {label}" if label.startswith("_") else label for label in series]
            legend = figure.legend(lines, labels, loc="outside upper left", ncols=2, frameon=False, handlelength=3)
            for text in legend.get_texts():
                text.set_parse_math(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _inline(buffer.getvalue(), name, f"{y_label} over epochs: {', '.join(series)}")


def _set_axes(axes: Axes, scale: str, limits: tuple[float, float], y_label: str, last_epoch: float) -> None:
    axes.set_yscale(scale)
    axes.set_ylim(*limits)
    margin = 0.02 * (last_epoch or 1.0)
    axes.set_xlim(-margin, (last_epoch or 1.0) + margin)
    axes.set_xlabel("epoch")
    axes.set_ylabel(y_label, parse_math=False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=TICK_STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if scale == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=TICK_STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_bands(axes: Axes, bands: Sequence[Band]) -> None:
    phases = sorted({band[0] for band in bands}, key=[band[0] for band in bands].index)
    width = axes.get_xlim()[1] - axes.get_xlim()[0]
    for phase, start, stop in bands:
        axes.axvspan(start, stop, color=SHADES[phases.index(phase) % len(SHADES)], linewidth=0, zorder=0)
        axes.axvline(start, color="#999999", linewidth=0.6, zorder=0.5)
        if len(bands) <= LABELLED_BANDS:
            # About 60 characters of this size fit above the axes; a label that does not fit its band stands upright.
            fits = len(phase) < 60 * (stop - start) / width
            axes.text(
                (start + stop) / 2, 1.01 if fits else 0.98, phase, transform=axes.get_xaxis_transform(), fontsize=8,
                ha="center", va="bottom" if fits else "top", rotation=0 if fits else 90, color="#333333",
                parse_math=False, zorder=4,
                bbox={"facecolor": "white", "alpha": 0 if fits else 0.7, "linewidth": 0, "pad": 0.5},
            )  # fmt: skip


def _draw_curve(axes: Axes, own: Series, number: int, scale: str, limits: tuple[float, float], best: str) -> Line2D:
    """Draws one curve with the marks of values beyond the axis, of missing ones and of the best; returns its line."""
    (low, high), colour = limits, COLOURS[number % len(COLOURS)]
    epochs, values = thin(*own)
    x = np.array(epochs)
    y = np.array([math.nan if value is None else value for value in values])
    reach = (low - (high - low), high + (high - low)) if scale == "linear" else (low * low / high, high * high / low)
    (line,) = axes.plot(
        x, np.clip(y, *reach), color=colour, linestyle=DASHES[number % len(DASHES)], linewidth=1.2,
        marker="o" if len(values) <= MARKED_POINTS else None, markersize=2.5,
    )  # fmt: skip
    # Where its neighbours are missing, no line would show a point.
    gaps = np.isnan(np.concatenate([[math.nan], y, [math.nan]]))
    alone = gaps[:-2] & gaps[2:]
    axes.plot(x[alone], np.clip(y[alone], *reach), color=colour, linestyle="none", marker="o", markersize=2.5)
    marks = [(y > high, high, "^"), (y < low, low, "v"), (np.isnan(y), low, "x")]
    for chosen, height, marker in marks:
        if chosen.any():
            axes.plot(
                x[chosen], np.full(chosen.sum(), height), color=colour, linestyle="none", marker=marker, markersize=5,
                clip_on=False, zorder=4,
            )  # fmt: skip
    if best and (point := best_point(own, best)):
        axes.plot(
            point[0], np.clip(point[1], low, high), color=COLOURS[1], linestyle="none", marker="*", markersize=13,
            markeredgecolor="black", markeredgewidth=0.6, clip_on=False, zorder=5,
        )  # fmt: skip
    return line


def _inline(svg: str, name: str, description: str) -> str:
    """Cuts an SVG file down to an element for an HTML page that holds others: no prologue, no names in common."""
    svg = svg[svg.index("<svg") :].strip()
    # Its style would apply to the whole page, which says the same for every SVG.
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{name}-", svg)
    # The size comes from the page; the viewBox keeps the proportions.
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', svg, count=1)
    end = svg.index(">") + 1
    title = description.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"{svg[:end]}<title>{title}</title>{svg[end:]}"
