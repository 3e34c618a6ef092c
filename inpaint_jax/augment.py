"""Flips and quarter turns on the device, keyed per example; normal maps turn their vectors too.

With x right and y up, a counter-clockwise quarter turn of the picture takes the vector (x, y) to (-y, x) and a
left-right flip takes x to -x. Where the file stores y down, the stored pair (x, y) goes to (y, -x) instead.
"""

import jax
import jax.numpy as jnp

# Sine of one counter-clockwise quarter turn, in the stored channels.
NORMAL_Y = {"none": None, "up": 1.0, "down": -1.0}


def _sine(normal_y: str) -> float | None:
    if normal_y not in NORMAL_Y:
        raise ValueError(f"unknown normal_y {normal_y!r}; known: {', '.join(NORMAL_Y)}")
    return NORMAL_Y[normal_y]


def flip_left_right(image: jax.Array, normal_y: str = "none") -> jax.Array:
    """Mirror an image left to right.

    Args:
      image: float (H, W, 3); for normal maps the unit vectors themselves, in [-1, 1].
      normal_y: "none" for photographs, "up" or "down" for normal maps, by where the green channel points.

    Raises:
      ValueError: unknown `normal_y`.
    """
    flipped = image[:, ::-1]
    if _sine(normal_y) is None:
        return flipped
    return flipped * jnp.asarray([-1, 1, 1], image.dtype)


def rotate_quarter(image: jax.Array, turns: int | jax.Array, normal_y: str = "none") -> jax.Array:
    """Turn a square image counter-clockwise by a number of quarter turns, which may be traced.

    Args:
      image: float (S, S, 3); for normal maps the unit vectors themselves, in [-1, 1].
      turns: whole number of quarter turns, any sign.
      normal_y: as for `flip_left_right`.

    Raises:
      ValueError: the image is not square, or `normal_y` is unknown.
    """
    if image.shape[0] != image.shape[1]:
        raise ValueError(f"quarter turns need a square image, not {image.shape[0]}x{image.shape[1]}")
    turns = jnp.asarray(turns, jnp.int32) % 4
    # One quarter turn, then one half turn: two choices under vmap where a switch would compute four.
    image = jnp.where(turns % 2 == 1, jnp.rot90(image), image)
    image = jnp.where(turns >= 2, image[::-1, ::-1], image)
    sine = _sine(normal_y)
    if sine is None:
        return image
    cosines, sines = jnp.asarray([1, 0, -1, 0], image.dtype), jnp.asarray([0, sine, 0, -sine], image.dtype)
    x, y = image[..., 0], image[..., 1]
    turned = (cosines[turns] * x - sines[turns] * y, sines[turns] * x + cosines[turns] * y)
    return jnp.stack([*turned, image[..., 2]], axis=-1)


def augment(key: jax.Array, image: jax.Array, normal_y: str = "none", turns: bool = True) -> jax.Array:
    """Apply one of the eight flips and quarter turns of a square image, each equally likely; vmap it for a batch.

    Args:
      key: one JAX key.
      image: float32 (S, S, 3) in [-1, 1].
      normal_y: "none" for photographs; "up" or "down" for normal maps, whose vectors turn with the picture.
      turns: False leaves it at the left-right flip, for pictures that have an upper side, such as faces.

    Raises:
      ValueError: as `rotate_quarter`.
    """
    variant = jax.random.randint(key, (), 0, 8)
    image = jnp.where(variant >= 4, flip_left_right(image, normal_y), image)
    if not turns:
        return image
    return rotate_quarter(image, variant % 4, normal_y)
