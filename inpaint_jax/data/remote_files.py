"""Pictures on an object store, `--config.data.path=gs://bucket/data`: each file is fetched when it is first needed.

Files lie below ~/.cache/inpaint_jax/data then, in a folder for each state of what is on the store: where an object is
replaced, its name, size or version differs, and so does the folder. All processes of a machine share it.
"""

import fcntl
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from inpaint_jax import json_files, object_store, remote_folder

# What stores say of an object that changes with its content, the best first.
_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")


@dataclass(frozen=True)
class RemoteFiles:
    """Files below a URL; made by `listed`.

    Attributes:
        root: folder of this machine in which they lie when they have been fetched.
        versions: name -> (size in bytes, a number that changes with the content).
    """

    store: object_store.Store
    root: Path
    versions: dict[str, tuple[int, int]]


def listed(url: str, below: str = "") -> RemoteFiles:
    """Asks a store what it has; nothing is fetched yet.

    Args:
        below: only what is in this folder.

    Raises:
        ValueError: the store cannot be read, or has nothing there.
    """
    store = object_store.opened(url)
    try:
        found = object_store.patiently(lambda: object_store.listing(store, below))
    except object_store.StoreError as error:
        raise ValueError(f"{error}: mend the access to {store.url}, and run the same command again") from error
    versions = {name: (int(told["size"]), _version(told)) for name, told in sorted(found.items())}
    if not versions:
        raise ValueError(f"there is nothing below {store.url}{below and '/'}{below}: give the place where the data lie")
    for name in versions:
        if not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise ValueError(f"{store.url} has an object {name!r}, which is no name of a file: remove it")
    state = json_files.digest([below, versions])[:16]
    return RemoteFiles(store, remote_folder.cache_folder("data", url) / state, versions)


def _version(told: dict[str, Any]) -> int:
    version = next((str(told[name]) for name in _VERSIONS if told.get(name)), "")
    return int(hashlib.sha256(version.encode()).hexdigest()[:15], 16)


def local(files: RemoteFiles, name: str) -> Path:
    """Returns where a file lies on this machine; it is fetched if it has not been.

    Raises:
        ValueError: it cannot be fetched.
    """
    path, size = files.root / name, files.versions[name][0]
    if _is_there(path, size):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    # Others of this machine wait, and find it then; a lock of the operating system is freed by a crash.
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_there(path, size):
            try:
                object_store.patiently(lambda: object_store.get_file(files.store, name, temporary))
                if temporary.stat().st_size != size:
                    raise ValueError(
                        f"{files.store.url}/{name} has {temporary.stat().st_size} bytes, and had {size} when this "
                        "command began: run the same command again"
                    )
                temporary.replace(path)
            except FileNotFoundError as error:
                raise ValueError(
                    f"{files.store.url}/{name} was there when this command began: bring it back, and run the same "
                    "command again"
                ) from error
            except object_store.StoreError as error:
                raise ValueError(
                    f"{error}: mend the access to {files.store.url}, and run the same command again"
                ) from error
            finally:
                temporary.unlink(missing_ok=True)
    return path


def _is_there(path: Path, size: int) -> bool:
    try:
        return os.stat(path).st_size == size
    except FileNotFoundError:
        return False


def folder(path: str | Path, suffixes: Sequence[str] = ()) -> Path:
    """Returns a folder of this machine: the path itself, or one with all files below a URL, fetched first.

    Args:
        suffixes: only files whose names end in one of these, in small letters; none = all.

    Raises:
        ValueError: they cannot be fetched.
    """
    if not object_store.is_url(path):
        return Path(path).expanduser()
    files = listed(path)
    wanted = [name for name in files.versions if not suffixes or PurePosixPath(name).suffix.lower() in suffixes]
    object_store.each(lambda name: local(files, name), wanted)
    return files.root
