"""Hole masks: drawn on the device from a key; `mask_sets` draws sets for evaluation in the same way.

A mask is float32 (..., H, W, 1) with 1 = hole and 0 = known. Every family in `MASKS` turns a table of random integers
into at most K shapes, int32 (K, 6): kind, x0, y0, x1, y1, thickness. One rasteriser fills them with int32 arithmetic
alone, so the same integers give the same pixels on every device, version and platform. Training draws the table from
a JAX key; evaluation sets draw it from `np.random.RandomState`, whose stream NumPy has frozen.

A spec is a mapping such as `dict(name="lines", number=(4, 12), ratio=(0.05, 0.4))`; what it leaves out comes from
`MASK_DEFAULTS`. Lengths, sizes, margins and thicknesses are fractions of the shorter image side (at least one pixel),
so one spec serves every image size. Settings may also stand under a family's name, as in
`dict(name="mixture", lines=dict(number=(1, 3)))`; in a mixture the mixture's own `ratio` holds.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax

NONE, SEGMENT, RECTANGLE = 0, 1, 2
# Directions are counted in 1/256 turns. Rounding to 1/1024 leaves no entry near a tie, so every libm gives this table.
DIRECTIONS = 256
COSINE = tuple(round(1024 * math.cos(2 * math.pi * step / DIRECTIONS)) for step in range(DIRECTIONS))

RANDOM_BITS = 20
COLUMNS = ("x", "y", "direction", "turn", "length", "thickness", "number", "segments", "family")

# number: shapes (lines, squares) or strokes (freeform); segments: per stroke; turn: degrees; ratio: share of the
# image that is hole; positions: fixed top-left corners (x, y) as fractions of width and height, one drawn per square.
MASK_DEFAULTS = {
    "lines": {"number": (4, 16), "length": (0.2, 0.9), "thickness": (0.015, 0.085), "ratio": (0.03, 0.4)},
    "squares": {"number": (1, 1), "size": (0.2, 0.5), "margin": 0.0, "positions": (), "ratio": (0.01, 0.5)},
    "freeform": {
        "number": (1, 4),
        "segments": (3, 8),
        "turn": (40, 96),
        "length": (0.06, 0.3),
        "thickness": (0.04, 0.11),
        "ratio": (0.03, 0.4),
    },
    "mixture": {"weights": {"lines": 2.0, "squares": 1.0, "freeform": 2.0}, "ratio": (0.03, 0.5)},
}
_LIMITS = {"number": 1024, "segments": 64, "turn": 180, "length": 1, "thickness": 1, "size": 1, "ratio": 1}


def validate_mask_spec(spec: Mapping, size: int | tuple[int, int], sure: bool = True) -> dict:
    """Check a mask spec for an image size before anything is built, fill in the defaults and turn fractions to pixels.

    A spec that passes cannot give an empty mask: its largest shape fits within the largest ratio, and fits even when
    the hole is just below the least ratio, so both bounds can be kept.

    Args:
      spec: `name` (a key of `MASKS`) and the fields of that family, see `MASK_DEFAULTS`.
      size: side of a square image, or (height, width), in pixels.
      sure: whether every mask drawn is to keep the ratio, and few shapes to do for it; False where those that keep it
        are then taken out of many.

    Returns:
      Every field of the family, lengths in pixels, and the number of shapes to draw as `capacity`.

    Raises:
      ValueError: unknown family or field, a bad value, or ratio bounds that the shapes cannot keep at this size.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 8 or max(height, width) > 1024:
        raise ValueError(
            f"drawn masks need image sides from 8 to 1024 pixels, not {height}x{width}: change config.image_size, or "
            "use config.mask.name = 'files'"
        )
    fields = _with_defaults(spec)
    if fields["name"] != "mixture":
        return _in_pixels(fields, height, width, sure)
    weights, families = dict(fields["weights"]), set(MASKS) - {"mixture"}
    numbers = all(isinstance(x, int | float) and 0 <= x < math.inf for x in weights.values())
    if not set(weights) <= families or not numbers or not sum(weights.values()):
        raise ValueError(
            f"config.mask.mixture.weights = {weights}: needs finite weights >= 0, not all 0, "
            f"of {', '.join(sorted(families))}"
        )
    members = {}
    for family in sorted(family for family, weight in weights.items() if weight > 0):
        member = {"name": family, family: spec.get(family, {}), "ratio": fields["ratio"]}
        members[family] = validate_mask_spec(member, size, sure)
    return fields | {"members": members, "capacity": max(member["capacity"] for member in members.values())}


def _with_defaults(spec: Mapping) -> dict:
    name = spec.get("name")
    if name not in MASKS:
        raise ValueError(
            f"config.mask.name = {name!r}; known: {', '.join(sorted(MASKS))}, and files for pictures of masks"
        )
    own = {key: spec[key] for key in spec if key != "name" and key not in MASKS}
    fields = {**MASK_DEFAULTS[name], **dict(spec.get(name, {})), **own}
    for key, value in fields.items():
        if key not in MASK_DEFAULTS[name]:
            raise ValueError(f"mask family {name!r} has no field {key!r}; known: {', '.join(MASK_DEFAULTS[name])}")
        if key in _LIMITS:
            kind, least = (int, 1) if key in ("number", "segments") else (int | float, 0)
            pair = isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(x, kind) for x in value)
            if not (pair and least <= value[0] <= value[1] <= _LIMITS[key]):
                numbers = f"two {'whole ' if kind is int else ''}numbers {least} <= low <= high <= {_LIMITS[key]}"
                raise ValueError(f"{_field(name, key)} = {value}: needs {numbers}")
    return {"name": name, **fields}


def _field(name: str, key: str) -> str:
    return "config.mask.ratio" if key == "ratio" else f"config.mask.{name}.{key}"


def _pixels(fraction: float, side: int) -> int:
    return max(1, math.floor(fraction * side + 0.5))


def _in_pixels(fields: dict, height: int, width: int, sure: bool) -> dict:
    """Fields with lengths in pixels, and `capacity`: the largest number plus four times what the least ratio takes."""
    name, area, (low, high) = fields["name"], height * width, fields["ratio"]
    for key in {"length", "thickness", "size"} & set(fields):
        fields[key] = tuple(_pixels(fraction, min(height, width)) for fraction in fields[key])
    if name == "squares":
        fields = _placed_squares(fields, height, width)
        (least, largest), margin, rows = fields["size"], fields["margin"], 1
        typical, largest_area = (least + largest) ** 2 / 4, largest**2
        room = least**2 if fields["positions"] else (height - 2 * margin) * (width - 2 * margin) / 2
    else:
        segments = fields.get("segments", (1, 1))
        (length, thickness), rows, room = (fields["length"][1], fields["thickness"][1]), segments[1], area / 2
        typical = sum(segments) / 2 * sum(fields["length"]) * sum(fields["thickness"]) / 4
        largest_area = (length + thickness + 1) * (thickness + 1)
    if sure and (largest_area > (high - low) * area or low * area > room):
        raise ValueError(
            f"config.mask.ratio = {(low, high)} cannot be kept by {name!r} at {height}x{width}: one shape covers up to "
            f"{largest_area / area:.3f}, which must not exceed high - low, and low must not exceed {room / area:.3f}; "
            f"widen the ratio, or make the shapes smaller in config.mask.{name}"
        )
    capacity = rows * (fields["number"][1] + math.ceil(4 * low / (1 - low) * area / typical))
    limit = 256 if sure else 1024
    if capacity > limit:
        raise ValueError(
            f"{_field(name, 'number')} = {fields['number']} takes up to {capacity} shapes, over {limit}: lower it, or "
            "the low end of config.mask.ratio"
        )
    return fields | {"capacity": capacity}


def _placed_squares(fields: dict, height: int, width: int) -> dict:
    positions, margin = fields["positions"], fields["margin"]
    if not isinstance(margin, int | float) or not 0 <= margin < 0.5:
        raise ValueError(f"config.mask.squares.margin = {margin}: needs a number from 0 to below 0.5")
    pairs = isinstance(positions, list | tuple) and all(isinstance(p, list | tuple) and len(p) == 2 for p in positions)
    if not pairs or not all(isinstance(x, int | float) and 0 <= x <= 1 for pair in positions for x in pair):
        raise ValueError(
            f"config.mask.squares.positions = {positions}: needs pairs (x, y) of numbers from 0 to 1, such as "
            "((0.1, 0.2),)"
        )
    margin = math.floor(margin * min(height, width) + 0.5)
    corners = tuple((math.floor(x * width + 0.5), math.floor(y * height + 0.5)) for x, y in positions)
    outer = margin + fields["size"][1]
    inside = [margin <= min(x, y) and x <= width - outer and y <= height - outer for x, y in corners]
    if outer + margin > min(height, width) or not all(inside):
        raise ValueError(
            f"size, margin or positions in config.mask.squares leave no room in a {height}x{width} image; make them "
            "smaller"
        )
    return fields | {"margin": margin, "positions": corners}


def _between(random: jax.Array, low: int | jax.Array, high: int | jax.Array) -> jax.Array:
    # 20 random bits times at most 1025 values stays inside int32.
    return low + ((random * (high - low + 1)) >> RANDOM_BITS)


def _offset(direction: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    cosine, sine_direction = jnp.asarray(COSINE, jnp.int32), direction - DIRECTIONS // 4
    return tuple((length * cosine[step % DIRECTIONS] + 512) >> 10 for step in (direction, sine_direction))


def _lines(random: Mapping, height: int, width: int, parameters: Mapping) -> tuple[jax.Array, jax.Array]:
    """Straight lines with round ends from a random pixel in a random direction; they may leave the image."""
    x, y = _between(random["x"], 0, width - 1), _between(random["y"], 0, height - 1)
    length = _between(random["length"], *parameters["length"])
    thickness = _between(random["thickness"], *parameters["thickness"])
    dx, dy = _offset(_between(random["direction"], 0, DIRECTIONS - 1), length)
    shapes = jnp.stack([jnp.full_like(x, SEGMENT), x, y, x + dx, y + dy, thickness], axis=-1)
    return shapes, _between(random["number"][0], *parameters["number"])


def _squares(random: Mapping, height: int, width: int, parameters: Mapping) -> tuple[jax.Array, jax.Array]:
    """Filled squares, anywhere inside the margin or at one of the fixed positions."""
    size = _between(random["length"], *parameters["size"])
    if corners := parameters["positions"]:
        x, y = jnp.asarray(corners, jnp.int32)[_between(random["turn"], 0, len(corners) - 1)].T
    else:
        margin = parameters["margin"]
        x = _between(random["x"], margin, width - margin - size)
        y = _between(random["y"], margin, height - margin - size)
    kind = jnp.full_like(x, RECTANGLE)
    shapes = jnp.stack([kind, x, y, x + size - 1, y + size - 1, jnp.zeros_like(x)], axis=-1)
    return shapes, _between(random["number"][0], *parameters["number"])


def _freeform(random: Mapping, height: int, width: int, parameters: Mapping) -> tuple[jax.Array, jax.Array]:
    """Brush strokes: chains of segments that turn to alternate sides (Yu et al. 2019, DeepFill v2, algorithm 1).

    Unlike there, each stroke has a heading of its own, and is reflected where it would leave the image.
    """
    capacity, rows = random["x"].shape[0], parameters["segments"][1]
    strokes = capacity // rows
    grid = {column: values[: strokes * rows].reshape(strokes, rows) for column, values in random.items()}
    step = jnp.arange(rows, dtype=jnp.int32)
    turn = _between(grid["turn"], *(_pixels(degrees / 360, DIRECTIONS) for degrees in parameters["turn"]))
    heading = _between(grid["direction"][:, :1], 0, DIRECTIONS - 1) + jnp.where(step % 2 == 0, -turn, turn)
    offsets = _offset(heading, _between(grid["length"], *parameters["length"]))
    ends = []
    for column, offset, side in zip(("x", "y"), offsets, (width, height), strict=True):
        start = _between(grid[column][:, :1], 0, side - 1)
        path = jnp.concatenate([start, start + jnp.cumsum(offset, axis=1, dtype=jnp.int32)], axis=1)
        folded = path % (2 * (side - 1))
        ends.append(jnp.minimum(folded, 2 * (side - 1) - folded))
    thickness = _between(grid["thickness"][:, :1], *parameters["thickness"])
    drawn = step < _between(grid["segments"][:, :1], *parameters["segments"])
    (x, y), kind = ends, jnp.where(drawn, SEGMENT, NONE)
    columns = jnp.broadcast_arrays(kind, x[:, :-1], y[:, :-1], x[:, 1:], y[:, 1:], thickness)
    shapes = jnp.stack(columns, axis=-1).reshape(-1, 6)
    return jnp.pad(shapes, ((0, capacity - len(shapes)), (0, 0))), rows * _between(
        random["number"][0], *parameters["number"]
    )


def _mixture(random: Mapping, height: int, width: int, parameters: Mapping) -> tuple[jax.Array, jax.Array]:
    """One family per mask, drawn with the given weights."""
    members = parameters["members"]
    drawn = [MASKS[name](random, height, width, member) for name, member in members.items()]
    weights = [parameters["weights"][name] for name in members]
    limits = [math.floor(2**RANDOM_BITS * sum(weights[: i + 1]) / sum(weights)) for i in range(len(weights) - 1)]
    family = jnp.sum(random["family"][0] >= jnp.asarray(limits, jnp.int32), dtype=jnp.int32)
    return tuple(jnp.stack(values)[family] for values in zip(*drawn, strict=True))


# family(random, height, width, parameters) -> shapes int32 (K, 6), how many of them to use; `random` maps COLUMNS to
# int32 (K,) of 20 random bits each.
MASKS = {"lines": _lines, "squares": _squares, "freeform": _freeform, "mixture": _mixture}


def _ceil_square_root(value: jax.Array) -> jax.Array:
    root = jnp.zeros_like(value)
    for bit in reversed(range(15)):
        larger = root + (1 << bit)
        root = jnp.where(larger * larger <= value, larger, root)
    return jnp.where(root * root < value, root + 1, root)


def _inside(shape: jax.Array, height: int, width: int) -> jax.Array:
    """Pixels of one shape int32 (6,) as bool (H, W)."""
    kind, x0, y0, x1, y1, thickness = shape
    x = jnp.arange(width, dtype=jnp.int32)[None, :]
    y = jnp.arange(height, dtype=jnp.int32)[:, None]
    dx, dy, ax, ay = x1 - x0, y1 - y0, x - x0, y - y0
    square = dx * dx + dy * dy
    # Half the thickness times the length; the root of 256 times the square gives the length to 1/16 pixel.
    reach = thickness * _ceil_square_root(256 * square) // 32
    cap = thickness * thickness // 4
    along, across, from_start = dx * ax + dy * ay, dx * ay - dy * ax, ax * ax + ay * ay
    strip = (square > 0) & (along >= 0) & (along <= square) & (jnp.abs(across) <= reach)
    segment = strip | (from_start <= cap) | (from_start - 2 * along + square <= cap)
    rectangle = (ax >= 0) & (x <= x1) & (ay >= 0) & (y <= y1)
    return ((kind == SEGMENT) & segment) | ((kind == RECTANGLE) & rectangle)


def rasterise(shapes: jax.Array, height: int, width: int) -> jax.Array:
    """Fill shapes with integer arithmetic alone: pixels whose centre is at most half the thickness from a segment.

    Args:
      shapes: int32 (K, 6): kind (0 none, 1 segment with round ends, 2 rectangle with both corners), x0, y0, x1, y1,
        thickness, in pixels; the ends of a segment less than 2048 apart and within 1024 of the image.

    Returns:
      bool (height, width), True inside any shape.
    """
    shapes, empty = jnp.asarray(shapes, jnp.int32), jnp.zeros((height, width), bool)
    return lax.fori_loop(0, len(shapes), lambda i, mask: mask | _inside(shapes[i], height, width), empty)


def shapes_and_mask(table: jax.Array, height: int, width: int, parameters: Mapping) -> tuple[jax.Array, jax.Array]:
    """Shapes int32 (K, 6), kind 0 where not used, and their mask, bool (H, W), from random integers (K, columns).

    Shapes are used in turn until the drawn number and the least ratio are reached; one too large is left out.
    """
    shapes, number = MASKS[parameters["name"]](dict(zip(COLUMNS, table.T, strict=True)), height, width, parameters)
    low, high = parameters["ratio"]
    least, most = math.ceil(low * height * width), math.floor(high * height * width)

    # A loop of fixed length: a condition would make an accelerator ask the host at every turn.
    def use(i: jax.Array, state: tuple) -> tuple:
        mask, covered, used = state
        wider = mask | _inside(shapes[i], height, width)
        count = jnp.sum(wider, dtype=jnp.int32)
        use_it = ((i < number) | (covered < least)) & (count <= most)
        return jnp.where(use_it, wider, mask), jnp.where(use_it, count, covered), used.at[i].set(use_it)

    start = (jnp.zeros((height, width), bool), jnp.int32(0), jnp.zeros(len(shapes), bool))
    mask, _, used = lax.fori_loop(0, len(shapes), use, start)
    return jnp.where(used[:, None], shapes, 0), mask


def draw_mask(key: jax.Array, height: int, width: int, spec: Mapping) -> jax.Array:
    """Draw one hole mask on the device, a pure function of the key; vmap it over keys for a batch.

    Mean hole ratio of the defaults over 1024 keys at 128x128 (5th to 95th percentile): lines 0.18 (0.06 to 0.30),
    squares 0.13 (0.04 to 0.24), freeform 0.14 (0.04 to 0.25), mixture 0.15 (0.04 to 0.27).

    Args:
      spec: static, see `validate_mask_spec`, whose errors it raises.

    Returns:
      float32 (height, width, 1), 1 = hole, its mean within the spec's `ratio`.
    """
    parameters = validate_mask_spec(spec, (height, width))
    bits = jax.random.bits(key, (parameters["capacity"], len(COLUMNS)), jnp.uint32) >> (32 - RANDOM_BITS)
    return shapes_and_mask(bits.astype(jnp.int32), height, width, parameters)[1][..., None].astype(jnp.float32)


def dilate(mask: jax.Array, pixels: int) -> jax.Array:
    """Grow the hole of float masks (..., H, W, 1) by `pixels` in each direction, diagonals included."""
    # Rows, then columns: the window's cost is then its side, not its area.
    for window in ((2 * pixels + 1, 1, 1), (1, 2 * pixels + 1, 1)):
        window = (1,) * (mask.ndim - 3) + window
        mask = lax.reduce_window(mask, -jnp.inf, lax.max, window, (1,) * mask.ndim, "SAME")
    return mask


def band(mask: jax.Array, pixels: int) -> jax.Array:
    """Known pixels at most `pixels` from the hole, for float masks (..., H, W, 1): the dilated hole minus the hole."""
    return dilate(mask, pixels) - mask
