"""Telling tangent-space normal maps from other pictures."""

import logging

import numpy as np

from inpaint_jax.data.source import ImageSource

log = logging.getLogger("inpaint_jax")

# What passes for a tangent-space normal map.
_LEAST_BLUE = 0.7  # mean blue, of 1
_LENGTH_TOLERANCE = 0.1  # of the median length of the vectors, around 1
_MOST_BACKWARD = 0.01  # share of pixels whose vector points into the surface
_LOOKED_AT = 16  # pictures of a source


def is_normal_map(image: np.ndarray) -> bool:
    """Returns whether a picture holds vectors of a tangent-space normal map, v = 2 rgb / 255 - 1.

    Its mean blue is above 0.7 of 1, the median length of its vectors within 0.1 of 1, and at most 1% of the vectors
    point into the surface.

    Args:
        image: uint8 (H, W, 3).
    """
    vectors = image.astype(np.float32) / 127.5 - 1
    length = float(np.median(np.linalg.norm(vectors, axis=-1)))
    backward = float((vectors[..., 2] < 0).mean())
    blue = float(image[..., 2].mean()) / 255
    return blue > _LEAST_BLUE and abs(length - 1) < _LENGTH_TOLERANCE and backward <= _MOST_BACKWARD


def warn_of_other_pictures(source: ImageSource) -> None:
    """Warns if most pictures of a source that should hold normal maps hold something else."""
    pictures = list(source.chosen(_LOOKED_AT))
    others = sum(not is_normal_map(picture) for picture in pictures)
    if 2 * others > len(pictures):
        log.warning(
            "%d of %d pictures that were looked at are no tangent-space normal maps, which figures and fills rely on: "
            "for photographs, take configs/unet_photographs.py",
            others, len(pictures),
        )  # fmt: skip
