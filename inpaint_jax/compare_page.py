"""What a comparison looks like: box plot, curves, a wall of test pictures, and one page with all and the tables."""

import html
import logging
from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from inpaint_jax import compare, compare_curves, curves, image_files, pages, run_folder
from inpaint_jax.baselines import baselines_for
from inpaint_jax.compare import Group
from inpaint_jax.metrics import direction_of

log = logging.getLogger("inpaint_jax")

CSV, PLOT, CURVES, WALL, PAGE = "compare.csv", "compare.png", "curves.png", "wall.png", "compare.html"
WALL_COLUMNS = 8
PICTURE_BYTES = 4_000_000  # of the page that one picture may take; beyond, it is made smaller
# Baselines beyond the runs are left out of a panel if showing them would leave the runs less than this share of it.
RUNS_SHARE = 1 / 8


def write_comparison(groups: Sequence[Group], out: Path, page: bool) -> list[dict]:
    """Writes the CSV, the pictures that can be drawn and, if asked for, the page; returns the rows of the CSV.

    What an earlier comparison left in `out` is replaced, or removed if there is nothing to put in its place.
    """
    rows = compare.statistics(groups)
    run_folder.write_text(out / CSV, compare.csv_text(rows))
    image_files.write_png(out / PLOT, draw_plot(groups))
    _write_or_remove(
        out / CURVES, compare_curves.draw_curves(groups), "the groups watch no value in common, or logged none"
    )
    _write_or_remove(out / WALL, draw_wall(groups), "the runs have no test pictures in common")
    if page:
        _write_page(out, groups, rows)
    else:
        (out / PAGE).unlink(missing_ok=True)
    return rows


def _write_or_remove(path: Path, picture: np.ndarray | None, reason: str) -> None:
    if picture is None:
        log.warning("no %s: %s", path.name, reason)
        path.unlink(missing_ok=True)
    else:
        image_files.write_png(path, picture)


def panel_limits(runs: Sequence[float], baselines: Sequence[float]) -> tuple[float, float]:
    """Returns the range of values that a panel shows, margins not included.

    A run counts as lost, and is clipped, if it lies further beyond the median run and all baselines than these lie
    apart. Baselines belong to the range, the nearest first, as long as the runs keep an eighth of it.

    Args:
        runs: values of single runs, at least one.
        baselines: values of the baselines.
    """
    known = [float(np.median(runs)), *baselines]
    width = max(known) - min(known)
    if width == 0:
        return curves.robust_limits(runs)
    shown = [value for value in runs if min(known) - width <= value <= max(known) + width] or list(runs)
    low, high = min(shown), max(shown)
    for value in sorted(baselines, key=lambda value: max(low - value, value - high)):
        wider = max(high, value) - min(low, value)
        if max(shown) - min(shown) >= RUNS_SHARE * wider or max(shown) == min(shown):
            low, high = min(low, value), max(high, value)
    return low, high


def draw_plot(groups: Sequence[Group]) -> np.ndarray:
    """Draws the box plot, uint8 (H, W, 3): a panel for each hole metric, a box for each group, a point for each run."""
    first = groups[0]["runs"][0]["results"]
    metrics = [metric for metric in pages.METRICS if metric.endswith("_hole") and metric in first["metrics"]]
    metrics += [metric for metric in first["metrics"] if metric.endswith("_hole") and metric not in metrics]
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    labels = _group_labels(groups)
    size = (columns * 3.2 + 0.065 * max(map(len, labels)), lines * (0.9 + 0.3 * len(groups)) + 0.4)
    with matplotlib.style.context(["default", curves.STYLE]):
        figure = Figure(figsize=size, dpi=120, layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
        for axes, metric in zip(panels, metrics, strict=False):
            _draw_panel(axes, groups, first["baselines"], metric)
        for axes in panels[len(metrics) :]:
            axes.set_visible(False)
        panels[0].set_yticks(range(1, len(groups) + 1), labels)
        panels[0].set_ylim(len(groups) + 0.6, 0.4)  # the first group at the top
        shown = {}  # name -> line, of those that any panel shows
        for axes in panels:
            shown |= {name: line for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(shown.values(), shown, loc="outside upper center", ncols=5, frameon=False, fontsize=8)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.array(canvas.buffer_rgba())[..., :3]


def _group_labels(groups: Sequence[Group]) -> list[str]:
    """Returns the groups' labels; a config's name that all have in common says nothing there."""
    common = len(groups) > 1 and len({group["config"] for group in groups}) == 1
    return [", ".join(group["lines"][1 if common else 0 :]) for group in groups]


def _draw_panel(axes: Axes, groups: Sequence[Group], baselines: dict[str, dict], metric: str) -> None:
    members = [[run["results"]["metrics"][metric] for run in group["runs"]] for group in groups]
    fills = {name: values[metric] for name, values in baselines.items()}
    low, high = panel_limits([value for values in members for value in values], list(fills.values()))
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    left, right = low - margin, high + margin
    axes.set_xlim(left, right)
    axes.locator_params(axis="x", nbins=6)
    axes.ticklabel_format(axis="x", scilimits=(-3, 4))  # long figures would run into each other
    for number, (name, value) in enumerate(fills.items()):
        style = {"color": curves.COLOURS[number % len(curves.COLOURS)], "dashes": (2 + 2 * number, 2), "linewidth": 1.2}
        if left <= value <= right:
            axes.axvline(value, label=pages.METHODS.get(name, name), zorder=1, **style)
    boxes = axes.boxplot(
        members, orientation="horizontal", widths=0.5, showfliers=False, patch_artist=True, manage_ticks=False, zorder=2
    )
    for box in boxes["boxes"]:
        box.set(facecolor="#dce9f5", alpha=0.8)
    for line in boxes["medians"]:
        line.set(color="black", linewidth=1.5)
    for position, values in enumerate(members, 1):
        _draw_points(axes, position, values, left, right)
    direction = pages.BETTER.get(direction_of(metric), "")
    label, unit, decimals = pages.METRICS.get(metric, (metric, "", 4))
    axes.set_xlabel(f"{label}\n({', '.join(filter(None, (unit, direction)))})")
    beyond = [f"{pages.METHODS.get(n, n)} {v:.{decimals}f}" for n, v in fills.items() if not left <= v <= right]
    if beyond:
        axes.set_title(f"not shown: {', '.join(beyond)}", fontsize=7, color="#444444", loc="right")


def _draw_points(axes: Axes, position: int, values: Sequence[float], left: float, right: float) -> None:
    """Draws the single runs of a group, one below the other in the order of their seeds; clipped ones as triangles."""
    offsets = np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else [0.0]
    for offset, value in zip(offsets, values, strict=True):
        inside = left <= value <= right
        marker, place = ("o", value) if inside else (">", right) if value > right else ("<", left)
        axes.plot(
            place, position + offset, marker, color="black" if inside else "#b30000", markersize=4 if inside else 8,
            clip_on=False, zorder=4,
        )  # fmt: skip
    for place, side, shift, clipped in (
        (right, "right", -7, [value for value in values if value > right]),
        (left, "left", 7, [value for value in values if value < left]),
    ):
        if clipped:
            axes.annotate(
                ", ".join(f"{value:.4g}" for value in clipped), (place, position), xytext=(shift, 0),
                textcoords="offset points", ha=side, va="center", color="#b30000", fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5}, zorder=5,
            )  # fmt: skip


def draw_wall(groups: Sequence[Group], columns: int = WALL_COLUMNS) -> np.ndarray | None:
    """Lays the same test pictures one below the other: masked, by OpenCV, by the first seed of each group, truth.

    Returns:
        uint8 (H, W, 3), or None if the runs have no test pictures in common.
    """
    folders = [group["runs"][0]["folder"] / run_folder.TEST / "images" for group in groups]
    indices = sorted(set.intersection(*({p.name.split("_")[0] for p in f.glob("*_completed.png")} for f in folders)))
    chosen = indices[:columns]
    if not chosen:
        return None
    masked = [image_files.read_rgb(folders[0] / f"{index}_masked.png") for index in chosen]
    holes = [image_files.read_rgb(folders[0] / f"{index}_mask.png")[..., 0] // 255 for index in chosen]
    fills = baselines_for(groups[0]["runs"][0]["config"]["data.kind"] == "normal_maps")
    pictures = {"masked": masked}
    for name in ("telea", "navier_stokes"):
        pictures[pages.METHODS[name]] = [fills[name](*pair) for pair in zip(masked, holes, strict=True)]
    for group, folder in zip(groups, folders, strict=True):
        title = "\n".join([*group["lines"], f"seed {group['runs'][0]['seed']}"])
        pictures[title] = [image_files.read_rgb(folder / f"{index}_completed.png") for index in chosen]
    pictures["truth"] = [image_files.read_rgb(folders[0] / f"{index}_truth.png") for index in chosen]
    return image_files.picture_grid(list(pictures.values()), chosen, list(pictures))


def _write_page(out: Path, groups: Sequence[Group], rows: Sequence[dict]) -> None:
    results = groups[0]["runs"][0]["results"]
    facts = f"{sum(len(g['runs']) for g in groups)} runs in {len(groups)} groups, tested on the same "
    facts += f"{results['images']} pictures with the mask set {results['mask_set']}"
    overfitting = "A line for each seed; where validation rises while training falls, a run overfits."
    watched = "What validation watches, a line for each seed; the groups train on no loss in common."
    drawn = overfitting if compare_curves.common_value(groups).startswith("loss/") else watched
    sections = [
        ("Results", _results_section(rows)),
        ("Box plot", _picture(out / PLOT, "A box for each group, a point for each run, a line for each baseline. A red "
                                          "triangle is a run far outside, with its value.")),
        ("Training and validation", _picture(out / CURVES, drawn)),
        ("Test pictures", _picture(out / WALL, "The same held-out pictures, filled by OpenCV and by the first seed of "
                                               "each group.")),
        ("Config differences", _differences(groups)),
        ("Runs", _runs(groups)),
    ]  # fmt: skip
    body = "".join(f"<section><h2>{title}</h2>\n{text}</section>\n" for title, text in sections if text)
    header = f"<h1>Comparison of runs</h1><p>{html.escape(facts)}.</p>"
    pages.write_page(out / PAGE, "Comparison of runs", header, body)


def _results_section(rows: Sequence[dict]) -> str:
    metrics = [m for m in pages.METRICS if any(row["metric"] == m for row in rows)]
    metrics += [m for m in dict.fromkeys(row["metric"] for row in rows) if m not in metrics]
    hole = [metric for metric in metrics if metric.endswith("_hole")]
    notes = ["Mean and standard deviation of seeds; the best mean of each column is bold."]
    if any(compare.close_to_best(rows, metric) for metric in metrics):
        notes.append(
            "≈ differs from the best by no more than a standard deviation, the larger of the two: chance may "
            "have decided."
        )
    if any(row["seeds"] == 1 and row["config"] != compare.BASELINE for row in rows):
        notes.append("Of a group with one seed nothing is known about its spread.")
    text = f"<p>{html.escape(' '.join(notes))}</p>\n"
    text += f"<h3>Inside the hole</h3>\n{_results_table(rows, hole)}" if hole else ""
    whole = [metric for metric in metrics if metric not in hole]
    return text + (f"<h3>Whole image</h3>\n{_results_table(rows, whole)}" if whole else "")


def _results_table(rows: Sequence[dict], metrics: Sequence[str]) -> str:
    head, close = ["group", "seeds"], {}
    for metric in metrics:
        row = next(row for row in rows if row["metric"] == metric)
        units = [f'<span class="unit">{html.escape(row[k])}</span>' for k in ("unit", "direction") if row[k]]
        head.append(html.escape(pages.METRICS.get(metric, (metric, "", 0))[0]) + "".join(units))
        close[metric] = compare.close_to_best(rows, metric)
    lines = []
    for group in dict.fromkeys(row["group"] for row in rows):
        own = {row["metric"]: row for row in rows if row["group"] == group}
        one = own[metrics[0]]
        cells = [html.escape(group), "" if one["config"] == compare.BASELINE else str(one["seeds"])]
        for metric in metrics:
            text = html.escape(compare.mean_text(own[metric]))
            text = f"<strong>{text}</strong>" if compare.is_best(rows, own[metric]) else text
            cells.append(f"≈ {text}" if group in close[metric] else text)
        lines.append(cells)
    return pages.table(head, lines)


def _picture(path: Path, caption: str) -> str:
    if not path.exists():
        return ""
    image = pages.embedded_picture(path, PICTURE_BYTES)
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>\n"


def _differences(groups: Sequence[Group]) -> str:
    configs = [group["runs"][0]["config"] for group in groups]
    fields = compare.differing_fields(configs)
    if not fields:
        return "<p>One group, so nothing differs but the seed.</p>\n"
    lines = [[html.escape(f), *(html.escape(compare.value_text(c, f, longest=200)) for c in configs)] for f in fields]
    names = [html.escape(group["label"]) for group in groups]
    return f'<div class="fields">{pages.table(["field", *names], lines, texts=len(names) + 1)}</div>'


def _runs(groups: Sequence[Group]) -> str:
    lines = []
    for group in groups:
        for run in group["runs"]:
            train = run["results"].get("train", {})
            numbers = [str(run["seed"]), str(train.get("steps", "")), f"{train.get('seconds', 0):.0f}"]
            lines.append([html.escape(str(run["folder"])), html.escape(group["label"]), *numbers])
    return pages.table(["run folder", "group", "seed", "steps", "training seconds"], lines, texts=2)
