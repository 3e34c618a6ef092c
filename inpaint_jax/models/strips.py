"""Work on feature maps strip by strip, so that what is made of a strip stays in the processor's cache.

Formulations that combine inputs, multiply the combinations and combine the products move several times what the plain
convolution reads and writes. XLA runs what does not depend on each other side by side, and so would make all
combinations of all maps before it multiplies: a loop over strips keeps it from that.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Tree = Any
Cut = Callable[[jax.Array], jax.Array]
POSITIONS = 8_192  # of a strip, at most, if the lowest one has no more (measured on XLA:CPU)


def _largest_divisor(number: int, limit: int) -> int:
    return next(divisor for divisor in range(max(1, min(number, limit)), 0, -1) if number % divisor == 0)


def _sizes(x: jax.Array, multiple: int) -> tuple[int, int]:
    """Returns how many maps make a strip, and how many rows of each: several whole maps, or a part of one."""
    batch, height, width = x.shape[:3]
    if height * width <= POSITIONS:
        return _largest_divisor(batch, POSITIONS // (height * width)), height
    return 1, multiple * _largest_divisor(height // multiple, POSITIONS // (multiple * width))


def _cutter(x: jax.Array, maps: int, rows: int, border: int) -> Cut:
    """Returns a function of a strip's number that cuts it out, `border` rows of what lies around it included."""
    across = x.shape[1] // rows
    widths = ((0, 0), (border, border), (0, 0), (0, 0))
    if across == 1:
        return lambda number: jnp.pad(lax.dynamic_slice_in_dim(x, number * maps, maps), widths)
    padded = jnp.pad(x, widths)  # here, because only the first and the last strip of a map have zeros at a side

    def cut(number: jax.Array) -> jax.Array:
        start = (number // across, number % across * rows, 0, 0)
        return lax.dynamic_slice(padded, start, (1, rows + 2 * border, *x.shape[2:]))

    return cut


def mapped(function: Callable[[jax.Array], jax.Array], x: jax.Array, multiple: int) -> jax.Array:
    """Returns function of x with a row of zeros above and below, computed strip by strip.

    Args:
        function: (b, h + 2, W, C) -> (b, h, W', F) for any b and any multiple h of `multiple`, from each output's own
            row and its two neighbours.
        x: (B, H, W, C), H a multiple of `multiple`.

    Returns:
        (B, H, W', F).
    """
    maps, rows = _sizes(x, multiple)
    count = x.shape[0] * x.shape[1] // (maps * rows)
    cut = _cutter(x, maps, rows, border=1)
    if count == 1:
        return function(cut(0))
    y = lax.map(lambda number: function(cut(number)), jnp.arange(count))
    return y.reshape(*x.shape[:2], *y.shape[3:])


def summed(function: Callable[[jax.Array, jax.Array], Tree], x: jax.Array, y: jax.Array, multiple: int) -> Tree:
    """Returns function(x with a row of zeros above and below, y), computed strip by strip.

    Args:
        function: (b, h + 2, W, C), (b, h, W, F) -> arrays that are sums over all b and h, multiples of `multiple`.
        x: (B, H, W, C), H a multiple of `multiple`.
        y: (B, H, W, F).
    """
    maps, rows = _sizes(x, multiple)
    count = x.shape[0] * x.shape[1] // (maps * rows)
    cut_x, cut_y = _cutter(x, maps, rows, border=1), _cutter(y, maps, rows, border=0)

    def term(number: jax.Array) -> Tree:
        return function(cut_x(number), cut_y(number))

    if count == 1:
        return term(0)
    zeros = jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), jax.eval_shape(term, 0))
    return lax.fori_loop(0, count, lambda number, total: jax.tree.map(jnp.add, total, term(number)), zeros)
