"""What the tests of the demo upload and paint."""

import numpy as np

from inpaint_jax import demo


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A picture, uint8 (height, width, channels), the same for each size."""
    random = np.random.default_rng(height * 1000 + width)
    return random.integers(0, 256, (height, width, channels), dtype=np.uint8)


def layer(height: int, width: int, window: tuple[slice, slice]) -> np.ndarray:
    """What the editor hands back after a stroke of its brush."""
    painted = np.zeros((height, width, 4), np.uint8)
    painted[window] = (*demo.HOLE_COLOUR, round(255 * demo.HOLE_OPACITY))
    return painted
