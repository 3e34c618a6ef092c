"""Curves of compared runs: one loss in training and in validation over the epochs, or what validation watches."""

from collections.abc import Sequence

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from inpaint_jax import curves, pages, run_folder
from inpaint_jax.compare import Group, Run

COLUMNS = 4  # panels side by side
SMOOTHED = 15  # points of training to every one drawn boldly: single batches differ much
BEGINNING = 0.05  # share of the epochs that does not count for the vertical axis
END = 0.2  # share of the epochs that counts as the end
TRAINING, VALIDATION = curves.COLOURS[1], curves.COLOURS[0]

Curves = dict[str, curves.Series]  # "train" and "val"


def common_value(groups: Sequence[Group]) -> str:
    """Returns what is drawn: the first loss term that is the same in all groups and needs no discriminator.

    Where there is none, it is the validation value that decides the best checkpoint; "" if that differs too.
    """
    terms = [_terms(group) for group in groups]
    shared = (name for name, what in terms[0].items() if all(other.get(name) == what for other in terms))
    monitors = {group["runs"][0]["config"]["regime.monitor"] for group in groups}
    return next(shared, monitors.pop() if len(monitors) == 1 else "")


def _terms(group: Group) -> dict[str, tuple]:
    """Returns what each term that is used measures: its weight alone does not change its curve's meaning."""
    config = group["runs"][0]["config"]
    names = [key.split(".")[1] for key in config if key.startswith("losses.") and key.endswith(".fn")]
    used = [n for n in names if config[f"losses.{n}.weight"] and config[f"losses.{n}.fn"] != "adversarial"]
    return {f"loss/{n}": tuple(config.get(f"losses.{n}.{key}") for key in ("fn", "on", "region", "view")) for n in used}


def read_curves(run: Run, name: str) -> Curves:
    """Returns the curves of a value in training and in validation; without points where a run did not log it."""
    rows = run_folder.read_rows(run["folder"] / run_folder.METRICS)
    return {split: curves.series_of(rows, split).get(name, ([], [])) for split in ("train", "val")}


def final_gap(series: Curves) -> float | None:
    """Returns mean validated value / mean training value over the last fifth of the epochs; None without both."""
    last = max((epochs[-1] for epochs, _ in series.values() if epochs), default=0.0)
    means = {}
    for split, (epochs, values) in series.items():
        known = [v for e, v in zip(epochs, values, strict=True) if v is not None and e > (1 - END) * last]
        means[split] = float(np.mean(known)) if known else 0.0
    return means["val"] / means["train"] if all(means.values()) else None


def running_mean(values: Sequence[float | None], width: int) -> np.ndarray:
    """Returns the mean of the known values around each point, of about `width` points; NaN where none is known."""
    known = np.array([np.nan if value is None else value for value in values])
    reach = width // 2
    around = [known[max(0, i - reach) : i + reach + 1] for i in range(len(known))]
    return np.array([np.mean(v[~np.isnan(v)]) if (~np.isnan(v)).any() else np.nan for v in around])


def draw_curves(groups: Sequence[Group]) -> np.ndarray | None:
    """Draws a panel for each group with the curves of each seed, uint8 (H, W, 3).

    Returns:
        None if the groups have no value in common, or no run logged it.
    """
    if not (name := common_value(groups)):
        return None
    members = [[read_curves(run, name) for run in group["runs"]] for group in groups]
    every = [points for series in members for one in series for points in one.values() if points[0]]
    last = max((epochs[-1] for epochs, _ in every), default=0.0)
    # Losses fall steeply in the first epochs, which would flatten what comes after.
    later = [[v for e, v in zip(*points, strict=True) if e > BEGINNING * last] for points in every]
    if not any(value is not None for values in later for value in values):
        return None
    scale, low, high = curves.axis_limits(later)
    columns = min(COLUMNS, len(groups))
    lines = -(-len(groups) // columns)
    with matplotlib.style.context(["default", curves.STYLE]):
        figure = Figure(figsize=(columns * 3.1, lines * 2.4 + 0.4), dpi=120, layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, group, series in zip(panels, groups, members, strict=False):
            _draw_panel(axes, group, series)
        panels[0].set(yscale=scale, ylim=(low, high), xlim=(0, last))
        for axes in panels[len(groups) :]:
            axes.set_visible(False)
        for axes in panels[max(0, len(groups) - columns) : len(groups)]:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("epoch")
        for axes in panels[::columns]:
            axes.set_ylabel(_axis_label(name))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.array(canvas.buffer_rgba())[..., :3]


def _axis_label(name: str) -> str:
    if name.startswith("loss/"):
        return f"{name.removeprefix('loss/')} loss"
    return f"{pages.label(name)} (validation)"


def _draw_panel(axes: Axes, group: Group, series: Sequence[Curves]) -> None:
    for number, (run, one) in enumerate(zip(group["runs"], series, strict=True)):
        labels = ("training", "validation", "tested generator") if number == 0 else (None, None, None)
        epochs, values = one["train"]
        if epochs:  # of a validation metric there are none
            smooth = running_mean(values, len(values) // SMOOTHED)
            axes.plot(epochs, running_mean(values, 1), color=TRAINING, linewidth=0.5, alpha=0.3, zorder=1)
            axes.plot(epochs, smooth, color=TRAINING, linewidth=1.2, label=labels[0], zorder=2)
        epochs, values = one["val"]
        axes.plot(epochs, running_mean(values, 1), color=VALIDATION, linewidth=1.2, label=labels[1], zorder=3)
        train = run["results"].get("train", {})
        if point := _tested_point(train, one["val"]):
            axes.plot(*point, "*", color="black", markersize=9, clip_on=False, label=labels[2], zorder=4)
    gaps = [gap for one in series if (gap := final_gap(one))]
    note = f"\nvalidation / training at the end: {np.mean(gaps):.2f}" if gaps else ""
    axes.set_title("\n".join(group["lines"]) + note, fontsize=8)


def _tested_point(train: dict, validation: curves.Series) -> tuple[float, float] | None:
    """Returns epoch and validated value of the tested generator; None if it was not validated then."""
    if not train.get("steps") or "tested_step" not in train:
        return None
    epoch = train["tested_step"] / train["steps"] * train["epochs"]
    return next(((e, v) for e, v in zip(*validation, strict=True) if v is not None and abs(e - epoch) < 1e-6), None)
