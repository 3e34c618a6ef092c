"""Filling picture files: every kind of channels and bits, single files and folders, beside `inference.Inpainter`."""

import dataclasses
import functools
import logging
import os
from pathlib import Path

import numpy as np

from inpaint_jax import image_files, weights
from inpaint_jax.data import normal_maps
from inpaint_jax.inference import Inpainter

log = logging.getLogger("inpaint_jax")

NORMAL_Y = ("", "up", "down")


@dataclasses.dataclass(frozen=True)
class Options:
    """How pictures are filled.

    Attributes:
        invert: black, or opaque, is the hole.
        wrap, blend: of `Inpainter`.
        normal_y: where green points in the normal maps given; "" as the model has it.
        two_channels: normal maps hold x and y alone; their blue is not looked at.
    """

    invert: bool = False
    wrap: bool = False
    blend: str = "none"
    normal_y: str = ""
    two_channels: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """A picture, its mask file (None: its own transparency), and the file to write."""

    image: Path
    mask: Path | None
    out: Path


def plan_jobs(image: Path, mask: Path | None, out: Path) -> list[Job]:
    """Returns what is to be filled: one picture, or every picture below a folder, in the order of their names.

    The mask of a picture in a folder is the picture of the same name, suffix aside, at the same place below the folder
    of masks; a single mask file serves all. Results have the pictures' names, TIFF files as TIFF and all others as PNG.

    Raises:
        ValueError: no pictures, names that would meet in one result, or a result that would replace what is read.
    """
    if image.is_dir():
        jobs = _folder_jobs(image, mask, out)
    else:
        if out.is_dir():
            raise ValueError(f"--out={out} is a folder: give the name of a file in it")
        if mask is not None and mask.is_dir():
            raise ValueError(f"--mask={mask} is a folder, and --image={image} is not: give a mask file")
        jobs = [Job(image, mask, out)]
    read = {_identity(path) for job in jobs for path in (job.image, job.mask) if path is not None and path.exists()}
    for job in jobs:
        if job.out.exists() and _identity(job.out) in read:
            raise ValueError(f"{job.out} is read, and would be replaced by a result: choose another --out")
    return jobs


def _identity(path: Path) -> tuple[int, int]:
    # Whatever links or spelling lead to it.
    found = path.stat()
    return found.st_dev, found.st_ino


def _folder_jobs(images: Path, masks: Path | None, out: Path) -> list[Job]:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out={out} is a file, and --image={images} a folder: give a folder for the results")
    if images.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(
            f"--out={out} lies in --image={images}, where results would be taken for pictures: choose another"
        )
    found = _pictures(masks) if masks is not None and masks.is_dir() else []
    jobs: dict[str, Job] = {}
    for path in _pictures(images):
        name = path.relative_to(images)
        suffix = name.suffix if name.suffix.lower() in (".tif", ".tiff") else ".png"
        result = out / name.with_suffix(suffix)
        # Some disks do not tell capitals from small letters.
        if same := jobs.get(str(result).casefold()):
            raise ValueError(f"{same.image} and {path} would both be written to {result}: rename one of them")
        mask = masks
        if masks is not None and masks.is_dir():
            mask = _mask_of(name, masks, found)
        jobs[str(result).casefold()] = Job(path, mask, result)
    if not jobs:
        raise ValueError(f"--image={images} has no pictures ({', '.join(image_files.IMAGE_SUFFIXES)})")
    return list(jobs.values())


def _mask_of(name: Path, masks: Path, found: list[Path]) -> Path:
    """Returns the mask of a picture: of the same name, else the only one of the same stem."""
    alike = [path for path in found if path.relative_to(masks).with_suffix("") == name.with_suffix("")]
    if masks / name in alike or not alike:
        return masks / name  # where there is none, the job is reported as the others that fail
    if len(alike) > 1:
        raise ValueError(f"the picture {name} has several masks ({', '.join(map(str, alike))}): leave one of them")
    return alike[0]


def _pictures(folder: Path) -> list[Path]:
    """Returns the picture files below a folder, at any depth, by name; an unreadable subfolder raises OSError."""

    def refuse(error: OSError) -> None:
        raise error

    files = (Path(root) / name for root, _, names in os.walk(folder, onerror=refuse) for name in names)
    # Those of kinds that are not read are not passed over in silence: each is reported.
    known = (*image_files.IMAGE_SUFFIXES, *image_files.OTHER_SUFFIXES)
    found = [path for path in files if path.suffix.lower() in known]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


@functools.cache
def _shipped_inpainter(name: str) -> Inpainter:
    return Inpainter.load(weights.shipped_generators()[name])  # not by name: there may be a folder of that name


def shipped_inpainter(picture: np.ndarray, hole: np.ndarray, options: Options) -> tuple[str, Inpainter]:
    """Returns the generator that comes along for a picture like this one, and its name.

    Args:
        picture, hole: as of `fill_picture`; what is known tells whether it is a normal map, unless the options do.
    """
    known = picture[~hole][:, None, :3]
    if known.dtype == np.uint16:
        known = (known >> 8).astype(np.uint8)
    of_normal_maps = options.normal_y or options.two_channels
    is_map = bool(of_normal_maps) or (picture.shape[2] >= 3 and known.size > 0 and normal_maps.is_normal_map(known))
    name = "normal_maps" if is_map else "photographs"
    return name, _shipped_inpainter(name)


def fill_file(inpainter: Inpainter | None, job: Job, options: Options) -> int:
    """Fills one picture file and writes the result; returns the number of pixels filled.

    Args:
        inpainter: None: the generator that comes along for such a picture.

    Raises:
        ValueError: a file that cannot be read, a mask that does not fit, or a picture that the model cannot fill.
        OSError: the result cannot be written.
    """
    picture = image_files.read_picture(job.image, options.two_channels)
    hole = _hole(job, picture)
    if options.invert:
        hole = ~hole
    if hole.all():
        if job.mask is None:
            raise ValueError(f"{job.image} is all hole: its transparency leaves nothing from which the fill could grow")
        white, black = ("black", "white") if options.invert else ("white", "black")
        raise ValueError(
            f"the mask {job.mask} is all hole ({white}): leave what is to be kept {black}, the fill grows from it"
        )
    if job.mask is None:
        # What was a hole becomes opaque.
        picture[..., -1] = np.where(hole, np.iinfo(picture.dtype).max, picture[..., -1])
    if inpainter is None:
        name, inpainter = shipped_inpainter(picture, hole, options)
        if hole.any():
            log.info("%s: filling with the model %r, which comes along; --model chooses another", job.image, name)
    filled = fill_picture(inpainter, picture, hole, options)
    image_files.write_picture(job.out, filled)
    return int(hole.sum())


def _hole(job: Job, picture: np.ndarray) -> np.ndarray:
    """Returns the hole, bool (H, W)."""
    if job.mask is None:
        if picture.shape[2] not in (2, 4):
            raise ValueError(f"{job.image} has no transparency that could show the hole: give --mask")
        return picture[..., -1] <= np.iinfo(picture.dtype).max // 2
    hole = image_files.read_mask(job.mask).astype(bool)
    if hole.shape != picture.shape[:2]:
        raise ValueError(
            f"the mask {job.mask} has {hole.shape[1]}x{hole.shape[0]} pixels and the picture {job.image} "
            f"{picture.shape[1]}x{picture.shape[0]}: give one of the same size"
        )
    return hole


def fill_picture(inpainter: Inpainter, picture: np.ndarray, hole: np.ndarray, options: Options) -> np.ndarray:
    """Returns a picture of any channels with its hole filled; known pixels, and alpha, stay as they are.

    Args:
        picture: uint8 or uint16 (H, W, C), C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
        hole: bool (H, W).

    Raises:
        ValueError: a grey normal map, options for normal maps with a model of photographs, or what the `Inpainter`
            refuses.
    """
    colours, alpha = (picture[..., :-1], picture[..., -1:]) if picture.shape[2] in (2, 4) else (picture, None)
    grey = colours.shape[2] == 1
    if not inpainter.normal_maps and (options.normal_y or options.two_channels):
        raise ValueError("options for normal maps (--normal_y, --two_channels), and the model fills photographs")
    if grey and inpainter.normal_maps:
        raise ValueError("the picture is grey, and the model fills normal maps: choose a model of photographs")
    seen = np.repeat(colours, 3, axis=-1) if grey else colours
    flip = bool(options.normal_y) and inpainter.normal_y not in ("mixed", options.normal_y)
    if options.two_channels:
        seen = _with_z(seen)
    filled = inpainter(_flipped(seen, flip), hole, wrap=options.wrap, blend=options.blend)
    filled = _flipped(filled, flip)
    if options.two_channels:
        # Blue keeps what the file had: the same value everywhere, as a rule.
        filled = np.concatenate([filled[..., :2], _blue_of_two_channels(colours, hole)], axis=-1)
    if grey:
        # A network of colours seldom answers with pure grey.
        filled = np.where(hole[..., None], np.round(filled.mean(axis=-1, keepdims=True)), colours).astype(colours.dtype)
    return filled if alpha is None else np.concatenate([filled, alpha], axis=-1)


def _flipped(normals: np.ndarray, flip: bool) -> np.ndarray:
    """Returns the normals with green pointing the other way, exactly undone by a second call."""
    if not flip:
        return normals
    normals = normals.copy()
    normals[..., 1] = np.iinfo(normals.dtype).max - normals[..., 1]
    return normals


def _with_z(normals: np.ndarray) -> np.ndarray:
    """Returns the normals with the third component that makes them unit vectors."""
    highest = np.iinfo(normals.dtype).max
    xy = normals[..., :2].astype(np.float32) * (2.0 / highest) - 1.0
    z = np.sqrt(np.maximum(0.0, 1.0 - (xy**2).sum(axis=-1, keepdims=True)))
    return np.concatenate([normals[..., :2], np.round((z + 1.0) / 2.0 * highest).astype(normals.dtype)], axis=-1)


def _blue_of_two_channels(colours: np.ndarray, hole: np.ndarray) -> np.ndarray:
    blue = colours[..., 2:]
    return np.where(hole[..., None], np.median(blue[~hole]).astype(blue.dtype), blue)


def fill_all(inpainter: Inpainter | None, jobs: list[Job], options: Options) -> int:
    """Fills all pictures as `fill_file`, reports each that fails and goes on; returns how many failed."""
    failed = 0
    for number, job in enumerate(jobs, 1):
        try:
            count = fill_file(inpainter, job, options)
        except (ValueError, OSError, MemoryError) as error:
            failed += 1
            log.error("%d of %d  not filled: %s: %s", number, len(jobs), job.image, error)
            continue
        what = f"{count} pixels filled" if count else "no hole, written as it was"
        log.info("%d of %d  %s: %s", number, len(jobs), job.out, what)
    return failed
