"""Where the time goes from the command to the end of the first training step.

python -m inpaint_jax.startup BEGUN FOLDER < config.json   # one start, in a process of its own; see `measure`
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from inpaint_jax import command_line
from inpaint_jax import config as config_module

MAIN = Path(__file__).parents[1] / "launch" / "main.py"
# The parts of a start in their order, and what they are called in the table.
PARTS = {
    "python_s": "Python and the config",
    "import_jax_s": "importing JAX",
    "import_rest_s": "importing all else",
    "data_s": "checking config and data",
    "state_s": "drawing the first state",
    "describe_s": "describing the run",
    "trace_s": "tracing the step",
    "compile_s": "compiling the step",
    "step_s": "the first step",
}


def measure(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Starts the training of a config twice, the second time with what the first has compiled, to its first step.

    Returns:
        `cold` and `warm`, the seconds of PARTS and `total_s`; `help_s` and `usage_error_s`, those of two answers of
        launch/main.py.

    Raises:
        ValueError: the training cannot start.
    """
    figures = {"help_s": _answer("--help"), "usage_error_s": _answer("--wrkdir=x")}
    with tempfile.TemporaryDirectory(prefix="inpaint_jax_bench_") as folder:
        for name in ("cold", "warm"):
            figures[name] = _start(config, Path(folder), name)
    device, version = (figures[name].pop(key) for name, key in (("warm", "device"), ("warm", "jax")))
    figures["cold"] = {key: value for key, value in figures["cold"].items() if key in figures["warm"]}
    return {"device": device, "jax": version, **figures}


def _answer(option: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, MAIN, option], capture_output=True, check=False)
    return time.perf_counter() - start


def _start(config: ml_collections.ConfigDict, folder: Path, name: str) -> dict[str, Any]:
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    command = [sys.executable, "-m", "inpaint_jax.startup", repr(time.time()), str(folder / name)]
    # A process of its own imports this package where this one has it from.
    environment["PYTHONPATH"] = os.pathsep.join([str(MAIN.parents[1]), os.environ.get("PYTHONPATH", "")])
    text = config_module.to_json(config)
    ran = subprocess.run(command, input=text, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        said = ran.stderr.strip().splitlines()
        raise ValueError(said[-1].removeprefix("ValueError: ") if said else f"the start ended with {ran.returncode}")
    return json.loads(ran.stdout.splitlines()[-1])


def start(config: ml_collections.ConfigDict, workdir: Path, begun: float) -> dict[str, Any]:
    """Does what launch/main.py does up to its first step, in a new run folder; returns the seconds of PARTS.

    Args:
        begun: seconds since the epoch at which the process was started.
    """
    seconds, mark = {}, begun

    def passed(part: str) -> None:
        nonlocal mark
        now = time.time()
        seconds[part], mark = now - mark, now

    command_line.prepare_jax(config.deterministic)
    passed("python_s")
    import jax

    passed("import_jax_s")
    from inpaint_jax import course, records, run, stopwatch, train  # noqa: F401, the command imports it as well

    passed("import_rest_s")
    workdir.mkdir(parents=True)
    assembled = run.assemble(config, "startup", workdir)
    passed("data_s")
    state, regime = run.first_state(assembled)
    state, frozen = jax.block_until_ready(tuple(map(assembled.parallel.replicate, (state, assembled.frozen))))
    passed("state_s")
    written = records.Records(assembled, 0)
    written.describe(0)
    written.close()
    passed("describe_s")
    batch = assembled.parallel.shard(next(course.batches_after(assembled, 0, 1)))
    program, compiling = stopwatch.compiled(course.compiled_step(assembled, regime), state, frozen, batch, cache=True)
    seconds["trace_s"] = compiling["trace_s"]
    seconds["compile_s"] = compiling["compile_s"] - compiling["trace_s"]
    mark += compiling["compile_s"]
    jax.block_until_ready(program(state, frozen, batch))
    passed("step_s")
    total = time.time() - begun
    return {**seconds, "total_s": total, "device": jax.devices()[0].device_kind, "jax": jax.__version__}


def show(figures: Mapping[str, Any], name: str) -> None:
    """Prints the figures of `measure` as a table."""
    print(f"{name}, startup on {figures['device']}: seconds, with nothing compiled before (cold) and once again (warm)")
    for part, words in {**PARTS, "total_s": "together"}.items():
        print(f"  {words:26}{figures['cold'][part]:8.2f}{figures['warm'][part]:8.2f}")
    print(f"  main.py --help {figures['help_s']:.2f}, a wrong option {figures['usage_error_s']:.2f}")


if __name__ == "__main__":
    result = start(config_module.from_json(sys.stdin.read()), Path(sys.argv[2]), float(sys.argv[1]))
    print(json.dumps(result), flush=True)
    # At once: the pipeline's threads have nothing more to do.
    os._exit(0)
