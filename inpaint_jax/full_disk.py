"""A disk that becomes full while a run writes: how it shows, and files whose lines wait for space."""

import collections
import contextlib
import errno
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger("inpaint_jax")

FILES = 256  # and folders that a checkpoint may take: it has some dozens
_CODES = (errno.ENOSPC, errno.EDQUOT)  # no space is left, or none of the user's quota


def is_full(error: BaseException | None) -> bool:
    """Returns whether an error, or one that it was raised from, says that the disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _CODES:
            return True
        # TensorStore, which writes Orbax's arrays, raises ValueErrors that have the system's code in their text.
        if any(f"os_error_code='{code}'" in str(error) for code in _CODES):
            return True
        error = error.__cause__
    return False


def free(folder: Path) -> int:
    """Returns the bytes that can still be written on the disk of a folder: none where it takes no more files."""
    state = os.statvfs(folder)
    # Some file systems have no limit, and say 0 of 0.
    if state.f_files and state.f_favail < FILES:
        return 0
    return state.f_bavail * state.f_frsize


def quiet_libraries() -> None:
    """Keeps Orbax's threads from logging a traceback each of a full disk; the error itself is raised all the same."""
    logging.getLogger("absl").addFilter(_not_of_a_full_disk)


def _not_of_a_full_disk(record: logging.LogRecord) -> bool:
    return not (record.exc_info and is_full(record.exc_info[1]))


def wait_for_writers() -> None:
    """Waits for Orbax's threads: the error of one leaves others at work, and they make anew what is removed then."""
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            # The join of their own raises. Those that wait for a folder which was not made would take ten minutes.
            threading.Thread.join(thread, timeout=5)


def remove_unfinished(folder: Path) -> None:
    """Removes checkpoints that were not written to their end; none must be about to be written."""
    for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):
        # Should a thread be at work in there still, what it leaves goes the next time.
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def skipping(path: Path) -> Iterator[None]:
    """Makes a warning of a full disk while a file is written that the run can do without; other errors stay errors."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        log.warning("the disk of %s is full: %s is not written", path.parent, path.name)


class Appender:
    """Appends to a file; what does not fit on a full disk waits in memory, in its order.

    Each piece is in the file whole or not at all.

    Args:
        path: the file, made if missing.
        anew: drop what it holds.
    """

    def __init__(self, path: Path, anew: bool = False):
        self._file = path.open("ab", buffering=0)
        if anew:
            self._file.truncate(0)
        self._end = os.fstat(self._file.fileno()).st_size
        self._waiting: collections.deque[bytes] = collections.deque()
        self._part = False  # a piece that was written in part is still to be cut off

    @property
    def waiting(self) -> int:
        """The pieces that wait for space."""
        return len(self._waiting)

    def append(self, piece: bytes, waits: bool = True) -> bool:
        """Writes a piece after those that wait, if there is space.

        Args:
            waits: keep it for later where there is none; False: leave it out then.

        Returns:
            Whether it is written.
        """
        self._waiting.append(piece)
        written = self.write_waiting()
        if not written and not waits:
            self._waiting.pop()
        return written

    def write_waiting(self) -> bool:
        """Writes what waits, as far as there is space, and returns whether nothing waits any more."""
        while self._waiting:
            try:
                self._write(self._waiting[0])
            except OSError as error:
                if not is_full(error):
                    raise
                return False
            self._waiting.popleft()
        return True

    def _write(self, piece: bytes) -> None:
        if self._part:
            self._cut_off()
        self._end = os.fstat(self._file.fileno()).st_size  # somebody else may have appended too
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._part = True
            self._cut_off()
            raise

    def _cut_off(self) -> None:
        self._file.truncate(self._end)
        self._part = False

    def commit(self) -> bool:
        """Writes what waits and flushes to the disk; returns whether all of it is there."""
        written = self.write_waiting()
        os.fsync(self._file.fileno())
        return written

    def close(self) -> bool:
        """Commits and closes; returns whether all is written. What still waits is lost."""
        try:
            return self.commit()
        finally:
            self._file.close()
