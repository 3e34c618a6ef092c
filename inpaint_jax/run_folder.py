"""The run folder: names, the lock, atomic writes, and the rows of `metrics.jsonl`."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

CONFIG, METRICS, TIMING, LOG = "config.json", "metrics.jsonl", "timing.jsonl", "log.txt"
CHECKPOINTS, SAMPLES, TENSORBOARD, TEST, GENERATOR = "checkpoints", "samples", "tensorboard", "test", "generator"
DATA, MASKS = "data", "masks"
# What --restart removes. Checkpoints go first and the config last: a kill in between must not leave a run that goes on
# without a config to compare with.
OWN = (CHECKPOINTS, METRICS, TIMING, LOG, SAMPLES, TENSORBOARD, TEST, GENERATOR, CONFIG)


def default_workdir(config_path: str) -> Path:
    """Returns `runs/<config name>[-<arg>]` for the value of `--config`."""
    path, _, arg = config_path.partition(":")
    return Path("runs") / (Path(path).stem + (f"-{arg}" if arg else ""))


def lock(workdir: Path) -> IO[str]:
    """Makes the folder and takes its lock.

    The lock is the operating system's, so that a crash frees it.

    Returns:
        The open lock file: keep it until the run ends.

    Raises:
        ValueError: another process trains in this folder, or the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / ".lock").open("w")
    except OSError as error:
        raise ValueError(
            f"the run folder {str(workdir)!r} cannot be written ({error}): choose another --workdir"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ValueError(
            f"another process works in the run folder {str(workdir)!r}: wait for it, or choose another --workdir"
        ) from error
    return file


def remove_run(workdir: Path) -> None:
    """Removes what a run wrote, and nothing else; the manifests of checked files and the stored masks stay."""
    for name in OWN:
        path = workdir / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it: a reader sees the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def read_rows(path: Path) -> list[dict]:
    """Returns the rows of a `.jsonl` file; a last line cut short by a kill is left out.

    Raises:
        ValueError: a damaged line that is not the last.
    """
    if not path.exists():
        return []
    rows, lines = [], path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"line {number} of {path} is damaged ({error}): mend or remove it") from error
    return rows


def truncate_rows(path: Path, step: int) -> list[dict]:
    """Rewrites the file without rows of steps after `step`, atomically, and returns the rows that stay."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


class RowFile:
    """Appends rows to a `.jsonl` file; `commit` makes sure that they are on the disk."""

    def __init__(self, path: Path):
        # A kill can leave half a line, to which the next row would be glued.
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            write_text(path, "".join(json.dumps(row) + "\n" for row in read_rows(path)))
        self._file = path.open("a")

    def write(self, rows: Iterable[dict]) -> None:
        """Appends rows, each on its own line, for others to read at once."""
        self._file.writelines(json.dumps(row) + "\n" for row in rows)
        self._file.flush()

    def commit(self) -> None:
        """Flushes to the disk; a checkpoint may rely on the rows after this."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Commits and closes."""
        self.commit()
        self._file.close()
