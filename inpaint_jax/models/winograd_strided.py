"""4x4 stride-2 convolutions, and their transposes, with 9/16 of the multiplications: Winograd's F(2x2, 2x2).

As a 2x2 convolution of 2x2 blocks of pixels (space to depth), such a convolution needs sixteen products for four
neighbouring outputs. Nine are enough: of sums and differences of inputs with sums of taps, rows first and then columns,

    y0 = (x0 - x1) k0 + x1 (k0 + k1)
    y1 = (x2 - x1) k1 + x1 (k0 + k1).

(S. Winograd, "Arithmetic Complexity of Computations", 1980; A. Lavin and S. Gray, "Fast Algorithms for Convolutional
Neural Networks", CVPR 2016, section 4.) Nothing is multiplied but by the taps, so rounding stays near that of the plain
sum; and each of the nine is a product of matrices, as are those of both gradients, which processors do best.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

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
    return jnp.concatenate([_interleave(even, middle - first - last, axis), cut(last, count - 1, count)], axis)


def _of_taps(first: jax.Array, second: jax.Array) -> Parts:
    return first, first + second, second


def _to_taps(parts: Parts) -> Parts:
    return parts[0] + parts[1], parts[1] + parts[2]


def _interleave(even: jax.Array, odd: jax.Array, axis: int) -> jax.Array:
    shape = list(even.shape)
    shape[axis] *= 2
    return jnp.stack([even, odd], axis + 1).reshape(shape)


def _input_matrices(x: jax.Array) -> Parts:
    """Returns nine (B, h, w, C) of (B, 2h + 1, 2w + 1, C)."""
    return [part for rows in _of_inputs(x, 1) for part in _of_inputs(rows, 2)]


def _kernel_matrices(kernel: jax.Array) -> Parts:
    """Returns nine (C, F) of (2, 2, C, F)."""
    return [part for row in _of_taps(*kernel) for part in _of_taps(*row)]


def _output_matrices(y: jax.Array) -> Parts:
    """Returns nine (B, h, w, F) of (B, 2h, 2w, F)."""

    def halves(y: jax.Array, axis: int) -> Parts:
        return _of_taps(*(_every_second(y, axis, start, y.shape[axis] // 2) for start in range(2)))

    return [part for rows in halves(y, 1) for part in halves(rows, 2)]


def _product(x: jax.Array, y: jax.Array, x_axes: tuple[int, ...], y_axes: tuple[int, ...]) -> jax.Array:
    # The sums and differences would lose digits in the bfloat16 of TPUs, where an exported program may run.
    return lax.dot_general(x, y, ((x_axes, y_axes), ((), ())), precision=lax.Precision.HIGHEST)


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the 2x2 convolution (B, 2h, 2w, F) of (B, 2h + 1, 2w + 1, C)."""
    pairs = zip(_input_matrices(x), _kernel_matrices(kernel), strict=True)
    products = [_product(matrix, taps, (3,), (0,)) for matrix, taps in pairs]
    rows = [_interleave(*_to_taps(products[start : start + 3]), axis=2) for start in (0, 3, 6)]
    return _interleave(*_to_taps(rows), axis=1)


def _convolve_back(y: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the transpose of `_convolve`: (B, 2h + 1, 2w + 1, C) of (B, 2h, 2w, F)."""
    pairs = zip(_output_matrices(y), _kernel_matrices(kernel), strict=True)
    products = [_product(matrix, taps, (3,), (1,)) for matrix, taps in pairs]
    return _to_inputs([_to_inputs(products[start : start + 3], 2) for start in (0, 3, 6)], 1)


def _kernel_gradient(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the gradient (2, 2, C, F) of the kernel of `_convolve` at x, for that of its outputs, y."""
    pairs = zip(_input_matrices(x), _output_matrices(y), strict=True)
    places = (0, 1, 2)
    if y.shape[-1] <= x.shape[-1]:
        # The first factor gets transposed in memory: the smaller one.
        products = [_product(gradient, matrix, places, places).T for matrix, gradient in pairs]
    else:
        products = [_product(matrix, gradient, places, places) for matrix, gradient in pairs]
    rows = [jnp.stack(_to_taps(products[start : start + 3])) for start in (0, 3, 6)]
    return jnp.stack(_to_taps(rows))


def _blocks(x: jax.Array) -> jax.Array:
    """Returns (B, H/2 + 1, W/2 + 1, 4C), blocks of pixels of images with one row and column of zeros around them."""
    batch, height, width, channels = x.shape
    rows, columns = height // 2 + 1, width // 2 + 1
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(batch, rows, 2, columns, 2, channels)
    return padded.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, 4 * channels)


def _unblocks(x: jax.Array) -> jax.Array:
    """Returns the transpose of `_blocks`."""
    batch, rows, columns, channels = x.shape
    blocks = x.reshape(batch, rows, columns, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, 2 * rows, 2 * columns, channels // 4)[:, 1:-1, 1:-1]


def _block_kernel(kernel: jax.Array) -> jax.Array:
    """Returns (2, 2, 4C, F) of (4, 4, C, F)."""
    channels, features = kernel.shape[2:]
    blocks = kernel.reshape(2, 2, 2, 2, channels, features).transpose(0, 2, 1, 3, 4, 5)
    return blocks.reshape(2, 2, 4 * channels, features)


def _unblock_kernel(kernel: jax.Array) -> jax.Array:
    channels, features = kernel.shape[2:]
    blocks = kernel.reshape(2, 2, 2, 2, channels // 4, features).transpose(0, 2, 1, 3, 4, 5)
    return blocks.reshape(4, 4, channels // 4, features)


@jax.custom_vjp
def halve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves (cross-correlates) at stride 2, one row and column of zeros around the image.

    Args:
        x: (B, H, W, C), float32, H and W multiples of 4.
        kernel: (4, 4, C, F), float32.

    Returns:
        (B, H/2, W/2, F).
    """
    return _convolve(_blocks(x), _block_kernel(kernel))


def _halve_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return halve(x, kernel), (x, kernel)


def _halve_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    of_input = _unblocks(_convolve_back(gradient, _block_kernel(kernel)))
    return of_input, _unblock_kernel(_kernel_gradient(_blocks(x), gradient))


halve.defvjp(_halve_forward, _halve_backward)


@jax.custom_vjp
def double(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Doubles the size by the transposed convolution, output[2i - 1 + a] += x[i] kernel[a].

    Args:
        x: (B, H, W, C), float32, H and W even.
        kernel: (4, 4, C, F), float32.

    Returns:
        (B, 2H, 2W, F).
    """
    return _unblocks(_convolve_back(x, _block_kernel(kernel.swapaxes(2, 3))))


def _double_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return double(x, kernel), (x, kernel)


def _double_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    blocks = _blocks(gradient)
    of_input = _convolve(blocks, _block_kernel(kernel.swapaxes(2, 3)))
    return of_input, _unblock_kernel(_kernel_gradient(blocks, x)).swapaxes(2, 3)


double.defvjp(_double_forward, _double_backward)
