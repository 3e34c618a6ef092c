"""Where pictures come from: `load_splits` turns `config.data` into three sources of uint8 pictures."""

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import ml_collections
import numpy as np

from inpaint_jax import image_files, object_store
from inpaint_jax.data import (
    bundled_photos,
    folder,
    normal_maps,
    procedural_normals,
    remote_files,
    splits,
    tfds_source,
)
from inpaint_jax.data.source import ImageSource

Splits = dict[str, ImageSource]
# One seed for everyone: embedded pictures do not depend on the seed of the training run.
EMBEDDED_SEED = 20260101


def _fingerprint(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def _embedded(
    config: ml_collections.ConfigDict,
    kind: str,
    render: Callable[[str, int], np.ndarray],
    identity: Callable[[str], tuple],
) -> Splits:
    """Returns splits of pictures made on demand, `render(split, index)`; `identity(split)` changes with the pixels."""
    field = "split_counts" if any(config.split_counts) else "embedded_counts"
    counts = tuple(config[field])
    if min(counts) < 1:
        raise ValueError(f"config.data.{field} = {counts}: each split needs at least one picture")
    if config.kind != kind:
        raise ValueError(f"config.data.kind = {config.kind!r}: the source {config.source} holds {kind}")
    result = {}
    for split, count in zip(splits.SPLITS, counts, strict=True):
        if split == "train" and config.limit:
            count = min(count, config.limit)
        result[split] = ImageSource(
            [f"{split}_{i:06d}" for i in range(count)],
            functools.partial(render, split),
            _fingerprint(config.source, split, count, *identity(split)),
            config.cache_megabytes << 20,
        )
    return result


def _procedural(config: ml_collections.ConfigDict, size: int, cache: Path | None) -> Splits:
    # Splits lie far apart in the index space, so that a larger training split never runs into the others.
    offsets = {"train": 0, "val": 1 << 40, "test": 2 << 40}

    def render(split: str, index: int) -> np.ndarray:
        return procedural_normals.render_normal_map(EMBEDDED_SEED, offsets[split] + index, size, config.normal_y)

    return _embedded(config, "normal_maps", render, lambda _: (procedural_normals.VERSION, size, config.normal_y))


def _photographs(config: ml_collections.ConfigDict, size: int, cache: Path | None) -> Splits:
    bundled_photos.check_size(size)

    def render(split: str, index: int) -> np.ndarray:
        return bundled_photos.window(EMBEDDED_SEED, split, index, size)

    def identity(split: str) -> tuple:
        return bundled_photos.VERSION, size, *bundled_photos.content_hashes(split)

    return _embedded(config, "photographs", render, identity)


def _folder(config: ml_collections.ConfigDict, size: int, cache: Path | None) -> Splits:
    place, remote = _folder_root(config), None
    if object_store.is_url(place):
        remote = remote_files.listed(place)
    root = remote.root if remote else Path(place).expanduser()
    smallest = size if config.fit == "crop" else 1
    listing = cache and cache / folder.BAD_FILES
    if any(config.split_folders):
        if not all(config.split_folders):
            raise ValueError(f"config.data.split_folders = {tuple(config.split_folders)}: name all three, or none")
        parts: list[dict[str, dict]] = []
        for number, below in enumerate(config.split_folders):
            if remote:
                found = folder.find_remote_images(remote, below)
            else:
                found = folder.find_images(root / below, "config.data.split_folders")
            names = [f"{below}/{name}" for name in found]
            parts.append(folder.read_manifest(root, names, cache and cache / f"manifest_{number}.json", 8, remote))
        manifest = {name: entry for part in parts for name, entry in part.items()}
        # All folders together: every bad file is listed at once, and skip_bad counts them all.
        good = set(folder.usable(manifest, smallest, config.skip_bad, listing=listing))
        names_by_split = [[name for name in part if name in good] for part in parts]
        _refuse_shared(names_by_split, manifest, "config.data.split_folders")
    else:
        found = folder.find_remote_images(remote) if remote else folder.find_images(root)
        manifest = folder.read_manifest(root, found, cache and cache / "manifest.json", 8, remote)
        names = folder.usable(manifest, smallest, config.skip_bad, listing=listing)
        groups = [splits.group_of(name, manifest[name]["hash"], config.group_pattern) for name in names]
        names_by_split = [[names[i] for i in chosen] for chosen in _assign(config, groups)]
        # Without a pattern, groups are the contents themselves.
        _refuse_shared(names_by_split, manifest, "config.data.group_pattern")
    result = {}
    for split, names in zip(splits.SPLITS, names_by_split, strict=True):
        if split == "train" and config.limit:
            names = sorted(names, key=lambda n: splits.position(manifest[n]["hash"]))[: config.limit]
            names = sorted(names)
        if not names:
            raise ValueError(f"the {split} split of {str(place)!r} is empty: add pictures, or change the split's share")
        result[split] = ImageSource(
            names,
            folder.loader(root, names, size, _fit(config, split), remote),
            _fingerprint("folder", size, config.fit, *(f"{n} {manifest[n]['hash']}" for n in names)),
            config.cache_megabytes << 20,
        )
    return result


def _refuse_shared(names_by_split: list[list[str]], manifest: dict[str, dict], setting: str) -> None:
    """Raises ValueError if a picture's content lies in two splits: the test would be of pictures trained on.

    Args:
        setting: what decides the splits, for the message.
    """
    first: dict[str, tuple[int, str]] = {}
    for split, names in enumerate(names_by_split):
        for name in names:
            earlier, twin = first.setdefault(manifest[name]["hash"], (split, name))
            if earlier != split:
                raise ValueError(
                    f"{setting}: {twin!r} and {name!r} are the same picture, and would lie in two splits: remove one"
                )


def _assign(config: ml_collections.ConfigDict, groups: list[str]) -> list[list[int]]:
    """Returns the indices of each split, by exact counts or by fractions."""
    if any(config.split_counts):
        assignment = splits.split_by_counts(groups, config.split_counts)
    else:
        assignment = splits.split_by_fractions(groups, config.split_fractions)
    return [[i for i, split in enumerate(assignment) if split == wanted] for wanted in range(3)]


def _fit(config: ml_collections.ConfigDict, split: str) -> str:
    # Training crops are drawn anew each time, by the pipeline.
    return "whole" if split == "train" and config.fit == "crop" else config.fit


def _tfds(config: ml_collections.ConfigDict, size: int, cache: Path | None) -> Splits:
    prepared = tfds_source.open_prepared(config.name, config.path)
    own = None if any(config.split_counts) else tfds_source.own_splits(prepared, config.split_folders)
    crops_of_any_size = config.fit == "crop" and None in prepared.shape[:2]
    examined = {}
    if crops_of_any_size or (own is None and prepared.has_picture):
        examined = tfds_source.examine(prepared, cache and cache / "tfds_manifest.json")
    if own is not None:
        places_by_split = [[(split, i) for i in range(len(prepared.records[split]))] for split in own]
    else:
        places = [(split, i) for split, records in prepared.records.items() for i in range(len(records))]
        names = [tfds_source.record_name(*place) for place in places]
        groups = [examined[n][1] if prepared.has_picture else f"{prepared.name} {n}" for n in names]
        places_by_split = [[places[i] for i in chosen] for chosen in _assign(config, groups)]
    result = {}
    for split, places in zip(splits.SPLITS, places_by_split, strict=True):
        if split == "train" and config.limit:
            key = {place: splits.position(f"{prepared.name} {tfds_source.record_name(*place)}") for place in places}
            places = sorted(sorted(places, key=key.get)[: config.limit])
        if not places:
            raise ValueError(f"the {split} split of {prepared.name!r} is empty: change the split's share")
        names = [tfds_source.record_name(*place) for place in places]
        if config.fit == "crop":
            sides = {n: examined[n][0] if crops_of_any_size else min(prepared.shape[:2]) for n in names}
            tfds_source.refuse_small(prepared, sides, size)
        result[split] = ImageSource(
            names,
            tfds_source.loader(prepared, places, size, _fit(config, split)),
            _fingerprint("tfds", prepared.identity, size, config.fit, *names),
            config.cache_megabytes << 20,
        )
    return result


def _folder_root(config: ml_collections.ConfigDict) -> str:
    if config.path:
        return config.path
    if config.name and os.environ.get("INPAINT_DATA_DIR"):
        return f"{os.environ['INPAINT_DATA_DIR']}/{config.name}"
    raise ValueError(
        "the folder source needs a folder: set config.data.path, "
        "or config.data.name and the environment variable INPAINT_DATA_DIR"
    )


# Name in config.data.source -> function (config.data, image size, folder for cached manifests or None) -> splits.
SOURCES: dict[str, Callable[[ml_collections.ConfigDict, int, Path | None], Splits]] = {
    "procedural_normals": _procedural,
    "bundled_photos": _photographs,
    "folder": _folder,
    "tfds": _tfds,
}


def load_splits(config: ml_collections.ConfigDict, size: int, cache: Path | None = None) -> Splits:
    """Returns `{"train", "val", "test"}` sources of uint8 (size, size, 3) pictures.

    With `config.fit = "crop"` training pictures that are read stay whole: `pipeline.train_batches` cuts windows.

    Args:
        config: `config.data`.
        size: height and width of every picture, in pixels.
        cache: folder in which the sources folder and tfds keep what they found in the files; None = look every time.

    Raises:
        ValueError: an unknown source, a missing or empty folder, bad files, an empty split.
    """
    if config.source not in SOURCES:
        raise ValueError(f"config.data.source = {config.source!r}: known sources are {', '.join(sorted(SOURCES))}")
    result = SOURCES[config.source](config, size, cache)
    if config.kind == "normal_maps" and config.source not in ("procedural_normals", "bundled_photos"):
        normal_maps.warn_of_other_pictures(result["val"])
    return result


@functools.cache
def load_mask_files(path: str, size: int, setting: str = "config.mask.path") -> ImageSource:
    """Returns the mask pictures below `path` as a source of uint8 (size, size, 1), white = hole = 1.

    Args:
        setting: what the user sets `path` with, for messages.

    Raises:
        ValueError: no path, no such folder, or no picture in it.
    """
    root = remote_files.folder(path, tuple(image_files.IMAGE_SUFFIXES))
    if not path or not root.is_dir():
        raise ValueError(f"{setting} = {path!r} is no folder: set it to the folder with the mask pictures")
    names = folder.find_images(root, setting)
    contents = (hashlib.sha256((root / name).read_bytes()).hexdigest() for name in names)
    return ImageSource(names, folder.mask_loader(root, names, size), _fingerprint("masks", *contents), 1 << 30)
