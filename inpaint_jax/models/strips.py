"""Work on feature maps strip by strip, so that what is made of a strip stays in the processor's cache.

Formulations that combine inputs, multiply the combinations and combine the products move several times what the plain
convolution reads and writes. XLA runs what does not depend on each other side by side, and so would make all
combinations of all maps before it multiplies: a loop over strips keeps it from that. In the loop stand products of
matrices alone; XLA:CPU has no fast path for convolutions there.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Tree = Any
# About so many positions make a strip (measured on XLA:CPU: half as many are as good, all of a large batch are not).
POSITIONS = 8_192


def _nearest_divisor(number: int, wanted: int) -> int:
    """Returns the divisor that is nearest in ratio: strips that are far too small cost more than large ones."""
    divisors = [divisor for divisor in range(1, number + 1) if number % divisor == 0]
    return min(divisors, key=lambda divisor: max(divisor / max(1, wanted), max(1, wanted) / divisor))


def _sizes(x: jax.Array, multiple: int) -> tuple[int, int]:
    """Returns how many maps make a strip, and how many rows of each: some whole maps, or a part of one."""
    batch, height, width = x.shape[:3]
    if height * width <= POSITIONS:
        return _nearest_divisor(batch, POSITIONS // (height * width)), height
    return 1, multiple * _nearest_divisor(height // multiple, POSITIONS // (multiple * width))


def _starts(x: jax.Array, maps: int, rows: int) -> jax.Array:
    """Returns the first map and the first row of each strip, int32 (strips, 2)."""
    places = np.mgrid[0 : x.shape[0] : maps, 0 : x.shape[1] : rows]
    return jnp.asarray(places.reshape(2, -1).T, jnp.int32)


def _bordered(x: jax.Array, rows: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (rows, rows), (0, 0), (0, 0)))


def _cutter(x: jax.Array, maps: int, rows: int, border: int) -> Callable[[jax.Array], jax.Array]:
    """Returns a function of a strip's start that cuts it out, with `border` rows of what lies above and below."""
    if rows == x.shape[1]:
        size = (maps, *x.shape[1:])
        return lambda start: _bordered(lax.dynamic_slice(x, (start[0], 0, 0, 0), size), border)
    padded = _bordered(x, border)  # here, because only the first and the last strip of a map have zeros at a side
    size = (maps, rows + 2 * border, *x.shape[2:])
    return lambda start: lax.dynamic_slice(padded, (start[0], start[1], 0, 0), size)


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
    if (maps, rows) == x.shape[:2]:
        return function(_bordered(x, 1))
    cut = _cutter(x, maps, rows, border=1)
    y = lax.map(lambda start: function(cut(start)), _starts(x, maps, rows))
    return y.reshape(*x.shape[:2], *y.shape[3:])


def summed(function: Callable[[jax.Array, jax.Array], Tree], x: jax.Array, y: jax.Array, multiple: int) -> Tree:
    """Returns function(x with a row of zeros above and below, y), computed strip by strip.

    Args:
        function: (b, h + 2, W, C), (b, h, W, F) -> a tree of arrays, each a sum over maps and rows, for any b and any
            multiple h of `multiple`.
        x: (B, H, W, C), H a multiple of `multiple`.
        y: (B, H, W, F).

    Returns:
        The tree.
    """
    maps, rows = _sizes(x, multiple)
    if (maps, rows) == x.shape[:2]:
        return function(_bordered(x, 1), y)
    cut_x, cut_y = _cutter(x, maps, rows, border=1), _cutter(y, maps, rows, border=0)

    def add(total: Tree, start: jax.Array) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, function(cut_x(start), cut_y(start))), None

    starts = _starts(x, maps, rows)
    shapes = jax.eval_shape(lambda: function(cut_x(starts[0]), cut_y(starts[0])))
    zeros = jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), shapes)
    return lax.scan(add, zeros, starts)[0]
