"""Two processes under their supervisors, one of them killed now and then, end as if nothing had happened."""

from pathlib import Path

import kill_storm
import process_storm
import pytest

from inpaint_jax import run_folder, starts

KILLS, EPOCHS = 3, 5
SEED = 4


@pytest.mark.slow  # eight starts of two processes
def test_kills_of_either_process_leave_no_trace(tmp_path: Path):
    whole, killed = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    process_storm.whole_run(whole, EPOCHS)
    kills = list(process_storm.storm(killed, KILLS, SEED, EPOCHS))
    # The last one is to come while process 0 tests, which may end before.
    assert len(kills) >= KILLS - 1
    assert {kill.victim for kill in kills[: KILLS - 1]} == {0, 1}
    kill_storm.check_same(whole, killed, EPOCHS * kill_storm.STEPS_PER_EPOCH)
    ledger = starts.ledger(starts.read(killed / run_folder.STARTS))
    assert ledger["starts"] > 1
    assert set(ledger["survived"]) <= {"killed", starts.LOST_OTHER}
    assert ledger["kept"] == EPOCHS * kill_storm.STEPS_PER_EPOCH


def test_a_pair_that_does_nothing_is_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process_storm, "HANG", 1.0)
    waiting = tmp_path / "wait.sh"
    waiting.write_text("#!/bin/sh\nexec sleep 60\n")
    waiting.chmod(0o755)
    monkeypatch.setattr(process_storm, "SUPERVISOR", waiting)
    with process_storm.Pair(tmp_path / "run", 1) as pair, pytest.raises(process_storm.HangError):
        process_storm.Storm(pair, tmp_path / "run", 0).wait(lambda: False)
