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
)


def window_distance(random: Random, x: Array, y: Array) -> Array:
    """Distance inside a random large box or disc near the middle of the tile, in tile widths."""
    local_x, local_y = x - np.float32(0.3 + 0.4 * random.random()), y - np.float32(0.3 + 0.4 * random.random())
    half_width, half_height = between(random, 0.15, 0.5), between(random, 0.15, 0.5)
    if chance(random, 0.2):
        return np.float32(half_width) - np.hypot(local_x, local_y)
    corner = ("square", "cut", "round")[int(3 * random.random())]
    return box_distance(local_x, local_y, half_width, half_height, between(random, 0.02, 0.15), corner)


def strips(random: Random, x: Array, y: Array, pixel: float) -> Array:
    """A profile that changes along y only: corrugation, clapboards, pipes, or rails and grooves of uneven pitch."""
    kind = int(6 * random.random())
    if kind < 4:
        count = between(random, 1.5, 26)
        period = 1 / count
        cycle = (y * np.float32(count) + np.float32(random.random())) % 1
        centred = np.abs(cycle - np.float32(0.5)) * np.float32(period)
        form = bevel_form(random)
        if kind == 0:
            height = np.float32(period / 6) * np.sin(np.float32(2 * np.pi) * cycle)
        elif kind == 1:
            width = max(pixel, period * between(random, 0.03, 0.3))
            height = np.float32(width) * bevel(
                np.float32(period * (0.15 + 0.33 * random.random())) - centred, width, form
            )
        elif kind == 2:
            # Boards that overlap like scales: a long ramp, then a fall within a pixel or two.
            fall = max(1.5 * pixel, period * 0.05) / period
            height = np.float32(period * between(random, 0.1, 0.5)) * np.minimum(
                cycle, (1 - cycle) * np.float32(1 / fall)
            )
        else:
            radius = period * (0.3 + 0.2 * random.random())
            height = np.sqrt(np.maximum(np.float32(radius * radius) - np.square(centred), 0))
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


def lattice(random: Random, x: Array, y: Array, pixel: float) -> Array:
    """A pattern repeated in both directions: studs, holes, pyramids, tread plate, weave, hexagonal or square tiles."""
    count = between(random, 3, 24)
    period, kind, form = 1 / count, int(6 * random.random()), bevel_form(random)
    u, v = x * np.float32(count) + np.float32(random.random()), y * np.float32(count) + np.float32(random.random())
    width = max(pixel, period * between(random, 0.05, 0.4))
    if kind < 3 and chance(random, 0.4):
        u = u + np.float32(0.5) * (np.floor(v) % 2)
    local_x, local_y = (u % 1 - np.float32(0.5)) * np.float32(period), (v % 1 - np.float32(0.5)) * np.float32(period)
    if kind == 0:
        distance = period * (0.2 + 0.28 * random.random()) - np.hypot(local_x, local_y)
    elif kind == 1:
        half_width, half_height = period * (0.2 + 0.28 * random.random()), period * (0.2 + 0.28 * random.random())
        corner = ("square", "cut", "round")[int(3 * random.random())]
        distance = box_distance(local_x, local_y, half_width, half_height, min(half_width, half_height) / 2, corner)
    elif kind == 2:
        # Tread plate: short bars that lean left and right in turn.
        turn = np.float32(0.7071) * (1 - 2 * ((np.floor(u) + np.floor(v)) % 2))
        lengthwise, sideways = (
            np.float32(0.7071) * local_x + turn * local_y,
            np.float32(0.7071) * local_y - turn * local_x,
        )
        distance = box_distance(lengthwise, sideways, period * 0.45, period * 0.14, period * 0.14, "round")
    elif kind == 3:
        over = ((np.floor(u) + np.floor(v)) % 2) > 0
        bulge = np.where(
            over, np.cos(np.pi * local_x / np.float32(period)), np.cos(np.pi * local_y / np.float32(period))
        )
        side = np.where(over, np.abs(local_y), np.abs(local_x))
        return (np.float32(period / 3) * bulge * bevel(np.float32(period * 0.45) - side, width, "round")).astype(
            np.float32
        )
    elif kind == 4:
        # Two interleaved rectangular grids: the nearer centre owns the point, which gives regular hexagons.
        side = np.float32(1.7320508)
        first = np.maximum(np.abs((u + 0.5) % 1 - 0.5), np.float32(0))
        tall = np.abs((v + side / 2) % side - side / 2)
        second, low = np.abs(u % 1 - np.float32(0.5)), np.abs(v % side - side / 2)
        distance = np.float32(0.5) - np.minimum(
            np.maximum(first, first / 2 + tall * (side / 2)), np.maximum(second, second / 2 + low * (side / 2))
        )
        distance = (distance - np.float32(0.03 + 0.1 * random.random())) * np.float32(period)
    else:
        distance = np.minimum(np.abs(local_x), np.abs(local_y)) - np.float32(
            max(pixel / 2, period * 0.1 * random.random())
        )
    sign = 1 if chance(random, 0.7) else -1
    height = np.float32(sign * width) * bevel(distance, width, form)
    if chance(random, 0.35):
        window = window_distance(random, x, y)
        rim = bevel(np.float32(0.02) - np.abs(window), max(pixel, 0.015), form)
        height = height * (window > 0) + np.float32(0.02) * rim
    return height


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
