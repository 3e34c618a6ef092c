"""The only place that assembles: uint8 batch -> value range -> what generator and discriminator see -> completed."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections

from inpaint_jax import augment, fills, keys, masks, windows

VIEWS = ("full", "window")
INPUT_CHANNELS = {"masked": 3, "mask": 1, "mask3": 3, "luminance": 1}
# ITU-R BT.601, as the common conversions to grey use.
_LUMINANCE = (0.299, 0.587, 0.114)


# What VGG16 can see as a picture.
PICTURES = ("masked", "luminance")


def to_value_range(image: jax.Array, value_range: tuple[float, float]) -> jax.Array:
    """Maps uint8 [0, 255] to float32 in `value_range`."""
    low, high = value_range
    return image.astype(jnp.float32) * ((high - low) / 255.0) + low


def from_unit_range(image: jax.Array, value_range: tuple[float, float]) -> jax.Array:
    """Maps [0, 1] to `value_range`."""
    low, high = value_range
    return image * (high - low) + low


def to_unit_range(image: jax.Array, value_range: tuple[float, float]) -> jax.Array:
    """Maps `value_range` to [0, 1]; what lies outside of it stays outside."""
    low, high = value_range
    return (image - low) / (high - low)


def from_value_range(image: jax.Array, value_range: tuple[float, float]) -> jax.Array:
    """Maps `value_range` to float32 [0, 1], clipped."""
    return jnp.clip(to_unit_range(image, value_range), 0.0, 1.0)


def to_uint8(image: jax.Array, value_range: tuple[float, float]) -> jax.Array:
    """Maps `value_range` to uint8, rounded to nearest."""
    return jnp.round(from_value_range(image, value_range) * 255.0).astype(jnp.uint8)


def validate_task(config: ml_collections.ConfigDict) -> None:
    """Checks `config.task`.

    Raises:
        ValueError: no input token or an unknown one, a residual generator that does not see the masked image first, or
            a window that does not fit.
    """
    for token in config.task.inputs:
        if token not in INPUT_CHANNELS:
            known = ", ".join(INPUT_CHANNELS)
            raise ValueError(f"config.task.inputs has {token!r}: known tokens are {known}")
    if not config.task.inputs:
        raise ValueError("config.task.inputs is empty: name at least one of " + ", ".join(INPUT_CHANNELS))
    if config.generator.residual and config.task.inputs[0] != "masked":
        raise ValueError("config.generator.residual adds to the masked image: config.task.inputs must begin with it")
    if config.generator.name == "vgg_unet" and config.task.inputs[0] not in PICTURES:
        raise ValueError(
            f"config.generator.name = 'vgg_unet' sees the first of config.task.inputs as a picture: let it be "
            f"{' or '.join(PICTURES)}, not {config.task.inputs[0]!r}"
        )
    _validate_window(config)


def _validate_window(config: ml_collections.ConfigDict) -> None:
    views, side = tuple(config.discriminator.views), window_side(config)
    if not views or len(set(views)) < len(views) or not set(views) <= set(VIEWS):
        raise ValueError(f'config.discriminator.views = {views}: give ("full",), ("window",) or ("full", "window")')
    if "window" in (*views, config.task.view) and not 8 <= side <= config.image_size:
        raise ValueError(
            f"config.task.window = {config.task.window:g} makes a window of {side} pixels: it must have from 8 to "
            f"config.image_size = {config.image_size}"
        )
    if "window" in (*views, config.task.view) and config.discriminator.condition != "none":
        raise ValueError(
            'config.discriminator.condition must be "none" where config.task.view or config.discriminator.views has a '
            "window"
        )
    squares = config.mask.squares
    single = config.mask.name == "squares" and squares.number[1] == 1
    if config.task.view == "window" and not single:
        raise ValueError(
            f"the generator works on a window of {side} pixels (config.task.view), and holes may be larger: set "
            'config.mask.name = "squares" with one square that fits'
        )
    if "window" in (*views, config.task.view) and single:
        if squares.size[1] * config.image_size > side:
            raise ValueError(
                f"config.mask.squares.size = {tuple(squares.size)} has squares larger than the window of {side} pixels "
                "around them: widen config.task.window"
            )
        # Squares are added until the least ratio is reached, and two would not fit the window.
        if config.mask.ratio[0] > squares.size[0] ** 2:
            raise ValueError(
                f"config.mask.ratio = {tuple(config.mask.ratio)} asks for more than one square of "
                f"config.mask.squares.size = {tuple(squares.size)}, and the window around the hole is for one: lower "
                "the first ratio to 0"
            )


def window_side(config: ml_collections.ConfigDict) -> int:
    """Returns the side of the window around a hole in pixels."""
    return round(config.task.window * config.image_size)


def input_shapes(config: ml_collections.ConfigDict) -> dict[str, tuple | dict[str, tuple]]:
    """Returns the shapes (H, W, C) of one example's inputs: of the generator, and of the discriminator by view.

    As the networks take them: one shape, or for a discriminator with several views a mapping.
    """
    sides = {"full": config.image_size, "window": window_side(config)}
    side, seen = sides[config.task.view], input_channels(config)
    judged = 3 + (seen if config.discriminator.condition == "input" else 0)
    views = {view: (sides[view], sides[view], judged) for view in config.discriminator.views}
    shapes = views if len(views) > 1 else next(iter(views.values()))
    if config.discriminator.name == "vgg":
        # It sees the features before VGG16's fourth max-pool, and the condition beside them.
        shapes = {"features": (sides["full"] // 8, sides["full"] // 8, 8 * config.vgg.width)}
        if judged > 3:
            shapes["condition"] = (sides["full"], sides["full"], seen)
    return {"generator": (side, side, seen), "discriminator": shapes}


def input_channels(config: ml_collections.ConfigDict) -> int:
    """Returns the number of channels that the generator sees."""
    return sum(INPUT_CHANNELS[token] for token in config.task.inputs)


def training_example(config: ml_collections.ConfigDict, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns `image` and `mask` of a training batch, every random choice keyed by its slot.

    The slots come along, for what else is random.

    Args:
        batch: image uint8 (B, H, W, 3), slot int32 (B,), and mask uint8 (B, H, W, 1) where masks come from files.

    Returns:
        image float32 (B, H, W, 3) in the value range, mask float32 (B, H, W, 1), 1 = hole.
    """
    image, slot = batch["image"], batch["slot"]
    value_range = config.task.value_range
    if config.data.augment:
        normal_y = config.data.normal_y if config.data.kind == "normal_maps" else "none"
        if normal_y == "mixed":
            # A quarter turn by the other convention's rule gives the turned map of the inverted relief (dents for
            # bumps), which is a valid map too: for a mixed set either rule will do.
            normal_y = "up"
        # Turning vectors negates channels, which is exact only around zero.
        centred = to_value_range(image, (-1.0, 1.0))
        turned = jax.vmap(lambda key, one: augment.augment(key, one, normal_y, config.data.turns))(
            keys.slot_keys(config.seed, "augment", slot), centred
        )
        low, high = value_range
        image = (turned + 1.0) * ((high - low) / 2.0) + low
    else:
        image = to_value_range(image, value_range)
    if "mask" in batch:
        mask = batch["mask"].astype(jnp.float32)
    else:
        spec = mask_spec(config)
        height, width = image.shape[1:3]
        mask = jax.vmap(lambda key: masks.draw_mask(key, height, width, spec))(
            keys.slot_keys(config.seed, "mask", slot)
        )
    return {"image": image, "mask": mask, "slot": slot}


def evaluation_example(config: ml_collections.ConfigDict, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns `image` and `mask` of an evaluation batch, uint8 image and mask in it: nothing random."""
    image = to_value_range(batch["image"], config.task.value_range)
    return {"image": image, "mask": batch["mask"].astype(jnp.float32)}


def mask_spec(config: ml_collections.ConfigDict) -> dict:
    """Returns the specification of the mask family as `masks` takes it."""
    # A family without a section in the config has its defaults.
    families = {name: config.mask[name].to_dict() for name in masks.MASKS if name in config.mask}
    return {"name": config.mask.name, "ratio": tuple(config.mask.ratio), **families}


def validate_mask(config: ml_collections.ConfigDict) -> None:
    """Checks `config.mask` at the config's image size; what `files` hold is checked when they are read.

    Raises:
        ValueError: an unknown name, or bounds that the masks cannot keep.
    """
    if config.mask.name != "files":
        masks.validate_mask_spec(mask_spec(config), config.image_size)


def masked_image(config: ml_collections.ConfigDict, image: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the image with its hole filled as `config.task.fill` says, (B, H, W, 3)."""
    if config.task.fill == "flat_normal":
        flat = to_value_range(jnp.array(fills.FLAT_NORMAL, jnp.uint8), config.task.value_range)
        return image * (1.0 - mask) + flat * mask
    return fills.FILLS[config.task.fill](image, mask)


def generator_input(config: ml_collections.ConfigDict, image: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns what the generator sees, (B, H, W, C) in the order of `config.task.inputs`: of all, or of the window."""
    if config.task.view == "window":
        # Cut before the hole is filled, so that the fill too knows the window alone, as when a model is used.
        image, mask = (_view(config, x, mask) for x in (image, mask))
    masked = masked_image(config, image, mask)
    parts = {
        "masked": lambda: masked,
        "mask": lambda: mask,
        "mask3": lambda: jnp.repeat(mask, 3, axis=-1),
        "luminance": lambda: masked @ jnp.array(_LUMINANCE, masked.dtype)[:, None],
    }
    return jnp.concatenate([parts[token]() for token in config.task.inputs], axis=-1)


def _view(config: ml_collections.ConfigDict, images: jax.Array, mask: jax.Array) -> jax.Array:
    side = window_side(config)
    return windows.cut(images, windows.hole_windows(mask, side), side)


def generator_output(
    config: ml_collections.ConfigDict, image: jax.Array, mask: jax.Array, answer: jax.Array
) -> jax.Array:
    """Returns the generator's answer at the size of the image; that to a window is laid over the known pixels."""
    if config.task.view == "full":
        return answer
    corners = windows.hole_windows(mask, window_side(config))
    return windows.paste(image * (1.0 - mask), answer, corners)


def complete(image: jax.Array, mask: jax.Array, output: jax.Array) -> jax.Array:
    """Returns the image with its hole taken from the output."""
    return image * (1.0 - mask) + output * mask


def discriminator_input(
    config: ml_collections.ConfigDict, image: jax.Array, mask: jax.Array, condition: jax.Array
) -> jax.Array | dict[str, jax.Array]:
    """Returns what the discriminator sees of an image, as `config.discriminator.views` says.

    Args:
        condition: the generator's input, which stands before the image where `config.discriminator.condition` says so.

    Returns:
        The image (B, H, W, C), the window around its hole, or both as `{"full", "window"}`.
    """
    if config.discriminator.condition == "input":
        image = jnp.concatenate([condition, image], axis=-1)
    views = {view: _view(config, image, mask) if view == "window" else image for view in config.discriminator.views}
    return views if len(views) > 1 else next(iter(views.values()))
