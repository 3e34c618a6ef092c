"""The trainer, killed ten times at random moments, ends as if nothing had happened.

`python tests/kill_storm.py` does it at length, with processes that start anew.
"""

import os
from pathlib import Path

import fast_compilation
import forked_commands
import kill_storm
import pytest

ROOT = Path(__file__).parents[1]
KILLS, EPOCHS = 10, 5
STEPS = EPOCHS * kill_storm.STEPS_PER_EPOCH
SMALLER = ("--config.generator.refine=0", "--config.task.fill=mean")  # to start sooner
ENVIRONMENT = {**os.environ, "XLA_FLAGS": fast_compilation.ONE_DEVICE}


def start(board: Path, *options: str) -> forked_commands.Command:
    program = ROOT / "tests" / "watched_command.py"
    return forked_commands.Command(program, ROOT, str(board), "--", *options, *SMALLER, environment=ENVIRONMENT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of an uninterrupted run, that nobody watched."""
    workdir = tmp_path_factory.mktemp("storm") / "whole"
    options = *kill_storm.options_of(workdir, EPOCHS), *SMALLER
    ran = forked_commands.run("main", ROOT, *options, environment=ENVIRONMENT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return workdir


def test_ten_kills_leave_no_trace(whole: Path, tmp_path: Path):
    killed = tmp_path / "killed"
    kills = list(kill_storm.storm(start, killed, KILLS, seed=5, epochs=EPOCHS))
    assert len(kills) == KILLS
    assert sum(kill.found in kill_storm.INSIDE for kill in kills) >= KILLS / 5, kills
    assert kills[-1].found == "test"
    kill_storm.check_same(whole, killed, STEPS)
