"""Which windows of a picture become training pictures, and how much detail lies in them."""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

HOW = ("grid", "random")


@dataclass(frozen=True)
class CropSettings:
    """How crops are cut from pictures.

    Attributes:
        size: side of a crop, in pixels.
        how: "grid" or "random".
        stride: grid: distance between neighbouring crops, in pixels; 0 = `size`, so that they do not overlap.
        per_picture: random: crops of each picture, at least 1. Grid: at most so many, those with most detail; 0 = all.
        min_detail: crops with less `detail` are left out, in 8-bit levels.
        scale: pictures are scaled by this factor before cutting, by area when shrinking, bicubic when enlarging.
        seed: random: the places are a function of this and of the picture's content hash, and of nothing else.

    Raises:
        ValueError: a setting that makes no crops.
    """

    size: int = 256
    how: str = "grid"
    stride: int = 0
    per_picture: int = 0
    min_detail: float = 0.0
    scale: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size = {self.size}: a crop has at least one pixel")
        if self.how not in HOW:
            raise ValueError(f"how = {self.how!r}: crops are cut by {' or '.join(HOW)}")
        if min(self.stride, self.per_picture, self.seed) < 0:
            raise ValueError(f"stride, per_picture and seed must be at least 0, but one is negative: {self}")
        if self.how == "random" and not self.per_picture:
            raise ValueError("random crops need a number of crops of each picture: set per_picture to 1 or more")
        if not 0 <= self.min_detail <= 255:
            raise ValueError(f"min_detail = {self.min_detail}: must lie between 0 and 255 levels")
        if not 0 < self.scale <= 16:
            raise ValueError(f"scale = {self.scale}: must be above 0 and at most 16")


def scaled_side(side: int, scale: float) -> int:
    """Returns a side in pixels after scaling, at least 1."""
    return max(1, round(side * scale))


def scaled(image: np.ndarray, scale: float) -> np.ndarray:
    """Returns the picture, uint8 (H, W, 3), scaled by area when shrinking and bicubic when enlarging."""
    if scale == 1:
        return image
    height, width = (scaled_side(side, scale) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def detail(image: np.ndarray) -> float:
    """Returns the mean absolute difference of neighbouring pixels, over both axes and all channels, in 8-bit levels.

    Args:
        image: uint8 (H, W, C).
    """
    # Whole numbers until the division: the same figure on every machine, however the sum is done.
    differences = [np.abs(np.diff(image.astype(np.int16), axis=axis)) for axis in (0, 1)]
    count = sum(difference.size for difference in differences)
    return sum(int(difference.sum(dtype=np.int64)) for difference in differences) / count if count else 0.0


def windows(height: int, width: int, settings: CropSettings, content_hash: str = "") -> list[tuple[int, int]]:
    """Returns (top, left) of each crop inside a picture, in pixels, sorted and without repeats.

    A grid begins in the upper left corner; `per_picture` does not limit it here, since that takes the picture.

    Args:
        height: of the picture, after scaling.
        width: likewise.
        content_hash: of the picture; random places are a function of it and of the seed.
    """
    rows, columns = height - settings.size + 1, width - settings.size + 1
    if min(rows, columns) < 1:
        return []
    if settings.how == "grid":
        stride = settings.stride or settings.size
        return [(top, left) for top in range(0, rows, stride) for left in range(0, columns, stride)]
    wanted = min(settings.per_picture, rows * columns)
    places = itertools.islice(_places(rows * columns, f"{settings.seed} {content_hash}"), wanted)
    return [divmod(place, columns) for place in sorted(places)]


def _places(count: int, seed: str) -> Iterator[int]:
    """Yields every number below `count`, in an order that the seed decides, the same for all versions of NumPy."""
    moved: dict[int, int] = {}  # what lies elsewhere in a list 0, 1, ... that is shuffled only as far as it is read
    for i in range(count):
        digest = hashlib.sha256(f"{seed} {i}".encode()).digest()
        j = i + int.from_bytes(digest[:16], "big") % (count - i)
        yield moved.get(j, j)
        moved[j] = moved.pop(i, i)


def choose(image: np.ndarray, settings: CropSettings, content_hash: str) -> list[tuple[int, int]]:
    """Returns (top, left) of the crops that a picture gives: its windows with enough detail, sorted.

    Args:
        image: uint8 (H, W, 3), already scaled.
        content_hash: as for `windows`.
    """
    size = settings.size
    found = windows(*image.shape[:2], settings, content_hash)
    limited = settings.how == "grid" and 0 < settings.per_picture < len(found)
    if not settings.min_detail and not limited:
        return found
    rated = [(detail(image[top : top + size, left : left + size]), (top, left)) for top, left in found]
    kept = [(-value, place) for value, place in rated if value >= settings.min_detail]
    return sorted(place for _, place in sorted(kept)[: settings.per_picture if limited else None])
