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
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
    sys.argv = [program, *options]
    runpy.run_path(program, run_name="__main__")


class Command:
    """A program that runs with options in a folder, with what `subprocess.Popen` has of it."""

    def __init__(self, program: Path, cwd: Path, *options: str, environment: dict[str, str]):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*_IMPORTED])
        self._texts = [tempfile.NamedTemporaryFile("r+") for _ in range(2)]  # noqa: SIM115
        arguments = str(program), options, str(cwd), environment, [text.name for text in self._texts]
        self._process = context.Process(target=_become, args=arguments)
        self._process.start()

    def poll(self) -> int | None:
        """Returns the exit code, None while the program runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Sends it to the program."""
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._process.kill()

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Returns the exit code when the program has ended; one that takes longer is killed.

        Raises:
            subprocess.TimeoutExpired: it took longer.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired("forked command", timeout, *self.outputs())
        return self._process.exitcode

    def outputs(self) -> tuple[str, str]:
        """Returns the text of both outputs so far."""
        return tuple(Path(text.name).read_text() for text in self._texts)


def run(name: str, cwd: Path, *options: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Runs `launch/<name>.py` with options in a folder; returns its exit code and the text of both outputs."""
    program = ROOT / "launch" / f"{name}.py"
    command = Command(program, cwd, *options, environment=environment)
    code = command.wait()
    return subprocess.CompletedProcess([str(program), *options], code, *command.outputs())
