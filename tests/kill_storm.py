"""A storm of kills: the real trainer, SIGKILLed at random moments and started again until its run is finished.

    python tests/kill_storm.py --kills 200 --out storm.json            # half an hour on one core

Each process is `launch/main.py` from a cold start, killed from outside. Where it was is read afterwards from the board
of `watched_command.py`. In the end the run must equal one that was never interrupted, to the last bit.
"""

import argparse
import collections
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import watched_command
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from watched_command import Board

from inpaint_jax import checkpoint, config, integrity
from inpaint_jax.state import create_state
from inpaint_jax.step import make_system

ROOT = Path(__file__).parents[1]
# Generator, discriminator, an optimiser of each, moving averages; and a regime in which something happens: the best
# value, rate reactions, what they scale.
CONFIG = (
    f"--config={ROOT / 'configs' / 'unet_cosine.py'}:tiny",
    "--config.patience=2",
    "--config.regime.reactions=1000000",
    "--config.regime.reaction_factor=0.9",
)
STEPS_PER_EPOCH = 4
INSIDE = ("save", "write", "commit", "delete", "restore")  # "write" is the part of saving in the background
# Where each of a dozen kills is to be; "start" is any moment from the start of the process to just after its first row.
PLAN = ("start", "start", "step", "row", "evaluate", "wait", *INSIDE, "restore")
SHOWN = ("scalars", "images", "text")  # TensorBoard's names of what we write; of each, all steps are read
POLL = 0.0005  # seconds
LONGEST = 300.0  # seconds that a process may take to where it is to be killed

Start = Callable[..., Any]  # (board, *options) -> what `forked_commands.start` returns


@dataclasses.dataclass
class Kill:
    """One process of a storm.

    Attributes:
        wanted, found: where it was to be killed, and where it was.
        step: the last step of which a row was written.
        to_first_step: seconds from the start of the process to its first row, None if it did not come so far.
        resumed: it went on from a checkpoint.
    """

    wanted: str
    found: str
    step: int
    to_first_step: float | None
    resumed: bool


def options_of(workdir: Path, epochs: int) -> list[str]:
    """Returns the options of `launch/main.py` for a run in this folder."""
    return [*CONFIG, f"--workdir={workdir}", f"--config.epochs={epochs}"]


def plan(kills: int, moments: random.Random) -> list[str]:
    """Returns where each kill is to be: the plan, shuffled anew each time, and the last ones in the run's own test."""
    tests = max(1, kills // 20)
    places: list[str] = []
    while len(places) < kills - tests:
        places += moments.sample(PLAN, len(PLAN))
    return [*places[: kills - tests], *["test"] * tests]


class Durations:
    """How long places take, from the boards so far, in seconds."""

    def __init__(self) -> None:
        self._spent, self._left = collections.Counter[str](), collections.Counter[str]()
        self.start = 10.0  # from the start of a process to its first row

    def add(self, board: Board) -> None:
        for place in watched_command.PLACES:
            self._spent[place] += board.seconds(place)
            self._left[place] += board.left(place)

    def of(self, place: str) -> float:
        """Returns the mean of a place, a tenth of a second where none is known; of the test, a part."""
        if place == "test":  # no process that is killed leaves it
            return 0.25 * self.start
        return self._spent[place] / self._left[place] if self._left[place] else 0.1


def last_step(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    # The last line may be cut short.
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def kill_one(
    start: Start, board: Path, options: list[str], workdir: Path, wanted: str, most_rows: int, durations: Durations,
    moments: random.Random,
) -> Kill:  # fmt: skip
    """Starts a process and kills it in the wanted place, or where it has written so many rows or begins with its test.

    Raises:
        AssertionError: it ended by itself, or takes too long.
    """
    seen = Board(board, anew=True)
    begun = time.monotonic()
    process = start(board, *options)
    count = moments.randint(1, max(1, most_rows // 2 if wanted in ("save", "write", "commit", "delete") else most_rows))
    if wanted in ("restore", "test"):
        count = 1
    deadline = begun + (moments.uniform(0, 1.2 * durations.start) if wanted == "start" else LONGEST)
    first = None
    while time.monotonic() < deadline:
        if first is None and seen.left("row"):
            first = time.monotonic() - begun
        if wanted != "test" and (seen.left("row") >= most_rows or seen.entered("test")):
            break
        if wanted != "start" and seen.entered(wanted) >= count:
            time.sleep(moments.uniform(0, 1.2 * durations.of(wanted)))
            if wanted not in INSIDE or seen.entered(wanted) > seen.left(wanted):
                break
            count = seen.entered(wanted) + 1  # too late: the next time
        assert process.poll() is None, f"ended before it was in {wanted}: {said(process.wait())}"
        time.sleep(POLL)
    else:
        assert wanted == "start", f"no {wanted} within {LONGEST} s"
    process.send_signal(signal.SIGKILL)
    result = process.wait()
    assert result.returncode == -signal.SIGKILL, said(result)
    durations.add(seen)
    resumed = bool(seen.left("restore"))
    if first and resumed:
        durations.start = first
    return Kill(wanted, seen.active(), last_step(workdir), first, resumed)


def said(result: subprocess.CompletedProcess) -> str:
    """Returns exit code and output of a process."""
    return f"exit code {result.returncode}: {result.stdout}{result.stderr}"


def storm(start: Start, workdir: Path, kills: int, seed: int, epochs: int) -> Iterator[Kill]:
    """Kills the run of a folder so many times, and lets it finish then; yields each kill.

    Raises:
        AssertionError: a process failed, or ended before its kill.
    """
    moments, durations = random.Random(seed), Durations()
    workdir.parent.mkdir(parents=True, exist_ok=True)
    board, options = workdir.parent / "board", options_of(workdir, epochs)
    places = plan(kills, moments)
    for number, wanted in enumerate(places):
        training = places[number:].count("test")
        left = epochs * STEPS_PER_EPOCH - last_step(workdir)
        # On average so many rows that the steps last for all kills.
        most_rows = max(2, round(2 * left / max(1, kills - number - training)))
        yield kill_one(start, board, options, workdir, wanted, most_rows, durations, moments)
    Board(board, anew=True)
    result = start(board, *options).wait()
    assert result.returncode == 0, said(result)


# What the two runs came to.


def state_hash(workdir: Path, step: int) -> tuple[str, dict]:
    """Returns the SHA-256 of every array of a kept state, as it is on the disk, and the JSON beside it."""
    stored = config.read_stored(workdir / "config.json")
    optimizers = make_system(stored, total_steps=1).optimizers
    template = jax.eval_shape(lambda: create_state(stored, optimizers))
    state, record = checkpoint.read_state(workdir / "checkpoints", step, template)
    rooms = ("params", "stats", "opt", "ema_params", "ema_stats", "lr_scale", "guard")
    assert all(jax.tree.leaves(getattr(state, room)) for room in rooms)
    assert {group.split("/")[0] for group in state.opt} == {"generator", "discriminator"}
    return integrity.tree_hash(state), record


def steps_in_files(folder: Path) -> dict[str, list[int]]:
    """Returns the steps of each tag: a file's START event drops what earlier files hold from its step on."""
    shown: list[tuple[str, int]] = []
    for path in sorted(folder.iterdir()):
        for event in EventFileLoader(str(path)).Load():
            if event.HasField("session_log"):
                shown = [(tag, step) for tag, step in shown if step < event.step]
            shown += [(value.tag, event.step) for value in event.summary.value]
    steps = collections.defaultdict(list)
    for tag, step in shown:
        steps[tag].append(step)
    return dict(steps)


def steps_in_app(folder: Path) -> dict[str, list[int]]:
    """Returns the steps of each tag, as the TensorBoard application reads them."""
    read = EventAccumulator(str(folder), tensor_size_guidance=dict.fromkeys(SHOWN, 0), purge_orphaned_data=True)
    read.Reload()
    return {tag: [event.step for event in read.Tensors(tag)] for tag in read.Tags()["tensors"]}


def check_same(whole: Path, killed: Path, steps: int) -> dict[str, Any]:
    """Asserts that a run equals one that was never interrupted; returns the hash of the last state.

    Raises:
        AssertionError: it does not, or something was left behind.
    """
    kept = [checkpoint.kept_steps(workdir / "checkpoints") for workdir in (whole, killed)]
    assert kept[0] == kept[1]
    assert kept[0][-1] == steps
    hashes = []
    for step in kept[0]:
        (a, record_a), (b, record_b) = state_hash(whole, step), state_hash(killed, step)
        assert a == b, f"the states of step {step} differ"
        assert record_a == record_b
        hashes.append(a)
    assert (whole / "metrics.jsonl").read_text() == (killed / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "train"] == list(range(1, steps + 1))
    validated = list(range(STEPS_PER_EPOCH, steps + 1, STEPS_PER_EPOCH))
    assert [row["step"] for row in rows if row["split"] == "val"] == validated
    _check_left(whole, killed)
    shown = [(steps_in_files(w / "tensorboard"), steps_in_app(w / "tensorboard")) for w in (whole, killed)]
    assert shown[0] == shown[1]
    for tags in shown[1]:
        assert tags["train/loss/generator"] == list(range(1, steps + 1))
        assert tags["val/angular_error_deg_hole"] == validated
        for tag, tag_steps in tags.items():
            assert (np.diff(tag_steps) > 0).all(), f"TensorBoard's {tag} has overlapping steps: {tag_steps}"
    return {"state": hashes[-1], "rows": len(rows), "regime": record_b["regime"]}


def _check_left(whole: Path, killed: Path) -> None:
    """Asserts that the same files lie there, nothing half written or set aside; models and results are equal."""
    files = [{str(path.relative_to(w)) for path in w.rglob("*")} for w in (whole, killed)]
    # Names of TensorBoard's files have times in them, those of Orbax's data random numbers.
    ours = [{name for name in names if not name.startswith(("tensorboard/", "checkpoints/"))} for names in files]
    assert ours[0] == ours[1]
    assert not [name for name in files[1] if "tmp" in name]
    folders = [{str(p.relative_to(w)) for p in (w / "checkpoints").glob("*/*")} for w in (whole, killed)]
    assert folders[0] == folders[1]
    for name in ("generator/generator.safetensors", "generator/config.json", "config.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    results = [json.loads((w / "test/results.json").read_text()) for w in (whole, killed)]
    for name in ("metrics", "baselines", "hashes", "mask_set"):
        assert results[0][name] == results[1][name]


# The long storm.


class ColdCommand:
    """The watched trainer in a Python of its own, as a user starts it; see `forked_commands.Command`."""

    def __init__(self, board: Path, *options: str):
        self._output = board.with_name("output.txt")
        command = [sys.executable, str(ROOT / "tests" / "watched_command.py"), str(board), "--", *options]
        with self._output.open("w") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        self.poll, self.send_signal = self._process.poll, self._process.send_signal

    def wait(self) -> subprocess.CompletedProcess:
        """Returns exit code and output when it has ended."""
        return subprocess.CompletedProcess([], self._process.wait(), self._output.read_text(), "")


def figures(kills: list[Kill]) -> dict[str, Any]:
    """Returns the figures of a storm that was survived."""
    starts = [kill.to_first_step for kill in kills if kill.resumed and kill.to_first_step is not None]
    inside = sum(kill.found in INSIDE for kill in kills)
    return {
        "kills": len(kills),
        "inside save, commit, delete or restore": inside,
        "share inside": round(inside / len(kills), 3),
        "by place": dict(collections.Counter(kill.found for kill in kills).most_common()),
        "restarts to the first step": len(starts),
        "seconds to the first step, p50": round(float(np.percentile(starts, 50)), 2),
        "seconds to the first step, p95": round(float(np.percentile(starts, 95)), 2),
    }


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps_per_kill", type=int, default=4, help="the run is as long as that")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="of both runs; default a temporary one")
    parser.add_argument("--out", type=Path, help="JSON with the figures")
    given = parser.parse_args()
    epochs = -(-given.kills * given.steps_per_kill // STEPS_PER_EPOCH)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="storm"))
    whole, killed = folder / "whole", folder / "killed"
    if not (whole / "test/results.json").exists():
        print(f"the uninterrupted run, {epochs * STEPS_PER_EPOCH} steps, in {whole}", flush=True)
        command = [sys.executable, str(ROOT / "launch" / "main.py"), *options_of(whole, epochs)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    shutil.rmtree(killed, ignore_errors=True)
    begun, kills = time.monotonic(), []
    for kill in storm(ColdCommand, killed, given.kills, given.seed, epochs):
        kills.append(kill)
        write(given.out, kills, {})
        took = "" if kill.to_first_step is None else f", first step after {kill.to_first_step:.2f} s"
        print(
            f"{time.monotonic() - begun:7.1f} s  kill {len(kills)}: {kill.wanted} wanted, {kill.found} hit, "
            f"step {kill.step}{took}", flush=True,
        )  # fmt: skip
    found = figures(kills) | {"minutes": round((time.monotonic() - begun) / 60, 1), "processors": os.cpu_count()}
    found |= check_same(whole, killed, epochs * STEPS_PER_EPOCH) | {"survived": len(kills)}
    for name, value in found.items():
        print(f"{name:45} {value}")
    write(given.out, kills, found)


def write(path: Path | None, kills: list[Kill], found: dict[str, Any]) -> None:
    if path:
        path.write_text(json.dumps({**found, "each": [dataclasses.asdict(kill) for kill in kills]}, indent=2) + "\n")


if __name__ == "__main__":
    _main()
