"""Using a trained generator on a picture of any size."""

from collections.abc import Callable
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from inpaint_jax import models, task, weights

OVERLAP = 0.5  # share of a tile that the next one covers again


def tile_starts(length: int, size: int) -> list[int]:
    """Returns where tiles of `size` begin along `length` >= `size` pixels: evenly spaced, the last one at the end."""
    count = 1 + -(-(length - size) // max(1, round(size * (1 - OVERLAP))))
    return [round(i * (length - size) / max(1, count - 1)) for i in range(count)]


def _feather(size: int) -> np.ndarray:
    """Returns tile weights (size, size, 1), 1 in the middle and falling to nearly 0 at the borders."""
    ramp = np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1)) / (size / 2)
    return (ramp[:, None] * ramp[None, :])[..., None].astype(np.float32)


class Inpainter:
    """Fills holes with a saved generator: `Inpainter.load(folder)(image, mask)`.

    A picture of the native size or smaller is padded by mirroring; a larger one goes through in overlapping tiles,
    because the innermost kernels of a U-Net have only ever seen the native size. A generator that works on the window
    around a hole (`config.task.view`) gets a window for each connected hole instead; then `windowed` is True.
    """

    def __init__(self, config, variables: dict):
        self.windowed = config.task.view == "window"
        self.size = task.window_side(config) if self.windowed else config.image_size
        self._normal_maps = config.data.kind == "normal_maps"
        self._variables = variables
        generator = models.build_generator(config)
        config = config.copy_and_resolve_references()
        config.task.view = "full"  # windows are cut here, where the picture's own borders are known

        def fill(variables: dict, image: jax.Array, mask: jax.Array) -> jax.Array:
            seen = task.generator_input(config, task.to_value_range(image, config.task.value_range), mask)
            output = generator.apply(variables, seen, train=False)
            return task.from_value_range(output, config.task.value_range)

        self._fill = jax.jit(fill)

    @classmethod
    def load(cls, folder: str | Path) -> "Inpainter":
        """Loads a generator folder or a run folder.

        Raises:
            ValueError: no generator there, or a damaged one.
        """
        return cls(*weights.load_generator(Path(folder)))

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Returns the picture with its hole filled, known pixels byte-identical.

        Args:
            image: uint8 (H, W, 3), any size.
            mask: (H, W): bool, 0 to 1, or uint8 0 to 255; more than half = hole.

        Returns:
            uint8 (H, W, 3).

        Raises:
            ValueError: an array of another shape or type.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"the image must be uint8 (H, W, 3), not {image.dtype} {image.shape}")
        if mask.shape != image.shape[:2]:
            raise ValueError(f"the mask has {mask.shape} pixels and the image {image.shape[:2]}: make them equal")
        height, width = mask.shape
        mask = np.asarray(mask)
        hole = mask >= 128 if mask.dtype == np.uint8 and mask.max(initial=0) > 1 else mask > 0.5
        if not hole.any():
            return image.copy()
        pad = [(0, max(0, self.size - height)), (0, max(0, self.size - width))]
        padded = np.pad(image, [*pad, (0, 0)], mode="symmetric")
        starts = self._hole_windows if self.windowed else self._tile_grid
        filled = self._tiles(padded, np.pad(hole, pad, mode="symmetric"), starts)[:height, :width]
        if self._normal_maps:
            vectors = filled * 2.0 - 1.0
            filled = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6) / 2.0 + 0.5
        filled = np.round(filled * 255.0).astype(np.uint8)
        return np.where(hole[..., None], filled, image)

    def _tile_grid(self, hole: np.ndarray) -> list[tuple[int, int]]:
        rows, columns = (tile_starts(length, self.size) for length in hole.shape)
        return [(top, left) for top in rows for left in columns]

    def _hole_windows(self, hole: np.ndarray) -> list[tuple[int, int]]:
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

    def _tiles(self, image: np.ndarray, hole: np.ndarray, starts: Callable) -> np.ndarray:
        """Returns float32 (H, W, 3) in [0, 1], meaningful at the holes."""
        size, weight = self.size, _feather(self.size)
        total, weights_sum = np.zeros(image.shape, np.float32), np.full((*hole.shape, 1), 1e-12, np.float32)
        for top, left in starts(hole):
            window = np.s_[top : top + size, left : left + size]
            if not hole[window].any():
                continue
            mask = jnp.asarray(hole[window], jnp.float32)[None, ..., None]
            output = np.asarray(self._fill(self._variables, image[window][None], mask)[0])
            total[window] += output * weight
            weights_sum[window] += weight
        return total / weights_sum


def widest(hole: np.ndarray) -> int:
    """Returns how wide a hole (H, W), nonzero = hole, is at most: twice the longest way to a known pixel, in pixels."""
    return round(2 * float(cv2.distanceTransform((hole > 0).astype(np.uint8), cv2.DIST_L2, 5).max()))
