"""Runs `launch/main.py` as it is, and shows on a board, a file that others can read, what it is doing at this moment.

    python tests/watched_command.py BOARD [SIGTERM@save:2 ...] -- OPTIONS OF main.py

Functions of the trainer and of Orbax are wrapped to count when they begin and end; nothing in them is changed. With
`SIGTERM@save:2` the process sends itself this signal where it begins its second save.
"""

import contextlib
import mmap
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# In the order in which a process that is in several of them is said to be in one. "save" is what the trainer waits
# for, "write" Orbax's work in the background from there to the end, "row" a row of metrics; "import" ends when JAX's
# begins.
PLACES = (
    *("delete", "commit", "restore", "write", "save", "test", "evaluate", "compile", "step", "wait", "row", "data"),
    "import",
)
NUMBERS = 3  # of a place: how often it was entered and left, and the nanoseconds in it


class Board:
    """Numbers of each place in a file that is shared memory: what a killed process wrote last stays to be read."""

    def __init__(self, path: Path, anew: bool = False):
        size = 8 * NUMBERS * len(PLACES)
        if anew:
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            # Whole numbers of the machine, so that none is ever seen half written.
            self._numbers = memoryview(mmap.mmap(file.fileno(), size)).cast("q")
        self._lock = threading.Lock()

    def _add(self, place: str, index: int, value: int) -> int:
        at = NUMBERS * PLACES.index(place) + index
        with self._lock:
            self._numbers[at] += value
            return self._numbers[at]

    def entered(self, place: str) -> int:
        """Returns how often the place was entered."""
        return self._add(place, 0, 0)

    def left(self, place: str) -> int:
        """Returns how often the place was left."""
        return self._add(place, 1, 0)

    def seconds(self, place: str) -> float:
        """Returns the seconds that were spent in the place, whenever it was left."""
        return self._add(place, 2, 0) / 1e9

    def active(self) -> str:
        """Returns where the process is, or was when it was killed: a place, "start" before any and "between" after."""
        inside = [place for place in PLACES if self.entered(place) > self.left(place)]
        return (inside or ["between" if self.left("data") else "start"])[0]

    @contextlib.contextmanager
    def at(self, place: str, signals: dict[tuple[str, int], list[int]]) -> Iterator[None]:
        """Counts, and sends this process the signals that are due where the place is entered."""
        count = self._add(place, 0, 1)
        begin = time.perf_counter_ns()
        try:
            for number in signals.get((place, count), []):
                os.kill(os.getpid(), number)
            yield
        finally:
            self._add(place, 2, time.perf_counter_ns() - begin)
            self._add(place, 1, 1)


def watch(board: Board, signals: dict[tuple[str, int], list[int]]) -> None:
    """Wraps what the trainer calls in its places."""
    from orbax.checkpoint import CheckpointManager
    from orbax.checkpoint._src.path.atomicity import AtomicRenameTemporaryPath
    from orbax.checkpoint._src.path.deleter import StandardCheckpointDeleter

    from inpaint_jax import course, records, train
    from inpaint_jax import run as run_module

    def wrap(owner: object, name: str, place: str) -> None:
        function = getattr(owner, name)

        def watched(*arguments, **options):
            with board.at(place, signals):
                return function(*arguments, **options)

        setattr(owner, name, watched)

    wrap(train, "assemble", "data")
    wrap(train, "next_batch", "wait")
    wrap(course, "validate", "evaluate")
    wrap(train, "save", "save")
    wrap(train, "finish", "test")
    wrap(records.Records, "train", "row")
    wrap(CheckpointManager, "_finalize", "write")
    wrap(StandardCheckpointDeleter, "delete", "delete")
    begin, compiled_step, finalize = run_module.begin, course.compiled_step, AtomicRenameTemporaryPath.finalize

    def watched_begin(run, checkpoints, *arguments):
        if checkpoints.latest_step() is None:
            return begin(run, checkpoints, *arguments)
        with board.at("restore", signals):
            return begin(run, checkpoints, *arguments)

    def watched_compiled_step(*arguments):
        step, calls = compiled_step(*arguments), iter(("compile",))

        def watched_step(*inputs):
            with board.at(next(calls, "step"), signals):
                return step(*inputs)

        return watched_step

    async def watched_finalize(path):
        with board.at("commit", signals):
            return await finalize(path)

    run_module.begin, course.compiled_step = watched_begin, watched_compiled_step
    AtomicRenameTemporaryPath.finalize = watched_finalize


def _signals(words: list[str]) -> dict[tuple[str, int], list[int]]:
    found: dict[tuple[str, int], list[int]] = {}
    for word in words:
        name, _, moment = word.partition("@")
        place, _, count = moment.partition(":")
        if place not in PLACES:
            raise ValueError(f"{word}: there is no place {place!r}: take one of {', '.join(PLACES)}")
        found.setdefault((place, int(count or 1)), []).append(signal.Signals[name])
    return found


def _main() -> None:
    split = sys.argv.index("--")
    board, signals = Board(Path(sys.argv[1])), _signals(sys.argv[2:split])
    from inpaint_jax import command_line

    # As late as the command itself imports JAX, so that the start takes what it takes a user.
    prepare: Callable[..., None] = command_line.prepare_jax

    def prepare_and_watch(*arguments) -> None:
        with board.at("import", signals):
            prepare(*arguments)
        watch(board, signals)

    command_line.prepare_jax = prepare_and_watch
    program = str(ROOT / "launch" / "main.py")
    sys.argv = [program, *sys.argv[split + 1 :]]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    _main()
