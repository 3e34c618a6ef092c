"""The trainer, killed or told to end wherever it is, ends as if nothing had happened.

`python tests/kill_storm.py` kills it at length, with processes that start anew.
"""

import os
import re
import signal
import time
from pathlib import Path

import fast_compilation
import forked_commands
import kill_storm
import pytest

from inpaint_jax import checkpoint, run_folder, starts

ROOT = Path(__file__).parents[1]
KILLS, EPOCHS = 10, 5
STEPS = EPOCHS * kill_storm.STEPS_PER_EPOCH
SMALLER = ("--config.generator.refine=0", "--config.task.fill=mean")  # to start sooner
ENVIRONMENT = {**os.environ, "XLA_FLAGS": fast_compilation.ONE_DEVICE}


def start(board: Path, *options: str, signals: tuple[str, ...] = ()) -> forked_commands.Command:
    words = str(board), *signals, "--", *options, *SMALLER
    return forked_commands.start("../tests/watched_command", ROOT, *words, environment=ENVIRONMENT)


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
    # Each step that was trained has a timing row. One that was killed before its data were read is in no ledger.
    entries = starts.read(killed / run_folder.STARTS)
    ledger = starts.ledger(entries)
    begun = [kill for kill in kills if kill.found not in ("start", "import", "between", "data")]
    ends = [entry["ended"] for entry in entries[:-1]]
    assert len(begun) <= len(ends) <= KILLS
    # The last kill comes in the test, and may come after the test's results.
    assert set(ends[:-1]) == {None}
    assert ends[-1] in (None, starts.FINISHED)
    assert ledger["twice"] == len(run_folder.read_rows(killed / run_folder.TIMING)) - STEPS > 0
    assert ledger["kept"] == STEPS


NOTHING = "there is nothing to save; run the same command again"
# What is sent where, in one run: exit code, what is said, and the steps of which the state may be the last saved one:
# none is lost, and at most one more is trained. Each process begins where the one before it ended.
SIGNALS = [
    (["SIGTERM@import"], 75, f"SIGTERM: {NOTHING}", [0]),
    (["SIGTERM@data"], 75, f"SIGTERM: {NOTHING}", [0]),
    (["SIGINT@compile"], 75, f"SIGINT: {NOTHING}", [0]),
    # Step 1 is the one that is compiled. A second SIGTERM comes while the first one's state is being saved.
    (["SIGTERM@wait:2", "SIGTERM@save"], 75, "SIGTERM: state of step 2 saved; run the same command again", [2]),
    (["SIGTERM@restore"], 75, f"SIGTERM: {NOTHING}", [2]),
    (["SIGTERM@compile"], 75, f"SIGTERM: {NOTHING}", [2]),
    (["SIGINT@evaluate"], 75, "SIGINT: state of step 5 saved; run the same command again", [5]),
    (["SIGTERM@step:2"], 75, "SIGTERM: state of step 8 saved; run the same command again", [8]),
    # At step 9; from another thread, the handler runs wherever the main one is.
    # The commit runs beside the training, which may come to the next save meanwhile.
    (["SIGTERM@commit:2"], 75, r"SIGTERM: state of step \d+ saved; run the same command again", range(9, STEPS)),
    # The first asks for a save, and the second comes in it: nothing of it is on the disk.
    (["SIGINT@step", "SIGINT@save"], 130, "error: interrupted", range(9, STEPS)),
    (["SIGTERM@test"], 75, f"SIGTERM: {NOTHING}", [STEPS]),
]


def test_a_signal_anywhere_loses_at_most_one_step(whole: Path, tmp_path: Path):
    workdir, board = tmp_path / "told", tmp_path / "board"
    for signals, code, words, steps in SIGNALS:
        kill_storm.Board(board, anew=True)
        result = start(board, *kill_storm.options_of(workdir, EPOCHS), signals=(*signals,)).wait()
        text = kill_storm.said(result)
        assert result.returncode == code, (signals, text)
        assert re.search(words, text), (signals, text)
        assert "Traceback" not in text
        saved = (checkpoints_of(workdir) or [0])[-1]
        assert saved in steps, (signals, text)
        if code == 75:
            assert saved == kill_storm.last_step(workdir)  # every step is logged
    kill_storm.Board(board, anew=True)
    assert start(board, *kill_storm.options_of(workdir, EPOCHS)).wait().returncode == 0
    kill_storm.check_same(whole, workdir, STEPS)
    entries = starts.read(workdir / run_folder.STARTS)
    # The first two had nothing to begin with.
    assert [entry["ended"] for entry in entries] == [
        *(starts.INTERRUPTED if code == 130 else starts.PREEMPTED for _, code, _, _ in SIGNALS[2:]), starts.FINISHED
    ]  # fmt: skip
    assert starts.ledger(entries)["twice"] == len(run_folder.read_rows(workdir / run_folder.TIMING)) - STEPS


@pytest.mark.slow
def test_a_rain_of_signals_changes_nothing(whole: Path, tmp_path: Path):
    workdir, board = tmp_path / "told", tmp_path / "board"
    seen = kill_storm.Board(board, anew=True)
    process = start(board, *kill_storm.options_of(workdir, EPOCHS))
    # From the middle of the third save on, which is not made for them, until the process has ended.
    while process.poll() is None:
        if seen.entered("save") > 2:
            process.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    result = process.wait()
    assert result.returncode == 75, kill_storm.said(result)
    assert f"SIGTERM: state of step {checkpoints_of(workdir)[-1]} saved" in result.stderr
    assert checkpoints_of(workdir)[-1] == kill_storm.last_step(workdir) in (6, 7)
    seen = kill_storm.Board(board, anew=True)
    assert start(board, *kill_storm.options_of(workdir, EPOCHS)).wait().returncode == 0
    kill_storm.check_same(whole, workdir, STEPS)


def checkpoints_of(workdir: Path) -> list[int]:
    return checkpoint.kept_steps(workdir / "checkpoints") if (workdir / "checkpoints/last").exists() else []
