"""Commands in processes of their own that begin at once: they are forked from one that has imported JAX already.

For tests of what a command answers and leaves behind, where starting Python and importing JAX would be nearly all of
the time. That commands start by themselves is seen where they are started anew, in `test_train.py` among others.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMEOUT = 300  # seconds
# What launch/main.py, inpaint.py and evaluate.py import beside JAX. None of it asks for devices, so each command finds
# those of its own XLA_FLAGS.
_IMPORTED = ("inpaint_jax.train", "inpaint_jax.filling", "inpaint_jax.inference", "inpaint_jax.evaluate_folder")


def _become(program: str, options: tuple[str, ...], cwd: str, environment: dict[str, str], outputs: list[str]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY), descriptor)
    sys.argv = [program, *options]
    runpy.run_path(program, run_name="__main__")


def run(name: str, cwd: Path, *options: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Runs `launch/<name>.py` with options in a folder; returns its exit code and the text of both outputs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_IMPORTED])
    program = str(ROOT / "launch" / f"{name}.py")
    with tempfile.NamedTemporaryFile("r+") as out, tempfile.NamedTemporaryFile("r+") as errors:
        outputs = [out.name, errors.name]
        process = context.Process(target=_become, args=(program, options, str(cwd), environment, outputs))
        process.start()
        process.join(timeout=TIMEOUT)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired([program, *options], TIMEOUT, out.read(), errors.read())
        return subprocess.CompletedProcess([program, *options], process.exitcode, out.read(), errors.read())
