"""Masks for a test that are not those of the model's config: evenly by hole ratio, or of files; and masks as files."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import ml_collections
import numpy as np

from inpaint_jax import image_files, mask_sets, task
from inpaint_jax.buckets import DRAWN
from inpaint_jax.data import folder, load_mask_files
from inpaint_jax.mask_sets import EvaluationMasks
from inpaint_jax.masks import MASKS

OWN = "own"


def in_buckets(config: ml_collections.ConfigDict, family: str, count: int, store: Path) -> EvaluationMasks:
    """Returns a set that fills the buckets from 1-10 % to 50-60 % evenly, stored in a folder at the first call.

    Args:
        config: of the model; its mask's settings and evaluation seed count, its ratio does not.
        family: of `masks.MASKS`, or "own" for the config's.

    Raises:
        ValueError: the family cannot hold one of these ratios, or the model cannot fill its holes.
    """
    if family not in (OWN, *MASKS):
        raise ValueError(f"--bucket_masks={family}: known are {OWN}, {', '.join(sorted(MASKS))}")
    if family == OWN and config.mask.name not in MASKS:
        raise ValueError(
            f"the model's own masks are pictures ({config.mask.path}), which have the ratios that they have: name a "
            f"family that draws masks, --bucket_masks={' | '.join(sorted(MASKS))}"
        )
    spec, size = task.mask_spec(config), config.image_size
    spec |= {"name": config.mask.name if family == OWN else family}
    del spec["ratio"]
    seed = 2 * config.mask.evaluation_seed + 1
    identity = json.dumps([size, spec, DRAWN, seed], sort_keys=True)
    path = store / f"test-buckets-{count}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}.npz"

    def draw() -> EvaluationMasks:
        try:
            return mask_sets.masks_in_buckets(spec, DRAWN, count, size, size, seed)
        except ValueError as error:
            others = " | ".join(sorted(set(MASKS) - {spec["name"]}))
            raise ValueError(f"{error}: take --bucket_masks={others}, or give files with --masks") from error

    masks = mask_sets.stored(path, draw)
    refuse_too_large(config, masks, [f"mask {i}" for i in range(count)])
    return masks


def from_files(config: ml_collections.ConfigDict, root: Path, count: int) -> EvaluationMasks:
    """Returns the masks of the picture files below a folder, sorted by path, white = hole; over again if there are few.

    Raises:
        ValueError: no such folder, no pictures in it, or one that is no mask or that the model cannot fill.
    """
    files = load_mask_files(str(root), config.image_size, "--masks")
    folder.check_masks(files, "--masks")
    masks = mask_sets.masks_from_pictures(np.stack([files[i % len(files)] for i in range(count)]))
    refuse_too_large(config, masks, [files.names[i % len(files)] for i in range(count)])
    return masks


def refuse_too_large(config: ml_collections.ConfigDict, masks: EvaluationMasks, names: Sequence[str]) -> None:
    """Raises ValueError if the model works on a window around the hole and a hole is larger than that."""
    if config.task.view != "window":
        return
    side = task.window_side(config)
    for name, mask in zip(names, masks.unpack()[..., 0], strict=True):
        extents = [np.ptp(np.flatnonzero(mask.any(axis=axis))) + 1 if mask.any() else 0 for axis in (0, 1)]
        if max(extents) > side:
            raise ValueError(
                f"the hole of {name} is {extents[0]}x{extents[1]} pixels, and this model fills holes within "
                f"{side}x{side}: give masks that fit with --masks"
            )


def save(masks: EvaluationMasks, names: Sequence[str], root: Path) -> None:
    """Writes masks as PNG files, white = hole, named as the pictures, so that `from_files` gives them back in order.

    Args:
        names: of the pictures, relative POSIX paths, sorted; mask i is for picture i.
        root: where to; made if missing.

    Raises:
        ValueError: names that would not keep the masks in order, or other pictures in the folder.
    """
    files = [str(PurePosixPath(name).with_suffix(".png")) for name in names]
    for first, second, name in zip(files, files[1:], names[1:], strict=False):
        if first >= second:
            raise ValueError(
                f"the mask of {name} would be the file {second}, which is not sorted after the one before it, {first}: "
                "rename one of the pictures"
            )
    present = (path for path in root.rglob("*") if path.suffix.lower() in image_files.IMAGE_SUFFIXES)
    if others := {path.relative_to(root).as_posix() for path in present} - set(files):
        raise ValueError(
            f"--save_masks={root} has other pictures, such as {min(others)}, which would be taken for masks: give "
            "another folder"
        )
    for file, mask in zip(files, masks.unpack()[..., 0], strict=True):
        image_files.write_png(root / file, mask * np.uint8(255))
