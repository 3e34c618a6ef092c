"""Random height fields of grown and weathered surfaces: the natural half of the relief families.

Every family has the signature and the units described in `procedural_heights`: `family(random, x, y, pixel) -> height`.
"""

import numpy as np

from inpaint_jax.data.procedural_heights import (
    Array,
    Random,
    between,
    bevel,
    bevel_form,
    chance,
    grid_shape,
    spectral_noise,
)


def stones(random: Random, x: Array, y: Array, pixel: float) -> Array:
    """Voronoi cells of jittered points: cobbles, pebbles, scales and dried ground.

    Source: Worley, "A cellular texture basis function", 1996.
    """
    across = 2 + int(5 * random.random())
    spread = np.arange(-1, across + 1)
    centres = np.stack(np.meshgrid(spread, spread), -1).reshape(-1, 2) + 0.5
    centres = (centres + between(random, 0.2, 0.95) * (random.random(centres.shape) - 0.5)) / across
    centres = centres.astype(np.float32)
    nearest = np.full(grid_shape(x, y), 9, np.float32)
    second = nearest.copy()
    scratch = nearest.copy()
    for centre_x, centre_y in centres:
        if not (-0.6 / across < centre_x < 1 + 0.6 / across and -0.6 / across < centre_y < 1 + 0.6 / across):
            continue
        distance = np.square(x - centre_x) + np.square(y - centre_y)
        np.maximum(nearest, distance, out=scratch)
        np.minimum(second, scratch, out=second)
        np.minimum(nearest, distance, out=nearest)
    np.sqrt(nearest, out=nearest)
    np.sqrt(second, out=second)
    joint = max(pixel / 2, between(random, 0.01, 0.1) / across)
    distance = (second - nearest) / 2 - np.float32(joint)
    if chance(random, 0.5):
        distance = distance + spectral_noise(random, grid_shape(x, y), 2.0, across) * np.float32(
            between(random, 0.05, 0.3)
        )
    width = max(1.2 * pixel, between(random, 0.05, 0.45) / across)
    height = np.float32(width) * bevel(distance, width, bevel_form(random))
    if chance(random, 0.4):
        height = height - np.float32(between(random, 0.2, 1.0)) * nearest
    return height


def terrain(random: Random, x: Array, y: Array, pixel: float) -> Array:
    """Spectral noise from rough rock to smooth dunes, the same in all directions or stretched."""
    stretch = 1.0 if chance(random, 0.7) else between(random, 1.2, 5.0)
    lowest = between(random, 1.2, 14.0)
    return spectral_noise(random, grid_shape(x, y), 1.6 + 1.9 * random.random(), lowest, stretch) * np.float32(0.6)


def crumple(random: Random, x: Array, y: Array, pixel: float) -> Array:
    """Sharp ridges or clefts where smooth noise changes sign: rock faces, crumpled cloth, veins and bark."""
    shape = grid_shape(x, y)
    height = np.zeros(shape, np.float32)
    stretch = 1.0 if chance(random, 0.6) else between(random, 1.3, 4.0)
    exponent, lowest = 1.7 + 1.5 * random.random(), between(random, 1.0, 8.0)
    for _ in range(1 + int(2 * random.random())):
        height += np.abs(spectral_noise(random, shape, exponent, lowest, stretch))
        lowest *= 2
    return height * np.float32(0.5 if chance(random, 0.5) else -0.5)


def contours(random: Random, x: Array, y: Array, pixel: float) -> Array:
    """Curved bands, islands or cracks along the level lines of smooth noise: ornaments, flaking paint, steps."""
    shape = grid_shape(x, y)
    highest = between(random, 3, 14)
    field = spectral_noise(random, shape, 1.0 + 2.5 * random.random(), highest / 3, 1.0, highest)
    if chance(random, 0.3):
        field = field + spectral_noise(random, shape, 1.8, highest) * np.float32(0.25)
    # The noise has slopes of about 1, so its values stand for distances from its zero line.
    width = max(1.2 * pixel, between(random, 0.01, 0.06))
    kind = int(4 * random.random())
    if kind == 0:
        distance = field - np.float32(0.1 * (random.random() - 0.5))
    elif kind == 1:
        distance = np.float32(between(random, 0.008, 0.04)) - np.abs(field)
    elif kind == 2:
        period = between(random, 0.06, 0.3)
        distance = np.abs(field % np.float32(period) - np.float32(period / 2)) - np.float32(period * 0.2)
    else:
        flaw = spectral_noise(random, shape, 2.0, 2.0)
        distance = np.where(flaw > 0, np.float32(1.2 * pixel) - np.abs(field), np.float32(-1))
        width = 1.5 * pixel
    sign = 1 if chance(random, 0.6) and kind != 3 else -1
    return np.float32(sign * width) * bevel(distance, width, bevel_form(random))


def grain(random: Random, x: Array, y: Array, pixel: float) -> Array:
    """Wood grain or brushed metal, along boards that are parted by grooves in half of the draws."""
    shape = grid_shape(x, y)
    height = spectral_noise(
        random, shape, 1.2 + random.random(), between(random, 2, 16), between(random, 6, 40)
    ) * np.float32(0.3)
    if chance(random, 0.3):
        rings = spectral_noise(random, shape, 3.0, 1.0, between(random, 2, 6), 8.0)
        height = height + np.float32(0.02) * np.sin(rings * np.float32(between(random, 20, 80)))
    if chance(random, 0.6):
        boards = between(random, 1.5, 9)
        upward = y * np.float32(boards) + np.float32(random.random())
        groove = (np.float32(0.5) - np.abs(upward % 1 - np.float32(0.5))) * np.float32(1 / boards)
        width = max(1.2 * pixel, between(random, 0.01, 0.05))
        height = height * bevel(groove, width, "flat") + np.float32(width) * bevel(groove, width, bevel_form(random))
    return height


def waves(random: Random, x: Array, y: Array, pixel: float) -> Array:
    """One to four trains of waves, bent by smooth noise: ripples, water, folds of cloth."""
    height = np.zeros(grid_shape(x, y), np.float32)
    bend = spectral_noise(random, height.shape, 3.0, 1.0, 1.0, 6.0) * np.float32(between(random, 0.05, 0.6))
    frequency, direction = between(random, 1.0, 12.0), 2 * np.pi * random.random()
    for _ in range(1 + int(4 * random.random())):
        direction += 0.8 * (random.random() - 0.5)
        along = x * np.float32(np.cos(direction)) + y * np.float32(np.sin(direction)) + bend
        height += np.sin(along * np.float32(2 * np.pi * frequency)) * np.float32(0.08 / frequency)
        frequency *= 0.6 + random.random()
    return height


def facets(random: Random, x: Array, y: Array, pixel: float) -> Array:
    """Flat facets: the lower of many random planes, or a sheet folded along random lines."""
    height = np.zeros(grid_shape(x, y), np.float32)
    folded, size = chance(random, 0.5), between(random, 0.3, 1.0)
    if not folded:
        height += 9
    for _ in range(4 + int(12 * random.random())):
        direction = 2 * np.pi * random.random()
        along = (x - np.float32(random.random())) * np.float32(np.cos(direction))
        along = along + (y - np.float32(random.random())) * np.float32(np.sin(direction))
        if folded:
            height += np.abs(along) * np.float32(0.35 * (random.random() - 0.5))
        else:
            height = np.minimum(height, along * np.float32(size * random.random()) + np.float32(0.3))
    return height


def domes(random: Random, x: Array, y: Array, pixel: float) -> Array:
    """Large round bodies: domes, bowls and cylinders whose curvature spans much of the tile."""
    height = np.zeros(grid_shape(x, y), np.float32)
    for _ in range(1 + int(5 * random.random())):
        radius = between(random, 0.08, 0.9)
        local_x, local_y = x - np.float32(random.random()), y - np.float32(random.random())
        if chance(random, 0.4):
            squared = np.square(local_y if chance(random, 0.7) else local_x)
        else:
            squared = np.square(local_x) + np.square(local_y)
        # The rim of a full half sphere is vertical; cutting it above the equator keeps its slope finite.
        cap = np.sqrt(np.maximum(np.float32(radius * radius) - squared, np.float32((0.4 * radius) ** 2)))
        cap = cap - np.float32(0.4 * radius)
        height = np.maximum(height, cap) if chance(random, 0.7) else height - cap
    return height
