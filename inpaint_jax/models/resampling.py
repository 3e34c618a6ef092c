"""Halving and doubling of feature maps: 2x2 maxima, and bilinear interpolation of either convention of corners."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from inpaint_jax.models.convolutions import convolution, on_cpu
from inpaint_jax.models.layers import Initializer, add_bias


def double_bilinear(x: jax.Array, corners_aligned: bool) -> jax.Array:
    """Doubles height and width of (B, H, W, C) by bilinear interpolation, in x's dtype.

    Args:
        corners_aligned: True puts first and last values on first and last outputs; False puts values at the centres of
            pixels, two outputs within each, and repeats the border beyond it.
    """
    return _double_line(_double_line(x, 2, corners_aligned), 1, corners_aligned)


def _double_line(x: jax.Array, axis: int, corners_aligned: bool) -> jax.Array:
    """Doubles one axis: of each value's two outputs one lies towards the value before it, one towards the next."""
    size = x.shape[axis]
    # How far the two outputs lie from the value, as shares of the way to its neighbours.
    to_before = to_after = 0.25
    if corners_aligned:
        shape = [size if number == axis else 1 for number in range(x.ndim)]
        number = np.arange(size, dtype=np.float32).reshape(shape)
        to_before, to_after = number / (2 * size - 1), (size - 1 - number) / (2 * size - 1)
    before, after = _moved(x, axis, 1, repeat=True), _moved(x, axis, -1, repeat=True)
    # A multiplication with a matrix costs a tenth of a whole U-Net's time on CPU.
    values, before, after = (part.astype(jnp.float32) for part in (x, before, after))
    pairs = jnp.stack([values + to_before * (before - values), values + to_after * (after - values)], axis + 1)
    return pairs.astype(x.dtype).reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


def _moved(x: jax.Array, axis: int, places: int, repeat: bool) -> jax.Array:
    """Moves values by -1, 0 or 1 place along an axis; what comes in repeats the border, or is zero."""
    if not places:
        return x
    size = x.shape[axis]
    border = jax.lax.slice_in_dim(x, *((0, 1) if places > 0 else (size - 1, size)), axis=axis)
    comes_in = border if repeat else jnp.zeros_like(border)
    if places > 0:
        return jnp.concatenate([comes_in, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
    return jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), comes_in], axis)


def convolve_doubled(x: jax.Array, kernel: jax.Array, corners_aligned: bool) -> jax.Array:
    """Returns what a 3x3 convolution makes of `double_bilinear(x)`, with zeros around it, up to rounding.

    Each value is multiplied with all nine places of the kernel before the doubling, which commutes with it: a quarter
    of the multiplications, and more to add. On CPUs that trains in 0.6 to 0.75 of the time of the two steps.

    Args:
        x: (B, H, W, C).
        kernel: (3, 3, C, F), of x's dtype.
        corners_aligned: as in `double_bilinear`.

    Returns:
        (B, 2H, 2W, F).
    """
    features = kernel.shape[3]
    products = jnp.einsum("bhwc,cf->bhwf", x, kernel.transpose(2, 0, 1, 3).reshape(x.shape[3], 9 * features))

    def doubled_sum(parts: Sequence[jax.Array], axis: int) -> jax.Array:
        # Of the kernel's three places along the axis the first looks at the output before.
        doubled = [_double_line(part, axis, corners_aligned) for part in parts]
        return sum(_moved(part, axis, 1 - place, repeat=False) for place, part in enumerate(doubled))

    rows = doubled_sum(jnp.split(products, 3, axis=-1), axis=1)
    return doubled_sum(jnp.split(rows, 3, axis=-1), axis=2)


class DoublingConv(nn.Module):
    """3x3 convolution of a map at twice its size beside another: (B, H, W, C), (B, 2H, 2W, D) to (B, 2H, 2W, features).

    The parameters, ``kernel`` (3, 3, C + D, features) and ``bias`` (features,), are those of a `Conv` of both, the
    first doubled by `double_bilinear`.

    Attributes:
        features: output channels.
        corners_aligned: as in `double_bilinear`.
        kernel_init: initialiser of the kernel.
        dtype: compute and output dtype; parameters are float32.
        apart: convolve the two by themselves, the first by `convolve_doubled`; None: where that is faster, on CPUs.
    """

    features: int
    corners_aligned: bool
    kernel_init: Initializer
    dtype: jnp.dtype = jnp.float32
    apart: bool | None = None

    @nn.compact
    def __call__(self, small: jax.Array, beside: jax.Array) -> jax.Array:
        small, beside = small.astype(self.dtype), beside.astype(self.dtype)
        channels = small.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (3, 3, channels + beside.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        kernel = kernel.astype(self.dtype)
        apart = on_cpu() if self.apart is None else self.apart
        if not apart:
            both = jnp.concatenate([double_bilinear(small, self.corners_aligned), beside], axis=-1)
            return add_bias(convolution(both, kernel, padding=1), bias)
        of_small, of_beside = jnp.split(kernel, [channels], axis=2)
        doubled = convolve_doubled(small, of_small, self.corners_aligned)
        return add_bias(doubled + convolution(beside, of_beside, padding=1), bias)


def halve_by_maximum(x: jax.Array) -> jax.Array:
    """Halves height and width of (B, H, W, C), both even: the maximum of each 2x2 block (2x2 max-pooling)."""
    # Not flax's max_pool: XLA:CPU computes the gradient of a windowed maximum about 16 times slower than this one.
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])
