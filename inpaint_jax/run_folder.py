"""The run folder: names, the lock, atomic writes, and the rows of `metrics.jsonl`."""

import fcntl
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from inpaint_jax import full_disk, json_files

CONFIG, METRICS, TIMING, LOG = "config.json", "metrics.jsonl", "timing.jsonl", "log.txt"
STARTS = "starts.json"
CHECKPOINTS, SAMPLES, TENSORBOARD, TEST, GENERATOR = "checkpoints", "samples", "tensorboard", "test", "generator"
DATA, MASKS = "data", "masks"
ENVIRONMENT, NETWORKS, REPORT = "environment.json", "networks.png", "report.html"
WANDB, WANDB_ID, REPLAY = "wandb", "wandb_id", "replay"
# What --restart removes. Checkpoints go first and the config last: a kill in between must not leave a run that goes on
# without a config to compare with.
OWN = (
    *(CHECKPOINTS, METRICS, TIMING, STARTS, LOG, SAMPLES, TENSORBOARD, TEST, GENERATOR, ENVIRONMENT, NETWORKS, REPORT),
    *(WANDB, WANDB_ID, CONFIG, REPLAY),
)
_MOST = 2**31  # steps, epochs, seconds and images of a row stay below
# What every row of a file has beside its step, and what it is.
_FIELDS = {METRICS: {"split": str}, TIMING: dict.fromkeys(("seconds", "images", "data_wait_s"), int | float)}


def default_workdir(config_path: str) -> Path:
    """Returns `runs/<config name>[-<arg>]` for the value of `--config`."""
    path, _, arg = config_path.partition(":")
    return Path("runs") / (Path(path).stem + (f"-{arg}" if arg else ""))


class Lock:
    """The lock of a run folder, held until `close`; made by `lock`.

    Folders that were made for it go again at the end if nothing but the lock file lies in them: a run that is refused
    leaves nothing behind.
    """

    def __init__(self, file: IO[str], made: list[Path]):
        self._file, self._made = file, made

    def close(self) -> None:
        """Frees the lock; closing it again does nothing."""
        if not self._file.closed and self._made:
            path = Path(self._file.name)
            # Removed while the lock is held: nobody else can be in there.
            if os.listdir(path.parent) == [path.name]:
                path.unlink()
                _remove_empty(self._made)
        self._file.close()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def lock(workdir: Path) -> Lock:
    """Makes the folder and takes its lock.

    The lock is the operating system's, so that a crash frees it.

    Returns:
        The lock: keep it until the run ends.

    Raises:
        ValueError: another process trains in this folder, or the folder cannot be written.
    """
    made: list[Path] = []
    try:
        made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / ".lock").open("w")
    except OSError as error:
        _remove_empty(made)
        raise ValueError(
            f"the run folder {str(workdir)!r} cannot be written ({error.strerror}): choose another --workdir"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ValueError(
            f"another process works in the run folder {str(workdir)!r}: wait for it, or choose another --workdir"
        ) from error
    # Between opening and locking, an earlier holder may have ended and taken its empty folder away.
    if os.fstat(file.fileno()).st_nlink == 0:
        file.close()
        return lock(workdir)
    return Lock(file, made)


def _remove_empty(folders: list[Path]) -> None:
    """Removes folders, the innermost first, up to the first that holds something."""
    for folder in folders:
        if not folder.is_dir() or any(folder.iterdir()):
            return
        folder.rmdir()


def check_writable(folder: Path, flag: str) -> None:
    """Makes the folder if it is missing, and writes and removes a file in it.

    Args:
        flag: what the user calls the folder, for the message.

    Raises:
        ValueError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            # Where the disk is full an empty file can still be made.
            file.write(bytes(4096))
    except OSError as error:
        raise ValueError(
            f"{flag}={folder} is no folder that can be written ({error.strerror}): choose another"
        ) from error


def check_space(workdir: Path, needed_bytes: int) -> None:
    """Compares what a run will take on the disk with what is free there; what its files hold already counts as free.

    Args:
        workdir: the run folder, which exists.
        needed_bytes: size of everything that the run keeps at its fullest moment.

    Raises:
        ValueError: too little space, with both numbers in megabytes (10^6 bytes).
    """
    held = sum(path.lstat().st_blocks * 512 for name in OWN for path in _files_below(workdir / name))
    free = shutil.disk_usage(workdir).free
    if free + held < needed_bytes:
        missing = "" if not held else f" beside the {held / 1e6:.1f} MB that it holds already"
        raise ValueError(
            f"the disk of the run folder {str(workdir)!r} has {free / 1e6:.1f} MB free, and the run needs "
            f"{(needed_bytes - held) / 1e6:.1f} MB{missing}: free some space, or choose a --workdir on another disk"
        )


def _files_below(path: Path) -> list[Path]:
    if path.is_dir() and not path.is_symlink():
        return [file for file in path.rglob("*") if file.is_file()]
    return [path] if path.is_file() else []


def remove_run(workdir: Path) -> None:
    """Removes what a run wrote, and nothing else; the manifests of checked files and the stored masks stay."""
    for name in OWN:
        path = workdir / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_unfinished(workdir: Path) -> None:
    """Removes the parts of files that a kill left in a run folder, whose lock must be held."""
    # Those of pictures and masks: their names hold a process, so that no later one replaces them.
    parts = [*workdir.glob(".*.png.*.tmp")]
    for name in (SAMPLES, TEST, MASKS):
        parts += (workdir / name).rglob(".*.tmp")
    for part in parts:
        part.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name and renames it: a reader sees the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def iterate_rows(path: Path) -> Iterator[dict]:
    """Yields the rows of a `.jsonl` file, none if it is missing; a last line cut short by a kill is left out.

    Raises:
        ValueError: a damaged line that no kill explains, or a row of metrics out of the order of its step.
    """
    if not path.exists():
        return
    damaged, fields = None, _FIELDS.get(path.name, {})
    last_step, splits = -1, set()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if damaged:
                raise ValueError(f"line {number - 1} of {path} is damaged ({damaged}): mend or remove it") from damaged
            try:
                row = json_files.parse(line, _row)
                _check_row(row, fields)
                if path.name == METRICS:
                    splits = set() if row["step"] > last_step else splits
                    if row["step"] < last_step or row["split"] in splits:
                        raise ValueError(f"its step is {row['step']}, after {last_step}")
                    last_step = row["step"]
                    splits.add(row["split"])
            except ValueError as error:
                damaged = error
            else:
                yield row
    # A kill leaves half a line, and a disk that loses its power zeros.
    if damaged and line.endswith(b"\n") and line.strip(b"\0\n"):
        raise ValueError(f"line {number} of {path} is damaged ({damaged}): mend or remove it") from damaged


def _check_row(row: Any, fields: Mapping[str, Any]) -> None:
    if not isinstance(row, dict) or "step" not in row:
        raise ValueError("no row of a step")
    for name, kind in {"step": int, **fields}.items():
        if not isinstance(row.get(name), kind) or isinstance(row[name], bool):
            raise ValueError(f"its {name} is {json.dumps(row.get(name))[:40]}")
    for name in ("step", "epoch", *fields):
        # Numbers that no run has; a comparison with nan is false, so nan is refused too.
        if isinstance(row.get(name), int | float) and not 0 <= row[name] < _MOST:
            raise ValueError(f"its {name} is {json.dumps(row[name])[:40]}")


def _row(pairs: list[tuple[str, Any]]) -> dict:
    # Rows have the same names: as single objects they take half the memory.
    return {sys.intern(name): value for name, value in pairs}


def read_rows(path: Path) -> list[dict]:
    """Returns the rows of a `.jsonl` file as a list; see `iterate_rows`."""
    return list(iterate_rows(path))


def truncate_rows(path: Path, step: int) -> dict[str, dict]:
    """Rewrites the file without rows of steps after `step`, atomically, and returns the last row of each split."""
    last = {}
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w") as file:
            for row in iterate_rows(path):
                if row["step"] <= step:
                    file.write(json.dumps(row) + "\n")
                    last[row["split"]] = row
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return last


def _ends_with_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1))
        return file.read() == b"\n"


class RowFile:
    """Appends rows to a `.jsonl` file; on a full disk they wait in memory, in their order, until there is space."""

    def __init__(self, path: Path):
        # A kill can leave half a line, to which the next row would be glued.
        if path.exists() and not _ends_with_a_line(path):
            write_text(path, "".join(json.dumps(row) + "\n" for row in read_rows(path)))
        self._file = full_disk.Appender(path)

    @property
    def waiting(self) -> int:
        """The rows that wait for space."""
        return self._file.waiting

    def write(self, rows: Iterable[dict]) -> None:
        """Appends rows, each on its own line, for others to read at once."""
        for row in rows:
            self._file.append((json.dumps(row) + "\n").encode())

    def commit(self) -> bool:
        """Flushes to the disk and returns whether all rows are there: a checkpoint may rely on them then."""
        return self._file.commit()

    def close(self) -> bool:
        """Commits and closes; returns whether all rows are there. Those that still wait are lost."""
        return self._file.close()
