"""How fast a config trains and fills on this machine: figures of the programs that training and inference run."""

import dataclasses
import itertools
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from inpaint_jax import (
    bench_report,
    course,
    describe,
    inference,
    input_rate,
    models,
    regimes,
    run,
    startup,
    state,
    stopwatch,
    task,
)
from inpaint_jax import config as config_module

log = logging.getLogger("inpaint_jax")

BATCHES = 4  # different ones that the bare step goes round
PROFILED = 5  # steps in a trace


@dataclasses.dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        mode: "train", "infer", "input", which takes steps, repeats and images_per_s, or "startup", which takes none.
        phase: of the regime, to train; "" = the first that trains both networks, or else the first.
        batch: pictures at once in inference; 0 = `config.batch_size`.
        steps, repeats, warmup: of `stopwatch.pace_of`.
        cache: take compiled programs from the cache that training uses, and keep them there.
        embedded_data: train on the pictures that come along, whatever data set the config names.
        profile: folder for a trace of a few steps.
        images_per_s: that the input is to feed; None = not asked.
    """

    mode: str = "train"
    phase: str = ""
    batch: int = 0
    steps: int = 10
    repeats: int = 5
    warmup: int = 3
    cache: bool = False
    embedded_data: bool = False
    profile: Path | None = None
    images_per_s: float | None = None


def bench(config: ml_collections.ConfigDict, name: str, options: Options) -> dict[str, Any]:
    """Measures a validated config and returns the figures that `bench_report` prints.

    Raises:
        ValueError: one sentence on what is wrong with config, data or options.
    """
    given, config = config, config.copy_and_resolve_references()
    config.wandb.project, config.evaluation.lpips = "", False  # nothing is validated here
    measured = {"train": _train, "infer": _infer}[options.mode](config, name, options)
    device = jax.local_devices()[0]
    figures = {
        "config": name,
        "config_hash": config_module.hashes(given)["config"],
        "mode": options.mode,
        "device": device.device_kind,
        "devices": measured.pop("devices"),
        "dtype": config.dtype,
        "jax": jax.__version__,
        "steps": options.steps,
        **measured,
    }
    log.info("measuring what the machine multiplies")
    return figures | _rates(figures, stopwatch.matmul_flops(config.dtype))


def _rates(figures: dict[str, Any], matmul: float) -> dict[str, float]:
    """Returns the operations per second of the step, and their share of what the machine reaches in multiplying."""
    achieved = figures["gflops_per_image"] * 1e9 * figures["images_per_s"]
    return {"achieved_flops_per_s": achieved, "matmul_flops_per_s": matmul, "matmul_share": achieved / matmul}


def phase_of(config: ml_collections.ConfigDict, name: str) -> state.RegimeState:
    """Returns the regime in the phase to measure; see `Options.phase`.

    Raises:
        ValueError: the config has no phase of that name.
    """
    first = regimes.first_regime(config)
    names = list(dict.fromkeys(config.regime.sequence)) or [first.phase]
    if name and name not in names:
        raise ValueError(f"--phase={name}: the phases of this config are {', '.join(names)}")
    joint = [phase for phase in config.regime.sequence if config.regime.phases[phase].trains == "joint"]
    return dataclasses.replace(first, phase=name or (joint or names)[0])


def _embed(config: ml_collections.ConfigDict) -> None:
    """Lets the config read the pictures that come along."""
    config.data.source = "procedural_normals" if config.data.kind == "normal_maps" else "bundled_photos"
    config.data.path = config.data.name = ""
    config.data.split_counts = (0, 0, 0)


def _train(config: ml_collections.ConfigDict, name: str, options: Options) -> dict[str, Any]:
    """Measures the step that the trainer compiles, then the trainer's loop with its data."""
    regime = phase_of(config, options.phase)
    config.evaluation.val_limit = 1  # validation is no part of this
    if options.embedded_data:
        _embed(config)
    with tempfile.TemporaryDirectory(prefix="inpaint_jax_bench_") as folder:
        assembled = run.assemble(config, name, Path(folder), trains=False)
        trained, _ = run.first_state(assembled)
        parallel, kind = assembled.parallel, regimes.kind(config, regime)
        frozen_groups = regimes.frozen_groups(config, regime)
        trained, frozen = parallel.replicate(trained), parallel.replicate(assembled.frozen)
        hosted = list(course.batches_after(assembled, 0, BATCHES))
        log.info("compiling the step of phase %s", regime.phase)
        program, compiling = stopwatch.compiled(
            course.compiled_step(assembled, regime),
            trained,
            frozen,
            parallel.shard(hosted[0]),
            cache=options.cache,
        )
        loop = _Loop(assembled, program, trained, frozen)
        images = config.batch_size * config.accumulate
        figures = {
            "devices": parallel.count,
            "phase": regime.phase,
            "trains": kind,
            "frozen_groups": list(frozen_groups),
            "image_size": config.image_size,
            "batch_size": images,
            **compiling,
            "data_source": config.data.source,
            **loop.bare(hosted, options).figures(images),
            "host_to_device_bytes_per_step": sum(x.nbytes for x in jax.tree.leaves(hosted[0])),
            "host_to_device_ms": stopwatch.transfer_ms(hosted * options.repeats, loop.put),
        }
        log.info("measuring the trainer's loop with its data")
        figures |= _with_data(loop, options.steps * options.repeats, images, figures["images_per_s"])
        if options.profile:
            loop.profile(hosted, options.profile)
    return {
        **figures,
        **_memory(program),
        "gflops_per_image": describe.step_gflops(config, kind, frozen_groups),
    }


def _with_data(loop: "_Loop", steps: int, images: int, bare: float) -> dict[str, float]:
    """Returns figures of the trainer's loop, twice over the same pictures, beside the pace of the step alone.

    The second time is as all epochs but the first: the pictures come from memory where they fit.
    """
    figures = {}
    for prefix in ("first_epoch_", ""):
        seconds, wait = loop.with_data(steps)
        pace = steps * images / seconds
        figures |= {
            f"{prefix}data_wait_share": wait / seconds,
            f"{prefix}trainer_images_per_s": pace,
            f"{prefix}trainer_share": pace / bare,
        }
    return figures


def _memory(program: jax.stages.Compiled) -> dict[str, Any]:
    peak, whose = stopwatch.peak_memory()
    return {
        "peak_memory_bytes": peak,
        "peak_memory_of": whose,
        "program_memory_bytes": stopwatch.program_memory(program),
    }


class _Loop:
    """The step with the state that it moves on."""

    def __init__(self, assembled: run.Run, program: jax.stages.Compiled, trained: state.TrainState, frozen: dict):
        self._run, self._program, self._state, self._frozen = assembled, program, trained, frozen
        self._sharding = program.input_shardings[0][2]

    def put(self, batch: dict) -> Any:
        """Returns a batch of the host on the devices."""
        return jax.device_put(self._run.parallel.shard(batch), self._sharding)

    def step(self, batch: Any) -> dict:
        """Begins a step and returns its metrics."""
        self._state, scalars = self._program(self._state, self._frozen, batch)
        return scalars

    def bare(self, hosted: list[dict], options: Options) -> stopwatch.Pace:
        """Measures the step on batches that lie on the devices."""
        batches = itertools.cycle([self.put(batch) for batch in hosted])
        return stopwatch.pace_of(lambda: self.step(next(batches)), options.steps, options.repeats, options.warmup)

    def with_data(self, steps: int) -> tuple[float, float]:
        """Trains as the trainer does, without validation and checkpoints, from the first batch on.

        Returns:
            The seconds, and those of them spent waiting for data.
        """
        log_every, wait, scalars = self._run.config.log_every_steps, 0.0, None
        batches: Iterator[dict] = course.batches_after(self._run, 0, steps)
        start = time.perf_counter()
        for number in range(1, steps + 1):
            asked = time.perf_counter()
            batch = next(batches)
            wait += time.perf_counter() - asked
            scalars = self.step(self._run.parallel.shard(batch))
            if number % log_every == 0:
                scalars = {key: float(value) for key, value in self._run.parallel.unreplicate(scalars).items()}
        jax.block_until_ready((self._state, scalars))
        return time.perf_counter() - start, wait

    def profile(self, hosted: list[dict], folder: Path) -> None:
        """Writes a trace of a few steps, transfers included."""
        with stopwatch.profiled(folder):
            for number in range(PROFILED):
                with jax.profiler.StepTraceAnnotation("train", step_num=number):
                    jax.block_until_ready(self.step(self.put(hosted[number % len(hosted)])))


def _infer(config: ml_collections.ConfigDict, name: str, options: Options) -> dict[str, Any]:
    """Measures the generator of inference on one picture and on several at once, and a whole fill of one picture."""
    del name
    variables = jax.device_put(_random_variables(config))
    inpainter = inference.Inpainter(config, variables)
    number = options.batch or config.batch_size
    several, program = _forward(config, variables, inpainter.size, number, options, options.profile)
    single = _forward(config, variables, inpainter.size, 1, options, None)[0] if number > 1 else several
    image = np.random.default_rng(0).integers(0, 256, (config.image_size, config.image_size, 3), np.uint8)
    hole = np.zeros(image.shape[:2], bool)
    middle, reach = config.image_size // 2, max(1, inpainter.size // 8)
    hole[middle - reach : middle + reach, middle - reach : middle + reach] = True
    whole = stopwatch.pace_of(lambda: inpainter(image, hole), options.steps, options.repeats, options.warmup)
    figures = {
        "devices": 1,
        "image_size": inpainter.size,
        "batch_size": number,
        **several,
        "batch_1": single,
        "fill_ms": whole.ms,
        **_memory(program),
    }
    shapes = task.input_shapes(config)["generator"]
    return figures | {"gflops_per_image": describe.forward_gflops(models.build_generator(config), shapes)}


def _random_variables(config: ml_collections.ConfigDict) -> dict:
    """Returns variables of the generator in NumPy arrays: the pace does not depend on what they are."""
    random = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = 0.02 * random.standard_normal(leaf.shape, np.float32)
        return np.abs(noise) + 0.5 if "batch_stats" in jax.tree_util.keystr(path[:1]) else noise

    shapes = jax.eval_shape(lambda: state.initial_variables(config))["generator"]
    return jax.tree_util.tree_map_with_path(draw, shapes)


def _forward(
    config: ml_collections.ConfigDict, variables: dict, side: int, number: int, options: Options, profile: Path | None
) -> tuple[dict[str, Any], jax.stages.Compiled]:
    """Returns figures of the program that the Inpainter runs, for so many pictures at once, and the program."""
    random = np.random.default_rng(0)
    hosted = (
        random.random((number, side, side, 3), np.float32),
        (random.random((number, side, side, 1)) < 0.25).astype(np.float32),
    )
    log.info("compiling inference of %d pictures", number)
    program, compiling = stopwatch.compiled(
        jax.jit(inference.answering(config)), variables, *hosted, cache=options.cache
    )
    resident = jax.device_put(hosted)
    pace = stopwatch.pace_of(lambda: program(variables, *resident), options.steps, options.repeats, options.warmup)
    transfer = {
        "host_to_device_bytes_per_step": sum(x.nbytes for x in hosted),
        "host_to_device_ms": stopwatch.transfer_ms([hosted] * options.repeats, jax.device_put),
    }
    if profile:
        with stopwatch.profiled(profile):
            for _ in range(PROFILED):
                jax.block_until_ready(program(variables, *jax.device_put(hosted)))
    return compiling | pace.figures(number) | transfer, program


def run_benchmark(
    config: ml_collections.ConfigDict, name: str, options: Options, as_json: bool, against: Path | None
) -> int:
    """Measures, prints a table and, if asked, the ratio to an earlier result and a last line of JSON; returns 0.

    Raises:
        ValueError: one sentence on what is wrong with config, data, options or the earlier result.
    """
    if options.mode in ("startup", "input"):
        if options.mode == "startup":
            figures = {"config": name, "mode": "startup", **startup.measure(config)}
            startup.show(figures, name)
        else:
            measured = input_rate.measure(config, options.steps, options.repeats, options.images_per_s)
            figures = {"config": name, **measured}
            input_rate.show(figures, name)
        if as_json:
            bench_report.print_json(figures)
        return 0
    earlier = bench_report.read(against) if against else None  # before anything is measured
    try:
        figures = bench(config, name, options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        setting = "--batch" if options.batch else "config.batch_size"
        raise ValueError(f"out of memory: lower {setting} ({str(error).splitlines()[0]})") from error
    bench_report.show(figures)
    if earlier is not None:
        figures["against"] = bench_report.compare(earlier, figures)
    if options.profile:
        bench_report.tell_of_profile(options.profile)
    if as_json:
        bench_report.print_json(figures)
    return 0
