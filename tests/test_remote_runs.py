"""The trainer with its run folder on an object store: killed while it is put there, and gone on with elsewhere."""

import os
import random
import re
import shutil
import signal
from pathlib import Path

import fake_store
import fast_compilation
import forked_commands
import kill_storm
import pytest

from inpaint_jax import checkpoint, snapshots

ROOT = Path(__file__).parents[1]
URL = "fake://bucket/runs/tiny"
EPOCHS, STEPS = 2, 2 * kill_storm.STEPS_PER_EPOCH
# To start sooner, and to save more often.
SMALLER = ("--config.generator.refine=0", "--config.task.fill=mean", "--config.checkpoint_every_steps=1")


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
        assert snapshots.fetch(URL, folder)
        (folder / snapshots.MEMORY).unlink()
        (folder / ".lock").touch()  # as in a folder that a run was in
        return folder


def steps_of(folder: Path) -> list[int]:
    return checkpoint.kept_steps(folder / "checkpoints")


def test_a_run_is_killed_told_to_end_cut_off_and_goes_on_elsewhere(whole: Path, tmp_path: Path):
    first, second = Machine(tmp_path, "first"), Machine(tmp_path, "second")
    # In the middle of putting the first checkpoint there; the store has what the start put.
    code, text = first.run(fault="die:put:12")
    assert code == -signal.SIGKILL, text
    assert not (first.fetched(tmp_path / "fetched") / "checkpoints").exists()
    # Again, while the next one is put; from there another machine goes on.
    code, text = first.run(fault="die_after:put:60")
    assert code == -signal.SIGKILL, text
    saved = steps_of(first.fetched(tmp_path / "fetched"))[-1]
    code, text = second.run(fault="term:put:5")
    assert code == 75, text
    assert f"going on from step {saved} of {STEPS}" in text
    last = steps_of(second.fetched(tmp_path / "fetched"))[-1]
    assert f"SIGTERM: state of step {last} saved; run the same command again" in text
    assert saved < last < STEPS
    # What the first machine has is older. Without the store it trains to the end, and says where the results are.
    code, text = first.run(fault="fail:put:5:100000")
    assert code == 1, text
    assert "was gone on with elsewhere" in text
    assert f"going on from step {last} of {STEPS}" in text
    assert f"{URL} has an older snapshot; it is tried again at the next checkpoint" in text
    assert re.search(r"error: .*the connection is broken: the results lie in \S+ alone", text)
    assert "Traceback" not in text
    code, text = first.run()
    assert code == 0, text
    assert f"{URL} is as this machine left it" in text
    kill_storm.check_same(whole, first.fetched(tmp_path / "fetched"), STEPS)


@pytest.mark.slow
def test_kills_at_random_operations_leave_no_trace(whole: Path, tmp_path: Path):
    moments, codes = random.Random(1), []
    machine = Machine(tmp_path)
    while 0 not in codes:
        # From the start to the end a run takes some two hundred operations.
        fault = f"{moments.choice(('die', 'die_after'))}:any:{moments.randint(1, 150)}" if len(codes) < 30 else ""
        code, text = machine.run(fault=fault)
        assert code in (0, -signal.SIGKILL), text
        codes.append(code)
        if moments.random() < 0.6:
            machine = Machine(tmp_path, f"machine{len(codes)}")
    assert codes.count(-signal.SIGKILL) >= 10, codes
    kill_storm.check_same(whole, machine.fetched(tmp_path / "fetched"), STEPS)
