"""Halving and doubling of feature maps: 2x2 maxima, and bilinear interpolation of either convention of corners."""

import jax
import jax.numpy as jnp
import numpy as np


def doubling_matrix(size: int) -> np.ndarray:
    """Returns the float32 matrix (2 size, size) that doubles a line of `size` values by linear interpolation.

    First and last values stay at the first and last outputs.
    """
    places = np.arange(2 * size) * ((size - 1) / (2 * size - 1))
    lower = np.minimum(np.floor(places).astype(int), max(size - 2, 0))
    upper = np.minimum(lower + 1, size - 1)
    matrix = np.zeros((2 * size, size))
    np.add.at(matrix, (np.arange(2 * size), lower), 1 - (places - lower))
    np.add.at(matrix, (np.arange(2 * size), upper), places - lower)
    return matrix.astype(np.float32)


def double_bilinear(x: jax.Array, corners_aligned: bool) -> jax.Array:
    """Doubles height and width of (B, H, W, C) by bilinear interpolation, in x's dtype.

    Args:
        corners_aligned: True puts first and last values on first and last outputs; False puts values at the centres of
            pixels, two outputs within each, and repeats the border beyond it.
    """
    if not corners_aligned:
        return _double_line(_double_line(x, 2), 1)
    rows, columns = (jnp.asarray(doubling_matrix(n), x.dtype) for n in x.shape[1:3])
    return jnp.einsum("bhxc,yh->byxc", jnp.einsum("bhwc,xw->bhxc", x, columns), rows)


def _double_line(x: jax.Array, axis: int) -> jax.Array:
    """Doubles one axis, with values at the centres of pixels: their weights are 3/4 and 1/4 everywhere."""
    first, last = (jax.lax.slice_in_dim(x, *ends, axis=axis) for ends in ((0, 1), (-1, None)))
    before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, -1, axis=axis)], axis)
    after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, None, axis=axis), last], axis)
    # A multiplication with the matrix costs a tenth of a whole U-Net's time on CPU.
    pairs = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    return pairs.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])


def halve_by_maximum(x: jax.Array) -> jax.Array:
    """Halves height and width of (B, H, W, C), both even: the maximum of each 2x2 block (2x2 max-pooling)."""
    # Not flax's max_pool: XLA:CPU computes the gradient of a windowed maximum about 16 times slower than this one.
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])
