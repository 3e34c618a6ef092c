"""3x3 convolutions with half the multiplications: Winograd's minimal filtering along rows, F(4, 3).

Four neighbouring outputs of a three-tap filter need six products instead of twelve: of combinations of six inputs with
combinations of the taps. (S. Winograd, "Arithmetic Complexity of Computations", 1980; A. Lavin and S. Gray, "Fast
Algorithms for Convolutional Neural Networks", CVPR 2016, section 4, whose F(4, 3) this is.) Along columns the three
taps are added plainly: so the combinations cost little, and rounding stays below 1e-5 of the largest output.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

OUTPUTS = 4  # at a time, along a row
_TAPS = 3
_PRODUCTS = OUTPUTS + _TAPS - 1
# Rows: products. Columns: the six inputs, the three taps.
_OF_INPUTS = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_OF_TAPS = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
# Rows: the four outputs. Columns: products.
_OF_PRODUCTS = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
_DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")


def _combination(weights: np.ndarray, parts: Sequence[jax.Array]) -> jax.Array:
    """Returns the weighted sum of the parts, without those of weight 0."""
    return sum(float(weight) * part for weight, part in zip(weights, parts, strict=True) if weight)


def _forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
    batch, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    last = width - OUTPUTS + 1
    inputs = [padded[:, :, place : place + last : OUTPUTS] for place in range(_PRODUCTS)]
    taps = [kernel[:, place : place + 1] for place in range(_TAPS)]
    products = [
        lax.conv_general_dilated(
            _combination(of_inputs, inputs), _combination(of_taps, taps), (1, 1), [(1, 1), (0, 0)],
            dimension_numbers=_DIMENSION_NUMBERS,
            # The combinations would lose digits in the bfloat16 of TPUs, where an exported program may run.
            precision=lax.Precision.HIGHEST,
        )
        for of_inputs, of_taps in zip(_OF_INPUTS, _OF_TAPS, strict=True)
    ]  # fmt: skip
    outputs = [_combination(weights, products) for weights in _OF_PRODUCTS]
    return jnp.stack(outputs, axis=3).reshape(batch, height, width, kernel.shape[3])


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves (cross-correlates) with a 3x3 kernel, one row and column of zeros around the image.

    Args:
        x: (B, H, W, C), float32, W a multiple of 4.
        kernel: (3, 3, C, F), float32.

    Returns:
        (B, H, W, F).
    """
    return _forward(x, kernel)


def _convolve_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _forward(x, kernel), (x, kernel)


def _convolve_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    # The input's gradient is such a convolution again. The kernel's is a plain one: its sums over all pixels take the
    # time, and there is nothing to gain.
    of_input = _forward(gradient, kernel[::-1, ::-1].swapaxes(2, 3))

    def plain(kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=_DIMENSION_NUMBERS)

    _, pull = jax.vjp(plain, kernel)
    return of_input, pull(gradient)[0]


convolve.defvjp(_convolve_forward, _convolve_backward)
