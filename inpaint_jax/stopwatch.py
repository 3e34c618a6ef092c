"""Measuring compiled programs: time of a step, time of compiling, memory, and what the machine can multiply."""

import contextlib
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

MATMUL_SIDES = {"cpu": (512, 1024, 2048), "accelerator": (4096, 8192)}  # of the square matrices
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


class Pace(NamedTuple):
    """What `pace_of` measures.

    Attributes:
        repeats_ms: milliseconds per step in each repeat.
        ms: their median.
    """

    repeats_ms: tuple[float, ...]

    @property
    def ms(self) -> float:
        return statistics.median(self.repeats_ms)

    def figures(self, images: int) -> dict[str, Any]:
        """Returns the fields of a report for a step that works on so many images."""
        return {
            "ms_per_step": self.ms,
            "ms_per_step_min": min(self.repeats_ms),
            "ms_per_step_max": max(self.repeats_ms),
            "repeats_ms": self.repeats_ms,
            "images_per_s": images / self.ms * 1e3,
        }


def pace_of(step: Callable[[], Any], steps: int, repeats: int, warmup: int) -> Pace:
    """Calls a step again and again and returns how long it takes; each repeat waits for all that it began.

    Args:
        step: begins one step and returns arrays that are ready when it is done, this step and those before it.
        steps, repeats: of each repeat; of them the median is taken.
        warmup: steps before, which do not count.
    """

    def several(count: int) -> float:
        start = time.perf_counter()
        last = None
        for _ in range(count):
            last = step()
        jax.block_until_ready(last)
        return time.perf_counter() - start

    several(warmup)
    return Pace(tuple(several(steps) / steps * 1e3 for _ in range(repeats)))


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Lets JAX compile anew what its cache on the disk holds, and keep nothing there."""
    enabled = jax.config.jax_enable_compilation_cache

    def enable(value: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", value)
        # JAX looks at it once and remembers what it saw.
        compilation_cache.reset_cache()

    enable(False)
    try:
        yield
    finally:
        enable(enabled)


def compiled(function: Any, *arguments: Any, cache: bool = False) -> tuple[jax.stages.Compiled, dict[str, Any]]:
    """Traces and compiles a function of `jit` or `pmap` for arguments.

    Args:
        cache: take the program from JAX's cache on the disk if it is there, and keep it there.

    Returns:
        The program, and fields of a report: `compile_s`, seconds of tracing and compiling; `trace_s`, those of tracing
        alone; `compile_cached`, whether JAX's compilation cache had the program.
    """
    hits = []

    def listen(event: str, **_: Any) -> None:
        if event == _CACHE_HIT:
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        with contextlib.nullcontext() if cache else _without_cache():
            start = time.perf_counter()
            lowered = function.lower(*arguments)
            traced = time.perf_counter()
            program = lowered.compile()
            ended = time.perf_counter()
    finally:
        jax.monitoring.unregister_event_listener(listen)
    return program, {"compile_s": ended - start, "trace_s": traced - start, "compile_cached": bool(hits)}


def program_memory(program: jax.stages.Compiled) -> dict[str, int]:
    """Returns what XLA has planned for a program on each device, in bytes; the peak is what it holds at its fullest.

    Arguments that are donated count once, as arguments.
    """
    plan = program.memory_analysis()
    parts = {
        "arguments": plan.argument_size_in_bytes,
        "outputs": plan.output_size_in_bytes - plan.alias_size_in_bytes,
        "temporary": plan.temp_size_in_bytes,
    }
    return {**parts, "peak": sum(parts.values())}


def peak_memory() -> tuple[int, str]:
    """Returns the most memory used so far, in bytes, and whose: the fullest device's, or on a CPU the process's."""
    known = [stats["peak_bytes_in_use"] for device in jax.local_devices() if (stats := device.memory_stats())]
    if known:
        return max(known), "device"
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024, "process"


def matmul_flops(dtype: str) -> float:
    """Returns the floating-point operations per second that this machine reaches in multiplying square matrices.

    The best of three tries each of several sizes, on one device; accelerators are taken to work side by side, and the
    CPU's devices to share its cores.

    Args:
        dtype: "float32" or "bfloat16", at JAX's default precision, as the networks compute.
    """
    device = jax.local_devices()[0]
    on_cpu = device.platform == "cpu"
    best = 0.0
    for side in MATMUL_SIDES["cpu" if on_cpu else "accelerator"]:
        random = np.random.default_rng(0)
        values = random.standard_normal((side, side), np.float32) / math.sqrt(side)
        matrix = jax.device_put(jnp.asarray(values, jnp.dtype(dtype)), device)
        multiply = jax.jit(jnp.matmul)
        count = 1 if on_cpu else 10
        # The best, not the median: it is what the machine can do.
        pace = pace_of(lambda multiply=multiply, matrix=matrix: multiply(matrix, matrix), count, 3, 1)
        best = max(best, 2 * side**3 / min(pace.repeats_ms) * 1e3)
    return best if on_cpu else best * len(jax.local_devices())


def transfer_ms(batches: Sequence[Any], put: Callable[[Any], Any]) -> float:
    """Returns the median milliseconds of moving one batch from the host to the devices."""
    times = []
    for batch in batches:
        start = time.perf_counter()
        jax.block_until_ready(put(batch))
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


@contextlib.contextmanager
def profiled(folder: Path) -> Iterator[None]:
    """Writes a trace of what runs inside for TensorBoard's profiler, below `<folder>/plugins/profile`."""
    folder.mkdir(parents=True, exist_ok=True)
    with jax.profiler.trace(str(folder)):
        yield
