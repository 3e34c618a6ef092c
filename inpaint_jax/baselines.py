"""Fills that need no training, to measure every model against; on the host, one image at a time, in 8 bits.

All of them leave known pixels byte-identical and never look at what lies under the hole. An image without a hole
comes back unchanged. An image that is all hole has nothing to go on and becomes mid-grey, or the flat normal.
"""

import functools
from collections.abc import Callable

import cv2
import jax
import numpy as np

from inpaint_jax.fills import FLAT_NORMAL, harmonic

MID_GREY = (128, 128, 128)

_harmonic = jax.jit(harmonic)

Baseline = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _checked_hole(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the mask as bool (H, W) after checking both arrays."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"A baseline needs a uint8 (H, W, 3) image, but got {image.dtype} {image.shape}.")
    if mask.shape != image.shape[:2]:
        raise ValueError(f"The mask must be (H, W) = {image.shape[:2]} like its image, but it is {mask.shape}.")
    if not np.isin(mask, (0, 1)).all():
        raise ValueError("The mask must hold 0 (known) and 1 (hole) only: threshold it first.")
    return mask.astype(bool)


def encode_normal(vector: np.ndarray) -> np.ndarray:
    """Encodes unit vectors as colours: round((v + 1) / 2 * 255), halves rounded up.

    Args:
        vector: float (..., 3) in [-1, 1].

    Returns:
        uint8 (..., 3).
    """
    return np.clip(np.floor((np.asarray(vector, np.float64) + 1.0) * 127.5 + 0.5), 0, 255).astype(np.uint8)


def _filled(image: np.ndarray, hole: np.ndarray, colour: np.ndarray | tuple[int, int, int]) -> np.ndarray:
    """Puts one colour (3,), or the pixels of another image, into the hole; the known pixels stay as they are."""
    return np.where(hole[..., None], np.asarray(colour, np.uint8), image)


def _nothing_known(normal_maps: bool) -> tuple[int, int, int]:
    return FLAT_NORMAL if normal_maps else MID_GREY


def mean_fill(image: np.ndarray, mask: np.ndarray, normal_maps: bool) -> np.ndarray:
    """Fills the hole with the mean of the image's own known pixels.

    Of a normal map it is the mean vector, made a unit vector again; known normals that cancel out give the flat one.

    Args:
        image: uint8 (H, W, 3).
        mask: uint8 (H, W), 1 = hole, 0 = known.
        normal_maps: whether the colours encode vectors.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: shapes, types or mask values are not as above.
    """
    hole = _checked_hole(image, mask)
    known = image[~hole]
    if known.size == 0:
        return _filled(image, hole, _nothing_known(normal_maps))
    mean = known.mean(axis=0, dtype=np.float64)
    if not normal_maps:
        return _filled(image, hole, np.floor(mean + 0.5))
    vector = mean / 127.5 - 1.0
    length = np.linalg.norm(vector)
    return _filled(image, hole, encode_normal(vector / length) if length > 1e-6 else FLAT_NORMAL)


def flat_fill(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fills the hole of a normal map with the flat normal (0, 0, 1), which is (128, 128, 255).

    Args:
        image: uint8 (H, W, 3).
        mask: uint8 (H, W), 1 = hole, 0 = known.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: shapes, types or mask values are not as above.
    """
    return _filled(image, _checked_hole(image, mask), FLAT_NORMAL)


def _opencv_fill(image: np.ndarray, mask: np.ndarray, radius: float, normal_maps: bool, method: int) -> np.ndarray:
    hole = _checked_hole(image, mask)
    if hole.all():
        return _filled(image, hole, _nothing_known(normal_maps))
    # OpenCV reads the colours under the hole, mostly near the border of the image, and leaves pixels that it cannot
    # reach as they came: it must not see the truth, so the hole is black, as in the picture a user would have.
    masked = _filled(image, hole, (0, 0, 0))
    return _filled(image, hole, cv2.inpaint(masked, hole.astype(np.uint8), radius, method))


def telea(image: np.ndarray, mask: np.ndarray, radius: float = 3, normal_maps: bool = False) -> np.ndarray:
    """Fills the hole by fast marching, with OpenCV.

    Telea, "An image inpainting technique based on the fast marching method", Journal of Graphics Tools 9(1), 2004.
    A normal map is filled as if it were a picture, as people do; its filled vectors are not of unit length.

    Args:
        image: uint8 (H, W, 3).
        mask: uint8 (H, W), 1 = hole, 0 = known.
        radius: neighbourhood of a filled pixel, in pixels.
        normal_maps: whether an image that is all hole becomes the flat normal instead of mid-grey.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: shapes, types or mask values are not as above.
    """
    return _opencv_fill(image, mask, radius, normal_maps, cv2.INPAINT_TELEA)


def navier_stokes(image: np.ndarray, mask: np.ndarray, radius: float = 3, normal_maps: bool = False) -> np.ndarray:
    """Fills the hole by fluid dynamics along lines of equal brightness, with OpenCV.

    Bertalmio, Bertozzi and Sapiro, "Navier-Stokes, fluid dynamics, and image and video inpainting", CVPR 2001.
    Arguments, result and errors are those of `telea`.
    """
    return _opencv_fill(image, mask, radius, normal_maps, cv2.INPAINT_NS)


def harmonic_fill(image: np.ndarray, mask: np.ndarray, normal_maps: bool = False) -> np.ndarray:
    """Fills the hole smoothly from its border: what a generator with `config.task.fill = "harmonic"` begins with.

    The error that is left beside this one is what the network takes away. Arguments, result and errors are those of
    `telea`, without the radius.
    """
    hole = _checked_hole(image, mask)
    if hole.all():
        return _filled(image, hole, _nothing_known(normal_maps))
    # The fill needs sides that are powers of two: what is added is unknown, and so changes nothing.
    extra = [(0, (1 << (side - 1).bit_length()) - side) for side in hole.shape]
    padded = np.pad(image, [*extra, (0, 0)]).astype(np.float32)
    unknown = np.pad(hole, extra, constant_values=True)
    smooth = np.asarray(_harmonic(padded[None], unknown[None, ..., None].astype(np.float32)))[0]
    return _filled(image, hole, np.round(smooth[: hole.shape[0], : hole.shape[1]]))


def baselines_for(normal_maps: bool) -> dict[str, Baseline]:
    """Lists the baselines that suit the data.

    Args:
        normal_maps: whether the images are normal maps, which adds `flat_fill`.

    Returns:
        Name -> function(image uint8 (H, W, 3), mask uint8 (H, W)) -> uint8 (H, W, 3).
    """
    baselines: dict[str, Baseline] = {
        "mean_fill": functools.partial(mean_fill, normal_maps=normal_maps),
        "telea": functools.partial(telea, normal_maps=normal_maps),
        "navier_stokes": functools.partial(navier_stokes, normal_maps=normal_maps),
        "harmonic_fill": functools.partial(harmonic_fill, normal_maps=normal_maps),
    }
    if normal_maps:
        baselines["flat_fill"] = flat_fill
    return baselines
