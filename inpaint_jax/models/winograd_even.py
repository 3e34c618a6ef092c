"""4x4 convolutions, at stride 1 or 2 or transposed, with a half of the multiplications: Winograd's F(2x2, 2x2).

A filter with an even number of taps is two filters of half as many, of the even and of the odd taps, and two
neighbouring outputs need three such filters instead of four: of sums and differences of inputs with sums of taps,

    y0 = (x0 - x1) * k0 + x1 * (k0 + k1)
    y1 = (x2 - x1) * k1 + x1 * (k0 + k1),

where x0 are the inputs at even places, x1 those one further, x2 those two further. (S. Winograd, "Arithmetic Complexity
of Computations", 1980; A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section
4.) Along rows and along columns that is nine for sixteen, and once more for the 2x2 filters that 4x4 ones leave, down
to products of matrices, as those of both gradients are, which processors do best. Nothing is multiplied but by the
taps, so that rounding stays near that of the plain sum. At stride 2 the filter is one of 2x2 blocks of pixels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from inpaint_jax.models.winograd import interleave, product

Parts = Sequence[jax.Array]
TILE = 4  # pixels of the larger image, for two outputs of the smaller one


def _every_second(x: jax.Array, axis: int, start: int, count: int) -> jax.Array:
    return lax.slice_in_dim(x, start, start + 2 * count - 1, 2, axis)


def _of_inputs(x: jax.Array, axis: int) -> Parts:
    """Returns the three combinations of 2n + 1 inputs, n of each."""
    first, middle, last = (_every_second(x, axis, start, x.shape[axis] // 2) for start in range(3))
    return first - middle, middle, last - middle


def _to_inputs(parts: Parts, axis: int) -> jax.Array:
    """Returns the transpose of `_of_inputs`: 2n + 1 values."""
    first, middle, last = parts
    count = first.shape[axis]

    def cut(x: jax.Array, start: int, stop: int) -> jax.Array:
        return lax.slice_in_dim(x, start, stop, axis=axis)

    inner = cut(first, 1, count) + cut(last, 0, count - 1)
    even = jnp.concatenate([cut(first, 0, 1), inner], axis)
    return jnp.concatenate([interleave([even, middle - first - last], axis), cut(last, count - 1, count)], axis)


def _of_pairs(x: jax.Array, axis: int) -> Parts:
    """Returns the three combinations of 2n taps, or of the gradients of 2n outputs, n of each."""
    even, odd = (_every_second(x, axis, start, x.shape[axis] // 2) for start in range(2))
    return even, even + odd, odd


def _to_pairs(parts: Parts, axis: int) -> jax.Array:
    """Returns the transpose of `_of_pairs`: 2n outputs, or gradients of 2n taps."""
    return interleave([parts[0] + parts[1], parts[1] + parts[2]], axis)


def _inputs(x: jax.Array) -> Parts:
    return [part for rows in _of_inputs(x, 1) for part in _of_inputs(rows, 2)]


def _taps(kernel: jax.Array) -> Parts:
    return [part for rows in _of_pairs(kernel, 0) for part in _of_pairs(rows, 1)]


def _outputs(y: jax.Array) -> Parts:
    return [part for rows in _of_pairs(y, 1) for part in _of_pairs(rows, 2)]


def _convolve(x: jax.Array, kernel: jax.Array, axis: int) -> jax.Array:
    """Returns the convolution (B, H, W, F) of (B, H + n - 1, W + n - 1, C) with n x n taps, H and W multiples of n.

    Args:
        kernel: (n, n, C, F), n a power of two, or (n, n, F, C).
        axis: that of C in the kernel.
    """
    if len(kernel) == 1:
        return product(x, kernel[0, 0], 3, axis - 2)
    pairs = zip(_inputs(x), _taps(kernel), strict=True)
    products = [_convolve(part, taps, axis) for part, taps in pairs]
    return _to_pairs([_to_pairs(products[start : start + 3], 2) for start in (0, 3, 6)], 1)


def _convolve_back(y: jax.Array, kernel: jax.Array, axis: int) -> jax.Array:
    """Returns the transpose of `_convolve` with the same kernel, in which `axis` is that of F."""
    if len(kernel) == 1:
        return product(y, kernel[0, 0], 3, axis - 2)
    pairs = zip(_outputs(y), _taps(kernel), strict=True)
    products = [_convolve_back(part, taps, axis) for part, taps in pairs]
    return _to_inputs([_to_inputs(products[start : start + 3], 2) for start in (0, 3, 6)], 1)


def _kernel_gradient(x: jax.Array, y: jax.Array, size: int) -> jax.Array:
    """Returns the gradient (n, n, C, F) of the kernel of `_convolve` at x, for that of its outputs, y; n is `size`."""
    if size == 1:
        # As flat matrices: with several axes to sum over, XLA would first transpose one of them in memory.
        return product(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), 0, 0)[None, None]
    products = [_kernel_gradient(*pair, size // 2) for pair in zip(_inputs(x), _outputs(y), strict=True)]
    return _to_pairs([_to_pairs(products[start : start + 3], 1) for start in (0, 3, 6)], 0)


def blocks_of(x: jax.Array) -> jax.Array:
    """Returns (B, H/2 + 1, W/2 + 1, 4C), blocks of pixels of images with one row and column of zeros around them."""
    batch, height, width, channels = x.shape
    rows, columns = height // 2 + 1, width // 2 + 1
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(batch, rows, 2, columns, 2, channels)
    return padded.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, 4 * channels)


def _unblocks(x: jax.Array) -> jax.Array:
    """Returns the transpose of `blocks_of`."""
    batch, rows, columns, channels = x.shape
    blocks = x.reshape(batch, rows, columns, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, 2 * rows, 2 * columns, channels // 4)[:, 1:-1, 1:-1]


def pixel_kernel(kernel: jax.Array) -> jax.Array:
    """Returns (4, 4, C, F) as (2, 2, 4C, F): the taps of a block are channels."""
    channels, features = kernel.shape[2:]
    blocks = kernel.reshape(2, 2, 2, 2, channels, features).transpose(0, 2, 1, 3, 4, 5)
    return blocks.reshape(2, 2, 4 * channels, features)


def _from_pixel_kernel(kernel: jax.Array) -> jax.Array:
    channels, features = kernel.shape[2:]
    blocks = kernel.reshape(2, 2, 2, 2, channels // 4, features).transpose(0, 2, 1, 3, 4, 5)
    return blocks.reshape(4, 4, channels // 4, features)


def _feature_kernel(kernel: jax.Array) -> jax.Array:
    """Returns (4, 4, C, F) as (2, 2, C, 4F): the taps of a block are features."""
    channels, features = kernel.shape[2:]
    blocks = kernel.reshape(2, 2, 2, 2, channels, features).transpose(0, 2, 4, 1, 3, 5)
    return blocks.reshape(2, 2, channels, 4 * features)


def _from_feature_kernel(kernel: jax.Array) -> jax.Array:
    channels, features = kernel.shape[2:]
    blocks = kernel.reshape(2, 2, channels, 2, 2, features // 4).transpose(0, 3, 1, 4, 2, 5)
    return blocks.reshape(4, 4, channels, features // 4)


@jax.custom_vjp
def halve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves (cross-correlates) at stride 2, one row and column of zeros around the image.

    Args:
        x: (B, H, W, C), float32, H and W multiples of 4.
        kernel: (4, 4, C, F), float32.

    Returns:
        (B, H/2, W/2, F).
    """
    return _convolve(blocks_of(x), pixel_kernel(kernel), 2)


def _halve_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    of_input = _unblocks(_convolve_back(gradient, pixel_kernel(kernel), 3))
    return of_input, _from_pixel_kernel(_kernel_gradient(blocks_of(x), gradient, 2))


halve.defvjp(lambda x, kernel: (halve(x, kernel), (x, kernel)), _halve_backward)


@jax.custom_vjp
def double(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Doubles the size by the transposed convolution, output[2i - 1 + a] += x[i] kernel[a].

    Args:
        x: (B, H, W, C), float32, H and W even.
        kernel: (4, 4, C, F), float32.

    Returns:
        (B, 2H, 2W, F).
    """
    return _unblocks(_convolve_back(x, _feature_kernel(kernel), 2))


def _double_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    blocks = blocks_of(gradient)
    of_input = _convolve(blocks, _feature_kernel(kernel), 3)
    return of_input, _from_feature_kernel(_kernel_gradient(blocks, x, 2).swapaxes(2, 3))


double.defvjp(lambda x, kernel: (double(x, kernel), (x, kernel)), _double_backward)


def _padded(x: jax.Array) -> jax.Array:
    # Zeros after the last row and column make the numbers of outputs, H - 1 and W - 1, multiples of 4.
    return jnp.pad(x, ((0, 0), *((1, 1 + (1 - extent) % TILE) for extent in x.shape[1:3]), (0, 0)))


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves (cross-correlates) at stride 1, one row and column of zeros around the image.

    Args:
        x: (B, H, W, C), float32.
        kernel: (4, 4, C, F), float32.

    Returns:
        (B, H - 1, W - 1, F).
    """
    height, width = x.shape[1:3]
    return _convolve(_padded(x), kernel, 2)[:, : height - 1, : width - 1]


def _convolve_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    height, width = x.shape[1:3]
    gradient = jnp.pad(gradient, ((0, 0), *((0, (1 - extent) % TILE) for extent in (height, width)), (0, 0)))
    of_input = _convolve_back(gradient, kernel, 3)[:, 1 : height + 1, 1 : width + 1]
    return of_input, _kernel_gradient(_padded(x), gradient, 4)


convolve.defvjp(lambda x, kernel: (convolve(x, kernel), (x, kernel)), _convolve_backward)
