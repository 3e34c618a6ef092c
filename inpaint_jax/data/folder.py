"""Pictures in a folder tree: an index sorted by relative POSIX path, and a cached manifest of checked files."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from inpaint_jax import image_files

log = logging.getLogger("inpaint_jax")

MANIFEST_VERSION = 1


def find_images(root: Path) -> list[str]:
    """Returns the relative POSIX paths of all picture files below `root`, sorted; hidden folders are skipped.

    Raises:
        ValueError: no such folder, or no picture in it.
    """
    if not root.is_dir():
        raise ValueError(f"there is no folder {str(root)!r}: set config.data.path to the folder with the pictures")
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if Path(name).suffix.lower() in image_files.IMAGE_SUFFIXES and not name.startswith("."):
                found.append((Path(folder) / name).relative_to(root).as_posix())
    if not found:
        suffixes = " ".join(sorted(image_files.IMAGE_SUFFIXES))
        raise ValueError(f"no pictures below {str(root)!r}: looked for {suffixes}")
    return sorted(found)


def _examine(path: Path) -> dict[str, object]:
    """Returns the manifest entry of one file: its content hash, and the reason why it cannot be used or ""."""
    entry = {"size": 0, "mtime_ns": 0, "hash": "", "verdict": "", "side": 0}
    try:
        status = path.stat()
        entry |= {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        entry["hash"] = hashlib.sha256(path.read_bytes()).hexdigest()
        entry["side"] = int(min(image_files.read_rgb(path).shape[:2]))
    except (OSError, ValueError) as error:
        entry["verdict"] = str(error)
    return entry


def read_manifest(root: Path, names: Sequence[str], cache: Path | None, threads: int) -> dict[str, dict]:
    """Returns `{name: {size, mtime_ns, hash, verdict, side}}`, decoding only files that changed since `cache`.

    Args:
        cache: JSON file of an earlier call, rewritten atomically; None = examine everything.
    """
    earlier = {}
    if cache is not None and cache.exists():
        try:
            stored = json.loads(cache.read_text())
            if stored["version"] == MANIFEST_VERSION and stored["root"] == str(root.resolve()):
                earlier = stored["files"]
        except (ValueError, KeyError, TypeError) as error:
            log.warning("the manifest %s is unreadable (%s) and is made anew", cache, error)

    def entry(name: str) -> dict:
        path = root / name
        old = earlier.get(name)
        # A bad file is looked at again: what mends it (a permission, a link) may leave size and time as they were.
        if old is not None and not old["verdict"]:
            status = path.stat()
            if (old["size"], old["mtime_ns"]) == (status.st_size, status.st_mtime_ns):
                return old
        return _examine(path)

    with ThreadPoolExecutor(threads) as pool:
        manifest = dict(zip(names, pool.map(entry, names), strict=True))
    if cache is not None and manifest != earlier:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_suffix(".tmp")
        content = {"version": MANIFEST_VERSION, "root": str(root.resolve()), "files": manifest}
        temporary.write_text(json.dumps(content, indent=0))
        temporary.replace(cache)
    return manifest


def usable(manifest: dict[str, dict], smallest: int, skip_bad: int) -> list[str]:
    """Returns the names of the good files, in order.

    Raises:
        ValueError: more than `skip_bad` bad files; lists the first ones with their reasons.
    """
    bad = [(name, entry["verdict"]) for name, entry in manifest.items() if entry["verdict"]]
    bad += [
        (name, f"{name} is {entry['side']} pixels on its shorter side, and config.data.fit = 'crop' needs {smallest}")
        for name, entry in manifest.items()
        if not entry["verdict"] and entry["side"] < smallest
    ]
    if len(bad) > skip_bad:
        listed = "".join(f"\n  {reason}" for _, reason in bad[:10])
        more = f"\n  and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise ValueError(
            f"{len(bad)} of {len(manifest)} files cannot be used; mend or remove them, "
            f"or allow for them with config.data.skip_bad = {len(bad)}:{listed}{more}"
        )
    for _, reason in bad:
        log.warning("left out: %s", reason)
    left_out = {name for name, _ in bad}
    return [name for name in manifest if name not in left_out]


def loader(root: Path, names: Sequence[str], size: int, fit: str) -> Callable[[int], np.ndarray]:
    """Returns index -> uint8 (size, size, 3), read from the file and fitted; `fit` "whole" leaves the picture as is."""

    def load(index: int) -> np.ndarray:
        image = image_files.read_rgb(root / names[index])
        return image if fit == "whole" else image_files.fit_square(image, size, fit)

    return load


def mask_loader(root: Path, names: Sequence[str], size: int) -> Callable[[int], np.ndarray]:
    """Returns index -> uint8 (size, size, 1) of 0 and 1, white = hole, thresholded after resizing."""
    return lambda index: image_files.read_mask(root / names[index], size)[..., None]
