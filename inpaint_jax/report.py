"""One page about a run: `report.html` in its folder, a single file that needs no network and no script."""

import html
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections

from inpaint_jax import (
    buckets,
    curves,
    json_files,
    pages,
    picture_sections,
    reproduction,
    results_file,
    run_folder,
    starts,
    time_sections,
)
from inpaint_jax import config as config_module
from inpaint_jax.metrics import direction_of

RESULTS = f"{run_folder.TEST}/results.json"
WARNING_LINES = 50


def write_report(workdir: Path, rate: float = curves.DIMINISHING_RATE) -> Path:
    """Writes `report.html` into a run folder, finished or not, and returns its path.

    The page is a function of the files in the run folder alone.

    Args:
        workdir: the run folder; what is missing there is left out and named on the page.
        rate: least gain of the running best per epoch, as a share of its value, for the point of diminishing returns.

    Raises:
        ValueError: there is no such folder.
    """
    if not workdir.is_dir():
        raise ValueError(f"there is no run folder {str(workdir)!r}: give the --workdir of a run")
    run = _load(workdir)
    sections = {
        "Results": _results(run),
        "Curves": _curves(run),
        "Samples over training": picture_sections.samples(run),
        "Training against validation": _gap(run),
        "Diminishing returns": _returns(run, rate),
        "Throughput": time_sections.throughput(run),
        "Spot ledger": time_sections.spot_ledger(run),
        "Test pictures": picture_sections.test_pictures(run),
        "Networks": picture_sections.networks(run),
        "Configuration": reproduction.config_section(run),
        "Reproduce": reproduction.command_section(run),
        "Warnings": _warnings(run),
    }
    names = {title: title.lower().replace(" ", "-") for title, body in sections.items() if body}
    links = "".join(f'<a href="#{name}">{title}</a> ' for title, name in names.items())
    left_out = "; ".join(map(html.escape, run["missing"]))
    left_out = f'<p class="note">Not in this run folder, and so left out: {left_out}.</p>\n' if left_out else ""
    bodies = "".join(
        f'<section id="{name}"><h2>{title}</h2>\n{sections[title]}</section>\n' for title, name in names.items()
    )
    path = workdir / run_folder.REPORT
    pages.write_page(path, run["name"], f"{_header(run)}<nav>{links}</nav>", f"{left_out}{bodies}")
    return path


def _load(workdir: Path) -> dict[str, Any]:
    """Reads what a run folder holds; `missing` names what it lacks or what cannot be read."""
    missing: list[str] = []

    def read(name: str, how: Callable[[Path], Any]) -> Any:
        try:
            return how(workdir / name)
        except FileNotFoundError:
            missing.append(name)
        except (OSError, ValueError) as error:
            missing.append(f"{name}, which cannot be read ({error})")
        return None

    def rows(path: Path) -> list[dict]:
        path.stat()  # a missing file would count as one without rows
        return run_folder.read_rows(path)

    run: dict[str, Any] = {"workdir": workdir, "missing": missing}
    readers = {
        "config": (run_folder.CONFIG, _read_config),
        "results": (RESULTS, results_file.read),
        "environment": (run_folder.ENVIRONMENT, _read_environment),
        "starts": (run_folder.STARTS, starts.read),
    }
    for key, (name, how) in readers.items():
        run[key] = read(name, how) or {}
    hashes = config_module.hashes(ml_collections.ConfigDict(run["config"])) if run["config"] else {}
    if run["results"] and hashes and run["results"].get("hashes") != hashes:
        # As after more epochs were asked for, until the test that follows them.
        missing.append(f"{RESULTS}, which is of an earlier config")
        run["results"] = {}
    run["hashes"] = hashes
    run["rows"], run["timing"] = read(run_folder.METRICS, rows) or [], read(run_folder.TIMING, rows) or []
    log = read(run_folder.LOG, lambda path: path.read_text(encoding="utf-8", errors="replace"))
    run["log"] = (log or "").splitlines()
    run["train"], run["val"] = curves.series_of(run["rows"], "train"), curves.series_of(run["rows"], "val")
    run["last_epoch"] = max((row["epoch"] for row in run["rows"] if curves.is_number(row.get("epoch"))), default=0.0)
    run["bands"] = curves.phase_bands(run["rows"])
    run["monitor"] = run["config"].get("regime", {}).get("monitor", "")
    given = re.search(r"--?config[= ](\S+)", " ".join(map(str, run["environment"].get("command", []))))
    fallback = Path(given[1]).name if given else workdir.resolve().name
    run["name"] = str(run["results"].get("config", fallback))
    return run


def _read_config(path: Path) -> dict[str, Any]:
    found = json_files.read(path)
    config_module.on_base(config_module.from_json(json.dumps(found)))  # or it is none
    return found


def _read_environment(path: Path) -> dict[str, Any]:
    """Returns what is known of the machine; ValueError where it is of another kind than a run writes."""
    found, kinds = json_files.read(path), {"command": list, "devices": list, "packages": dict}
    if not isinstance(found, dict) or not all(
        isinstance(found.get(name, kind()), kind) for name, kind in kinds.items()
    ):
        raise ValueError("it does not describe a machine")
    return found


def _header(run: dict) -> str:
    results, environment = run["results"], run["environment"]
    times = [found[0] for line in run["log"] if (found := re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", line))]
    seconds = sum(row["seconds"] for row in run["timing"] if curves.is_number(row.get("seconds")))
    steps = max((row["step"] for row in run["rows"] if curves.is_number(row.get("step"))), default=0)
    done = f"{steps:,} steps, {run['last_epoch']:.4g} epochs"
    devices = Counter(map(str, environment.get("devices", [])))
    pairs = [
        ("Hashes", ", ".join(f"{name} {value}" for name, value in run["hashes"].items())),
        ("Last started", str(environment.get("started", ""))),
        ("Log", f"{times[0]} to {times[-1]}" if times else ""),
        ("Training", f"{pages.duration_text(seconds)}, {done}" if run["timing"] else done),
        ("Device", ", ".join(f"{n} x {name}" if n > 1 else name for name, n in devices.items()) or "not recorded"),
        ("Parameters", f"{results['parameters']:,} in the generator" if "parameters" in results else ""),
    ]
    verdict = html.escape(_verdict(run))
    return f'<h1>{html.escape(run["name"])}</h1>\n<p class="verdict">{verdict}</p>\n{pages.pairs(pairs)}'


def _verdict(run: dict) -> str:
    """Says in one sentence how good the run is."""
    tested = run["results"].get("metrics")
    if not tested:
        if not (point := _best_validation(run)):
            return "Unfinished: neither a test nor a validation yet."
        return f"Not tested yet. Best validation: {pages.label(run['monitor'])} {_with_unit(point[1], run['monitor'])}."
    metric = run["monitor"] if run["monitor"] in tested else next(iter(tested))
    ours, direction = tested[metric], direction_of(metric)
    text = f"{pages.label(metric)} {_with_unit(ours, metric)}"
    text = text[0].upper() + text[1:]
    others = {name: values.get(metric) for name, values in run["results"].get("baselines", {}).items()}
    others = {name: value for name, value in others.items() if curves.is_number(value)}
    if not others or not direction or not curves.is_number(ours):
        return f"{text}; there is nothing to compare it with."
    best = (min if direction == "min" else max)(others, key=others.__getitem__)
    parts = [
        f"{_compared(ours, others[name], metric)} {pages.METHODS.get(name, name)} "
        f"({pages.number_text(others[name], metric)})"
        for name in dict.fromkeys(("telea", best))
        if name in others
    ]
    return f"{text}, {' and '.join(parts)}, the best of the baselines; {pages.BETTER[direction]}."


def _with_unit(value: Any, metric: str) -> str:
    unit = pages.METRICS.get(metric, ("", "", 0))[1]
    return pages.number_text(value, metric) + (f" {unit}" if unit in ("degrees", "dB") else "")


def _compared(ours: float, other: float, metric: str) -> str:
    if ours == other:
        return "equal to"
    side = "below" if ours < other else "above"
    # Per cent of decibels, or of a similarity, would say little.
    if direction_of(metric) == "max" or other == 0:
        return f"{_with_unit(abs(ours - other), metric)} {side}"
    return f"{abs(ours - other) / abs(other):.0%} {side}"


def _best_validation(run: dict) -> tuple[float, float] | None:
    series, direction = run["val"].get(run["monitor"]), direction_of(run["monitor"])
    return curves.best_point(series, direction) if series and direction else None


def _results(run: dict) -> str:
    results = run["results"]
    if not results.get("metrics"):
        return ""
    facts = [f"{results['images']} held-out pictures"] if "images" in results else []
    facts += [f"mask set {results['mask_set']}"] if "mask_set" in results else []
    if curves.is_number(results.get("mean_hole_ratio")):
        facts.append(f"mean hole ratio {results['mean_hole_ratio']:.3f}")
    if dataset := results.get("dataset"):
        facts.append(" ".join(filter(None, ("data", dataset.get("source"), dataset.get("name")))))
    text = f"<p>{html.escape('; '.join(facts))}. The best of each column is bold.</p>\n" + _methods(results)
    if (large := results.get("large_holes")) and large.get("metrics"):
        text += (
            f"<h3>Large holes: the {large['images']} of them with a hole ratio over {large['hole_ratio_over']}</h3>\n"
        )
        text += _methods(large)
    text += _by_hole_ratio(results.get("buckets", []))
    if curves.is_number(seconds := results.get("inference_seconds_per_image")):
        text += f'<p class="note">Filling one picture of the native size takes {1000 * seconds:.3g} ms.</p>\n'
    return text


def _methods(results: dict) -> str:
    """Returns the table of ours and the baselines, the best of each metric bold."""
    methods = {"ours": results["metrics"], **results.get("baselines", {})}
    metrics = [m for m in pages.METRICS if m in results["metrics"]] + [
        m for m in results["metrics"] if m not in pages.METRICS
    ]
    head, rows = ["method"], [[html.escape(pages.METHODS.get(name, name))] for name in methods]
    for metric in metrics:
        label, unit, _ = pages.METRICS.get(metric, (metric, "", 0))
        notes = [note for note in (unit, pages.BETTER.get(direction_of(metric))) if note]
        head.append(html.escape(label) + "".join(f'<span class="unit">{html.escape(note)}</span>' for note in notes))
        known = [values[metric] for values in methods.values() if curves.is_number(values.get(metric))]
        choose = {"min": min, "max": max}.get(direction_of(metric))
        best = choose(known) if choose and known else math.nan  # which equals nothing
        for row, values in zip(rows, methods.values(), strict=True):
            cell = pages.number_text(values.get(metric), metric)
            row.append(f"<strong>{cell}</strong>" if values.get(metric) == best else cell)
    return pages.table(head, rows, chosen=[0])


def _by_hole_ratio(rows: list[dict]) -> str:
    """Returns the table of one metric, a column for each range of the hole ratio; nothing for a single range."""
    if len(rows) < 2:
        return ""
    metric = buckets.headline(rows[0]["metrics"])
    label, unit, _ = pages.METRICS[metric]
    counts = [f'<span class="unit">{row["images"]} pictures</span>' for row in rows]
    head = ["method", *(html.escape(row["name"]) + count for row, count in zip(rows, counts, strict=True))]
    methods = ["ours", *rows[0]["baselines"]]
    figures = [{"ours": row["metrics"], **row["baselines"]} for row in rows]
    body = [
        [html.escape(pages.METHODS.get(name, name)), *(pages.number_text(of[name][metric], metric) for of in figures)]
        for name in methods
    ]
    title = html.escape(f"By share of the picture that is hole: {label} ({unit})")
    return f"<h3>{title}</h3>\n" + pages.table(head, body, chosen=[0])


def _panel(run: dict, series: dict[str, curves.Series], title: str, axis: str, note: str, best: str = "") -> str:
    run["drawn"] = run.get("drawn", 0) + 1
    svg = curves.draw(
        series, name=f"c{run['drawn']}", y_label=axis, last_epoch=run["last_epoch"], bands=run["bands"], best=best
    )
    notes = [note, curves.remark([values for _, values in series.values()])]
    caption = html.escape(" ".join(filter(None, notes)))
    body = svg or "<p>No finite value.</p>"
    return f"<figure><h4>{html.escape(title)}</h4>{body}<figcaption>{caption}</figcaption></figure>\n"


def _validated(run: dict) -> list[str]:
    """Returns the validated metrics, the deciding one first; what training logs too is compared elsewhere."""
    order = [run["monitor"], *pages.METRICS, *run["val"]]
    return sorted((name for name in run["val"] if name not in run["train"]), key=order.index)


def _curves(run: dict) -> str:
    sections: dict[str, list[str]] = {}
    for name in _validated(run):
        series = run["val"][name]
        direction = direction_of(name)
        note = "Decides the best checkpoint. " if name == run["monitor"] else ""
        if direction and (point := curves.best_point(series, direction)):
            note += f"Best (star): {_with_unit(point[1], name)} at epoch {point[0]:.4g}; {pages.BETTER[direction]}."
        panel = _panel(run, {name: series}, pages.label(name), pages.axis_label(name), note, direction)
        sections.setdefault("Validation", []).append(panel)
    lines = []
    for heading, title, axis, note, names in curves.panels(run["train"]):
        own = {label: run["train"][name] for name, label in names.items()}
        if title == "Skipped updates" and not any(v for _, values in own.values() for v in values):
            lines += ["No logged step skipped an update."] if own else []
        elif own:
            sections.setdefault(heading, []).append(_panel(run, own, title, axis, note))
        elif heading != "Other" and run["train"]:
            lines.append(f"{title}: not logged.")
    text = "".join(f'<h3>{h}</h3>\n<div class="panels">\n{"".join(p)}</div>\n' for h, p in sections.items())
    if run["bands"]:
        spans = "; ".join(f"{phase} to epoch {stop:.4g}" for phase, _, stop in run["bands"][: curves.LABELLED_BANDS])
        lines.append(f"Shading: phases of training ({spans}).")
    return f'{text}<p class="note">{html.escape(" ".join(lines))}</p>\n' if text else ""


def _gap(run: dict) -> str:
    """Compares every quantity that both training and validation log."""
    if not run["train"] or not run["val"]:
        return ""
    both = {name: curves.beside(run["val"][name], run["train"][name]) for name in run["val"] if name in run["train"]}
    rows = []
    for name, points in both.items():
        if not points:
            continue
        cells = [html.escape(name)]
        for epoch, validation, training in (points[0], points[-1]):
            share = f"{(validation - training) / abs(training):+.1%}" if training else "-"
            cells += [f"{epoch:.4g}", pages.number_text(training, name), pages.number_text(validation, name), share]
        rows.append(cells)
    if not rows:
        return "<p>Nothing is logged for both training and validation, so no gap between them can be given.</p>\n"
    head = [
        "quantity",
        *(f"{when}{what}" for when in ("first: ", "last: ") for what in ("epoch", "train", "val", "gap")),
    ]
    panels = "".join(
        _panel(run, {"train": run["train"][name], "val": run["val"][name]}, name, pages.axis_label(name), "")
        for name in both
    )
    return (
        "<p>Validation beside the mean of training since the validation before. The gap is how far validation lies "
        "above training; one that grows while training improves is overfitting. Both differ in more than the pictures: "
        "training has augmentations, batch statistics and new masks, validation the averaged weights and fixed "
        f'masks.</p>\n{pages.table(head, rows)}<div class="panels">\n{panels}</div>\n'
    )


def _returns(run: dict, rate: float) -> str:
    """Says after which epoch the running best of each validated metric gained less than the rate."""
    rows = []
    names = [name for name in _validated(run) if direction_of(name)]
    for name in names:
        epochs, values = run["val"][name]
        direction = direction_of(name)
        best = dict(zip(epochs, curves.running_best(values, direction), strict=True))
        epoch, last = curves.diminishing_returns(epochs, values, direction, rate), epochs[-1]
        label = html.escape(pages.label(name))
        cells = [label, "not reached", "-", "-", pages.number_text(best[last], name), "-"]
        if epoch is not None:
            share = f"{abs(best[last] - best[epoch]) / abs(best[epoch]):.2%}" if best[epoch] else "-"
            cells = [
                label,
                f"{epoch:.4g}",
                f"{last - epoch:.4g}",
                pages.number_text(best[epoch], name),
                pages.number_text(best[last], name),
            ]
            cells.append(share)
        rows.append(cells)
    if not rows:
        return ""
    chosen, note = [], ""
    if names[0] == run["monitor"]:
        chosen, note = [0], " The shaded metric decides the best checkpoint."
    if run["config"].get("optimizer", {}).get("schedule") == "cosine":
        note += " The learning rate decays over this run: a shorter one, with its own decay, can end better than this "
        note += "one was at that epoch."
    head = ["metric", "epoch", "epochs after it", "best until then", "best of all", "gained after it"]
    return (
        f"<p>The first validated epoch after which the best value so far improves by less than {rate:.2%} of itself "
        "per epoch, on average from there to every later validation, and what training past it gained in all."
        f"{note}</p>\n{pages.table(head, rows, chosen=chosen)}"
    )


def _warnings(run: dict) -> str:
    if not run["log"]:
        return ""
    lines = [line for line in run["log"] if re.search(r"\b(WARNING|ERROR|CRITICAL)\b", line)]
    if not lines:
        return "<p>log.txt holds no warning and no error.</p>\n"
    shown = f"the last {WARNING_LINES} of {len(lines)}" if len(lines) > WARNING_LINES else f"{len(lines)}"
    text = html.escape("\n".join(lines[-WARNING_LINES:]))
    return f"<p>Warnings and errors in log.txt: {shown}.</p>\n<pre>{text}</pre>\n"
