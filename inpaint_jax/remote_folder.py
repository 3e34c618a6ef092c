"""Run folders on object stores: `--workdir gs://bucket/run`.

A run writes into a folder of this machine, and knows nothing of the store. At its start the folder becomes what lies on
the store, and with each checkpoint it is put there as a snapshot; see `snapshots`. Others read a copy.
"""

import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from inpaint_jax import object_store, snapshots
from inpaint_jax.object_store import Store, StoreError

log = logging.getLogger("inpaint_jax")

# What who uses a trained generator does not need, and who looks at results.
NOT_OF_A_MODEL = ("checkpoints", "tensorboard", "samples", "test", "wandb")
NOT_OF_RESULTS = ("checkpoints", "tensorboard", "wandb")


def cache_folder(room: str, url: str) -> Path:
    """Returns where this machine keeps what belongs to a URL, below XDG_CACHE_HOME, or ~/.cache without it.

    Args:
        room: "runs" for run folders that are written here, or another name for what is only read.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "inpaint_jax" / room
    url = url.rstrip("/")
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", url)[-80:]
    return cache / f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def working_folder(workdir: str | Path) -> tuple[Path, str]:
    """Returns the folder on this machine in which a run works, and the URL where it lies, "" for a run of a folder.

    Raises:
        ValueError: no such kind of store is known, or a package for it is missing.
    """
    if not object_store.is_url(workdir):
        return Path(workdir), ""
    url = object_store.opened(workdir).url
    return cache_folder("runs", url), url


def take_up(url: str, folder: Path, restart: bool = False) -> dict | None:
    """Prepares a run folder of this machine, whose lock is held, for a run that lies below a URL.

    Where the folder is what this machine has put there last, or has gone on from it, it stays as it is. Else it becomes
    the newest snapshot. Where there is none, a first one is put, so that what cannot be written shows at once.

    Args:
        restart: nothing is downloaded; see `replace`.

    Returns:
        With `restart`, the newest snapshot's index, of the run that is to be replaced; None if there is nothing.

    Raises:
        ValueError: the store cannot be read or written, something is damaged, or the run is gone from there.
    """
    store = object_store.opened(url)
    memory = snapshots.read_memory(folder, store.url)
    try:
        newest = object_store.patiently(lambda: snapshots.newest(store))
        if newest is None:
            if memory and not restart:
                raise ValueError(
                    f"the run that this machine had put to {store.url} is gone from there, and its folder here, "
                    f"{folder}, is left as it is: start over with --restart, or copy that folder to go on from it"
                )
            snapshots.forget(folder)
            snapshots.publish(folder, url)
        elif restart:
            snapshots.forget(folder)
            return newest
        elif memory and newest["writer"] in (memory["index"]["writer"], snapshots.writer_of(folder)):
            log.info("%s is as this machine left it", store.url)
        else:
            if memory:
                log.warning(
                    "%s was gone on with elsewhere, to snapshot %d: what this machine had since snapshot %d goes",
                    store.url, newest["number"], memory["index"]["number"],
                )  # fmt: skip
            snapshots.make_equal(store, folder, newest)
            log.info("fetched %d files of %s into %s", len(newest["files"]), store.url, folder)
    except StoreError as error:
        raise ValueError(f"{error}: mend the access to {store.url}, and run the same command again") from error
    return None


def replace(url: str, folder: Path, old: dict | None) -> None:
    """Publishes the folder of a run that starts over, in the place of the one that `take_up` has found.

    Raises:
        ValueError: the store fails, or somebody has written there since.
    """
    if old:
        snapshots.remember(folder, object_store.opened(url).url, old, {})
    keep_last(folder, url)


def keep_up(folder: Path, url: str) -> bool:
    """Publishes a folder, or warns that the store failed; returns whether what lies there is up to date.

    Raises:
        ValueError: somebody else has written there.
    """
    try:
        snapshots.publish(folder, url)
    except StoreError as error:
        log.warning("%s: %s has an older snapshot; it is tried again at the next checkpoint", error, url)
        return False
    return True


def keep_last(folder: Path, url: str) -> None:
    """Publishes a folder where no later try comes; ValueError if the store fails."""
    try:
        snapshots.publish(folder, url)
    except StoreError as error:
        raise ValueError(
            f"{error}: the results lie in {folder} alone, and {url} has an older snapshot: mend the access to it, and "
            "run the same command again on this machine"
        ) from error


def local(path: str | Path, without: Sequence[str] = ()) -> Path:
    """Returns a folder of this machine in which a run can be read: the path itself, or a copy of what lies at a URL.

    Args:
        path: a run folder or one inside it, such as its generator/; or a URL of such a one.
        without: folders of the run that are not needed.

    Raises:
        ValueError: there is no run at the URL, or it cannot be read.
    """
    if not object_store.is_url(path):
        return Path(path)
    url = object_store.opened(path).url
    parent, _, name = url.rpartition("/")
    for run_url, inner in ((url, ""), (parent, name)):
        if not re.match(r"[^:]+://[^/]", run_url):
            break  # a bucket has no parent
        store = object_store.opened(run_url)
        folder = cache_folder("copies", store.url)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Another command of this machine that reads the same run waits here.
            with folder.with_name(f"{folder.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if _copied(store, folder, without):
                    return folder / inner
        except StoreError as error:
            raise ValueError(f"{error}: mend the access to {store.url}") from error
    raise ValueError(f"there is no run at {url}: give the --workdir of one that was trained there")


def _copied(store: Store, folder: Path, without: Sequence[str]) -> bool:
    """Makes a folder a part of the newest snapshot, whatever is put meanwhile; returns False if there is none."""
    index = object_store.patiently(lambda: snapshots.newest(store))
    while index is not None:
        files = {name: entry for name, entry in index["files"].items() if name.partition("/")[0] not in without}
        try:
            snapshots.make_equal(store, folder, {**index, "files": files})
        except snapshots.DamagedError:
            newer = object_store.patiently(lambda: snapshots.newest(store))
            if newer is not None and newer["writer"] == index["writer"]:
                raise
            index = newer
        else:
            return True
    return False
