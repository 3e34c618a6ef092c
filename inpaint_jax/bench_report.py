"""Figures of `bench` as a table, as JSON, and beside those of an earlier run."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger("inpaint_jax")

# Of two results that are compared these should be equal.
SETTING = ("config_hash", "mode", "phase", "device", "devices", "dtype", "image_size", "batch_size", "data_source")
# What is compared, and whether more is better.
COMPARED = {
    "ms_per_step": False,
    "images_per_s": True,
    "trainer_images_per_s": True,
    "compile_s": False,
    "peak_memory_bytes": False,
}


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count:,.0f} bytes"


def _pace(figures: Mapping[str, Any], steps: int) -> str:
    low, high, repeats = figures["ms_per_step_min"], figures["ms_per_step_max"], len(figures["repeats_ms"])
    return f"{figures['ms_per_step']:.2f} ms   ({low:.2f} to {high:.2f}, median of {repeats} x {steps} steps)"


def _compile(figures: Mapping[str, Any]) -> str:
    cached = ", from the cache" if figures["compile_cached"] else ""
    return f"{figures['compile_s']:.1f} s   (tracing {figures['trace_s']:.1f} s{cached})"


def rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the lines of the table, name and text."""
    steps, trains = figures["steps"], figures["mode"] == "train"
    lines = [
        ("a step", _pace(figures, steps)),
        ("images", f"{figures['images_per_s']:.1f} per s"),
    ]
    if not trains:
        lines += [
            ("one picture", _pace(figures["batch_1"], steps)),
            ("a whole fill", f"{figures['fill_ms']:.2f} ms   (of one picture, from NumPy to NumPy)"),
        ]
    lines.append(("compiling", _compile(figures)))
    if trains:
        for name, prefix in (("with data, first epoch", "first_epoch_"), ("with data, later", "")):
            pace, share = figures[f"{prefix}trainer_images_per_s"], figures[f"{prefix}trainer_share"]
            waits = figures[f"{prefix}data_wait_share"]
            lines.append((name, f"{pace:.1f} images per s   ({share:.1%} of the step alone; waits {waits:.1%})"))
    plan, whose = figures["program_memory_bytes"], figures["peak_memory_of"]
    planned = ", ".join(f"{part} {_megabytes(plan[part])}" for part in ("arguments", "outputs", "temporary"))
    transfer = figures["host_to_device_bytes_per_step"]
    gflops, products = figures["gflops_per_image"], figures["matmul_flops_per_s"] / 1e9
    return [
        *lines,
        ("host to device", f"{_megabytes(transfer)} a step   ({figures['host_to_device_ms']:.3f} ms)"),
        ("peak memory", f"{_megabytes(figures['peak_memory_bytes'])}   (of the {whose}, since it began)"),
        ("planned by XLA", f"{_megabytes(plan['peak'])}   ({planned})"),
        ("operations", f"{gflops:.4g} GFLOP an image   (counted: convolutions, dense layers, attention)"),
        ("achieved", f"{figures['achieved_flops_per_s'] / 1e9:,.1f} GFLOP/s"),
        ("of matrix products", f"{figures['matmul_share']:.1%}   (large ones reach {products:,.1f} GFLOP/s here)"),
    ]


def show(figures: Mapping[str, Any]) -> None:
    """Prints the table."""
    size = f"{figures['image_size']}x{figures['image_size']}"
    phase = f", phase {figures['phase']} ({figures['trains']})" if figures["mode"] == "train" else ""
    devices = f"{figures['devices']} x {figures['device']}" if figures["devices"] > 1 else figures["device"]
    print(f"{figures['config']}, {figures['mode']}{phase}: {figures['batch_size']} images of {size}, ", end="")
    print(f"{figures['dtype']}, on {devices}")
    for name, text in rows(figures):
        print(f"  {name:24}{text}")


def read(path: Path) -> dict[str, Any]:
    """Returns the figures in the last line of a file that a benchmark with --json wrote.

    Raises:
        ValueError: there are none.
    """
    lines = path.read_text(errors="replace").strip().splitlines()
    try:
        figures = json.loads(lines[-1])
        if not isinstance(figures, dict) or not isinstance(figures["ms_per_step"], int | float):
            raise ValueError("no milliseconds per step")
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"{str(path)!r} has no result in its last line ({error}): write one with launch/bench.py … --json > FILE"
        ) from error
    return figures


def compare(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, float]:
    """Prints what has become of an earlier result, warns where it is of something else, and returns the ratios."""
    for name in SETTING:
        if earlier.get(name) != now.get(name):
            log.warning("the earlier result has %s = %r, and this one %r", name, earlier.get(name), now.get(name))
    ratios = {}
    print("against the earlier result, now / then")
    for name, more_is_better in COMPARED.items():
        if not earlier.get(name) or name not in now:
            continue
        ratio = ratios[name] = now[name] / earlier[name]
        word = "as before" if ratio == 1 else "better" if (ratio > 1) == more_is_better else "worse"
        if name == "ms_per_step" and _overlap(earlier, now):
            word += ", within the spread of the repeats"
        print(f"  {name:24}{ratio:.3f}   ({earlier[name]:,.6g} -> {now[name]:,.6g}, {word})")
    return ratios


def _overlap(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    ranges = [(x.get("ms_per_step_min", x["ms_per_step"]), x.get("ms_per_step_max", x["ms_per_step"]))
              for x in (earlier, now)]  # fmt: skip
    return ranges[0][0] <= ranges[1][1] and ranges[1][0] <= ranges[0][1]


def tell_of_profile(folder: Path) -> None:
    """Says how to look at a trace."""
    log.info(
        "the trace is below %s/plugins/profile: pip install xprof && tensorboard --logdir %s; "
        "or drop its .trace.json.gz on https://ui.perfetto.dev",
        folder, folder,
    )  # fmt: skip


def print_json(figures: Mapping[str, Any]) -> None:
    """Prints one line of JSON, of six digits."""
    print(json.dumps(rounded(figures)))


def rounded(value: Any) -> Any:
    """Returns figures with floats of six significant digits."""
    if isinstance(value, Mapping):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
