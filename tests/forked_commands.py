"""Commands in processes of their own that begin at once: they are forked from one that has imported JAX already.

For tests of what a command answers and leaves behind, where starting Python and importing JAX would be nearly all of
the time. That commands start by themselves is seen where they are started anew, in `test_train.py` among others.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

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


class Command:
    """A command that runs in a forked process; made by `start`."""

    def __init__(self, process: multiprocessing.process.BaseProcess, files: list[IO[str]]):
        self._process, self._files = process, files

    def send_signal(self, number: signal.Signals) -> None:
        """Sends the process a signal."""
        os.kill(self._process.pid, number)

    def poll(self) -> int | None:
        """Returns the exit code, None while the command runs."""
        return self._process.exitcode

    def wait(self, timeout: float = TIMEOUT) -> subprocess.CompletedProcess:
        """Returns the exit code and the text of both outputs, when the command has ended; kills it at the timeout."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read())
            file.close()
        if code is None:
            raise subprocess.TimeoutExpired("command", timeout, *texts)
        return subprocess.CompletedProcess([], code, *texts)


def start(name: str, cwd: Path, *options: str, environment: dict[str, str]) -> Command:
    """Starts `launch/<name>.py` with options in a folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_IMPORTED])
    program = str(ROOT / "launch" / f"{name}.py")
    files = [tempfile.NamedTemporaryFile("r+"), tempfile.NamedTemporaryFile("r+")]  # noqa: SIM115
    process = context.Process(
        target=_become, args=(program, options, str(cwd), environment, [file.name for file in files])
    )
    process.start()
    return Command(process, files)


def run(name: str, cwd: Path, *options: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Runs `launch/<name>.py` with options in a folder; returns its exit code and the text of both outputs."""
    return start(name, cwd, *options, environment=environment).wait()
