"""Using a trained generator on a picture of any size."""

from collections.abc import Callable
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from inpaint_jax import fills, models, remote_folder, task, weights

OVERLAP = 0.5  # share of a tile that the next one covers again
# Holes wider than this share of a tile are filled from a downscaled picture first: a tile must see what is around.
# Degrees with the model "normal_maps", of squares of 64, 96 and 160 pixels in six procedural maps of 512x512: 7.2, 6.2,
# 7.1 (with 0.5: 7.7, 7.1, 7.9); of 40, 64 and 96 pixels in ten real ones of 256x256: 7.0, 8.0, 8.0 (6.9, 7.9, 8.4).
WIDEST = 0.25
BLENDS = ("none", "poisson")
# Highest value of each type of picture; float32 is what passes between the scales.
_HIGHEST = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0, np.dtype(np.float32): 1.0}

Starts = list[tuple[int, int]]  # (top, left) of tiles


def tile_starts(length: int, size: int) -> list[int]:
    """Returns where tiles of `size` begin along `length` >= `size` pixels: evenly spaced, the last one at the end."""
    count = 1 + -(-(length - size) // max(1, round(size * (1 - OVERLAP))))
    return [round(i * (length - size) / max(1, count - 1)) for i in range(count)]


def ring_starts(length: int, size: int) -> list[int]:
    """Returns where tiles of `size` begin on a ring of `length` pixels; the last reach round to the beginning."""
    count = -(-length // max(1, round(size * (1 - OVERLAP))))
    return [round(i * length / count) for i in range(count)]


def _feather(size: int) -> np.ndarray:
    """Returns tile weights (size, size, 1), 1 in the middle and falling to nearly 0 at the borders."""
    ramp = np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1)) / (size / 2)
    return (ramp[:, None] * ramp[None, :])[..., None].astype(np.float32)


def answering(config: ml_collections.ConfigDict) -> Callable[[dict, jax.Array, jax.Array], jax.Array]:
    """Returns `answer(variables, image, mask)`, pure: what the generator paints, at the hole and elsewhere.

    Args (of `answer`):
        image: float32 (B, S, S, 3) in [0, 1]; S is the native size, or that of the window the generator works on.
        mask: float32 (B, S, S, 1), 1 = hole.

    Returns (of `answer`):
        float32 (B, S, S, 3) in [0, 1].
    """
    generator = models.build_generator(config)
    config = config.copy_and_resolve_references()
    config.task.view = "full"  # a window comes as the whole picture
    value_range = config.task.value_range

    def answer(variables: dict, image: jax.Array, mask: jax.Array) -> jax.Array:
        seen = task.generator_input(config, task.from_unit_range(image, value_range), mask)
        return task.from_value_range(generator.apply(variables, seen, train=False), value_range)

    return answer


class Inpainter:
    """Fills holes with a saved generator: `Inpainter.load(folder)(image, mask)`.

    A picture of the native size or smaller is padded by mirroring; a larger one goes through in overlapping tiles,
    because the innermost kernels of a U-Net have only ever seen the native size. Where a hole is wider than a quarter
    of a tile, the picture is filled at half its size first (and that from half of it, and so on), and what lies further
    than an eighth of a tile from known pixels is taken from there. A generator that works on the window around a hole
    (`config.task.view`) gets a window for each connected hole instead; then `windowed` is True. Beside picture and
    result it takes 20 to 30 bytes for each pixel, with coarser scales 40 to 50.

    Attributes:
        size: side of a tile or window, in pixels.
        windowed: whether it works on windows.
        normal_maps: whether it fills normal maps.
        normal_y: of a normal map, where green points: "up", "down" or "mixed", as `config.data.normal_y`.
    """

    def __init__(self, config: ml_collections.ConfigDict, variables: dict):
        self.windowed = config.task.view == "window"
        self.size = task.window_side(config) if self.windowed else config.image_size
        self.normal_maps = config.data.kind == "normal_maps"
        self.normal_y = config.data.normal_y
        self._variables = variables
        answer = answering(config)

        def fill(variables: dict, image: jax.Array, mask: jax.Array, poisson: bool) -> jax.Array:
            output = answer(variables, image, mask)
            return jnp.clip(fills.poisson(image, mask, output), 0.0, 1.0) if poisson else output

        self._fill = jax.jit(fill, static_argnames="poisson")

    @classmethod
    def load(cls, folder: str | Path) -> "Inpainter":
        """Loads a generator folder or a run folder; a place on an object store, such as gs://bucket/run, too.

        Raises:
            ValueError: no generator there, or a damaged one.
        """
        return cls(*weights.load_generator(remote_folder.local(folder, remote_folder.NOT_OF_A_MODEL)))

    def __call__(self, image: np.ndarray, mask: np.ndarray, *, wrap: bool = False, blend: str = "none") -> np.ndarray:
        """Returns the picture with its hole filled, known pixels byte-identical.

        Args:
            image: uint8 or uint16 (H, W, 3), any size.
            mask: (H, W): bool, 0 to 1, or uint8 0 to 255; more than half = hole.
            wrap: the picture is a tileable texture: left and right edge meet, and so do top and bottom.
            blend: "poisson" carries the difference between answer and known pixels at the rim of the hole smoothly
                into it, so that no outline shows, and keeps the answer's gradients.

        Returns:
            The image's type and shape; the hole of a normal map has unit vectors, up to the rounding.

        Raises:
            ValueError: an array of another shape or type, no known pixel, or what a model of windows cannot fill.
        """
        hole = self._checked(image, mask, wrap, blend)
        if not hole.any():
            return image.copy()
        values = self._scales(image, hole, wrap, blend == "poisson")[hole]
        if self.normal_maps:
            vectors = values * 2.0 - 1.0
            values = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6) / 2.0 + 0.5
        filled = image.copy()
        filled[hole] = np.round(values * _HIGHEST[image.dtype]).astype(image.dtype)
        return filled

    def _checked(self, image: np.ndarray, mask: np.ndarray, wrap: bool, blend: str) -> np.ndarray:
        """Returns the hole, bool (H, W)."""
        mask = np.asarray(mask)
        if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"the image must be uint8 or uint16 (H, W, 3), not {image.dtype} {image.shape}")
        if mask.shape != image.shape[:2]:
            raise ValueError(f"the mask has {mask.shape} pixels and the image {image.shape[:2]}: make them equal")
        if blend not in BLENDS:
            raise ValueError(f"blend = {blend!r}: known are {', '.join(BLENDS)}")
        if wrap and self.windowed:
            raise ValueError("this model works on windows around holes, which do not wrap: leave wrap out")
        eight_bits = mask.dtype == np.uint8 and mask.max(initial=0) > 1
        if not eight_bits and not ((mask >= 0) & (mask <= 1)).all():
            raise ValueError(f"the mask must be bool, uint8, or from 0 to 1, not {mask.dtype} beyond that")
        hole = mask >= 128 if eight_bits else mask > 0.5
        if hole.all():
            raise ValueError("the mask is all hole: leave what is to be kept out of it, the fill grows from there")
        return hole

    def _scales(self, image: np.ndarray, hole: np.ndarray, wrap: bool, poisson: bool) -> np.ndarray:
        """Returns float32 (H, W, 3) in [0, 1], meaningful at the holes, from coarse to fine."""
        deep = np.zeros_like(hole)
        if not self.windowed and max(hole.shape) > self.size:
            deep = _distance(hole, wrap, self.size) > self.size * WIDEST / 2
        if not deep.any():
            return self._tiles(image, hole, wrap, poisson)
        small, small_hole = _halved(image, hole, wrap)
        np.copyto(small, self._scales(small, small_hole, wrap, poisson), where=small_hole[..., None])
        known = _doubled(small, hole.shape, wrap)
        scale = np.float32(1.0 / _HIGHEST[image.dtype])
        for channel in range(3):  # one by one: a whole picture in float32 has 12 bytes a pixel
            np.copyto(known[..., channel], image[..., channel] * scale, where=~deep)
        filled = self._tiles(known, hole & ~deep, wrap, poisson)
        np.copyto(filled, known, where=deep[..., None])
        return filled

    def _tiles(self, image: np.ndarray, hole: np.ndarray, wrap: bool, poisson: bool) -> np.ndarray:
        """Returns float32 (H, W, 3) in [0, 1], meaningful at the holes, at one scale."""
        height, width = hole.shape
        copies = [-(-self.size // side) if wrap else 1 for side in hole.shape]
        if wrap:
            rows, columns = (ring_starts(side, self.size) for side in hole.shape)
            image, hole = np.tile(image, (*copies, 1)), np.tile(hole, copies)
        else:
            image, hole = (_mirrored(x, self.size) for x in (image, hole))
            rows, columns = (tile_starts(side, self.size) for side in hole.shape)
        starts = self._hole_windows(hole) if self.windowed else [(top, left) for top in rows for left in columns]
        weight, reach = _feather(self.size), np.arange(self.size)
        # The fourth channel is the sum of the weights.
        total = np.zeros((*hole.shape, 4), np.float32)
        scale = np.float32(1.0 / _HIGHEST[image.dtype])
        for top, left in starts:
            place = np.ix_((top + reach) % hole.shape[0], (left + reach) % hole.shape[1])
            if not hole[place].any():
                continue
            tile, mask = (image[place] * scale)[None], hole[place].astype(np.float32)[None, ..., None]
            output = np.asarray(self._fill(self._variables, jnp.asarray(tile), jnp.asarray(mask), poisson=poisson))
            total[place] += np.concatenate([output[0] * weight, weight], axis=-1)
        if copies != [1, 1]:
            # Tiles begin in the first copy alone, and belong to every one.
            total = total.reshape(copies[0], height, copies[1], width, 4).sum(axis=(0, 2))
        total = total[:height, :width]
        total[..., :3] /= np.maximum(total[..., 3:], 1e-12)
        return total[..., :3]

    def _hole_windows(self, hole: np.ndarray) -> Starts:
        """Returns where the window of each connected hole begins: centred on it and moved inside the picture."""
        _, _, boxes, _ = cv2.connectedComponentsWithStats(hole.astype(np.uint8), connectivity=8)
        starts = []
        for left, top, width, height, _ in boxes[1:]:  # the first is what is no hole
            if max(width, height) > self.size:
                raise ValueError(
                    f"a hole is {width}x{height} pixels, and this model fills holes within {self.size}x{self.size}: "
                    "use a model that works on whole pictures"
                )
            place = ((top, height, hole.shape[0]), (left, width, hole.shape[1]))
            starts.append(tuple(min(max(0, (2 * a + n - self.size) // 2), side - self.size) for a, n, side in place))
        return starts


def _mirrored(image: np.ndarray, size: int) -> np.ndarray:
    """Returns a picture (H, W, …) mirrored downwards and to the right up to `size`, if it is smaller."""
    pad = [(0, max(0, size - side)) for side in image.shape[:2]]
    return np.pad(image, pad + [(0, 0)] * (image.ndim - 2), mode="symmetric") if np.any(pad) else image


def _distance(hole: np.ndarray, wrap: bool, reach: int) -> np.ndarray:
    """Returns how far each pixel is from a known one, float32 (H, W), in pixels; exact up to `reach` around edges."""
    padded = np.pad(hole, reach if wrap else 0, mode="wrap").astype(np.uint8)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance[reach:-reach, reach:-reach] if wrap else distance


def _halved(image: np.ndarray, hole: np.ndarray, wrap: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns a picture, float32, and its hole at half the size: means of known pixels, hole where there is none."""
    odd = [(0, side % 2) for side in hole.shape]
    mode = "wrap" if wrap else "edge"
    known = np.pad(~hole, odd, mode=mode).astype(np.float32)[..., None]
    image = np.pad(image, [*odd, (0, 0)], mode=mode) * np.float32(1.0 / _HIGHEST[image.dtype])
    sums, share = (
        x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).mean(axis=(1, 3)) for x in (image * known, known)
    )
    return sums / np.maximum(share, 1e-6), share[..., 0] == 0


def _doubled(image: np.ndarray, shape: tuple[int, int], wrap: bool) -> np.ndarray:
    """Returns a picture (h, w, 3) at twice the size, cut to `shape`, bilinear with half-pixel centres."""
    padded = np.pad(image, [(1, 1), (1, 1), (0, 0)], mode="wrap" if wrap else "edge")
    size = (2 * padded.shape[1], 2 * padded.shape[0])
    return cv2.resize(padded, size, interpolation=cv2.INTER_LINEAR)[2 : 2 + shape[0], 2 : 2 + shape[1]]
