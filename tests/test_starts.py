"""The ledger of a run's starts: what is counted as what, and what is known of a process that was killed."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inpaint_jax import run_folder, starts


def entry(began: float, alive: float, first: float | None, steps: tuple[int, int] | None, **more) -> dict:
    found = {"began": began, "devices": 1, "from_step": None, "step": None, "first_step_s": first, "trained_s": None}
    if steps:
        found |= {"from_step": steps[0], "step": steps[1]}
    return {**found, "saves_s": 0.0, "alive_s": alive, "ended": None, **more}


# Killed at step 20; killed while it started; preempted at step 30; its test killed; finished.
STARTS = [
    entry(1000.0, 60.0, 20.0, (0, 20), saves_s=8.0),
    entry(1100.0, 5.0, None, None),
    entry(1200.0, 50.0, 10.0, (15, 30), saves_s=10.0, ended=starts.PREEMPTED),
    entry(1300.0, 40.0, 10.0, (30, 40), trained_s=30.0),
    entry(1350.0, 20.0, None, (40, 40), trained_s=8.0, ended=starts.FINISHED),
]


def test_the_time_of_each_start_is_divided():
    each = starts.shares(STARTS)
    names = ("startup_s", "saves_s", "kept_s", "twice_s", "test_s", "kept", "twice", "away_s")
    assert [[one[name] for name in names] for one in each] == [
        [20, 8, 24, 8, 0, 15, 5, 40],  # 32 s for 20 steps, of which 5 were trained again
        [5, 0, 0, 0, 0, 0, 0, 95],
        [10, 10, 30, 0, 0, 15, 0, 50],
        [10, 0, 20, 0, 10, 10, 0, 10],
        [8, 0, 0, 0, 12, 0, 0, 0],
    ]
    for one, start in zip(each, STARTS, strict=True):
        assert sum(one[name] for name in names[:5]) == one["alive_s"] == start["alive_s"]
    sums = starts.ledger(STARTS)
    assert sums["survived"] == {"killed": 3, "preempted": 1}
    assert sums["useful"] == (24 + 30 + 20 + 12) / 175
    assert sums["lost_s"] == 8 + (5 + 10 + 10 + 8) + 10
    assert starts.line(STARTS) == (
        "start 5 (3 killed, 1 preempted before): of 175 s at work 49% were useful, 51 s lost to starting again and to "
        "5 steps trained twice, 18.0 s waited for saves; 195 s away in between"
    )


def test_an_older_state_that_is_restored_takes_steps_of_several_starts():
    """As where the newest checkpoints are damaged."""
    run = [entry(0.0, 30.0, 10.0, (0, 10)), entry(40.0, 30.0, 10.0, (10, 20)), entry(80.0, 30.0, 10.0, (5, 40))]
    assert [(one["kept"], one["twice"]) for one in starts.shares(run)] == [(5, 5), (0, 10), (35, 0)]


def test_no_kill_and_no_start_divide_by_nothing():
    assert starts.ledger([])["useful"] == 0
    assert starts.ledger([entry(0.0, 0.0, None, None)])["useful"] == 0
    assert "start 2 (all finished before)" in starts.line([STARTS[-1], STARTS[-1]])


CHILD = """
import sys, time
from pathlib import Path
from inpaint_jax import starts
starts.SIGN_SECONDS = 0.05
start = starts.Start(Path(sys.argv[1]))
start.begin()
start.goes_on_from(3)
start.first_step()
start.reached(5)
print("reached", flush=True)
time.sleep(60)
"""


def test_a_killed_process_leaves_what_it_had_come_to(tmp_path: Path):
    path = tmp_path / run_folder.STARTS
    begun = time.time()
    with subprocess.Popen([sys.executable, "-c", CHILD, tmp_path], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout.readline() == "reached\n"
            while starts.read(path)[0]["step"] != 5:
                assert child.poll() is None
                time.sleep(0.01)
        finally:
            os.kill(child.pid, signal.SIGKILL)
    lived = time.time() - begun
    (one,) = starts.read(path)
    assert (one["from_step"], one["step"], one["ended"]) == (3, 5, None)
    assert 0 <= one["first_step_s"] <= one["alive_s"] <= lived
    # One that goes on knows of the last rows too, which the killed one wrote after its last sign of life.
    (tmp_path / run_folder.TIMING).write_text(
        '{"step": 7, "seconds": 1, "images": 4, "data_wait_s": 0}\n{"step": 8, "se'
    )
    with starts.Start(tmp_path) as start:
        start.begin()
        start.goes_on_from(4)
    assert [(s["from_step"], s["step"], s["ended"]) for s in starts.read(path)] == [(3, 7, None), (4, 4, "preempted")]


@pytest.mark.parametrize(
    ("error", "ended"), [(ValueError("full"), starts.FAILED), (KeyboardInterrupt(), starts.INTERRUPTED)]
)
def test_an_error_ends_a_start(tmp_path: Path, error: BaseException, ended: str):
    start = starts.Start(tmp_path)
    start.begin()
    start.goes_on_from(0)
    with pytest.raises(type(error)), start:
        raise error
    assert starts.read(tmp_path / run_folder.STARTS)[0]["ended"] == ended


def test_a_refused_start_leaves_the_ledger_as_it_was(tmp_path: Path):
    for earlier in (None, b"[]\n"):
        if earlier:
            (tmp_path / run_folder.STARTS).write_bytes(earlier)
        start = starts.Start(tmp_path)
        start.begin()
        with pytest.raises(ValueError, match="changed"), start:
            raise ValueError("the data changed")
        assert [path.read_bytes() for path in tmp_path.iterdir()] == ([earlier] if earlier else [])


def test_a_ledger_that_cannot_be_written_does_not_change_how_a_run_ends(tmp_path: Path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "input/output error")

    start = starts.Start(tmp_path)
    start.begin()
    start.goes_on_from(0)
    monkeypatch.setattr(run_folder, "write_json", broken)
    with pytest.raises(KeyError, match="the real one"), start:
        raise KeyError("the real one")


def test_one_that_never_begins_writes_nothing(tmp_path: Path):
    with starts.Start(tmp_path) as start:
        start.goes_on_from(0)
        start.first_step()
        with start.saving():
            pass
        start.trained()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "{", "{}", "[3]", '[{"began": 1}]', json.dumps([{**STARTS[0], "alive_s": -1}]), '[{"began": NaN}]',
        json.dumps([{**STARTS[0], "step": 1.5}]), json.dumps([{**STARTS[0], "ended": 3}]),
        json.dumps([{**STARTS[0], "began": 1e300}]),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path: Path, text: str):
    path = tmp_path / run_folder.STARTS
    path.write_text(text)
    with pytest.raises(ValueError, match=r"starts\.json is damaged .*: remove it"):
        starts.Start(tmp_path).begin()
    assert path.read_text() == text
