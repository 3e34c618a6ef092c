"""Procedural normal maps: the embedded data set, physically consistent relief drawn by NumPy alone.

Each map is a random height field turned into tangent-space normals, so it is integrable, as baked maps are. A tile is
one relief family, or two that are added or parted by a border, under overlays: large bends, dents, scratches and noise
from none to strong. The families live in `procedural_heights` (masonry, panels, solids), `procedural_patterns` (strips,
lattices, blocks) and `procedural_surfaces` (stones, terrain, crumple, contours, grain, waves, facets, domes).
Weights and strengths were set so that tilts, gradients and spectra come near those of game textures at 64 and 128
pixels. Most tiles are upright, some turned.

A map is a function of (seed, index, size) alone: nothing is read from disk, there is no global state, any thread may
render. Everything is computed from formulas in this package: no picture, scan or texture of anyone else went in, so the
set is free of others' rights.
"""

import numpy as np

from inpaint_jax.data import procedural_heights as heights
from inpaint_jax.data import procedural_patterns as patterns
from inpaint_jax.data import procedural_surfaces as surfaces
from inpaint_jax.data.procedural_heights import Array, Random, between, chance

# Part of a data set's identity: raise it with every change that alters a rendered pixel.
VERSION = 2

# A map is a window of a tile so many times as wide: textures are filled at their native resolution, part by part.
ZOOM = (1.0, 3.0)

# Weight in the draw, and the height scale at which the family's relief is of ordinary strength.
FAMILIES = {
    heights.masonry: (3.0, 0.8),
    heights.panels: (4.0, 1.0),
    heights.solids: (4.0, 1.0),
    patterns.strips: (2.5, 0.8),
    patterns.lattice: (2.2, 0.7),
    patterns.blocks: (0.6, 1.0),
    surfaces.stones: (1.1, 0.4),
    surfaces.terrain: (2.2, 0.22),
    surfaces.crumple: (1.2, 0.22),
    surfaces.contours: (1.0, 0.8),
    surfaces.grain: (1.4, 0.3),
    surfaces.waves: (0.6, 0.2),
    surfaces.facets: (0.6, 0.35),
    surfaces.domes: (0.9, 0.35),
}


def render_normal_map(seed: int, index: int, size: int, normal_y: str = "up") -> Array:
    """Renders one normal map of the procedural set.

    Args:
        seed: data set, 0 to 2**64 - 1.
        index: map within the data set, 0 to 2**64 - 1.
        size: rows and columns in pixels, at least 4.
        normal_y: "up" if green grows towards the top of the image, "down" if towards its bottom; "mixed" makes maps of
            an odd index the second kind.

    Returns:
        uint8 (size, size, 3): x to the right, y, z out of the surface, as v = 2 * rgb / 255 - 1.

    Raises:
        ValueError: for a size below 4, a seed or index out of range, or an unknown `normal_y`.
    """
    if normal_y == "mixed":
        normal_y = "down" if index % 2 else "up"
    vectors = normals_from_height(render_height_field(seed, index, size))
    # A stream of its own, so that the height field does not depend on the noise of storage and can be drawn alone.
    random = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64), counter=[0, 0, 0, 1]))
    if chance(random, 0.3):
        vectors = compression_noise(random, vectors)
    return encode_normals(vectors, normal_y)


def render_height_field(seed: int, index: int, size: int) -> Array:
    """Renders the height field behind `render_normal_map(seed, index, size)`.

    Args:
        seed: data set, 0 to 2**64 - 1.
        index: map within the data set, 0 to 2**64 - 1.
        size: rows and columns of the map in pixels, at least 4.

    Returns:
        float32 (size + 1, size + 1): heights in pixels at the corners of the pixels, row 0 at the top.

    Raises:
        ValueError: for a size below 4, or a seed or index out of range.
    """
    if size < 4:
        raise ValueError(f"size = {size}: a procedural normal map needs at least 4 pixels a side")
    for name, value in (("seed", seed), ("index", index)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name} = {value}: a procedural normal map needs a number from 0 to 2**64 - 1")
    random = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
    tile = round(size * between(random, *ZOOM))
    top, left = (int((tile - size + 1) * random.random()) for _ in range(2))
    height = draw_tile(random, tile)[top : top + size + 1, left : left + size + 1]
    return np.ascontiguousarray(height, np.float32)


def draw_tile(random: Random, size: int) -> Array:
    """Draws the height field of one whole tile, (size + 1, size + 1) in pixels."""
    x, y, upright = draw_coordinates(random, size)
    height = draw_relief(random, x, y, 1 / size) * np.float32(between(random, 0.2, 2.0))
    if chance(random, 0.35):
        second = draw_relief(random, x, y, 1 / size) * np.float32(between(random, 0.2, 1.5))
        height = height + second if chance(random, 0.4) else join_regions(random, x, y, height, second)
    height = height + draw_overlays(random, x, y, 1 / size)
    if upright:
        height = np.rot90(height, int(4 * random.random()))
    # Resizing a large map to a small one averages relief away: at 64 pixels real maps are 0.8 times as steep as at 128.
    softening = min(1.0, size / 128) ** 0.35
    return height * np.float32(size * softening)


def draw_coordinates(random: Random, size: int) -> tuple[Array, Array, bool]:
    """Draws the orientation: x and y of the pixel corners in tile widths, and whether the tile is upright."""
    axis = (np.arange(size + 1) / size).astype(np.float32)
    x, y = axis[None, :], axis[::-1, None]
    if not chance(random, 0.2):
        return x, y, True
    angle = np.pi / 4 * (1 + 2 * int(4 * random.random())) if chance(random, 0.3) else 2 * np.pi * random.random()
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    half = np.float32(0.5)
    return half + cosine * (x - half) - sine * (y - half), half + sine * (x - half) + cosine * (y - half), False


def draw_relief(random: Random, x: Array, y: Array, pixel: float) -> Array:
    """Draws a family by weight and renders it at its ordinary strength, in tile widths."""
    families = list(FAMILIES)
    shares = np.cumsum([weight for weight, _ in FAMILIES.values()])
    family = families[np.searchsorted(shares, random.random() * shares[-1], side="right")]
    return family(random, x, y, pixel) * np.float32(FAMILIES[family][1])


def join_regions(random: Random, x: Array, y: Array, outer: Array, inner: Array) -> Array:
    """Puts one relief inside a box, disc or half plane and another around it."""
    distance = y - np.float32(random.random()) if chance(random, 0.3) else heights.window_distance(random, x, y)
    share = heights.bevel(distance, 0.02, "smooth")
    return outer * (1 - share) + (inner - inner.mean()) * share


def draw_overlays(random: Random, x: Array, y: Array, pixel: float) -> Array:
    """Draws what lies over any relief, in tile widths: noise from none to strong, a large bend, dents, scratches."""
    shape = heights.grid_shape(x, y)
    height = np.zeros(shape, np.float32)
    if chance(random, 0.7):
        strength = min(between(random, 0.003, 0.4), between(random, 0.02, 0.5))
        exponent = 0.7 + 1.8 * random.random()
        height += heights.spectral_noise(random, shape, exponent, between(random, 2, 20)) * np.float32(strength)
    if chance(random, 0.25):
        bend = heights.spectral_noise(random, shape, 3.0, 1.0, 1.0, 3.0)
        height += bend * np.float32(between(random, 0.015, 0.15))
    if chance(random, 0.12):
        radius = between(random, 0.03, 0.15)
        for _ in range(1 + int(4 * random.random())):
            squared = np.square(x - np.float32(random.random())) + np.square(y - np.float32(random.random()))
            hollow = np.maximum(1 - squared / np.float32(radius * radius), 0)
            height -= np.square(hollow) * np.float32(radius * between(random, 0.05, 0.5))
    if chance(random, 0.12):
        depth = pixel * between(random, 0.1, 0.8)
        for _ in range(1 + int(6 * random.random())):
            direction, length = np.pi * random.random(), between(random, 0.1, 0.6)
            cosine, sine = np.float32(np.cos(direction)), np.float32(np.sin(direction))
            local_x, local_y = x - np.float32(random.random()), y - np.float32(random.random())
            distance = np.maximum(
                np.abs(sine * local_x - cosine * local_y), np.abs(cosine * local_x + sine * local_y) - length
            )
            height -= np.float32(depth) * heights.bevel(np.float32(1.5 * pixel) - distance, 1.5 * pixel, "smooth")
    return height


def normals_from_height(height: Array) -> Array:
    """Unit normals of a surface whose heights are given at the corners of the pixels.

    A pixel's slope is the mean slope over its square: no direction is favoured, and edges stay as sharp as the heights.

    Args:
        height: float (H + 1, W + 1), in pixels, row 0 at the top.

    Returns:
        float32 (H, W, 3): (-dh/dx, -dh/dy, 1) normalised, with x to the right and y up, so z > 0.
    """
    height = np.asarray(height, np.float32)
    rightward, downward = np.diff(height, axis=1), np.diff(height, axis=0)
    vectors = np.empty((height.shape[0] - 1, height.shape[1] - 1, 3), np.float32)
    vectors[..., 0] = -(rightward[1:] + rightward[:-1]) / 2
    # Rows count downwards, so a rise towards the next row is a fall towards y: the two signs cancel.
    vectors[..., 1] = (downward[:, 1:] + downward[:, :-1]) / 2
    vectors[..., 2] = 1
    squared = np.square(vectors)
    vectors /= np.sqrt(squared[..., :1] + squared[..., 1:2] + squared[..., 2:])
    return vectors


def compression_noise(random: Random, vectors: Array) -> Array:
    """Adds the faint error of texture compression: x and y off by about a grey level in 2x2 blocks, z made to fit."""
    rows, columns = vectors.shape[:2]
    level = np.float32(between(random, 0.3, 1.5) * 2 / 255)
    blocks = random.standard_normal((rows // 2 + 1, columns // 2 + 1, 2), dtype=np.float32)
    slopes = vectors[..., :2] + level * blocks.repeat(2, axis=0).repeat(2, axis=1)[:rows, :columns]
    squared = np.minimum(np.square(slopes).sum(-1, keepdims=True), np.float32(0.999))
    noisy = np.concatenate([slopes, np.sqrt(1 - squared)], axis=-1)
    return noisy / np.linalg.norm(noisy, axis=-1, keepdims=True)


def encode_normals(vectors: Array, normal_y: str) -> Array:
    """Encodes unit vectors as colours.

    Args:
        vectors: float (..., 3) in [-1, 1], x right, y up, z out.
        normal_y: "up" keeps y, "down" turns its sign.

    Returns:
        uint8 (..., 3): round((v + 1) / 2 * 255).

    Raises:
        ValueError: for an unknown `normal_y`.
    """
    if normal_y not in ("up", "down"):
        raise ValueError(f'normal_y = {normal_y!r}: use "up" (green grows upwards) or "down"')
    colours = vectors * np.float32(127.5) + np.float32(127.5)
    if normal_y == "down":
        colours[..., 1] = np.float32(255) - colours[..., 1]
    return np.rint(np.clip(colours, 0, 255)).astype(np.uint8)
