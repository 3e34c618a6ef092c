"""The trainer with its run folder on an object store: killed while it is put there, and gone on with elsewhere."""

import os
import random
import shutil
import signal
from pathlib import Path

import fake_store
import fast_compilation
import forked_commands
import kill_storm
import pytest

from inpaint_jax import remote_folder

ROOT = Path(__file__).parents[1]
URL = "fake://bucket/runs/tiny"
EPOCHS = 2
STEPS = EPOCHS * kill_storm.STEPS_PER_EPOCH
SMALLER = (
    "--config.generator.refine=0",
    "--config.task.fill=mean",
    "--config.checkpoint_every_steps=2",
)  # to start sooner


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of an uninterrupted run on this machine's disk."""
    workdir = tmp_path_factory.mktemp("remote") / "whole"
    environment = {**os.environ, "XLA_FLAGS": fast_compilation.ONE_DEVICE}
    ran = forked_commands.run("main", ROOT, *options(str(workdir)), environment=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return workdir


def options(workdir: str) -> list[str]:
    return [*kill_storm.CONFIG, f"--workdir={workdir}", f"--config.epochs={EPOCHS}", *SMALLER]


class Machine:
    """A machine with a cache of its own, and the store."""

    def __init__(self, folder: Path, name: str = "machine"):
        self.cache, self.store = folder / name, folder / "store"
        self.store.mkdir(exist_ok=True)

    def start(self, *more: str, fault: str = "", url: str = URL) -> forked_commands.Command:
        environment = {
            **os.environ, "XLA_FLAGS": fast_compilation.ONE_DEVICE, "FAKE_STORE": str(self.store), "FAKE_FAULT": fault,
            "XDG_CACHE_HOME": str(self.cache),
        }  # fmt: skip
        return forked_commands.start("../tests/fake_store", ROOT, "main", *options(url), *more, environment=environment)

    def run(self, *more: str, fault: str = "") -> tuple[int, str]:
        result = self.start(*more, fault=fault).wait()
        return result.returncode, result.stdout + result.stderr

    def fetched(self, folder: Path) -> Path:
        """What the store has now, as any machine would find it."""
        os.environ["FAKE_STORE"] = str(self.store)
        fake_store.register()
        shutil.rmtree(folder, ignore_errors=True)
        assert remote_folder.fetch(URL, folder)
        (folder / remote_folder._MEMORY).unlink()
        (folder / ".lock").touch()  # as in a folder that a run was in
        return folder


def test_kills_while_it_is_put_there_leave_no_trace(whole: Path, tmp_path: Path):
    moments, codes = random.Random(1), []
    machine = Machine(tmp_path)
    while 0 not in codes:
        # An untouched start to the end takes some hundred operations.
        fault = f"{moments.choice(('die', 'die_after'))}:{moments.randint(1, 120)}" if len(codes) < 7 else ""
        code, text = machine.run(fault=fault)
        assert code in (0, -signal.SIGKILL), text
        codes.append(code)
        if moments.random() < 0.6:
            machine = Machine(tmp_path, f"machine{len(codes)}")
    assert codes.count(-signal.SIGKILL) >= 4, codes
    kill_storm.check_same(whole, machine.fetched(tmp_path / "fetched"), STEPS)
