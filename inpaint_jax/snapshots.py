"""A folder kept on an object store as one snapshot: `publish` puts it there, and `fetch` brings it back exactly.

First the objects that are new are put, under names that nothing had before; then an index that names all of them, which
makes the snapshot valid at once; last, what no index names is deleted. So a kill at any moment leaves the snapshot
before it or the one after it.

    gs://bucket/run/index/00000012.json                    what each file is: [snapshot it came with, bytes, SHA-256]
    gs://bucket/run/files/metrics.12-3f2a91c0d4e5f607.jsonl

There is no lock. An index is put only where none of its number is, so of two commands that write to one place, the
second one to put it finds that out and ends, with nothing overwritten.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from inpaint_jax import full_disk, json_files, object_store, run_folder
from inpaint_jax.object_store import Store, StoreError

log = logging.getLogger("inpaint_jax")

VERSION = 1
INDEX, FILES = "index", "files"  # folders of the two kinds of objects
_INDEX_NAME = re.compile(INDEX + r"/(\d{8,})\.json")
_OBJECT_NAME = re.compile(FILES + r"/.*\.(\d+)-[0-9a-f]{16}(\.[^./]*)?")
# What a folder has for this machine alone. The second lies inside and goes with the folder: an empty folder must
# not be taken for one that has gone on from its snapshot.
_LOCK, MEMORY = ".lock", ".snapshot.json"
# Who put the snapshot that this folder has sent last, maybe without being told that it is there.
WRITER = ".snapshot_writer"
_OWN = (_LOCK, MEMORY, WRITER)
_READ_WHOLE = 16 << 20  # bytes; a larger file is not held in memory
_LOOKS = 3  # at a file that changes while it is read

# A snapshot: file name -> [number of the snapshot with which its object came, size in bytes, SHA-256].
Files = dict[str, list]


def read_memory(folder: Path, url: str) -> dict[str, Any] | None:
    """Returns what was known of the store when the folder was equal to its snapshot: `index`, and `stats` of files.

    None: the folder never was, or not to its end.
    """
    path = folder / MEMORY
    if not path.exists():
        return None
    try:
        memory = json_files.read(path)
        if memory["sha256"] != json_files.digest([memory["url"], memory["index"], memory["stats"]]):
            raise ValueError("it is not as it was written")
        _check_index(memory["index"])
        return memory if memory["url"] == url else None
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s is unreadable (%s): %s is compared with %s anew", path, error, folder, url)
        return None


def remember(folder: Path, url: str, index: dict[str, Any], stats: Mapping[str, list]) -> None:
    """Notes in a folder of which snapshot it is.

    Args:
        stats: of the files that are as the snapshot has them; the others are compared the next time.
    """
    memory = {"url": url, "index": index, "stats": dict(stats)}
    run_folder.write_json(folder / MEMORY, {**memory, "sha256": json_files.digest([*memory.values()])})


def forget(folder: Path) -> None:
    """Lets a folder be compared file by file the next time, as it is not known any more what lies in it."""
    (folder / MEMORY).unlink(missing_ok=True)
    (folder / WRITER).unlink(missing_ok=True)


def writer_of(folder: Path) -> str:
    """Returns who sent the last snapshot from a folder, "" if none was sent."""
    path = folder / WRITER
    return path.read_text() if path.exists() else ""


def _files_in(folder: Path) -> dict[str, list[int]]:
    """Returns what lies in a folder and is finished: name -> [size, time of the last change, inode].

    Links stay out, and so do parts of files and checkpoints that are being written.
    """
    found = {}
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if ".orbax-checkpoint-tmp" not in name]
        for name in names:
            path = Path(root, name)
            if path.is_symlink() or name.endswith(".tmp") or (name in _OWN and path.parent == folder):
                continue
            with contextlib.suppress(FileNotFoundError):
                found[path.relative_to(folder).as_posix()] = _stat(path)
    return found


def _stat(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# The index.


def _object_name(name: str, number: int, sha256: str) -> str:
    path = PurePosixPath(name)
    return f"{FILES}/{path.with_name(f'{path.stem}.{number}-{sha256[:16]}{path.suffix}')}"


def _index_name(number: int) -> str:
    return f"{INDEX}/{number:08d}.json"


def _sealed(number: int, writer: str, files: Files) -> dict[str, Any]:
    index = {"version": VERSION, "number": number, "writer": writer, "files": files}
    return {**index, "sha256": json_files.digest(index)}


def _check_index(index: Any) -> None:
    """Raises ValueError, KeyError or TypeError unless this is an index as `_sealed` made it, of names that stay inside.

    A seal proves no good will: whoever can write to the store can make one.
    """
    if index["version"] != VERSION:
        raise ValueError(f"it is of version {index['version']}, and this program reads version {VERSION}")
    if index["sha256"] != json_files.digest({key: value for key, value in index.items() if key != "sha256"}):
        raise ValueError("it is not as it was written")
    for name, (number, size, sha256) in index["files"].items():
        parts = name.split("/")
        if not set(parts).isdisjoint(("", ".", "..")) or "\0" in name or name in _OWN:
            raise ValueError(f"it names {name!r}, which is no place inside a run folder")
        if type(number) is not int or type(size) is not int or not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"its entry of {name!r} is {[number, size, sha256]!r}")


def newest(store: Store) -> dict[str, Any] | None:
    """Returns the index of the newest snapshot, None without one.

    Raises:
        ValueError: it is damaged.
    """
    numbers = [int(m[1]) for name in object_store.listing(store, INDEX) if (m := _INDEX_NAME.fullmatch(name))]
    if not numbers:
        return None
    name = _index_name(max(numbers))
    try:
        index = json_files.parse(object_store.get_bytes(store, name))
        _check_index(index)
        if index["number"] != max(numbers):
            raise ValueError(f"it is a copy of snapshot {index['number']}")
    except FileNotFoundError as error:
        raise StoreError(f"{store.url}/{name} went away while it was read") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{store.url}/{name} is damaged ({error}): bring back a copy, or remove the run") from error
    return index


# Reading.


class DamagedError(ValueError):
    """An object is not as it was put."""


def _download(store: Store, folder: Path, files: Files) -> list[str]:
    """Makes files in a folder those of a snapshot, and returns the objects that are damaged or missing."""

    def one(name: str) -> str:
        number, size, sha256 = files[name]
        path, object_name = folder / name, _object_name(name, number, sha256)
        if path.is_file() and not path.is_symlink() and path.stat().st_size == size and _hash(path) == sha256:
            return ""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            object_store.get_file(store, object_name, temporary)
            damaged = temporary.stat().st_size != size or _hash(temporary) != sha256
            temporary.replace(path)
        except FileNotFoundError:
            path.unlink(missing_ok=True)
            damaged = True
        finally:
            temporary.unlink(missing_ok=True)
        return name if damaged else ""

    return [name for name in object_store.each(one, list(files)) if name]


def _clear(folder: Path, files: Mapping[str, Any]) -> None:
    """Removes what a folder has and a snapshot does not, links and empty folders too."""
    for root, folders, names in os.walk(folder, topdown=False):
        for path in (Path(root, name) for name in (*names, *folders)):
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.is_symlink() or path.relative_to(folder).as_posix() not in (*files, *_OWN):
                path.unlink()


def fetch(url: str, folder: Path) -> bool:
    """Makes a folder exactly the newest snapshot below a URL, and returns whether there is one.

    Every file is compared by its hash. A damaged object of a checkpoint is taken as it is, with a warning: checkpoints
    have hashes of their own, and an older one is used then.

    Raises:
        ValueError: an object is damaged or missing; the message names it.
        StoreError: the store cannot be read.
    """
    store = object_store.opened(url)
    index = object_store.patiently(lambda: newest(store))
    if index is None:
        return False
    make_equal(store, folder, index)
    return True


def make_equal(store: Store, folder: Path, index: dict[str, Any]) -> None:
    """Does what `fetch` does, for the files that an index names.

    Raises:
        DamagedError: an object is damaged or missing, maybe since it was replaced by those of a newer snapshot.
        StoreError: the store cannot be read.
    """
    files = index["files"]
    forget(folder)  # until all is there
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder, files)
    damaged = object_store.patiently(lambda: _download(store, folder, files))
    # Once more: what was damaged on its way is not on the store.
    damaged = damaged and object_store.patiently(lambda: _download(store, folder, files))
    for name in damaged:
        told = f"{store.url}/{_object_name(name, files[name][0], files[name][2])} is damaged or missing"
        if not name.startswith(f"{run_folder.CHECKPOINTS}/"):
            raise DamagedError(f"{told}: bring back a copy, or start over with --restart")
        log.warning("%s: the checkpoint that it belongs to is not used", told)
    # Of a damaged one nothing is known, so that the next snapshot has what lies here.
    good = {name: entry for name, entry in files.items() if name not in damaged}
    known = _sealed(index["number"], index["writer"], good)
    remember(folder, store.url, known, {name: _stat(folder / name) for name in good})


# Writing.


def publish(folder: Path, url: str) -> None:
    """Puts what lies in a run folder below a URL, as the next snapshot; only what is new there is sent.

    Raises:
        ValueError: somebody else has written there; nothing of it was overwritten.
        StoreError: the store failed several times; what lies there is the snapshot before this one, or this one.
    """
    store, writer = object_store.opened(url), uuid.uuid4().hex
    memory = read_memory(folder, store.url)
    sent: dict[str, tuple[list, list[int]]] = {}
    before = writer_of(folder)
    index = object_store.patiently(lambda: _publish_once(store, folder, memory, (writer, before), sent))
    try:
        remember(folder, store.url, index, {name: stat for name, (_, stat) in sent.items()})
    except OSError as error:
        if not full_disk.is_full(error):
            raise
        log.warning("the disk is full (%s): the next snapshot compares all files anew", error)
    try:
        _remove_old(store, index)
    except StoreError as error:
        log.warning("%s: what is not needed any more goes at the next checkpoint", error)


def _publish_once(
    store: Store,
    folder: Path,
    memory: dict[str, Any] | None,
    writers: tuple[str, str],
    sent: dict[str, tuple[list, list[int]]],
) -> dict[str, Any]:
    """One try of `publish`; returns the index that is there now.

    Args:
        writers: of this snapshot, and of the one that this folder had sent before, "" = none.
        sent: what earlier tries have put already, file name -> (its entry in the index, its `_stat`); added to.
    """
    known = memory["index"] if memory else {"number": 0, "writer": None, "files": {}}
    there = newest(store) or {"number": 0, "writer": None}
    writer, before = writers
    if there["writer"] == writer:
        return there  # a try before this one has put it, and was not told so
    if before and there["writer"] == before:
        known = there  # nor was an earlier snapshot told that it is there
    if there["writer"] != known["writer"]:
        raise ValueError(_conflict(store, there["number"]))
    number = known["number"] + 1
    _send_new(store, folder, known["files"], memory["stats"] if memory else {}, number, sent)
    index = _sealed(number, writer, {name: entry for name, (entry, _) in sorted(sent.items())})
    run_folder.write_text(folder / WRITER, writer)
    try:
        object_store.put_bytes(store, _index_name(number), json.dumps(index).encode(), new=True)
    except FileExistsError as error:
        found = newest(store)
        if found is None or found["writer"] != writer:
            raise ValueError(_conflict(store, number)) from error
    return index


def _conflict(store: Store, number: int) -> str:
    if not number:
        return f"the run at {store.url} has gone from there: bring it back, or start over with --restart"
    return (
        f"another run has put snapshot {number} to {store.url} since this one began: nothing of it was overwritten; "
        "let only one run write there, and run the same command again, which goes on from that snapshot"
    )


def _send_new(
    store: Store, folder: Path, known: Files, stats: Mapping[str, list], number: int,
    sent: dict[str, tuple[list, list[int]]],
) -> None:  # fmt: skip
    """Puts the files that are not as a snapshot has them, and notes all that lie in the folder in `sent`."""
    present = _files_in(folder)
    for name in sent.keys() - present.keys():
        del sent[name]

    def one(name: str) -> None:
        if name in sent and sent[name][1] == present[name]:
            return
        if name in known and stats.get(name) == present[name]:
            sent[name] = known[name], present[name]
            return
        with contextlib.suppress(_GoneError):
            sent[name] = _send(store, folder / name, name, number, known.get(name))

    object_store.each(one, list(present))


class _GoneError(Exception):
    """A file went away before it was read."""


def _send(store: Store, path: Path, name: str, number: int, known: list | None) -> tuple[list, list[int]]:
    """Puts a file if a snapshot does not have its content; returns its entry in the index, and its `_stat`.

    A log may grow meanwhile: the entry is of what was sent.
    """
    for _ in range(_LOOKS):
        try:
            stat = _stat(path)
            content = path.read_bytes() if stat[0] <= _READ_WHOLE else None
            sha256 = _hash(path) if content is None else hashlib.sha256(content).hexdigest()
        except FileNotFoundError as error:
            raise _GoneError(name) from error
        size = stat[0] if content is None else len(content)
        if known and known[1:] == [size, sha256]:
            return known, stat
        object_name = _object_name(name, number, sha256)
        if content is not None:
            object_store.put_bytes(store, object_name, content)
            return [number, size, sha256], stat
        object_store.put_file(store, object_name, path)
        if _stat(path) == stat:
            return [number, size, sha256], stat
    # A log that grows faster than it can be sent: what was there at the last look.
    with path.open("rb") as file:
        content = file.read(stat[0])
    sha256 = hashlib.sha256(content).hexdigest()
    object_store.put_bytes(store, _object_name(name, number, sha256), content)
    return [number, len(content), sha256], stat


def _remove_old(store: Store, newest: dict[str, Any]) -> None:
    """Deletes indexes before the newest, and then what it does not name.

    What came with a later number stays: it would be of another run, that has gone on from this snapshot already.
    """
    number = newest["number"]
    indexes = [n for n in object_store.listing(store, INDEX) if (m := _INDEX_NAME.fullmatch(n)) and int(m[1]) < number]
    object_store.remove(store, indexes)
    named = {_object_name(name, *entry[::2]) for name, entry in newest["files"].items()}
    objects = object_store.listing(store, FILES)
    old = [n for n in objects if n not in named and (m := _OBJECT_NAME.fullmatch(n)) and int(m[1]) <= number]
    object_store.remove(store, old)
