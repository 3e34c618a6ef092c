"""An object store, such as gs:// or s3://, through fsspec: objects are put, read, listed and deleted, each as a whole.

Nothing here appends, renames or locks, which stores cannot. Of what one writes, this much is relied on: an object is
there whole or not at all, and a listing shows what was put before.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from inpaint_jax import full_disk

log = logging.getLogger("inpaint_jax")

# What fsspec needs besides, by the beginning of a URL.
PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "az": "adlfs", "abfs": "adlfs"}
AT_ONCE = 8  # objects that are on their way
WAITS = (1.0, 4.0, 15.0)  # seconds between the tries of `patiently`
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*)://(.*)", re.DOTALL)
T, R = TypeVar("T"), TypeVar("R")


class StoreError(Exception):
    """The store did not do what it was asked for; it may do so later."""


@dataclass(frozen=True)
class Store:
    """The objects below a URL; made by `opened`."""

    url: str
    system: Any
    root: str

    def place(self, name: str) -> str:
        """Returns fsspec's path of an object, whose name is relative to the URL."""
        return f"{self.root}/{name}"


def is_url(text: object) -> bool:
    """Returns whether a text names a place on a store, and no folder."""
    return isinstance(text, str) and _URL.match(text) is not None


def opened(url: str) -> Store:
    """Returns the objects below a URL; nothing is asked of the store yet.

    Raises:
        ValueError: no such kind of store is known, or a package for it is missing.
    """
    scheme, rest = _URL.match(url).groups()
    if "::" in url or not rest.strip("/"):
        raise ValueError(f"{url}: give one place on a store, such as gs://bucket/run")
    import fsspec

    try:
        # Listings are always asked for: other processes write there too.
        system, root = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        package = PACKAGES.get(scheme.lower())
        needs = f"{scheme}:// needs the package {package}: pip install {package}" if package else str(error)
        raise ValueError(f"{url}: {needs}") from error
    except ValueError as error:
        raise ValueError(f"{url}: no store is known by {scheme}:// ({error}): use gs://, s3:// or a folder") from error
    return Store(url.rstrip("/"), system, root.rstrip("/"))


@contextlib.contextmanager
def _asking(store: Store, name: str, *stays: type[Exception]) -> Iterator[None]:
    """Turns whatever the libraries of stores raise into StoreError: they let dozens of kinds through.

    What stays is named, and errors of a full disk, which is this machine's own. FileNotFoundError is also said of a
    bucket.
    """
    try:
        yield
    except (*stays, MemoryError):
        raise
    except Exception as error:
        if full_disk.is_full(error):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StoreError(f"{store.url}/{name}: {first[:200]}") from error


def put_bytes(store: Store, name: str, content: bytes, new: bool = False) -> None:
    """Puts an object.

    Args:
        new: FileExistsError where there is one of this name. S3 and Google's store decide that themselves, also
            between two that put it at the same moment.
    """
    with _asking(store, name, FileExistsError):
        _make_parent(store, name)
        store.system.pipe_file(store.place(name), content, **({"mode": "create"} if new else {}))


def put_file(store: Store, name: str, path: Path) -> None:
    """Puts an object with the content of a file."""
    with _asking(store, name):
        _make_parent(store, name)
        store.system.put_file(os.fspath(path), store.place(name))


def _make_parent(store: Store, name: str) -> None:
    # Stores have no folders. A disk behind file:// has.
    if "file" in store.system.protocol:
        store.system.makedirs(store.place(name).rpartition("/")[0], exist_ok=True)


def get_bytes(store: Store, name: str) -> bytes:
    """Returns the content of an object; FileNotFoundError if there is none."""
    with _asking(store, name, FileNotFoundError):
        return store.system.cat_file(store.place(name))


def get_file(store: Store, name: str, path: Path) -> None:
    """Writes the content of an object into a file; FileNotFoundError if there is none."""
    with _asking(store, name, FileNotFoundError):
        store.system.get_file(store.place(name), os.fspath(path))


def listing(store: Store, below: str = "") -> dict[str, dict[str, Any]]:
    """Returns what the store says of each object below a name, by the object's name."""
    with _asking(store, below):
        found = store.system.find(store.place(below) if below else store.root, detail=True)
    # Some stores show folders as empty objects whose names end in a slash.
    start = len(store.root) + 1
    return {place[start:]: told for place, told in found.items() if not place.endswith("/")}


def remove(store: Store, names: Sequence[str]) -> None:
    """Deletes objects; those that are gone already are none the worse."""

    def one(name: str) -> None:
        with contextlib.suppress(FileNotFoundError), _asking(store, name, FileNotFoundError):
            store.system.rm_file(store.place(name))

    each(one, names)


def each(work: Callable[[T], R], things: Sequence[T]) -> list[R]:
    """Returns what the function gives for each thing, several at once; the first error ends it."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(work, thing) for thing in things]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()


def patiently(work: Callable[[], R]) -> R:
    """Returns what the function gives; where the store fails, it is tried again a few times, with a warning.

    Raises:
        StoreError: the last try failed too.
    """
    for wait in WAITS:
        try:
            return work()
        except StoreError as error:
            log.warning("%s: trying again in %g s", error, wait)
        time.sleep(wait)
    return work()
