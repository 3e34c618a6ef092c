"""Where pictures come from: `load_splits` turns `config.data` into three sources of uint8 pictures."""

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import ml_collections

from inpaint_jax.data import folder, procedural_normals, splits, tfds_source
from inpaint_jax.data.source import ImageSource

Splits = dict[str, ImageSource]
# One seed for everyone: the pictures do not depend on the seed of the training run.
PROCEDURAL_SEED = 20260101


def _fingerprint(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def _procedural(config: ml_collections.ConfigDict, size: int, cache: Path | None) -> Splits:
    field = "split_counts" if any(config.split_counts) else "embedded_counts"
    counts = tuple(config[field])
    if min(counts) < 1:
        raise ValueError(f"config.data.{field} = {counts}: each split needs at least one map")
    if config.kind != "normal_maps":
        raise ValueError(f"config.data.kind = {config.kind!r}: the source procedural_normals holds normal_maps")
    # Splits lie far apart in the index space, so that a larger training split never runs into the others.
    offsets = {"train": 0, "val": 1 << 40, "test": 2 << 40}
    result = {}
    for name, count in zip(splits.SPLITS, counts, strict=True):
        offset = offsets[name]
        if name == "train" and config.limit:
            count = min(count, config.limit)

        def load(index: int, offset: int = offset):
            return procedural_normals.render_normal_map(PROCEDURAL_SEED, offset + index, size, config.normal_y)

        result[name] = ImageSource(
            [f"{name}_{i:06d}" for i in range(count)],
            load,
            _fingerprint("procedural_normals", procedural_normals.VERSION, offset, count, size, config.normal_y),
            config.cache_megabytes << 20,
        )
    return result


def _folder(config: ml_collections.ConfigDict, size: int, cache: Path | None) -> Splits:
    root = _folder_root(config)
    smallest = size if config.fit == "crop" else 1
    if any(config.split_folders):
        if not all(config.split_folders):
            raise ValueError(f"config.data.split_folders = {tuple(config.split_folders)}: name all three, or none")
        names_by_split, manifest = [], {}
        for below in config.split_folders:
            names = [f"{below}/{name}" for name in folder.find_images(root / below)]
            part = folder.read_manifest(root, names, cache and cache / f"manifest_{len(names_by_split)}.json", 8)
            names_by_split.append(folder.usable(part, smallest, config.skip_bad))
            manifest.update(part)
        _refuse_shared(names_by_split, manifest)
    else:
        manifest = folder.read_manifest(root, folder.find_images(root), cache and cache / "manifest.json", 8)
        names = folder.usable(manifest, smallest, config.skip_bad)
        groups = [splits.group_of(name, manifest[name]["hash"], config.group_pattern) for name in names]
        names_by_split = [[names[i] for i in chosen] for chosen in _assign(config, groups)]
    result = {}
    for split, names in zip(splits.SPLITS, names_by_split, strict=True):
        if split == "train" and config.limit:
            names = sorted(names, key=lambda n: splits.position(manifest[n]["hash"]))[: config.limit]
            names = sorted(names)
        if not names:
            raise ValueError(f"the {split} split of {str(root)!r} is empty: add pictures, or change the split's share")
        result[split] = ImageSource(
            names,
            folder.loader(root, names, size, _fit(config, split)),
            _fingerprint("folder", size, config.fit, *(f"{n} {manifest[n]['hash']}" for n in names)),
            config.cache_megabytes << 20,
        )
    return result


def _refuse_shared(names_by_split: list[list[str]], manifest: dict[str, dict]) -> None:
    """Raises ValueError if a picture's content lies in two splits: the test would be of pictures trained on."""
    first: dict[str, tuple[int, str]] = {}
    for split, names in enumerate(names_by_split):
        for name in names:
            earlier, twin = first.setdefault(manifest[name]["hash"], (split, name))
            if earlier != split:
                raise ValueError(f"config.data.split_folders: {twin!r} and {name!r} are the same picture: remove one")


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
    names, loaders, identity = tfds_source.open_pictures(config.name, config.path)
    result = {}
    for split, chosen in zip(splits.SPLITS, _assign(config, [f"{identity} {name}" for name in names]), strict=True):
        if split == "train" and config.limit:
            chosen = chosen[: config.limit]
        if not chosen:
            raise ValueError(f"the {split} split of {config.name!r} is empty: change the split's share")
        result[split] = ImageSource(
            [names[i] for i in chosen],
            tfds_source.loader([loaders[i] for i in chosen], size, _fit(config, split)),
            _fingerprint("tfds", identity, size, config.fit, *(names[i] for i in chosen)),
            config.cache_megabytes << 20,
        )
    return result


def _folder_root(config: ml_collections.ConfigDict) -> Path:
    if config.path:
        return Path(config.path).expanduser()
    if config.name and os.environ.get("INPAINT_DATA_DIR"):
        return Path(os.environ["INPAINT_DATA_DIR"]) / config.name
    raise ValueError(
        "the folder source needs a folder: set config.data.path, "
        "or config.data.name and the environment variable INPAINT_DATA_DIR"
    )


# Name in config.data.source -> function (config.data, image size, folder for cached manifests or None) -> splits.
SOURCES: dict[str, Callable[[ml_collections.ConfigDict, int, Path | None], Splits]] = {
    "procedural_normals": _procedural,
    "folder": _folder,
    "tfds": _tfds,
}


def load_splits(config: ml_collections.ConfigDict, size: int, cache: Path | None = None) -> Splits:
    """Returns `{"train", "val", "test"}` sources of uint8 (size, size, 3) pictures.

    With `config.fit = "crop"` the training pictures of a folder stay whole: `pipeline.train_batches` cuts windows.

    Args:
        config: `config.data`.
        size: height and width of every picture, in pixels.
        cache: folder in which a folder source keeps its manifest of checked files; None = check every time.

    Raises:
        ValueError: an unknown source, a missing or empty folder, bad files, an empty split.
    """
    if config.source not in SOURCES:
        raise ValueError(f"config.data.source = {config.source!r}: known sources are {', '.join(sorted(SOURCES))}")
    return SOURCES[config.source](config, size, cache)


def load_folder(root: Path, size: int, fit: str) -> ImageSource:
    """Returns all pictures below a folder as one source of uint8 (size, size, 3), for testing a trained model.

    Raises:
        ValueError: no such folder, no pictures, or bad files.
    """
    names = folder.find_images(root)
    manifest = folder.read_manifest(root, names, None, 2)
    names = folder.usable(manifest, size if fit == "crop" else 1, 0)
    fingerprint = _fingerprint("folder", size, fit, *(f"{n} {manifest[n]['hash']}" for n in names))
    return ImageSource(names, folder.loader(root, names, size, fit), fingerprint, 2048 << 20)


@functools.cache
def load_mask_files(path: str, size: int) -> ImageSource:
    """Returns the mask pictures below `path` as a source of uint8 (size, size, 1), white = hole = 1.

    Raises:
        ValueError: no path, no such folder, or no picture in it.
    """
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise ValueError(f"config.mask.path = {path!r} is no folder: set it to the folder with the mask pictures")
    names = folder.find_images(root)
    contents = (hashlib.sha256((root / name).read_bytes()).hexdigest() for name in names)
    return ImageSource(names, folder.mask_loader(root, names, size), _fingerprint("masks", *contents), 1 << 30)
