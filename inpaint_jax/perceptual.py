"""What VGG16 sees of a picture: features for the perceptual loss and for a discriminator, and the LPIPS metric.

VGG16's weights come in the step's argument `frozen`, `{"vgg16": …, "lpips": …}`: they are neither trained nor stored in
checkpoints.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections

from inpaint_jax import pretrained, task
from inpaint_jax.models.vgg import VGG16

Features = dict[str, jax.Array]
Tree = dict

LOSS = "perceptual"  # the `fn` of a loss term
LOSS_BLOCKS = ("block1", "block2", "block3")
JUDGED_BLOCK = 4  # what the discriminator "vgg" looks at


def needed_weights(config: ml_collections.ConfigDict) -> frozenset[str]:
    """Returns which pretrained weights a config needs, of "vgg16" and "lpips"."""
    looks = any(term.fn == LOSS and term.weight for term in config.losses.values())
    networks = config.generator.name == "vgg_unet" or config.discriminator.name == "vgg"
    return frozenset({"vgg16"} if looks or networks else ()) | ({"lpips"} if config.evaluation.lpips else frozenset())


def load_frozen(config: ml_collections.ConfigDict) -> Tree:
    """Returns the pretrained weights that a config needs, `{}` for one that needs none.

    Raises:
        ValueError: they are missing, damaged, or do not fit.
    """
    load = {
        "vgg16": lambda: pretrained.load_vgg16(config.vgg.weights, config.vgg.width),
        "lpips": pretrained.load_lpips,
    }
    return {name: load[name]() for name in sorted(needed_weights(config))}


def for_a_test(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the config of a saved model without what needs VGG16 in training alone: its discriminator and losses.

    The weights of a generator's own VGG16 are in the model, so that at most those of LPIPS are to be loaded.
    """
    config = config.copy_and_resolve_references()
    config.discriminator.name = "none"
    for term in config.losses.values():
        if term.fn == LOSS:
            term.weight = 0.0
    return config


def blocks_seen(config: ml_collections.ConfigDict) -> dict[str, int]:
    """Returns how many blocks of VGG16 are computed of which image, `{"image" | "output" | "completed": count}`."""
    blocks: dict[str, int] = {}
    seen = [(term.on, len(LOSS_BLOCKS)) for term in config.losses.values() if term.fn == LOSS and term.weight]
    if config.discriminator.name == "vgg":
        seen.append((config.discriminator.sees, JUDGED_BLOCK))
    for name, count in seen:
        for image in (name, "image"):
            blocks[image] = max(blocks.get(image, 0), count)
    return blocks


def features_of(
    config: ml_collections.ConfigDict, frozen: Mapping[str, Tree], images: Mapping[str, jax.Array]
) -> dict[str, Features]:
    """Returns VGG16's features of every image that a loss or the discriminator looks at, each computed once.

    Args:
        images: `image`, `output` and `completed`, float32 (B, H, W, 3) in `config.task.value_range`.

    Returns:
        `{"image": {"block1": (B, H, W, C), …}, …}`, `{}` where no one looks.
    """
    vgg = VGG16(config.vgg.width, jnp.dtype(config.dtype), config.remat)
    return {
        name: vgg.apply({"params": frozen["vgg16"]}, task.to_unit_range(images[name], config.task.value_range), blocks)
        for name, blocks in blocks_seen(config).items()
    }


def pooled(weight: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Averages a weight (B, H, W, 1) over what the pixels of a feature map (B, H / 2^n, W / 2^n, C) stand for."""
    # A power of two: odd last rows and columns were left out on the way.
    factor = 1 << ((weight.shape[1] // shape[1]).bit_length() - 1)
    weight = weight[:, : shape[1] * factor, : shape[2] * factor]
    return weight.reshape(-1, shape[1], factor, shape[2], factor, 1).mean(axis=(2, 4))


def _weighted_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Averages (B, h, w, C) over the weight (B, H, W, 1) at full resolution; 0 where that is 0 everywhere."""
    weight = pooled(weight, values.shape)
    # No hole is as small as this share of a feature's pixels.
    total = jnp.maximum(jnp.sum(weight, axis=(1, 2, 3)), 1e-6) * values.shape[-1]
    return jnp.sum(values * weight, axis=(1, 2, 3)) / total


def perceptual_loss(prediction: Features, target: Features, weight: jax.Array) -> jax.Array:
    """Mean squared error between VGG16's features before the first three max-pools, summed over the three.

    J. Johnson, A. Alahi, L. Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", 2016,
    section 3.2, at block1_conv2, block2_conv2 and block3_conv3.

    Args:
        prediction, target: of `features_of`.
        weight: (B, H, W, 1); a feature counts by its share of the region.

    Returns:
        float32 (B,).
    """
    return sum(
        _weighted_mean(jnp.square(prediction[name].astype(jnp.float32) - target[name].astype(jnp.float32)), weight)
        for name in LOSS_BLOCKS
    )


def judged(config: ml_collections.ConfigDict, features: Features, seen: jax.Array) -> dict[str, jax.Array]:
    """Returns what the discriminator "vgg" gets.

    Args:
        features: of the judged image.
        seen: `task.discriminator_input`, (B, H, W, C): the image, behind the condition where there is one.
    """
    condition = {"condition": seen[..., :-3]} if config.discriminator.condition == "input" else {}
    return {"features": features[f"block{JUDGED_BLOCK}"], **condition}


def _unit(features: jax.Array) -> jax.Array:
    return features / (jnp.sqrt(jnp.sum(jnp.square(features), axis=-1, keepdims=True)) + 1e-10)


def lpips_metrics(frozen: Tree, prediction: jax.Array, target: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Computes LPIPS with VGG16, version 0.1, of whole pictures and of their holes.

    R. Zhang, P. Isola, A. Efros, E. Shechtman, O. Wang, "The Unreasonable Effectiveness of Deep Features as a
    Perceptual Metric", CVPR 2018, equation 1. Of the whole picture it is the published metric. Of the hole, the
    distance at each position counts by the hole's share of it; the features there see known pixels around it too.

    Args:
        frozen: `pretrained.load_lpips()`.
        prediction, target: float32 (B, H, W, 3) in [0, 1].
        mask: float32 (B, H, W, 1), 1 = hole, 0 = known.

    Returns:
        `lpips_full` and `lpips_hole`, float32 (B,), 0 for equal pictures; lower is better.
    """
    # A GPU would by default multiply in TF32.
    with jax.default_matmul_precision("highest"):
        ours, true = (VGG16().apply({"params": frozen["vgg16"]}, pictures) for pictures in (prediction, target))
        distances = [
            jnp.square(_unit(ours[name]) - _unit(true[name])) @ linear[:, None]
            for name, linear in frozen["linear"].items()
        ]
    weights = {"lpips_full": jnp.ones_like(mask), "lpips_hole": mask}
    return {name: sum(_weighted_mean(d, weight) for d in distances) for name, weight in weights.items()}
