"""Networks by name: `build_generator(config)`, `build_discriminator(config)`."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from inpaint_jax.models.patchgan import PatchGAN
from inpaint_jax.models.unet import UNet


def _unet(config: ml_collections.ConfigDict, axis_name: str | None) -> nn.Module:
    return UNet(
        size=config.image_size,
        width=config.generator.width,
        skips=config.generator.skips,
        norm=config.generator.normalisation,
        refine=config.generator.refine,
        residual=config.generator.residual,
        output=config.generator.output,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
    )


def _patchgan(config: ml_collections.ConfigDict, axis_name: str | None) -> nn.Module:
    return PatchGAN(
        width=config.discriminator.width,
        norm=config.discriminator.normalisation,
        dtype=jnp.dtype(config.dtype),
        axis_name=axis_name,
    )


Builder = Callable[[ml_collections.ConfigDict, str | None], nn.Module]
GENERATORS: dict[str, Builder] = {"unet": _unet}
DISCRIMINATORS: dict[str, Builder] = {"patchgan": _patchgan}


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
    return _lookup(DISCRIMINATORS, "discriminator", config.discriminator.name)(config, axis_name)


def size_multiple(config: ml_collections.ConfigDict) -> int:
    """Returns what the height and width of a picture must be multiples of for the generator to take it."""
    return config.image_size


def _lookup(known: dict[str, Builder], what: str, name: str) -> Builder:
    if name not in known:
        raise ValueError(f"config.{what}.name = {name!r}: known names are {', '.join(sorted(known))}")
    return known[name]
