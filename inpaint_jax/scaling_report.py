"""`bench.py --mode scaling`: the figures of `scaling` for a config, as a table and as JSON; only traced, never run.

Beside the training that there is, with batch statistics of all chips together, stands what it would be with each chip's
own, which is no option here: the difference is what synchronising costs. Instance normalisation has no statistics.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from inpaint_jax import bench, bench_report, collectives, regimes, scaling
from inpaint_jax import config as config_module

log = logging.getLogger("inpaint_jax")

REDUCED = ("float32", "bfloat16")  # what `config.reduce_dtype` can be


def run(
    config: ml_collections.ConfigDict,
    name: str,
    phase: str,
    step_ms: float | None,
    against: str | None,
    link: str,
    as_json: bool,
) -> int:
    """Prints what the model says of a config, and if asked a last line of JSON; returns 0.

    Args:
        config: a validated one; its batch is what one chip trains in a step.
        phase: of the regime; "" as in `bench.Options`.
        step_ms: milliseconds of a step of one chip, or None and
        against: a file with the result of `--mode train --json` on one chip.
        link: as of `scaling.read_link`.

    Raises:
        ValueError: one sentence on what is wrong with phase, step or link.
    """
    if (step_ms is None) == (against is None):
        raise ValueError("the model needs the step of one chip: give --step_ms, or --against with a result")
    figures = predictions(config, name, phase, step_ms or _measured(Path(against), config), link)
    show(figures)
    if as_json:
        bench_report.print_json(figures)
    return 0


def _measured(path: Path, config: ml_collections.ConfigDict) -> float:
    """Returns the milliseconds of a step in an earlier result."""
    earlier = bench_report.read(path)
    if (earlier.get("mode"), earlier.get("devices")) != ("train", 1):
        raise ValueError(f"{str(path)!r} is no result of --mode=train on one device: measure one, or give --step_ms")
    if earlier.get("config_hash") != config_module.hashes(config)["config"]:
        log.warning("the earlier result is of another config: its step is taken as it is")
    return float(earlier["ms_per_step"])


def predictions(
    config: ml_collections.ConfigDict, name: str, phase: str, step_ms: float, link_name: str
) -> dict[str, Any]:
    """Returns the figures that `show` prints; arguments and errors as of `run`."""
    link, regime = scaling.read_link(link_name), bench.phase_of(config, phase)
    kind, frozen_groups = regimes.kind(config, regime), regimes.frozen_groups(config, regime)
    gradients = {}
    for dtype in REDUCED:
        config = config.copy_and_resolve_references()
        config.reduce_dtype = dtype
        found = collectives.of_step(config, kind, frozen_groups)
        gradients[dtype] = [one for one in found if one.of_gradients]
    images, statistics = config.batch_size * config.accumulate, collectives.applications(found)
    cases = [
        {"reduce_dtype": dtype, "synchronised": synchronised, **_case(step_ms, images, gradients[dtype], sent, link)}
        for synchronised, sent in ((True, statistics), (False, []))
        for dtype in REDUCED
    ]
    return {
        "config": name,
        "mode": "scaling",
        "phase": regime.phase,
        "trains": kind,
        "image_size": config.image_size,
        "step_ms": step_ms,
        "images_per_chip": images,
        "gradient_values": [one.values for one in gradients["float32"]],
        "gradient_bytes": {dtype: sum(one.bytes for one in gradients[dtype]) for dtype in REDUCED},
        "statistics_all_reduces": len(statistics),
        "statistics_bytes": sum(statistics),
        "link_name": link_name,
        "link": dataclasses.asdict(link),
        "host_images_per_s": scaling.host_images_per_s(step_ms, images, link),
        "cases": cases,
    }


def _case(
    step_ms: float, images: int, gradients: list[collectives.AllReduce], statistics: list[int], link: scaling.Link
) -> dict[str, Any]:
    """Returns the predictions for every number of chips, and where the efficiency falls below `scaling.ENOUGH`."""
    sent = ([one.bytes for one in gradients], statistics)
    chips = [scaling.predict(step_ms, *sent, count, link) for count in scaling.CHIPS]
    breaks = scaling.breaks_at(step_ms, *sent, link)
    blame = breaks and ("gradients" if breaks.gradients_ms >= breaks.statistics_ms else "batch statistics")
    return {
        "predictions": [
            {**one._asdict(), "images_per_s": one.chips * images / step_ms * 1e3 * one.efficiency} for one in chips
        ],
        "breaks_at_chips": breaks and breaks.chips,
        "breaks_because_of": blame,
    }


def show(figures: Mapping[str, Any]) -> None:
    """Prints the table."""
    size = f"{figures['image_size']}x{figures['image_size']}"
    print(f"{figures['config']}, scaling, phase {figures['phase']} ({figures['trains']}): ", end="")
    print(f"{figures['step_ms']:.2f} ms for {figures['images_per_chip']} images of {size} on one chip")
    for name, text in _premises(figures):
        print(f"  {name:24}{text}")
    print(f"  {'':26}{'chips':>6}{'efficiency':>12}{'gradients':>13}{'statistics':>13}", end="")
    print(f"{'overlapped':>12}{'images/s':>13}")
    for case in figures["cases"]:
        head = f"{case['reduce_dtype']}, {'joint' if case['synchronised'] else 'own'} statistics"
        for one in case["predictions"]:
            print(f"  {head:26}{one['chips']:>6}{one['efficiency']:>12.1%}{one['gradients_ms']:>10.2f} ms", end="")
            print(f"{one['statistics_ms']:>10.2f} ms{one['overlapped']:>12.1%}{one['images_per_s']:>13,.0f}")
            head = ""
        print(f"  {head:26}{_breaks(case)}")


def _premises(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what the predictions rest on, name and text."""
    link, sizes, values = figures["link"], figures["gradient_bytes"], figures["gradient_values"]
    network = f"a torus of {link['torus']} dimensions" if link["torus"] else "a switch"
    return [
        ("gradients", f"{sum(values):,} values in {len(values)} all-reduce{'s' * (len(values) > 1)}: "
         f"{sizes['float32'] / 1e6:,.1f} MB, in bfloat16 {sizes['bfloat16'] / 1e6:,.1f} MB"),
        ("batch statistics", f"{figures['statistics_bytes'] / 1e3:,.1f} kB in {figures['statistics_all_reduces']} "
         "all-reduces, there and back"),
        ("published", f"{link['inside_gb_s']:g} GB/s a chip among {link['chips']} chips ({network}), "
         f"{link['between_gb_s']:g} GB/s beyond   ({figures['link_name']})"),
        ("assumed", f"{link['inside_us']:g} us a hop, {link['between_us']:g} us beyond, {link['begin_us']:g} us to "
         f"begin; {link['attained']:.0%} of the bandwidth is reached; no chip is late"),
        ("to be read", f"{figures['host_images_per_s']:,.0f} images per s by a host of {link['chips_per_host']} chips"),
    ]  # fmt: skip


def _breaks(case: Mapping[str, Any]) -> str:
    if case["breaks_at_chips"] is None:
        return f"not below {scaling.ENOUGH:.0%} up to {scaling.MOST_CHIPS:,} chips"
    first, blame = case["breaks_at_chips"], case["breaks_because_of"]
    return f"below {scaling.ENOUGH:.0%} from {first:,} chips on, most of it for {blame}"
