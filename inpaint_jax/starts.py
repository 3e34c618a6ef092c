"""What became of each start of a run, and the ledger of it: kills survived, time lost, share of useful time.

`starts.json` has an entry for each process that trained in the run folder. While one lives, it writes its entry anew
every two seconds: what a killed one did after the last time is not known, and counts as time away.
"""

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from inpaint_jax import full_disk, json_files, run_folder

log = logging.getLogger("inpaint_jax")

SIGN_SECONDS = 2.0  # between two signs of life
# How a start ended; one without an end was killed, or is at work.
FINISHED, PREEMPTED, INTERRUPTED, FAILED = "finished", "preempted", "interrupted", "failed"
LOST_OTHER = "lost another process"
_SECONDS, _STEPS, _COUNTS = ("first_step_s", "trained_s", "saves_s", "alive_s"), ("from_step", "step"), ("devices",)
_MOST = 1e11  # seconds since the epoch, and steps, stay below


class Start:
    """The entry of this process, of which nothing is written before `begin`.

    As a context: left by an exception it ends as failed, otherwise as preempted, if `end` has not said how. One that
    was refused before it had a state to train is no start: the file is left as it was.

    Args:
        workdir: the run folder, whose lock is held.
        began: seconds since the epoch at which the process began; None: now.
    """

    def __init__(self, workdir: Path, began: float | None = None):
        self._path, self._timing = workdir / run_folder.STARTS, workdir / run_folder.TIMING
        self._began = time.time() if began is None else began
        # From here on by a clock that nobody sets.
        self._offset = time.time() - self._began - time.monotonic()
        self._earlier: list[dict] = []
        self._entry: dict[str, Any] = {
            "began": round(self._began, 3), "devices": 0, "from_step": None, "step": None, "first_step_s": None,
            "trained_s": None, "saves_s": 0.0, "alive_s": 0.0, "ended": None,
        }  # fmt: skip
        self._begun = False
        self._before: bytes | None = None  # the file before this start
        self._saving: float | None = None
        self._lock, self._over = threading.Lock(), threading.Event()

    def __enter__(self) -> "Start":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        how = PREEMPTED if kind is None else INTERRUPTED if issubclass(kind, KeyboardInterrupt) else FAILED
        if kind and issubclass(kind, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
            how = LOST_OTHER
        if kind and issubclass(kind, ValueError) and self._begun and self._entry["from_step"] is None:
            self._withdraw()
        self.end(how)

    def _withdraw(self) -> None:
        with self._lock:
            self._over.set()
            if self._before is not None:
                run_folder.write_text(self._path, self._before.decode())
            else:
                self._path.unlink(missing_ok=True)

    def begin(self) -> None:
        """Writes the entry, beside those of earlier starts, and goes on to write it; the second time nothing.

        Raises:
            ValueError: the file is damaged.
        """
        if self._begun:
            return
        self._earlier = read_for_run(self._path)
        self._before = self._path.read_bytes() if self._path.exists() else None
        if self._earlier and self._earlier[-1]["ended"] is None and self._earlier[-1]["first_step_s"] is not None:
            # A kill came after the last sign of life, and the last row after it too.
            rows = [row["step"] for row in run_folder.iterate_rows(self._timing)]
            self._earlier[-1]["step"] = max([self._earlier[-1]["step"], *rows[-1:]])
        self._entry["devices"] = jax.device_count()
        self._begun = True
        self._write()
        threading.Thread(target=self._live, daemon=True).start()

    def _live(self) -> None:
        while not self._over.wait(SIGN_SECONDS):
            try:
                self._write()
            except OSError:
                # What the training itself writes there tells the user.
                log.debug("no sign of life could be written", exc_info=True)

    def _now(self) -> float:
        return round(time.monotonic() + self._offset, 3)

    def _write(self) -> None:
        with self._lock:
            if not self._begun or self._over.is_set():
                return
            self._entry["alive_s"] = self._now()
            entry = {**self._entry}
            if self._saving is not None:
                entry["saves_s"] = round(entry["saves_s"] + self._now() - self._saving, 3)
            try:
                run_folder.write_json(self._path, [*self._earlier, entry])
            except OSError as error:
                # The rows that wait for space warn of it, and the next sign has all that this one has.
                if not full_disk.is_full(error):
                    raise

    def goes_on_from(self, step: int) -> None:
        """Takes down the step of the state that was restored, 0 for a new run, and says what came before."""
        self._entry |= {"from_step": step, "step": step}
        if self._earlier:
            log.info("%s", line([*self._earlier, {**self._entry, "alive_s": self._now()}]))

    def first_step(self) -> None:
        """Takes down that the first step is compiled and done."""
        self._entry["first_step_s"] = self._now()
        self._write()

    def reached(self, step: int) -> None:
        """Takes down the last step that was trained."""
        self._entry["step"] = step

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Counts the time in it as waiting for a save."""
        self._saving = self._now()
        try:
            yield
        finally:
            with self._lock:
                self._entry["saves_s"] = round(self._entry["saves_s"] + self._now() - self._saving, 3)
                self._saving = None

    def trained(self) -> None:
        """Takes down that the training is at its end."""
        self._entry["trained_s"] = self._now()
        self._write()

    def end(self, how: str) -> None:
        """Writes how the start ended; only the first time, and nothing if it never began."""
        if self._entry["ended"]:
            return
        self._entry["ended"] = how
        try:
            self._write()
        except OSError as error:
            # The ledger must not take the place of how the run ends.
            log.warning("how this start ended could not be written: %s", error)
        finally:
            self._over.set()

    def say(self) -> None:
        """Logs the ledger if there were several starts."""
        if self._earlier:
            log.info("%s", line([*self._earlier, self._entry]))


def read(path: Path) -> list[dict]:
    """Returns the starts of a run, the first one first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not hold what a run writes.
    """
    starts = json_files.read(path)
    if not isinstance(starts, list) or not all(map(_is_start, starts)):
        raise ValueError("it does not list the starts of a run")
    return starts


def read_for_run(path: Path) -> list[dict]:
    """Returns the starts so far, none if the file is missing; ValueError with the file's name if it is damaged."""
    try:
        return read(path) if path.exists() else []
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, which costs the run its ledger alone") from error


def _is_start(entry: Any) -> bool:
    def is_number(name: str) -> bool:
        value = entry.get(name)
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MOST

    if not isinstance(entry, dict) or not isinstance(entry.get("ended"), str | None):
        return False
    given = [name for name in (*_SECONDS, *_STEPS) if entry.get(name, "") is not None]
    whole = all(isinstance(entry[name], int) for name in (*_COUNTS, *_STEPS) if entry.get(name) is not None)
    return {"saves_s", "alive_s"} <= set(given) and all(map(is_number, [*given, "began", *_COUNTS])) and whole


# The ledger.


def shares(starts: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Returns what became of the time and of the steps of each start.

    `startup_s` to the first step, with it; `saves_s` waiting for saves; `kept_s` and `twice_s` of training, of steps
    that stayed and of those that a later start trained again, by their numbers `kept` and `twice`; `test_s`. They sum
    up to `alive_s`. `away_s` is from there to the next start.
    """
    found = []
    for number, start in enumerate(starts):
        # What one restored drops all that was trained beyond it, by whichever start.
        restored = [later["from_step"] for later in starts[number + 1 :] if later["from_step"] is not None]
        first, last = start["from_step"] or 0, start["step"] or 0
        kept = max(0, min([last, *restored]) - first)
        alive, steps = start["alive_s"], max(0, last - first)
        trained = alive if start["trained_s"] is None else min(alive, start["trained_s"])
        startup = trained if start["first_step_s"] is None else min(trained, start["first_step_s"])
        saves = min(start["saves_s"], trained - startup)
        training = trained - startup - saves
        share = kept / steps if steps else 1.0
        next_began = starts[number + 1]["began"] if number + 1 < len(starts) else 0.0
        seconds = {
            "startup_s": startup,
            "saves_s": saves,
            "kept_s": training * share,
            "twice_s": training * (1 - share),
        }
        seconds |= {"test_s": alive - trained, "alive_s": alive}
        away = max(0.0, next_began - start["began"] - alive)
        found.append({**seconds, "kept": kept, "twice": steps - kept, "away_s": away})
    return found


def ledger(starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the sums of `shares`, `starts`, `survived` (how many of each end were gone on from) and two more.

    `useful` is the share of `alive_s` that was training that stayed, or a test that came to its end; `lost_s` what an
    uninterrupted run would not have needed: later starts to their first step, steps trained twice, tests begun anew.
    """
    each = shares(starts)
    sums = {name: sum(one[name] for one in each) for name in each[0]} if each else Counter()
    tested = sum(one["test_s"] for one, start in zip(each, starts, strict=True) if start["ended"] == FINISHED)
    survived = Counter(start["ended"] or "killed" for start in starts[:-1])
    survived.pop(FINISHED, None)
    lost = sum(one["twice_s"] for one in each) + sum(one["startup_s"] for one in each[1:])
    lost += sum(one["test_s"] for one, start in zip(each[:-1], starts, strict=False) if start["ended"] != FINISHED)
    useful = (sums["kept_s"] + tested) / sums["alive_s"] if sums["alive_s"] > 0 else 0.0
    return {"starts": len(starts), "survived": survived, "useful": useful, "lost_s": lost, **sums}


def survived_text(survived: Mapping[str, int]) -> str:
    """Returns the ends that were survived, such as "2 killed, 1 preempted"."""
    return ", ".join(f"{count} {how}" for how, count in survived.items()) or "all finished"


def line(starts: Sequence[Mapping[str, Any]]) -> str:
    """Returns the ledger in one line."""
    sums = ledger(starts)
    return (
        f"start {sums['starts']} ({survived_text(sums['survived'])} before): of {sums['alive_s']:.0f} s at work "
        f"{sums['useful']:.0%} were useful, {sums['lost_s']:.0f} s lost to starting again and to {sums['twice']} steps "
        f"trained twice, {sums['saves_s']:.1f} s waited for saves; {sums['away_s']:.0f} s away in between"
    )
