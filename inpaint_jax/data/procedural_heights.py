"""Random height fields: the tools that the relief families share, and the families of built relief.

Every family is a function `family(random, x, y, pixel) -> height`:

* `random` is a NumPy generator, the only source of chance;
* `x` (to the right) and `y` (up) are float32 coordinates of the grid points in tile widths, about 0 to 1. For upright
  tiles they are a row and a column that broadcast, which makes separable shapes cheap; for turned tiles, full grids;
* `pixel` is the width of one pixel in tile widths, below which no bevel gets: edges are as soft as in painted maps;
* `height` is float32 in tile widths. Bevels have a slope of about 1: the caller draws the strength.

Built relief, here: masonry (bricks, tiles, slabs), panels (plates with grooves, rivets and vents), solids (boxes,
discs, rings, capsules). Repeated patterns are in `procedural_patterns`, natural relief in `procedural_surfaces`.
"""

import numpy as np

Array = np.ndarray
Random = np.random.Generator


def between(random: Random, low: float, high: float) -> float:
    """Draws a number between two positive bounds, evenly in its logarithm."""
    return low * (high / low) ** random.random()


def chance(random: Random, probability: float) -> bool:
    """Draws true with the given probability."""
    return random.random() < probability


def bevel(distance: Array, width: float, form: str) -> Array:
    """Turns the distance inside a shape into a rise from 0 at its border to 1 at `width` inside.

    Args:
        distance: float32, positive inside, in tile widths.
        width: breadth of the rise in tile widths.
        form: "flat" for a straight chamfer, "smooth" for an S curve, "round" for a pillow edge.
    """
    rise = np.clip(distance * np.float32(1 / width), 0, 1)
    if form == "smooth":
        return rise * rise * (3 - 2 * rise)
    if form == "round":
        return rise * (2 - rise)
    return rise


def bevel_form(random: Random) -> str:
    """Draws the form of a bevel."""
    return ("flat", "flat", "smooth", "round")[int(4 * random.random())]


def box_distance(x: Array, y: Array, half_width: float, half_height: float, corner: float, form: str) -> Array:
    """Distance inside a box around the origin whose corners are "square", "cut" or "round", in tile widths."""
    inside_x, inside_y = half_width - np.abs(x), half_height - np.abs(y)
    if form == "round":
        return corner - np.hypot(np.maximum(corner - inside_x, 0), np.maximum(corner - inside_y, 0))
    distance = np.minimum(inside_x, inside_y)
    if form == "cut":
        distance = np.minimum(distance, (inside_x + inside_y - corner) * np.float32(0.7071))
    return distance


def window_distance(random: Random, x: Array, y: Array) -> Array:
    """Distance inside a random large box or disc near the middle of the tile, in tile widths."""
    local_x, local_y = x - np.float32(0.3 + 0.4 * random.random()), y - np.float32(0.3 + 0.4 * random.random())
    half_width, half_height = between(random, 0.15, 0.5), between(random, 0.15, 0.5)
    if chance(random, 0.2):
        return np.float32(half_width) - np.hypot(local_x, local_y)
    corner = ("square", "cut", "round")[int(3 * random.random())]
    return box_distance(local_x, local_y, half_width, half_height, between(random, 0.02, 0.15), corner)


def even_length(length: int) -> int:
    """Smallest even number of the form 2**a * 3**b * 5**c that is at least `length`: a quick size for the FFT."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1 and length % 2 == 0:
            return length
        length += 1


def spectral_noise(
    random: Random,
    shape: tuple[int, int],
    exponent: float,
    lowest: float = 1.0,
    stretch: float = 1.0,
    highest: float = 1e9,
) -> Array:
    """Gaussian noise whose amplitude falls as 1 / frequency**exponent, made with one inverse FFT.

    Args:
        random: source of chance.
        shape: rows and columns of the result.
        exponent: fall of the amplitude; 1 is rough, 3 is smooth.
        lowest: frequency in cycles per tile below which the amplitude stays level.
        stretch: how many times longer the features are along x than along y.
        highest: frequency in cycles per tile from which on there is nothing.

    Returns:
        float32 of `shape`, scaled so that the mean absolute step to the next row or column is 1 / max(shape): as a
        height in tile widths it has slopes of about 1.
    """
    length = even_length(max(shape))
    across = (np.fft.rfftfreq(length) * length * stretch).astype(np.float32)
    along = (np.fft.fftfreq(length) * length).astype(np.float32)
    squared = np.square(across)[None, :] + np.square(along)[:, None]
    amplitude = np.power(squared + np.float32(lowest * lowest), np.float32(-exponent / 2))
    amplitude[squared > highest * highest] = 0
    amplitude[0, 0] = 0
    white = random.standard_normal((*amplitude.shape, 2), dtype=np.float32)
    spectrum = white.view(np.complex64)[..., 0] * amplitude
    field = np.fft.irfft2(spectrum, s=(length, length))[: shape[0], : shape[1]].astype(np.float32)
    step = np.abs(np.diff(field[::2], axis=1)).mean() + np.abs(np.diff(field[:, ::2], axis=0)).mean()
    return field * np.float32(2 / (max(step, 1e-12) * max(shape)))


def grid_shape(x: Array, y: Array) -> tuple[int, int]:
    """Rows and columns of the grid that the two coordinate arrays span."""
    return np.broadcast_shapes(x.shape, y.shape)


def cell_values(random: Random, column: Array, row: Array) -> Array:
    """Looks up one random number in [0, 1) for every cell of an integer grid, repeating after 32 cells."""
    table = random.random((32, 32), dtype=np.float32)
    return table[row.astype(np.intp) & 31, column.astype(np.intp) & 31]


def masonry(random: Random, x: Array, y: Array, pixel: float) -> Array:
    """Bricks, tiles, slabs or planks in courses, with sunk joints and bricks of uneven level and tilt."""
    rows = between(random, 1.2, 12.0)
    course, ratio = 1 / rows, (1, 1, 1.5, 2, 2.5, 3, 6)[int(7 * random.random())]
    upward = y * np.float32(rows) + np.float32(random.random())
    row = np.floor(upward)
    shift = (0 * row, 0.5 * (row % 2), row / 3, cell_values(random, 0 * row, row))[int(4 * random.random())]
    sideways = x * np.float32(rows / ratio) + np.float32(random.random()) + shift.astype(np.float32)
    if chance(random, 0.3):
        # A monotone warp of the courses makes bricks of uneven length without any search for the joint.
        sideways = sideways + np.float32(0.6) * np.sin(sideways + 7 * cell_values(random, 0 * row, row))
    column = np.floor(sideways)
    local_x, local_y = (sideways - column - 0.5) * np.float32(ratio * course), (upward - row - 0.5) * np.float32(course)
    joint = max(pixel, course * between(random, 0.02, 0.12)) / 2
    width = max(1.2 * pixel, course * between(random, 0.03, 0.2))
    corner = ("square", "square", "cut", "round")[int(4 * random.random())]
    distance = box_distance(
        local_x, local_y, ratio * course / 2 - joint, course / 2 - joint, max(width, course / 8), corner
    )
    if chance(random, 0.35):
        distance = distance + spectral_noise(random, grid_shape(x, y), 1.8, rows) * np.float32(
            between(random, 0.1, 0.4)
        )
    raised = bevel(distance, width, bevel_form(random))
    level = np.float32(width)
    if chance(random, 0.5):
        unevenness = width * random.random()
        level = level + np.float32(unevenness) * (cell_values(random, column, row) - 0.5)
    if chance(random, 0.35):
        tilt = np.float32(between(random, 0.05, 0.5))
        level = level + tilt * (cell_values(random, column, row) - 0.5) * local_x
        level = level + tilt * (cell_values(random, row, column) - 0.5) * local_y
    return raised * level


def split_rectangles(random: Random, count: int) -> list[tuple[float, float, float, float]]:
    """Cuts a square about as large as the tile into `count` boxes (left, bottom, right, top), the largest first."""
    margin = 0.16 * random.random() - 0.1
    rectangles = [(margin, margin, 1 - margin, 1 - margin)]
    while len(rectangles) < count:
        rectangles.sort(key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
        left, bottom, right, top = rectangles.pop()
        where = 0.5 if chance(random, 0.4) else 0.2 + 0.6 * random.random()
        if (right - left) * (0.5 + random.random()) > (top - bottom):
            cut = left + where * (right - left)
            rectangles += [(left, bottom, cut, top), (cut, bottom, right, top)]
        else:
            cut = bottom + where * (top - bottom)
            rectangles += [(left, bottom, right, cut), (left, cut, right, top)]
    return rectangles


def slots(random: Random, x: Array, y: Array, half_width: float, half_height: float, pixel: float) -> Array:
    """A vent: parallel slots or ribs that fill a box around the origin."""
    pitch = max(4 * pixel, half_height * between(random, 0.15, 0.8))
    folded = np.abs((y / np.float32(pitch)) % 1 - 0.5) * np.float32(pitch)
    folded = np.where(np.abs(y) < half_height - pitch / 2, folded, np.float32(9))
    thickness = pitch * (0.2 + 0.2 * random.random())
    width = max(pixel, thickness * between(random, 0.3, 1.0))
    distance = box_distance(x, folded, half_width, thickness, thickness, "round" if chance(random, 0.4) else "square")
    return np.float32(width) * bevel(distance, width, bevel_form(random))


def rivets(random: Random, x: Array, y: Array, half_width: float, half_height: float, pixel: float) -> Array:
    """Rivets in a row along two or four sides of a box around the origin."""
    radius = max(1.3 * pixel, between(random, 0.008, 0.03))
    pitch = radius * between(random, 4, 14)
    along_x = np.abs(x / np.float32(pitch) % 1 - 0.5) * np.float32(pitch)
    along_x = np.where(np.abs(x) < half_width - radius, along_x, np.float32(9))
    form = bevel_form(random)
    height = bevel(radius - np.hypot(along_x, np.abs(y) - (half_height - 2 * radius)), radius, form)
    if chance(random, 0.5):
        along_y = np.abs(y / np.float32(pitch) % 1 - 0.5) * np.float32(pitch)
        along_y = np.where(np.abs(y) < half_height - radius, along_y, np.float32(9))
        height = np.maximum(
            height, bevel(radius - np.hypot(np.abs(x) - (half_width - 2 * radius), along_y), radius, form)
        )
    return height * np.float32(radius)


def panels(random: Random, x: Array, y: Array, pixel: float) -> Array:
    """Plates that share the tile, parted by grooves, some with a frame, a vent, a boss or rivets on them."""
    joint = max(pixel, between(random, 0.004, 0.03)) / 2
    width = max(pixel, between(random, 0.006, 0.05))
    form = bevel_form(random)
    corner = ("square", "square", "cut", "round")[int(4 * random.random())]
    decorated = 0.3 + 0.7 * random.random()
    height = np.zeros(grid_shape(x, y), np.float32)
    for left, bottom, right, top in split_rectangles(random, 2 + int(8 * random.random())):
        local_x, local_y = x - np.float32((left + right) / 2), y - np.float32((bottom + top) / 2)
        half_width, half_height = (right - left) / 2 - joint, (top - bottom) / 2 - joint
        size = min(half_width, half_height)
        distance = box_distance(local_x, local_y, half_width, half_height, max(width, size / 4), corner)
        height += np.float32(width) * bevel(distance, width, form)
        if not chance(random, decorated):
            continue
        kind, inset, sign = (
            int(4 * random.random()),
            size * (0.2 + 0.3 * random.random()),
            np.float32(1 - 2 * random.random()),
        )
        if kind == 0:
            height += sign * np.float32(width) * bevel(distance - inset, width, form)
        elif kind == 1:
            height += sign * slots(random, local_x, local_y, half_width - inset, half_height - inset, pixel)
        elif kind == 2:
            height += rivets(random, local_x, local_y, half_width, half_height, pixel)
        else:
            radius = size * (0.3 + 0.5 * random.random())
            height += sign * np.float32(width) * bevel(radius - np.hypot(local_x, local_y), width, form)
    return height


def solids(random: Random, x: Array, y: Array, pixel: float) -> Array:
    """Two to nine raised or sunk boxes, discs, rings, capsules, vents and bars, often mirrored about the middle."""
    if chance(random, 0.35):
        x = np.abs(x - np.float32(0.5))
    if chance(random, 0.15):
        y = np.abs(y - np.float32(0.5))
    height = np.zeros(grid_shape(x, y), np.float32)
    form = bevel_form(random)
    common = max(pixel, between(random, 0.006, 0.06))
    for _ in range(2 + int(8 * random.random())):
        local_x, local_y = x - np.float32(random.random()), y - np.float32(random.random())
        half_width, half_height = between(random, 0.03, 0.45), between(random, 0.03, 0.45)
        size, kind = min(half_width, half_height), int(8 * random.random())
        width = common if chance(random, 0.7) else max(pixel, size * between(random, 0.1, 1.0))
        sign = np.float32(width if chance(random, 0.6) else -width)
        if kind == 0:
            height += sign * bevel(size - np.hypot(local_x, local_y), width, form)
        elif kind == 1:
            half = size * between(random, 0.05, 0.4)
            height += sign * bevel(half - np.abs(np.hypot(local_x, local_y) - np.float32(size)), min(width, half), form)
        elif kind == 2:
            height += (sign / width) * slots(random, local_x, local_y, half_width, half_height, pixel)
        elif kind == 3:
            height += sign * bevel(size / 3 - np.abs(local_y), width, form)
        else:
            corner = ("square", "cut", "round", "round")[kind - 4]
            distance = box_distance(local_x, local_y, half_width, half_height, size if kind == 7 else size / 3, corner)
            height += sign * bevel(distance, width, form)
            if chance(random, 0.3):
                height -= sign * bevel(distance - np.float32(width * between(random, 1, 4)), width, form)
    return height
