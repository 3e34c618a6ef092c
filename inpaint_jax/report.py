"""One page about a run: `report.html` in its folder, a single file that needs no network and no script."""

import base64
import html
import importlib
import importlib.util
import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from PIL import Image

from configs import common
from inpaint_jax import config as config_module
from inpaint_jax import curves, run_folder
from inpaint_jax.metrics import METRIC_DIRECTION

RESULTS, TEST_SAMPLES = f"{run_folder.TEST}/results.json", f"{run_folder.TEST}/samples.png"
# Bytes of the page that pictures may take; beyond its share, a picture is made smaller.
SAMPLES_BYTES, TEST_BYTES, NETWORKS_BYTES = 2_000_000, 1_000_000, 1_000_000
FRAMES = 6  # sample grids at most
TIMING_LINES = 10
WARNING_LINES = 50

# Name, unit and decimals of the metrics; one that is not here is shown under its own name.
METRICS = {
    "angular_error_deg_hole": ("hole angular error", "degrees", 2),
    "psnr_db_hole": ("hole PSNR", "dB", 2),
    "ssim_hole": ("hole SSIM", "1 = equal", 4),
    "l1_hole": ("hole L1", "of the value range", 4),
    "psnr_db_full": ("whole-image PSNR", "dB", 2),
    "ssim_full": ("whole-image SSIM", "1 = equal", 4),
    "l1_full": ("whole-image L1", "of the value range", 4),
}
METHODS = {"mean_fill": "mean fill", "flat_fill": "flat fill", "telea": "Telea", "navier_stokes": "Navier-Stokes"}
BETTER = {"min": "lower is better", "max": "higher is better"}
STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1rem;font:16px/1.45 system-ui,sans-serif;color:#1a1a1a;background:#fff}
h1{font-size:1.5rem;margin:0 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;border-top:2px solid #333;padding-top:.4rem;margin:1.8rem 0 .6rem}
h3{font-size:1rem;margin:1rem 0 .3rem}
.verdict{font-size:1.15rem;font-weight:600;margin:.3rem 0}p{margin:.4rem 0;max-width:60rem}
.note,figcaption{color:#444;font-size:.85rem}.unit{color:#444;font-size:.9em;font-weight:400;display:block}
nav{margin:.6rem 0}nav a{display:inline-block;margin-right:1rem;color:#0050a0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:.5rem 0;font-size:.95rem}
dt{color:#444}dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:.5rem 0}table{border-collapse:collapse;font-size:.9rem}
th,td{padding:.25rem .6rem;border-bottom:1px solid #ccc;text-align:left;vertical-align:bottom}
th:first-child,td:first-child{position:sticky;left:0;background:#fff}td{white-space:nowrap}
.number{text-align:right;font-variant-numeric:tabular-nums}tr.chosen td{background:#eaf2fb;print-color-adjust:exact}
.fields td{font-family:ui-monospace,monospace;font-size:.8rem;padding:.1rem .5rem;vertical-align:top}
.fields td:first-child{position:static}.fields td+td{white-space:normal;overflow-wrap:anywhere;min-width:8rem}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));gap:.8rem 1.2rem}
figure{margin:.4rem 0;break-inside:avoid}figure h4{margin:0;font-size:.95rem}svg{width:100%;height:auto;display:block}
svg *{stroke-linejoin:round;stroke-linecap:butt}img{max-width:100%;height:auto;display:block;border:1px solid #ccc}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f4f4f4;border:1px solid #ccc;padding:.6rem;font-size:.85rem}
.frames input{position:absolute;opacity:0}.frames figure{display:none}.frames input:checked+label{background:#cfe3f7}
.frames label{display:inline-block;border:1px solid #555;border-radius:.3rem;padding:.2rem .6rem;margin:.15rem}
.frames input:focus-visible+label{outline:3px solid #0050a0}
@media print{body{font-size:10pt;max-width:none;padding:0}nav,.frames input,.frames label{display:none}
.frames figure{display:inline-block!important;width:32%;vertical-align:top}.wide{overflow:visible}
.panels{grid-template-columns:1fr 1fr}table{font-size:8pt}th,td{padding:.1rem .3rem}h2,h3{break-after:avoid}}
"""


def write_report(workdir: Path, rate: float = curves.DIMINISHING_RATE) -> Path:
    """Writes `report.html` into a run folder, finished or not, and returns its path.

    Args:
        workdir: the run folder; what is missing there is left out and named on the page.
        rate: least gain of the running best per epoch, as a share of its value, for the point of diminishing returns.

    Raises:
        ValueError: there is no such folder.
    """
    if not workdir.is_dir():
        raise ValueError(f"there is no run folder {str(workdir)!r}: give the --workdir of a run")
    path = workdir / run_folder.REPORT
    # ASCII with character references: the same characters whatever encoding a machine writes and reads by default.
    run_folder.write_text(path, page(workdir, rate).encode("ascii", "xmlcharrefreplace").decode("ascii"))
    return path


def page(workdir: Path, rate: float = curves.DIMINISHING_RATE) -> str:
    """Returns the HTML of the page: a function of the files in the run folder alone."""
    run = _load(workdir)
    sections = {
        "Results": _results(run),
        "Curves": _curves(run),
        "Samples over training": _samples(run),
        "Training against validation": _gap(run),
        "Diminishing returns": _returns(run, rate),
        "Throughput": _throughput(run),
        "Test pictures": _picture(
            run, TEST_SAMPLES, TEST_BYTES, "Held-out pictures; completed is the fill of this run."
        ),
        "Networks": _picture(run, run_folder.NETWORKS, NETWORKS_BYTES, "The networks of this run."),
        "Configuration": _config(run),
        "Reproduce": _reproduce(run),
        "Warnings": _warnings(run),
    }
    names = {title: title.lower().replace(" ", "-") for title, body in sections.items() if body}
    links = "".join(f'<a href="#{name}">{title}</a> ' for title, name in names.items())
    left_out = "; ".join(map(html.escape, run["missing"]))
    left_out = f'<p class="note">Not in this run folder, and so left out: {left_out}.</p>\n' if left_out else ""
    bodies = "".join(
        f'<section id="{name}"><h2>{title}</h2>\n{sections[title]}</section>\n' for title, name in names.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{html.escape(run['name'])}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>{_header(run)}<nav>{links}</nav></header>\n{left_out}<main>\n{bodies}</main>\n</body>\n</html>\n"
    )


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
        return [row for row in run_folder.read_rows(path) if isinstance(row, dict)]

    run: dict[str, Any] = {"workdir": workdir, "missing": missing}
    for key, name in (("config", run_folder.CONFIG), ("results", RESULTS), ("environment", run_folder.ENVIRONMENT)):
        value = read(name, lambda path: json.loads(path.read_text(encoding="utf-8")))
        run[key] = value if isinstance(value, dict) else {}
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


# Text of one value or one table.


def _label(metric: str) -> str:
    return METRICS.get(metric, (metric, "", 0))[0]


def _axis(metric: str) -> str:
    # Short, because the title above says the whole.
    label, unit, _ = METRICS.get(metric, (metric, "", 0))
    return f"{label.split()[-1]} ({unit})" if unit else label


def _number(value: Any, metric: str = "") -> str:
    if not curves.is_number(value):
        return "not finite"
    return f"{value:.{METRICS[metric][2]}f}" if metric in METRICS else f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1, chosen: Sequence[int] = ()) -> str:
    """Returns a table of cells that are HTML already; the first `texts` columns hold text, the others numbers."""

    def line(cells: Sequence[str], tag: str, name: str = "") -> str:
        classes = ['class="number"' if column >= texts else "" for column in range(len(cells))]
        inner = "".join(f"<{tag} {c}>{cell}</{tag}>" for c, cell in zip(classes, cells, strict=True))
        return f"<tr{name}>{inner}</tr>\n"

    body = "".join(line(row, "td", ' class="chosen"' if number in chosen else "") for number, row in enumerate(rows))
    return f'<div class="wide"><table>\n<thead>{line(head, "th")}</thead>\n<tbody>\n{body}</tbody></table></div>\n'


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>' for k, v in pairs if v)}</dl>\n"


# Sections.


def _header(run: dict) -> str:
    results, environment = run["results"], run["environment"]
    hashes = results.get("hashes") or {}
    if not hashes and run["config"]:
        hashes = config_module.hashes(ml_collections.ConfigDict(run["config"]))
    times = [found[0] for line in run["log"] if (found := re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", line))]
    seconds = sum(row["seconds"] for row in run["timing"] if curves.is_number(row.get("seconds")))
    steps = max((row["step"] for row in run["rows"] if curves.is_number(row.get("step"))), default=0)
    done = f"{steps:,} steps, {run['last_epoch']:.4g} epochs"
    devices = Counter(map(str, environment.get("devices", [])))
    pairs = [
        ("Hashes", ", ".join(f"{name} {value}" for name, value in hashes.items())),
        ("Last started", str(environment.get("started", ""))),
        ("Log", f"{times[0]} to {times[-1]}" if times else ""),
        ("Training", f"{_duration(seconds)}, {done}" if run["timing"] else done),
        ("Device", ", ".join(f"{n} x {name}" if n > 1 else name for name, n in devices.items()) or "not recorded"),
        ("Parameters", f"{results['parameters']:,} in the generator" if "parameters" in results else ""),
    ]
    verdict = html.escape(_verdict(run))
    return f'<h1>{html.escape(run["name"])}</h1>\n<p class="verdict">{verdict}</p>\n{_pairs(pairs)}'


def _verdict(run: dict) -> str:
    """Says in one sentence how good the run is."""
    tested = run["results"].get("metrics")
    if not tested:
        if not (point := _best_validation(run)):
            return "Unfinished: neither a test nor a validation yet."
        return f"Not tested yet. Best validation: {_label(run['monitor'])} {_with_unit(point[1], run['monitor'])}."
    metric = run["monitor"] if run["monitor"] in tested else next(iter(tested))
    ours, direction = tested[metric], METRIC_DIRECTION.get(metric)
    text = f"{_label(metric)} {_with_unit(ours, metric)}"
    text = text[0].upper() + text[1:]
    others = {name: values.get(metric) for name, values in run["results"].get("baselines", {}).items()}
    others = {name: value for name, value in others.items() if curves.is_number(value)}
    if not others or not direction or not curves.is_number(ours):
        return f"{text}; there is nothing to compare it with."
    best = (min if direction == "min" else max)(others, key=others.__getitem__)
    parts = [
        f"{_compared(ours, others[name], metric)} {METHODS.get(name, name)} ({_number(others[name], metric)})"
        for name in ("telea", best)[best == "telea" or "telea" not in others :]
    ]
    return f"{text}, {' and '.join(parts)}, the best of the baselines; {BETTER[direction]}."


def _with_unit(value: Any, metric: str) -> str:
    unit = METRICS.get(metric, ("", "", 0))[1]
    return _number(value, metric) + (f" {unit}" if unit in ("degrees", "dB") else "")


def _compared(ours: float, other: float, metric: str) -> str:
    if ours == other:
        return "equal to"
    side = "below" if ours < other else "above"
    # Per cent of decibels, or of a similarity, would say little.
    if METRIC_DIRECTION[metric] == "max" or other == 0:
        return f"{_with_unit(abs(ours - other), metric)} {side}"
    return f"{abs(ours - other) / abs(other):.0%} {side}"


def _best_validation(run: dict) -> tuple[float, float] | None:
    series, direction = run["val"].get(run["monitor"]), METRIC_DIRECTION.get(run["monitor"])
    return curves.best_point(series, direction) if series and direction else None


def _results(run: dict) -> str:
    results = run["results"]
    if not results.get("metrics"):
        return ""
    facts = [f"{results['images']} held-out pictures"] if "images" in results else []
    facts += [f"mask set {results['mask_set']}"] if "mask_set" in results else []
    if curves.is_number(results.get("mean_hole_ratio")):
        facts.append(f"mean hole ratio {results['mean_hole_ratio']:.3f}")
    facts += [f"data {results['dataset'].get('source')}"] if results.get("dataset") else []
    text = f"<p>{html.escape('; '.join(facts))}. The best of each column is bold.</p>\n" + _methods(results)
    if (large := results.get("large_holes")) and large.get("metrics"):
        text += (
            f"<h3>Large holes: the {large['images']} of them with a hole ratio over {large['hole_ratio_over']}</h3>\n"
        )
        text += _methods(large)
    if curves.is_number(seconds := results.get("inference_seconds_per_image")):
        text += f'<p class="note">Filling one picture of the native size takes {1000 * seconds:.3g} ms.</p>\n'
    return text


def _methods(results: dict) -> str:
    """Returns the table of ours and the baselines, the best of each metric bold."""
    methods = {"ours": results["metrics"], **results.get("baselines", {})}
    metrics = [m for m in METRICS if m in results["metrics"]] + [m for m in results["metrics"] if m not in METRICS]
    head, rows = ["method"], [[html.escape(METHODS.get(name, name))] for name in methods]
    for metric in metrics:
        label, unit, _ = METRICS.get(metric, (metric, "", 0))
        notes = [note for note in (unit, BETTER.get(METRIC_DIRECTION.get(metric, ""))) if note]
        head.append(html.escape(label) + "".join(f'<span class="unit">{html.escape(note)}</span>' for note in notes))
        known = [values[metric] for values in methods.values() if curves.is_number(values.get(metric))]
        best = (
            {"min": min, "max": max}[METRIC_DIRECTION[metric]](known) if known and metric in METRIC_DIRECTION else None
        )
        for row, values in zip(rows, methods.values(), strict=True):
            cell = _number(values.get(metric), metric)
            row.append(f"<strong>{cell}</strong>" if values.get(metric) == best is not None else cell)
    return _table(head, rows, chosen=[0])


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
    order = [run["monitor"], *METRICS, *run["val"]]
    return sorted((name for name in run["val"] if name not in run["train"]), key=order.index)


def _curves(run: dict) -> str:
    sections: dict[str, list[str]] = {}
    for name in _validated(run):
        series = run["val"][name]
        direction = METRIC_DIRECTION.get(name, "")
        note = "Decides the best checkpoint. " if name == run["monitor"] else ""
        if direction and (point := curves.best_point(series, direction)):
            note += f"Best (star): {_with_unit(point[1], name)} at epoch {point[0]:.4g}; {BETTER[direction]}."
        panel = _panel(run, {name: series}, _label(name), _axis(name), note, direction)
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


def _embedded(path: Path, limit: int) -> str:
    """Returns an <img> that holds the picture, as JPEG and smaller if its text in the page would exceed `limit` bytes.

    Raises:
        OSError: not a picture, or a damaged one.
    """
    data, kind = path.read_bytes(), "png"
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    size, scale = flat.size, 1.0
    while len(data) * 4 > limit * 3 and min(size) > 1:
        size = tuple(max(1, round(scale * side)) for side in flat.size)
        buffer, kind = io.BytesIO(), "jpeg"
        flat.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=88, subsampling=0)
        data, scale = buffer.getvalue(), 0.85 * scale
    text = base64.b64encode(data).decode("ascii")
    return f'<img alt="" width="{flat.width}" height="{flat.height}" src="data:image/{kind};base64,{text}">'


def _picture(run: dict, name: str, limit: int, caption: str) -> str:
    try:
        image = _embedded(run["workdir"] / name, limit)
    except FileNotFoundError:
        run["missing"].append(name)
        return ""
    except (OSError, Image.DecompressionBombError) as error:
        run["missing"].append(f"{name}, which cannot be shown ({error})")
        return ""
    return f'<figure class="wide">{image}<figcaption>{html.escape(caption)}</figcaption></figure>\n'


def _samples(run: dict) -> str:
    """Returns the sample grids with one radio button each: the same pictures in the same place, without a script."""
    paths = sorted((run["workdir"] / run_folder.SAMPLES).glob("step_*.png"))
    if not paths:
        run["missing"].append(f"{run_folder.SAMPLES}/")
        return ""
    count = min(FRAMES, len(paths))
    chosen = sorted({round(i * (len(paths) - 1) / max(1, count - 1)) for i in range(count)})
    epochs = {row.get("step"): row["epoch"] for row in run["rows"] if curves.is_number(row.get("epoch"))}
    buttons, frames, rules = "", "", ""
    for number, index in enumerate(chosen):
        step = int(re.sub(r"\D", "", paths[index].stem) or 0)
        label = f"step {step:,}" + (f", epoch {epochs[step]:.4g}" if step in epochs else "")
        name = f"{run_folder.SAMPLES}/{paths[index].name}"
        checked = " checked" if number == len(chosen) - 1 else ""
        buttons += (
            f'<input type="radio" name="frame" id="frame{number}"{checked}><label for="frame{number}">{label}</label>\n'
        )
        frames += _picture(run, name, SAMPLES_BYTES // len(chosen), label).replace('"wide"', f'"wide f{number}"')
        rules += f"#frame{number}:checked~.f{number}{{display:block}}"
    shown = f"{len(chosen)} of {len(paths)} grids" if len(chosen) < len(paths) else "All grids"
    limits = sum((SAMPLES_BYTES, TEST_BYTES, NETWORKS_BYTES)) / 1e6
    return (
        f"<p>The same validation pictures at different times (choose one; the arrow keys go on from there). {shown} of "
        f"{run_folder.SAMPLES}/ are shown; larger files are shown smaller, so that all pictures of this page stay "
        f'below {limits:.0f} MB.</p>\n<style>{rules}</style>\n<div class="frames">\n{buttons}{frames}</div>\n'
    )


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
            cells += [f"{epoch:.4g}", _number(training, name), _number(validation, name), share]
        rows.append(cells)
    if not rows:
        return "<p>Nothing is logged for both training and validation, so no gap between them can be given.</p>\n"
    head = [
        "quantity",
        *(f"{when}{what}" for when in ("first: ", "last: ") for what in ("epoch", "train", "val", "gap")),
    ]
    panels = "".join(
        _panel(run, {"train": run["train"][name], "val": run["val"][name]}, name, _axis(name), "") for name in both
    )
    return (
        "<p>Validation beside the mean of training since the validation before. The gap is how far validation lies "
        "above training; one that grows while training improves is overfitting. Both differ in more than the pictures: "
        "training has augmentations, batch statistics and new masks, validation the averaged weights and fixed "
        f'masks.</p>\n{_table(head, rows)}<div class="panels">\n{panels}</div>\n'
    )


def _returns(run: dict, rate: float) -> str:
    """Says after which epoch the running best of each validated metric gained less than the rate."""
    rows = []
    names = [name for name in _validated(run) if name in METRIC_DIRECTION]
    for name in names:
        epochs, values = run["val"][name]
        direction = METRIC_DIRECTION[name]
        best = dict(zip(epochs, curves.running_best(values, direction), strict=True))
        epoch, last = curves.diminishing_returns(epochs, values, direction, rate), epochs[-1]
        label = html.escape(_label(name))
        cells = [label, "not reached", "-", "-", _number(best[last], name), "-"]
        if epoch is not None:
            share = f"{abs(best[last] - best[epoch]) / abs(best[epoch]):.2%}" if best[epoch] else "-"
            cells = [
                label,
                f"{epoch:.4g}",
                f"{last - epoch:.4g}",
                _number(best[epoch], name),
                _number(best[last], name),
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
        f"{note}</p>\n{_table(head, rows, chosen=chosen)}"
    )


def _throughput(run: dict) -> str:
    """Sums up the timing rows in at most `TIMING_LINES` stretches."""
    keys = ("step", "seconds", "images", "data_wait_s")
    rows = [row for row in run["timing"] if all(curves.is_number(row.get(key)) for key in keys)]
    if not rows:
        return ""
    size = -(-len(rows) // TIMING_LINES)
    stretches = [rows[start : start + size] for start in range(0, len(rows), size)]
    table = []
    for part in (*stretches, rows):
        seconds, images, wait = (sum(row[key] for row in part) for key in keys[1:])
        label = f"to step {part[-1]['step']:,}" if part is not rows else "all"
        per_second, share = (images / seconds, wait / seconds) if seconds > 0 else (0.0, 0.0)
        table.append([label, f"{seconds:,.1f}", f"{images:,}", f"{per_second:,.1f}", f"{wait:,.2f}", f"{share:.1%}"])
    head = ["stretch", "seconds", "images", "images per second", "waited for data (s)", "share of the time"]
    note = "Seconds hold validation and checkpoints too, the first stretch also compilation."
    return f'{_table(head, table, chosen=[len(table) - 1])}<p class="note">{note}</p>\n'


def _config(run: dict) -> str:
    """Returns every field of the config; those that differ from the common base are marked and show its value."""
    if not run["config"]:
        return ""
    own = config_module.flatten(ml_collections.ConfigDict(run["config"]))
    base = {key: _plain(value) for key, value in config_module.flatten(common.base()).items()}
    rows, chosen = [], []
    for number, (key, value) in enumerate(own.items()):
        differs = key not in base or base[key] != value
        chosen += [number] if differs else []
        shown = "" if not differs else json.dumps(base[key]) if key in base else "(absent)"
        cells = [html.escape(text) for text in (key, json.dumps(value), shown)]
        rows.append([f"<strong>{cell}</strong>" for cell in cells[:2]] + cells[2:] if differs else cells)
    table = _table(["field", "value", "in the base"], rows, texts=3, chosen=chosen)
    note = f"{len(chosen)} of {len(rows)} fields differ from configs/common.py; they are bold and shaded."
    return f'<p>{note}</p>\n<div class="fields">{table}</div>'


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))  # tuples within tuples become lists, as in config.json


def _command(run: dict) -> tuple[str, str]:
    """Returns the command of the run, as recorded or put together from its config, and a note on it."""
    if recorded := run["environment"].get("command"):
        return shlex.join(map(str, recorded)), ""
    stem, _, argument = run["name"].removesuffix(".py").replace(".py:", ":").partition(":")
    if not run["config"] or not stem.isidentifier() or not importlib.util.find_spec(f"configs.{stem}"):
        return "", "Neither the command nor a config of this repository is recorded."
    own = config_module.flatten(config_module.from_json(json.dumps(run["config"])))
    try:
        start = config_module.flatten(importlib.import_module(f"configs.{stem}").get_config(argument))
    except (AttributeError, ValueError) as error:
        return "", f"The command cannot be put together: {error}."
    words = ["python", "launch/main.py", "--config", f"configs/{stem}.py" + (f":{argument}" if argument else "")]
    changed = {key: value for key, value in own.items() if key in start and start[key] != value}
    words += [f"--config.{key}={tuple(value) if isinstance(value, list) else value}" for key, value in changed.items()]
    unknown = [key for key in own if key not in start]
    note = "Put together from config.json, because the run did not record its command."
    return shlex.join(words), note + (f" Today's config has no {', '.join(unknown)}." if unknown else "")


def _reproduce(run: dict) -> str:
    environment = run["environment"]
    command, note = _command(run)
    text = f"<pre>{html.escape(command)}</pre>\n" if command else ""
    text += f'<p class="note">{html.escape(note)}</p>\n' if note else ""
    packages = environment.get("packages") or {}
    pairs = [
        ("Folder", str(environment.get("working_folder", ""))),
        ("Git commit", str(environment.get("git_commit", ""))),
        ("Python", str(environment.get("python", ""))),
        ("Platform", str(environment.get("platform", ""))),
        ("Packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
    ]
    return text + (_pairs(pairs) if environment else "")


def _warnings(run: dict) -> str:
    if not run["log"]:
        return ""
    lines = [line for line in run["log"] if re.search(r"\b(WARNING|ERROR|CRITICAL)\b", line)]
    if not lines:
        return "<p>log.txt holds no warning and no error.</p>\n"
    shown = f"the last {WARNING_LINES} of {len(lines)}" if len(lines) > WARNING_LINES else f"{len(lines)}"
    text = html.escape("\n".join(lines[-WARNING_LINES:]))
    return f"<p>Warnings and errors in log.txt: {shown}.</p>\n<pre>{text}</pre>\n"
