"""What the holes of the generator's input hold before it answers, one function a kind, all on the device.

Each is `fill(image, mask) -> image`: float32 (B, H, W, 3) in [-1, 1] or [0, 1], mask (B, H, W, 1), 1 = hole; known
pixels stay.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# The vector (0, 0, 1), which points out of the surface: 127.5 rounds half up.
FLAT_NORMAL = (128, 128, 255)
SMOOTHING_ROUNDS = 4


def mean(image: jax.Array, mask: jax.Array) -> jax.Array:
    """Fills with the mean of each image's known pixels."""
    known = 1.0 - mask
    count = jnp.maximum(jnp.sum(known, axis=(1, 2), keepdims=True), 1.0)
    average = jnp.sum(image * known, axis=(1, 2), keepdims=True) / count
    return image * known + average * mask


def harmonic(image: jax.Array, mask: jax.Array) -> jax.Array:
    """Fills smoothly from the border of the hole, near the solution of Laplace's equation; powers of two only.

    A pyramid of means of the known pixels answers from coarse to fine (push-pull: Gortler et al., "The Lumigraph",
    1996, section 3.4), with a few rounds of averaging over the four neighbours inside the hole at each level. An
    image without a known pixel becomes zero.

    Raises:
        ValueError: a height or width that is no power of two.
    """
    height, width = image.shape[1:3]
    if height & (height - 1) or width & (width - 1):
        raise ValueError(f"the harmonic fill needs sides that are powers of two, not {height}x{width}")
    known = 1.0 - mask
    levels = [(image * known, known)]
    while min(levels[-1][0].shape[1:3]) > 1:
        levels.append(tuple(_halve(x) for x in levels[-1]))
    total, share = levels[-1]
    estimate = total / jnp.maximum(share, 1e-8)
    for total, share in reversed(levels[:-1]):
        # A cell counts as known where most of it is: else a single pixel at the rim would speak for all of it.
        fixed = share > 0.5
        value = total / jnp.maximum(share, 1e-8)
        estimate = jnp.where(fixed, value, _double(estimate))
        for _ in range(SMOOTHING_ROUNDS):
            estimate = jnp.where(fixed, value, _neighbour_mean(estimate))
    return jnp.where(mask > 0, estimate, image)


def poisson(image: jax.Array, mask: jax.Array, answer: jax.Array) -> jax.Array:
    """Returns an answer moved onto the known pixels at the rim of the hole, its gradients inside kept.

    Poisson blending (P. Pérez, M. Gangnet, A. Blake, "Poisson image editing", 2003): the difference between picture
    and answer at the known pixels, continued harmonically into the hole, is added. Any height and width.

    Args:
        image, answer: float32 (B, H, W, C), one range.
        mask: float32 (B, H, W, 1), 1 = hole.
    """
    height, width = mask.shape[1:3]
    # What is added to reach powers of two is unknown, and so changes nothing.
    pad = [(0, 0), *((0, (1 << (side - 1).bit_length()) - side) for side in (height, width)), (0, 0)]
    difference = jnp.pad((image - answer) * (1.0 - mask), pad)
    offset = harmonic(difference, jnp.pad(mask, pad, constant_values=1.0))[:, :height, :width]
    return answer + offset


def _halve(x: jax.Array) -> jax.Array:
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def _double(x: jax.Array) -> jax.Array:
    """Bilinear enlargement by two, half-pixel centres, edges repeated."""
    for axis in (1, 2):
        before, after = _neighbours(x, axis)
        count = x.shape[axis]
        pairs = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis=axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * count, *x.shape[axis + 1 :])
    return x


def _neighbour_mean(x: jax.Array) -> jax.Array:
    (above, below), (left, right) = _neighbours(x, 1), _neighbours(x, 2)
    return (above + below + left + right) / 4.0


def _neighbours(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Returns what lies before and after each value along an axis, edges repeated."""
    # Not jnp.pad(mode="edge"): that also joins empty arrays to the axes that stay, which few other programs can read.
    count = x.shape[axis]
    first, last = (jax.lax.slice_in_dim(x, start, start + 1, axis=axis) for start in (0, count - 1))
    padded = jnp.concatenate([first, x, last], axis=axis)
    return tuple(jax.lax.slice_in_dim(padded, start, start + count, axis=axis) for start in (0, 2))


FILLS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "zero": lambda image, mask: image * (1.0 - mask),
    "mean": mean,
    "harmonic": harmonic,
}
