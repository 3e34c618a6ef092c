"""A storm of kills over two processes that train as one, each under `launch/run_until_done.sh`, on one machine.

    python tests/process_storm.py --kills 50 --out storm.json          # under an hour on one core

At each kill one of the two trainers gets a SIGKILL at a random moment; its supervisor starts it again, and the other's
supervisor the other one, which ends where it loses its partner. A hang is a pair that neither trains a step nor starts
a process for two minutes. In the end the run must equal one of two processes that was never interrupted, bit by bit.
"""

import argparse
import collections
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fast_compilation
import kill_storm
import numpy as np

ROOT = Path(__file__).parents[1]
SUPERVISOR = ROOT / "launch" / "run_until_done.sh"
SMALLER = ("--config.generator.refine=0", "--config.task.fill=mean")  # to start sooner
PLAN = ("start", "rows", "rows", "rows")  # where each of four kills is to be
HANG = 120.0  # seconds without a step and without a start
POLL = 0.02  # seconds


@dataclasses.dataclass
class Kill:
    """One kill of a storm.

    Attributes:
        victim: the process that was killed, 0 or 1.
        wanted: "start", any moment of the victim's start; "rows", after some rows of metrics; "test".
        step: the last step of which a row was written.
        to_first_step: seconds from the kill to the next row, None if another kill came before.
        restart: seconds from the start of the later one of the two new processes to that row.
    """

    victim: int
    wanted: str
    step: int
    to_first_step: float | None = None
    restart: float | None = None


class Pair:
    """Two supervisors, each with a trainer of two devices.

    Attributes:
        outputs: a file of what each supervisor and its trainers said.
        starts: how many trainers each supervisor has started.
        began: when the last of them did.
        pids: their process ids.
        rows: how many timing rows there are; they only grow.
    """

    def __init__(self, workdir: Path, epochs: int):
        self.outputs = [workdir.with_name(f"output_{number}.txt") for number in range(2)]
        self.starts, self.began, self.pids, self.rows = [0, 0], [0.0, 0.0], [0, 0], 0
        self._timing, self._since = workdir / "timing.jsonl", time.monotonic()
        # A storm is many quick ends in a row.
        flags = f"{fast_compilation.ONE_DEVICE} --xla_force_host_platform_device_count=2"
        environment = {**os.environ, "XLA_FLAGS": flags, "QUICK_ENDS": "1000", "WAIT_SECONDS": "1"}
        options = [*kill_storm.options_of(workdir, epochs), *SMALLER, "--num_processes=2"]
        options += [f"--coordinator_address=127.0.0.1:{free_port()}"]
        command = [SUPERVISOR, sys.executable, ROOT / "launch" / "main.py", *options]
        self._supervisors = []
        for number, output in enumerate(self.outputs):
            with output.open("w") as file:
                process = subprocess.Popen(
                    [*command, f"--process_id={number}"], env=environment, stdout=file, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
            self._supervisors.append(process)

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *exception: object) -> None:
        for supervisor in self._supervisors:
            if supervisor.poll() is None:
                os.killpg(supervisor.pid, signal.SIGKILL)
            supervisor.wait()

    def codes(self) -> list[int | None]:
        """Returns the exit codes of both supervisors."""
        return [supervisor.poll() for supervisor in self._supervisors]

    def tests(self) -> bool:
        """Returns whether the last trainer 0 has trained to the end."""
        return "testing the" in self.outputs[0].read_text().rpartition("run folder ")[2]

    def trainer(self, number: int) -> int | None:
        """Returns the process id of a trainer, None while there is none."""
        supervisor = self._supervisors[number].pid
        try:
            for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
                # A supervisor also has a sleep, and for a moment a shell that is to become the trainer.
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(sys.executable.encode() + b"\0"):
                    return int(pid)
        except FileNotFoundError:
            pass  # it ended meanwhile
        return None

    def look(self) -> None:
        """Looks once how far both are.

        Raises:
            HangError: neither a step nor a start has come for `HANG` seconds.
        """
        before = *self.starts, self.rows
        for number in range(2):
            pid = self.trainer(number)
            if pid and pid != self.pids[number]:
                self.pids[number], self.began[number] = pid, time.monotonic()
                self.starts[number] += 1
        self.rows = self._timing.read_bytes().count(b"\n") if self._timing.exists() else 0
        if (*self.starts, self.rows) != before:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > HANG:
            raise HangError("\n".join(output.read_text()[-2000:] for output in self.outputs))


class HangError(AssertionError):
    """Nothing has happened for too long."""


def free_port() -> int:
    """Returns a port below those that the system gives away by itself: it must stay free between two starts."""
    for port in random.sample(range(20000, 30000), 100):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no port is free")


def plan(kills: int, moments: random.Random) -> list[str]:
    """Returns where each kill is to be; the last ones in the run's own test."""
    tests = max(1, kills // 10)
    places: list[str] = []
    while len(places) < kills - tests:
        places += moments.sample(PLAN, len(PLAN))
    return [*places[: kills - tests], *["test"] * tests]


class Storm:
    """The kills of a pair, one after the other; `kills` are those so far."""

    def __init__(self, pair: Pair, workdir: Path, seed: int):
        self.kills: list[Kill] = []
        self._pair, self._workdir, self._moments = pair, workdir, random.Random(seed)
        self._at, self._starts, self._rows, self._start = 0.0, 0, -1, 10.0

    def wait(self, reached: Callable[[], bool]) -> bool:
        """Waits until it is true; False if both supervisors have ended before."""
        while not reached():
            if None not in self._pair.codes():
                return False
            self._pair.look()
            self._note_first_step()
            time.sleep(POLL)
        return True

    def _note_first_step(self) -> None:
        # What a survivor still writes is no step of the new start.
        if not self.kills or self.kills[-1].restart is not None or self._pair.starts[0] == self._starts:
            return
        if self._rows < 0:
            self._rows = self._pair.rows
        if self._pair.rows > self._rows:
            now = time.monotonic()
            self._start = now - max(self._pair.began)
            self.kills[-1].to_first_step, self.kills[-1].restart = now - self._at, self._start

    def kill(self, wanted: str, most_rows: int) -> bool:
        """Kills one of both; False if the run ended before."""
        pair, moments = self._pair, self._moments
        victim = moments.randrange(2)
        if wanted == "start":
            # One that was killed has to come again first; the other may be about to end.
            starts = pair.starts[victim] if self.kills and self.kills[-1].victim == victim else 0
            reached = self.wait(lambda: pair.starts[victim] > starts)
            after = moments.uniform(0, 1.2 * self._start)
        elif wanted == "rows":
            rows = pair.rows + moments.randint(1, most_rows)
            reached = self.wait(lambda: pair.rows >= rows or pair.tests())
            after = moments.uniform(0, 0.3)
        else:
            reached = self.wait(pair.tests)
            after = moments.uniform(0, 4)
        begun = time.monotonic()
        if not (reached and self.wait(lambda: time.monotonic() > begun + after and pair.trainer(victim) is not None)):
            return False
        step, pid = kill_storm.last_step(self._workdir), pair.trainer(victim)
        if pid is None:
            return self.kill(wanted, most_rows)
        os.kill(pid, signal.SIGKILL)
        self.kills.append(Kill(victim, wanted, step))
        self._at, self._starts, self._rows = time.monotonic(), pair.starts[0], -1
        return True


def storm(workdir: Path, kills: int, seed: int, epochs: int) -> Iterator[Kill]:
    """Kills one process of a run so many times, and lets it finish then; yields each kill when the next one is due.

    Raises:
        AssertionError: both hung, or one ended with another code than 0.
    """
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with Pair(workdir, epochs) as pair:
        raging = Storm(pair, workdir, seed)
        places = plan(kills, random.Random(seed))
        for number, wanted in enumerate(places):
            left = epochs * kill_storm.STEPS_PER_EPOCH - kill_storm.last_step(workdir)
            training = sum(place != "test" for place in places[number:])
            # On average so many rows that the steps last for all kills.
            if not raging.kill(wanted, max(2, round(2 * left / max(1, training)))):
                break
            if number:
                yield raging.kills[-2]
        raging.wait(lambda: False)
        yield raging.kills[-1]
        texts = [output.read_text() for output in pair.outputs]
        assert pair.codes() == [0, 0], "\n".join(text[-2000:] for text in texts)


def whole_run(workdir: Path, epochs: int) -> None:
    """Trains the same with two processes that nothing interrupts."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with Pair(workdir, epochs) as pair:
        assert Storm(pair, workdir, 0).wait(lambda: False) is False
        assert pair.codes() == [0, 0], "\n".join(output.read_text()[-2000:] for output in pair.outputs)


def figures(kills: list[Kill], outputs: list[str]) -> dict[str, Any]:
    """Returns the figures of a storm that was survived."""
    found: dict[str, Any] = {
        "kills": len(kills),
        "of process 0": sum(kill.victim == 0 for kill in kills),
        "by moment": dict(collections.Counter(kill.wanted for kill in kills)),
    }
    for name, words in (("restart", "start of both to the first step"), ("to_first_step", "kill to the next step")):
        seconds = [value for kill in kills if (value := getattr(kill, name)) is not None]
        found[f"{words}: how many"] = len(seconds)
        for share in (50, 95):
            found[f"{words}, s, p{share}"] = round(float(np.percentile(seconds, share)), 1)
    for number, output in enumerate(outputs):
        codes = collections.Counter(re.findall(r"ended with code (\d+); starting", output))
        found[f"codes of process {number}"] = dict(codes.most_common())
    return found


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps_per_kill", type=int, default=6, help="the run is as long as that")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="of both runs; default a temporary one")
    parser.add_argument("--out", type=Path, help="JSON with the figures")
    given = parser.parse_args()
    epochs = -(-given.kills * given.steps_per_kill // kill_storm.STEPS_PER_EPOCH)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="process_storm"))
    whole, killed = folder / "whole" / "run", folder / "killed" / "run"
    if not (whole / "test/results.json").exists():
        print(f"the uninterrupted run, {epochs * kill_storm.STEPS_PER_EPOCH} steps, in {whole}", flush=True)
        whole_run(whole, epochs)
    shutil.rmtree(killed.parent, ignore_errors=True)
    begun, kills = time.monotonic(), []
    for kill in storm(killed, given.kills, given.seed, epochs):
        kills.append(kill)
        took = "" if kill.restart is None else f", next step after {kill.to_first_step:.1f} s"
        print(
            f"{time.monotonic() - begun:7.1f} s  kill {len(kills)}: process {kill.victim}, {kill.wanted}, "
            f"step {kill.step}{took}", flush=True,
        )  # fmt: skip
    outputs = [killed.with_name(f"output_{number}.txt").read_text() for number in range(2)]
    found = figures(kills, outputs) | {"minutes": round((time.monotonic() - begun) / 60, 1), "hangs": 0}
    found |= kill_storm.check_same(whole, killed, epochs * kill_storm.STEPS_PER_EPOCH)
    found |= {"equal to the uninterrupted run": True, "processors": os.cpu_count()}
    for name, value in found.items():
        print(f"{name:45} {value}")
    if given.out:
        text = json.dumps({**found, "each": [dataclasses.asdict(kill) for kill in kills]}, indent=2)
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    _main()
