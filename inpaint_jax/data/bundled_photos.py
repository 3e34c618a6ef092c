"""Windows of photographs that come with scikit-image: pictures in colour when nothing else is at hand.

The photographs are files inside the installed package, so nothing is downloaded. A window is a function of
(seed, split, index, size) alone: place and zoom are random, so that any number of different windows can be asked for,
but they show few things. They are enough to try the software out and too few for a model of photographs in general.

Rights, as the docstrings of `skimage.data` state them: astronaut (Eileen Collins, NASA Great Images; public domain),
coffee (Rachel Michetti, Pikolo Espresso Bar; CC0), hubble_deep_field (NASA; public domain), ihc (stained tissue, Center
for Microscopy and Molecular Imaging; no known copyright restrictions), brick, grass and gravel (CC0), retina (Mikael
Häggström; CC0), chelsea (Stefan van der Walt; CC0), rocket (SpaceX; public domain). The stereo pair of a motorcycle is
left out, since no licence is stated for it.
"""

import functools
import hashlib
import importlib.resources
import math
import threading
from pathlib import Path

import cv2
import numpy as np

from inpaint_jax import image_files

# Part of a data set's identity: raise it with every change that alters a window.
VERSION = 1

# No photograph lies in two splits: windows overlap, and a test on windows of a photograph trained on would praise mere
# remembering. Those most like other people's photographs are kept for validation and test, where they are looked at;
# grey textures are better trained on than shown.
PHOTOGRAPHS = {
    "train": (
        *("astronaut.png", "ihc.png", "retina.jpg", "hubble_deep_field.jpg"),
        *("brick.png", "grass.png", "gravel.png"),
    ),
    "val": ("chelsea.png",),
    "test": ("coffee.png", "rocket.jpg"),
}
LARGEST = 256  # pixels: the largest window; the smallest photograph is 300 pixels high

_reading = threading.Lock()


def folder() -> Path:
    """Returns the folder of the installed package in which the photographs lie."""
    return Path(str(importlib.resources.files("skimage"))) / "data"


@functools.cache
def _read(path: Path) -> tuple[np.ndarray, str]:
    if not path.is_file():
        raise ValueError(
            f"the installed package scikit-image has no photograph {path.name} ({path}): install the version that "
            "requirements.txt names, or set config.data.source to another source"
        )
    image = image_files.read_rgb(path)
    image.flags.writeable = False
    return image, hashlib.sha256(path.read_bytes()).hexdigest()


def photograph(name: str) -> tuple[np.ndarray, str]:
    """Returns a photograph, read once in a process, and the SHA-256 of its file; any thread may ask.

    Returns:
        uint8 (H, W, 3), read-only, and the hash in hexadecimal digits.

    Raises:
        ValueError: the installed scikit-image has no such file, or it is damaged.
    """
    with _reading:
        return _read(folder() / name)


def content_hashes(split: str) -> list[str]:
    """Returns the SHA-256 of each photograph of a split, "train", "val" or "test".

    Raises:
        ValueError: as for `photograph`.
    """
    return [photograph(name)[1] for name in PHOTOGRAPHS[split]]


def check_size(size: int) -> None:
    """Raises ValueError if `size` is more than `LARGEST` pixels."""
    if size > LARGEST:
        raise ValueError(
            f"config.image_size = {size}: the source bundled_photos has windows of at most {LARGEST} pixels; "
            "use a folder of larger pictures (config.data.source = 'folder')"
        )


def window(seed: int, split: str, index: int, size: int) -> np.ndarray:
    """Cuts a square at a random place of a random photograph of the split and scales it down.

    The side of the square is drawn between `size` and the photograph's short side, evenly in its logarithm, so that
    all zooms are equally frequent; pixels are averaged over their areas.

    Args:
        index: any number from 0; the same arguments give the same window.
        size: side of the result, at most `LARGEST` pixels.

    Returns:
        uint8 (size, size, 3).

    Raises:
        ValueError: `size` is too large, or as for `photograph`.
    """
    check_size(size)
    order = list(PHOTOGRAPHS).index(split)
    random = np.random.Generator(np.random.Philox(key=np.array([seed + order, index], np.uint64)))
    names = PHOTOGRAPHS[split]
    image, _ = photograph(names[int(random.integers(len(names)))])
    side = round(math.exp(random.uniform(math.log(size), math.log(min(image.shape[:2])))))
    top, left = (int(random.integers(extent - side + 1)) for extent in image.shape[:2])
    square = image[top : top + side, left : left + side]
    return square.copy() if side == size else cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
