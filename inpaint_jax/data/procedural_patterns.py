"""Random height fields that repeat: strips along one axis, lattices along two, and rasters of blocks.

Every family has the signature and the units described in `procedural_heights`: `family(random, x, y, pixel) -> height`.
"""

import numpy as np

from inpaint_jax.data.procedural_heights import (
    Array,
    Random,
    between,
    bevel,
    bevel_form,
    box_distance,
    cell_values,
    chance,
    grid_shape,
    window_distance,
)


def strips(random: Random, x: Array, y: Array, pixel: float) -> Array:
    """A profile that changes along y only: corrugation, clapboards, pipes, or rails and grooves of uneven pitch."""
    if chance(random, 0.67):
        height = even_strips(random, y, pixel)
    else:
        height = np.zeros_like(y)
        form = bevel_form(random)
        for _ in range(1 + int(8 * random.random())):
            half, width = between(random, 0.006, 0.15), max(pixel, between(random, 0.008, 0.1))
            sign = np.float32(width if chance(random, 0.5) else -width)
            height = height + sign * bevel(np.float32(half) - np.abs(y - np.float32(random.random())), width, form)
    if chance(random, 0.25):
        window = window_distance(random, x, y)
        height = (height - height.min()) * bevel(window, between(random, max(pixel, 0.01), 0.05), "flat")
    return np.broadcast_to(height, grid_shape(x, y))


def even_strips(random: Random, y: Array, pixel: float) -> Array:
    """Corrugation, ribs, boards or pipes of even pitch along y, in tile widths."""
    count = between(random, 1.5, 26)
    period, kind = 1 / count, int(4 * random.random())
    cycle = (y * np.float32(count) + np.float32(random.random())) % 1
    centred = np.abs(cycle - np.float32(0.5)) * np.float32(period)
    if kind == 0:
        return np.float32(period / 6) * np.sin(np.float32(2 * np.pi) * cycle)
    if kind == 1:
        width = max(pixel, period * between(random, 0.03, 0.3))
        half = np.float32(period * (0.15 + 0.33 * random.random()))
        return np.float32(width) * bevel(half - centred, width, bevel_form(random))
    if kind == 2:
        # Boards that overlap like scales: a long ramp, then a fall within a pixel or two.
        fall = max(1.5 * pixel, period * 0.05) / period
        thickness = np.float32(period * between(random, 0.1, 0.5))
        return thickness * np.minimum(cycle, (1 - cycle) * np.float32(1 / fall))
    radius = period * (0.3 + 0.2 * random.random())
    return np.sqrt(np.maximum(np.float32(radius * radius) - np.square(centred), 0))


def lattice(random: Random, x: Array, y: Array, pixel: float) -> Array:
    """A pattern repeated in both directions: studs, holes, pyramids, tread plate, weave, hexagonal or square tiles."""
    count = between(random, 3, 24)
    period, kind, form = 1 / count, int(6 * random.random()), bevel_form(random)
    u, v = x * np.float32(count) + np.float32(random.random()), y * np.float32(count) + np.float32(random.random())
    width = max(pixel, period * between(random, 0.05, 0.4))
    if kind < 3 and chance(random, 0.4):
        u = u + np.float32(0.5) * (np.floor(v) % 2)
    local_x, local_y = (u % 1 - np.float32(0.5)) * np.float32(period), (v % 1 - np.float32(0.5)) * np.float32(period)
    odd = (np.floor(u) + np.floor(v)) % 2
    if kind == 0:
        distance = period * (0.2 + 0.28 * random.random()) - np.hypot(local_x, local_y)
    elif kind == 1:
        half_width, half_height = period * (0.2 + 0.28 * random.random()), period * (0.2 + 0.28 * random.random())
        corner = ("square", "cut", "round")[int(3 * random.random())]
        distance = box_distance(local_x, local_y, half_width, half_height, min(half_width, half_height) / 2, corner)
    elif kind == 2:
        # Tread plate: short bars that lean left and right in turn.
        turn = np.float32(0.7071) * (1 - 2 * odd)
        lengthwise = np.float32(0.7071) * local_x + turn * local_y
        sideways = np.float32(0.7071) * local_y - turn * local_x
        distance = box_distance(lengthwise, sideways, period * 0.45, period * 0.14, period * 0.14, "round")
    elif kind == 3:
        # Weave: in every other cell the strand that runs along x passes over the one along y.
        lengthwise, sideways = np.where(odd > 0, local_x, local_y), np.where(odd > 0, local_y, local_x)
        bulge = np.float32(period / 3) * np.cos(np.float32(np.pi / period) * lengthwise)
        return bulge * bevel(np.float32(period * 0.45) - np.abs(sideways), width, "round")
    elif kind == 4:
        distance = (hexagon_distance(u, v) - np.float32(0.03 + 0.1 * random.random())) * np.float32(period)
    else:
        # Square tiles of the lattice, or its bars: the lines run through the middle of each cell.
        half_bar = np.float32(max(pixel / 2, period * 0.1 * random.random()))
        distance = np.minimum(np.abs(local_x), np.abs(local_y)) - half_bar
    height = np.float32(width if chance(random, 0.7) else -width) * bevel(distance, width, form)
    if chance(random, 0.35):
        window = window_distance(random, x, y)
        rim = bevel(np.float32(0.02) - np.abs(window), max(pixel, 0.015), form)
        height = height * (window > 0) + np.float32(0.02) * rim
    return height


def hexagon_distance(u: Array, v: Array) -> Array:
    """Distance to the border of the regular hexagon of width 1 that holds a point, in widths."""
    # Two interleaved rectangular grids hold the centres: the nearer centre owns the point.
    tall = np.float32(np.sqrt(3))
    nearest = None
    for shift in (np.float32(0), np.float32(0.5)):
        across = np.abs((u + shift) % 1 - np.float32(0.5))
        along = np.abs((v + shift * tall) % tall - tall / 2)
        reach = np.maximum(across, across / 2 + along * (tall / 2))
        nearest = reach if nearest is None else np.minimum(nearest, reach)
    return np.float32(0.5) - nearest


def blocks(random: Random, x: Array, y: Array, pixel: float) -> Array:
    """Cells of random level in a square raster, as in digital ornaments, glyphs and cut stone."""
    height = np.zeros(grid_shape(x, y), np.float32)
    count = between(random, 2, 10)
    for _ in range(1 + int(2 * random.random())):
        values = cell_values(
            random, np.floor(x * np.float32(count)), np.floor(y * np.float32(count * between(random, 0.5, 2)))
        )
        if chance(random, 0.5):
            values = (values > random.random()).astype(np.float32)
        height += values * np.float32(pixel * between(random, 0.7, 2.5))
        count *= 2
    return height
