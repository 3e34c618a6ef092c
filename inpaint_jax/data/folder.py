"""Pictures in a folder tree: an index sorted by relative POSIX path, and a cached manifest of checked files."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from inpaint_jax import image_files, json_files, run_folder
from inpaint_jax.data import remote_files
from inpaint_jax.data.remote_files import RemoteFiles
from inpaint_jax.data.source import ImageSource

log = logging.getLogger("inpaint_jax")

MANIFEST_VERSION = 2
LISTED = 10  # bad files in one message
BAD_FILES = "bad_files.txt"  # all of them, where there are more


def find_images(root: Path, setting: str = "config.data.path") -> list[str]:
    """Returns the relative POSIX paths of all picture files below `root`, sorted.

    Hidden folders and links to folders are skipped.

    Args:
        setting: what the user sets `root` with, for the message.

    Raises:
        ValueError: no such folder, one below it that cannot be read, no picture in it, or a name that is no text.
    """
    if not root.is_dir():
        raise ValueError(f"there is no folder {str(root)!r}: set {setting} to the folder with the pictures")
    found = []
    for folder, subfolders, files in os.walk(root, onerror=_refuse_folder):
        # A disk's own lost+found is for the superuser only.
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name != "lost+found"]
        for name in files:
            if Path(name).suffix.lower() in image_files.IMAGE_SUFFIXES and not name.startswith("."):
                found.append((Path(folder) / name).relative_to(root).as_posix())
    if not found:
        suffixes = " ".join(sorted(image_files.IMAGE_SUFFIXES))
        raise ValueError(
            f"no pictures below {str(root)!r}: looked for {suffixes}, not in links to folders; put some there or "
            "choose another folder"
        )
    # Python reads such bytes as lone surrogates, which nothing can encode again.
    if undecodable := [name for name in found if any("\ud800" <= character <= "\udfff" for character in name)]:
        raise ValueError(f"the file name {os.fsencode(undecodable[0])!r} below {str(root)!r} is not UTF-8: rename it")
    return sorted(found)


def find_remote_images(files: RemoteFiles, below: str = "") -> list[str]:
    """Returns what `find_images` would, of files on an object store, in the folder `below`."""
    parts = {name: name.split("/") for name in files.versions}
    found = [
        name.removeprefix(below and f"{below}/")
        for name in files.versions
        if name.startswith(below and f"{below}/")
        and Path(name).suffix.lower() in image_files.IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in parts[name])
    ]
    if not found:
        suffixes = " ".join(sorted(image_files.IMAGE_SUFFIXES))
        raise ValueError(
            f"no pictures below {files.store.url}{below and '/'}{below}: looked for {suffixes}; put some there or "
            "choose another place"
        )
    return sorted(found)


def _refuse_folder(error: OSError) -> None:
    # os.walk alone would leave its pictures out in silence.
    raise ValueError(f"the folder {error.filename!r} cannot be read ({error.strerror}): mend or remove it") from error


def _examine(path: Path) -> dict[str, object]:
    """Returns the manifest entry of one file: its content hash, and the reason why it cannot be used or ""."""
    entry = {"size": 0, "mtime_ns": 0, "hash": "", "verdict": "", "side": 0}
    try:
        status = path.stat()
        entry |= {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        entry["hash"] = hashlib.sha256(path.read_bytes()).hexdigest()
        entry["side"] = int(min(image_files.read_rgb(path).shape[:2]))
    except ValueError as error:
        entry["verdict"] = str(error)
    except OSError as error:
        entry["verdict"] = _reason(path, error)
    return entry


def _reason(path: Path, error: OSError) -> str:
    """Returns why the operating system does not hand out a file, in words."""
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return f"{path} is a link to nothing: mend or remove it."
    return f"{path} cannot be read ({error.strerror}): mend or remove it."


def read_manifest(
    root: Path, names: Sequence[str], cache: Path | None, threads: int, remote: RemoteFiles | None = None
) -> dict[str, dict]:
    """Returns `{name: {size, mtime_ns, hash, verdict, side}}`, decoding only files that changed since `cache`.

    Args:
        cache: JSON file of an earlier call, rewritten atomically; None = examine everything.
        remote: files of an object store, which are fetched to be examined; their versions stand for times.
    """
    earlier, place = {}, remote.store.url if remote else str(root.resolve())
    if cache is not None and cache.exists():
        try:
            stored = _stored_manifest(cache)
            if stored["root"] == place:
                earlier = stored["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the manifest %s is unreadable (%s) and is made anew", cache, error)

    def entry(name: str) -> dict:
        path = root / name
        old = earlier.get(name)
        # A bad file is looked at again: what mends it (a permission, a link) may leave size and time as they were.
        if remote:
            if old is not None and not old["verdict"] and (old["size"], old["mtime_ns"]) == remote.versions[name]:
                return old
            examined = _examine(remote_files.local(remote, name))
            verdict = str(examined["verdict"]).replace(str(remote.root), remote.store.url)
            size, version = remote.versions[name]
            return {**examined, "verdict": verdict, "size": size, "mtime_ns": version}
        if old is not None and not old["verdict"]:
            with contextlib.suppress(OSError):  # the file is gone, which is found out below
                status = path.stat()
                if (old["size"], old["mtime_ns"]) == (status.st_size, status.st_mtime_ns):
                    return old
        return _examine(path)

    with ThreadPoolExecutor(threads) as pool:
        manifest = dict(zip(names, pool.map(entry, names), strict=True))
    if cache is not None and manifest != earlier:
        cache.parent.mkdir(parents=True, exist_ok=True)
        content = {"version": MANIFEST_VERSION, "root": place, "files": manifest}
        content["sha256"] = json_files.digest(manifest)
        run_folder.write_text(cache, json.dumps(content, indent=0))
    return manifest


def _stored_manifest(cache: Path) -> dict:
    """Returns a manifest as it was written; KeyError, TypeError or ValueError if it is damaged, or of another version.

    What stands in it decides the splits, and which files are not looked at again.
    """
    stored = json_files.read(cache)
    if stored["version"] != MANIFEST_VERSION:
        raise ValueError(f"it is of version {stored['version']}")
    if stored["sha256"] != json_files.digest(stored["files"]):
        raise ValueError("it is not as it was written")
    return stored


def usable(
    manifest: dict[str, dict],
    smallest: int,
    skip_bad: int | None,
    setting: str = "config.data.fit",
    listing: Path | None = None,
) -> list[str]:
    """Returns the names of the good files, in order.

    Args:
        smallest: pixels that the shorter side must have.
        skip_bad: so many bad files are left out with a warning; None = none, and nothing the user could set.
        setting: what the user asks for crops with, for the message.
        listing: file for the bad ones if they are too many for one message.

    Raises:
        ValueError: more than `skip_bad` bad files; lists them with their reasons, or the first and where all stand.
    """
    bad = [(name, entry["verdict"]) for name, entry in manifest.items() if entry["verdict"]]
    bad += [
        (
            name,
            f"{name} is {entry['side']} pixels on its shorter side, and {setting}=crop needs {smallest}: remove it, "
            "or use resize.",
        )
        for name, entry in manifest.items()
        if not entry["verdict"] and entry["side"] < smallest
    ]
    reasons = [reason for _, reason in bad]
    if listing is not None:
        listing.unlink(missing_ok=True)  # of an earlier start
    if len(bad) > (skip_bad or 0):
        where = ""
        if listing is not None and len(bad) > LISTED:
            run_folder.write_text(listing, "".join(f"{reason}\n" for reason in reasons))
            where = f"; all of them stand in {str(listing)!r}"
        allow = "" if skip_bad is None else f", or allow for them with config.data.skip_bad = {len(bad)}"
        raise ValueError(
            f"{len(bad)} of {len(manifest)} files cannot be used; mend or remove them{allow}:"
            + _listed(reasons)
            + where
        )
    for reason in reasons:
        log.warning("left out: %s", reason)
    left_out = {name for name, _ in bad}
    return [name for name in manifest if name not in left_out]


def _listed(reasons: Sequence[str]) -> str:
    more = f"\n  and {len(reasons) - LISTED} more" if len(reasons) > LISTED else ""
    return "".join(f"\n  {reason}" for reason in reasons[:LISTED]) + more


def load_folder(root: Path, size: int, fit: str) -> tuple[ImageSource, list[str]]:
    """Returns all pictures below a folder as one source of uint8 (size, size, 3), and the files' content hashes.

    For `launch/evaluate.py`.

    Raises:
        ValueError: no such folder, no pictures, or bad files, in terms of that command's options.
    """
    names = find_images(root, "--images")
    manifest = read_manifest(root, names, None, 2)
    names = usable(manifest, size if fit == "crop" else 1, None, "--fit")
    identity = "\n".join(["folder", str(size), fit, *(f"{name} {manifest[name]['hash']}" for name in names)])
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]
    source = ImageSource(names, loader(root, names, size, fit), fingerprint, 2048 << 20)
    return source, [manifest[name]["hash"] for name in names]


def count_known(hashes: Sequence[str], cache: Path) -> int:
    """Returns how many content hashes stand in the manifests of checked files that a run keeps in `cache`."""
    known = set()
    for path in cache.glob("manifest*.json"):
        try:
            known |= {entry["hash"] for entry in _stored_manifest(path)["files"].values()}
        except (ValueError, KeyError, TypeError) as error:
            log.warning("the manifest %s is unreadable (%s): its pictures cannot be told again", path, error)
    return sum(value in known for value in hashes)


def loader(
    root: Path, names: Sequence[str], size: int, fit: str, remote: RemoteFiles | None = None
) -> Callable[[int], np.ndarray]:
    """Returns index -> uint8 (size, size, 3), read from the file and fitted; `fit` "whole" leaves the picture as is.

    Args:
        remote: files of an object store, each of which is fetched when it is first read.
    """

    def load(index: int) -> np.ndarray:
        if remote:
            remote_files.local(remote, names[index])
        try:
            image = image_files.read_rgb(root / names[index])
        except image_files.ImageFileError as error:
            # All were read before the first step: this one went away, or was damaged, since then. No other picture
            # takes its place, since the same command shall give the same run.
            raise image_files.ImageFileError(
                f"{error} It could be read when this command began: bring it back, and run the same command again."
            ) from error
        return image if fit == "whole" else image_files.fit_square(image, size, fit)

    return load


def mask_loader(root: Path, names: Sequence[str], size: int) -> Callable[[int], np.ndarray]:
    """Returns index -> uint8 (size, size, 1) of 0 and 1, white = hole, thresholded after resizing."""
    return lambda index: image_files.read_mask(root / names[index], size)[..., None]


def check_masks(masks: ImageSource, setting: str = "config.mask.path") -> None:
    """Reads every mask picture, so that a bad one does not end a run after hours; `masks` keeps them where they fit.

    Args:
        masks: uint8 (size, size, 1) of 0 and 1.
        setting: what the user sets their folder with, for messages.

    Raises:
        ValueError: pictures that cannot be read, or that are all hole or without a hole at this size; lists the first.
    """

    def reason(index: int) -> str:
        try:
            mask = masks[index]
        except ValueError as error:
            return str(error)
        side = f"{mask.shape[1]}x{mask.shape[0]}"
        if not mask.any():
            return f"{masks.names[index]} has no hole (no white pixel) at {side}."
        return f"{masks.names[index]} is all hole (white) at {side}." if mask.all() else ""

    with ThreadPoolExecutor(8) as pool:
        reasons = [text for text in pool.map(reason, range(len(masks))) if text]
    if reasons:
        raise ValueError(
            f"{len(reasons)} of {len(masks)} files below {setting} cannot be used as masks, white = hole; mend "
            f"or remove them:{_listed(reasons)}"
        )
