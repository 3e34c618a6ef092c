"""Networks by name: `build_generator(config)`, `build_discriminator(config)`."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from inpaint_jax import task
from inpaint_jax.config import SIZE_MULTIPLES
from inpaint_jax.models.attention_unet import AttentionUNet
from inpaint_jax.models.completion import CompletionNetwork
from inpaint_jax.models.landscapes import EncoderDecoder, PoolingUNet
from inpaint_jax.models.local_global import LocalGlobalDiscriminator
from inpaint_jax.models.patchgan import PatchGAN
from inpaint_jax.models.small_patch import SmallPatchDiscriminator
from inpaint_jax.models.unet import UNet
from inpaint_jax.models.vgg import VGGDiscriminator, VGGUNet


def _unet(config: ml_collections.ConfigDict, axis_name: str | None) -> nn.Module:
    return UNet(
        size=task.input_shapes(config)["generator"][0],
        width=config.generator.width,
        skips=config.generator.skips,
        norm=config.generator.normalisation,
        refine=config.generator.refine,
        residual=config.generator.residual,
        output=config.generator.output,
        dropout=config.generator.dropout,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
    )


def _vgg_unet(config: ml_collections.ConfigDict, axis_name: str | None) -> nn.Module:
    return VGGUNet(
        picture_channels=task.INPUT_CHANNELS[config.task.inputs[0]],
        value_range=config.task.value_range,
        vgg_width=config.vgg.width,
        width=config.generator.width,
        norm=config.generator.normalisation,
        dropout=config.generator.dropout,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
    )


def _attention_unet(config: ml_collections.ConfigDict, axis_name: str | None) -> nn.Module:
    del axis_name  # it has no batch statistics
    return AttentionUNet(
        width=config.generator.width, residual=config.generator.residual, dtype=jnp.dtype(config.dtype)
    )


def _completion(config: ml_collections.ConfigDict, axis_name: str | None) -> nn.Module:
    return CompletionNetwork(
        width=config.generator.width,
        norm=config.generator.normalisation,
        output=config.generator.output,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
    )


def _pooling_unet(config: ml_collections.ConfigDict, axis_name: str | None) -> nn.Module:
    del axis_name  # it has no batch statistics
    return PoolingUNet(width=config.generator.width, dtype=jnp.dtype(config.dtype))


def _encoder_decoder(config: ml_collections.ConfigDict, axis_name: str | None) -> nn.Module:
    return EncoderDecoder(width=config.generator.width, dtype=jnp.dtype(config.dtype), axis_name=axis_name)


Builder = Callable[[ml_collections.ConfigDict, str | None], nn.Module]
GENERATORS: dict[str, Builder] = {
    "unet": _unet,
    "attention_unet": _attention_unet,
    "completion": _completion,
    "pooling_unet": _pooling_unet,
    "encoder_decoder": _encoder_decoder,
    "vgg_unet": _vgg_unet,
}
# Discriminators have the same attributes: width, norm, dtype and axis_name.
DISCRIMINATORS: dict[str, type[nn.Module]] = {
    "patchgan": PatchGAN,
    "small_patch": SmallPatchDiscriminator,
    "local_global": LocalGlobalDiscriminator,
    "vgg": VGGDiscriminator,
}


def build_generator(config: ml_collections.ConfigDict, axis_name: str | None = None) -> nn.Module:
    """Returns the generator that `config.generator` names: `apply(variables, (B, H, W, C), train)` -> (B, H, W, 3).

    Args:
        config: the whole config; its image size and dtype matter too.
        axis_name: mapped axis over which batch statistics are synchronised in training; None outside of a map.

    Raises:
        ValueError: an unknown name.
    """
    return _lookup(GENERATORS, "generator", config.generator.name)(config, axis_name)


def build_discriminator(config: ml_collections.ConfigDict, axis_name: str | None = None) -> nn.Module | None:
    """Returns the discriminator that `config.discriminator` names, or None for "none"; logits, see the modules.

    Raises:
        ValueError: an unknown name.
    """
    if config.discriminator.name == "none":
        return None
    return _lookup(DISCRIMINATORS, "discriminator", config.discriminator.name)(
        width=config.discriminator.width,
        norm=config.discriminator.normalisation,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
    )


def size_multiple(config: ml_collections.ConfigDict) -> int:
    """Returns what the height and width of a picture must be multiples of for the generator to take it."""
    return SIZE_MULTIPLES.get(config.generator.name, 1) or task.input_shapes(config)["generator"][0]


def _lookup(known: Mapping[str, Callable], what: str, name: str) -> Callable:
    if name not in known:
        raise ValueError(f"config.{what}.name = {name!r}: known names are {', '.join(sorted(known))}")
    return known[name]
