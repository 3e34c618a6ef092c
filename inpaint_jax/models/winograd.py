"""3x3 convolutions with a third of the multiplications: Winograd's minimal filtering, F(2, 3) down and F(4, 3) across.

Two neighbouring outputs of a three-tap filter need four products instead of six, four outputs six instead of twelve:
of combinations of inputs with combinations of the taps. (S. Winograd, "Arithmetic Complexity of Computations", 1980;
A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.) In both directions
that is 24 products of matrices for 72; so are those of the gradients. F(4, 3) in both would need fewer, at the cost of
digits: so rounding stays below 1e-5 of the largest value.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from inpaint_jax.models import strips

Parts = Sequence[jax.Array]
TILE = (2, 4)  # rows and columns of outputs that are computed together
CHANNELS = 64  # with fewer, XLA's own convolution is faster, if not its gradient of the kernel (measured on XLA:CPU)
# For each number of outputs: products by inputs, products by taps, outputs by products.
_OF_INPUTS = {
    2: np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]]),
    4: np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
    ),
}
_OF_TAPS = {
    2: np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]),
    4: np.array(
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ]
    ),
}
_OF_PRODUCTS = {
    2: np.array([[1, 1, 1, 0], [0, 1, -1, 1]]),
    4: np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
}
_DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")


def _combinations(weights: np.ndarray, parts: Parts) -> Parts:
    """Returns for each row of weights the weighted sum of the parts, without those of weight 0."""
    return [sum(float(weight) * part for weight, part in zip(row, parts, strict=True) if weight) for row in weights]


def _of_inputs(x: jax.Array, axis: int, outputs: int) -> Parts:
    """Returns combinations of inputs, with one more row or column at both ends."""
    last = x.shape[axis] - 2 - outputs + 1
    places = range(outputs + 2)
    return _combinations(
        _OF_INPUTS[outputs], [lax.slice_in_dim(x, place, place + last, outputs, axis) for place in places]
    )


def _of_outputs(y: jax.Array, axis: int, outputs: int) -> Parts:
    """Returns the transpose of how products make outputs."""
    parts = [lax.slice_in_dim(y, place, None, outputs, axis) for place in range(outputs)]
    return _combinations(_OF_PRODUCTS[outputs].T, parts)


def interleave(parts: Parts, axis: int) -> jax.Array:
    """Returns arrays of one shape in turns along an axis: the first of each, then the second of each, and so on."""
    shape = list(parts[0].shape)
    shape[axis] *= len(parts)
    return jnp.stack(parts, axis + 1).reshape(shape)


def _inputs(x: jax.Array) -> list[Parts]:
    """Returns combinations of rows (B, H + 2, W, C) with a column of zeros on either side, by rows and columns."""
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    return [_of_inputs(rows, 2, TILE[1]) for rows in _of_inputs(padded, 1, TILE[0])]


def product(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
    """Returns the sums of products along one axis of each, as `jax.lax.dot_general` has them, of combinations."""
    # The combinations would lose digits in the bfloat16 that TPUs take by default, where someone names this form there.
    return lax.dot_general(x, y, (((x_axis,), (y_axis,)), ((), ())), precision=lax.Precision.HIGHEST)


def _map(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the convolution, whichever way is faster."""
    if min(kernel.shape[2:]) < CHANNELS:
        return lax.conv_general_dilated(x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=_DIMENSION_NUMBERS)
    taps = [_combinations(_OF_TAPS[TILE[1]], rows) for rows in _combinations(_OF_TAPS[TILE[0]], kernel)]

    def of_strip(strip: jax.Array) -> jax.Array:
        rows = []
        for matrices, kernels in zip(_inputs(strip), taps, strict=True):
            products = [product(matrix, weights, 3, 0) for matrix, weights in zip(matrices, kernels, strict=True)]
            rows.append(interleave(_combinations(_OF_PRODUCTS[TILE[1]], products), 2))
        return interleave(_combinations(_OF_PRODUCTS[TILE[0]], rows), 1)

    return strips.mapped(of_strip, x, TILE[0])


def _kernel_gradient(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the gradient (3, 3, C, F) of the kernel at x (B, H, W, C) for that of the outputs, y (B, H, W, F)."""

    def of_strip(strip: jax.Array, gradients: jax.Array) -> list[Parts]:
        # As flat matrices: with several axes to sum over, XLA would first transpose one of them in memory.
        return [
            [
                product(a.reshape(-1, a.shape[3]), b.reshape(-1, b.shape[3]), 0, 0)
                for a, b in zip(matrices, _of_outputs(rows, 2, TILE[1]), strict=True)
            ]
            for matrices, rows in zip(_inputs(strip), _of_outputs(gradients, 1, TILE[0]), strict=True)
        ]

    products = strips.summed(of_strip, x, y, TILE[0])
    rows = [jnp.stack(_combinations(_OF_TAPS[TILE[1]].T, row)) for row in products]
    return jnp.stack(_combinations(_OF_TAPS[TILE[0]].T, rows))


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves (cross-correlates) with a 3x3 kernel, one row and column of zeros around the image.

    Args:
        x: (B, H, W, C), float32, H even and W a multiple of 4.
        kernel: (3, 3, C, F), float32.

    Returns:
        (B, H, W, F).
    """
    return _map(x, kernel)


def _convolve_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    # The input's gradient is such a convolution again.
    return _map(gradient, kernel[::-1, ::-1].swapaxes(2, 3)), _kernel_gradient(x, gradient)


convolve.defvjp(lambda x, kernel: (convolve(x, kernel), (x, kernel)), _convolve_backward)
