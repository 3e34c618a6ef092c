"""Square windows around holes, cut and pasted on the device: what a local discriminator or a local generator sees."""

import jax
import jax.numpy as jnp


def hole_windows(mask: jax.Array, side: int) -> jax.Array:
    """Returns where a window around each hole begins: centred on the hole's bounding box, moved inside the image.

    Args:
        mask: float32 (B, H, W, 1), 1 = hole.
        side: of the window in pixels, at most H and W.

    Returns:
        int32 (B, 2), row and column of the first pixel; the middle of the image where there is no hole.
    """
    corners = []
    for axis, other in ((1, 2), (2, 1)):
        extent = mask.shape[axis]
        place = jnp.arange(extent, dtype=jnp.int32)
        hit = jnp.max(mask[..., 0], axis=other) > 0.5
        first = jnp.min(jnp.where(hit, place, extent), axis=1)
        last = jnp.max(jnp.where(hit, place, -1), axis=1)
        # Without a hole first + last is extent - 1, as if the whole image were one.
        corners.append(jnp.clip((first + last + 1 - side) // 2, 0, extent - side))
    return jnp.stack(corners, axis=1)


def cut(images: jax.Array, corners: jax.Array, side: int) -> jax.Array:
    """Returns the windows (B, side, side, C) of images (B, H, W, C) that begin at `corners`, int32 (B, 2)."""

    def one(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (side, side, image.shape[-1]))

    return jax.vmap(one)(images, corners)


def paste(images: jax.Array, windows: jax.Array, corners: jax.Array) -> jax.Array:
    """Returns images (B, H, W, C) with windows (B, side, side, C) laid over them at `corners`, int32 (B, 2)."""

    def one(image: jax.Array, window: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(image, window.astype(image.dtype), (corner[0], corner[1], 0))

    return jax.vmap(one)(images, windows, corners)
