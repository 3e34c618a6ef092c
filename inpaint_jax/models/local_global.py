"""The discriminator of globally and locally consistent image completion: the whole image and the window with its hole.

Iizuka, Simo-Serra and Ishikawa, "Globally and Locally Consistent Image Completion", SIGGRAPH 2017, section 3.3.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from inpaint_jax.models.layers import Conv, normalisation

# Side, in pixels, at which a tower ends and its dense layer begins.
_LAST_SIDE = 4

# He et al. 2015: without normalisation, a deviation that ignores the number of inputs, such as pix2pix's 0.02, would
# let values shrink from layer to layer.
_AFTER_RELU = nn.initializers.he_normal()
_LINEAR = nn.initializers.lecun_normal()


class Tower(nn.Module):
    """Maps square images (B, side, side, C) to (B, 1, 1, 16 * width) features, in the compute type.

    5x5 convolutions of stride 2, with 1, 2, 4, 8, 8, ... times `width` features, down to 4x4, and one dense layer.

    Attributes:
        width, norm, dtype, axis_name: see :class:`LocalGlobalDiscriminator`.
    """

    width: int
    norm: str
    dtype: jnp.dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Describes images; raises ValueError unless their side is a power of two, at least 8."""
        x = x.astype(self.dtype)
        for level in range(self._halvings(*x.shape[1:3])):
            plain = level == 0 or self.norm == "none"
            options = {"use_bias": plain, "dtype": self.dtype, "kernel_init": _AFTER_RELU, "name": f"conv{level}"}
            x = Conv(self.width * min(2**level, 8), 5, stride=2, padding=2, **options)(x)
            if not plain:
                x = normalisation(self.norm, self.dtype, self.axis_name, f"conv{level}_norm")(x, not train)
            x = nn.relu(x)
        # The dense layer over all places and channels, as a convolution that sees them all at once.
        dense = {"formulation": "matrix", "dtype": self.dtype, "kernel_init": _AFTER_RELU, "name": "dense"}
        return nn.relu(Conv(16 * self.width, _LAST_SIDE, **dense)(x))

    def _halvings(self, height: int, width: int) -> int:
        halvings = height.bit_length() - _LAST_SIDE.bit_length()
        if height != width or halvings < 1 or height != _LAST_SIDE << halvings:
            raise ValueError(
                f"the local and global discriminator got a {self.name} image of {height}x{width} pixels; make it "
                "square, with a side that is a power of two and at least 8"
            )
        return halvings


class LocalGlobalDiscriminator(nn.Module):
    """Maps {"full": (B, H, H, C), "window": (B, h, h, C)} to float32 logits (B, 1, 1, 1), one for both together.

    H and h are powers of two, at least 8. Published: H = 256, h = 128, width 64: 45,056,769 parameters.

    Attributes:
        width: features of each tower's first layer, 64 as published.
        norm: batch | instance | none; all convolutions but each tower's first are normalised, and then have no bias.
        dtype: compute type of the towers; parameters and the logits' layer are float32.
        axis_name: mapped axis over which batch statistics are synchronised; None = none.
    """

    width: int = 64
    norm: str = "none"
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Mapping[str, jax.Array], train: bool) -> jax.Array:
        """Judges images; raises ValueError unless sides are powers of two, at least 8."""
        seen = [
            Tower(self.width, self.norm, self.dtype, self.axis_name, name=name)(images[name], train)
            for name in ("full", "window")
        ]
        # In float32, because bfloat16 has but three digits and every image has only this one number.
        return Conv(1, 1, kernel_init=_LINEAR, name="logit")(jnp.concatenate(seen, axis=-1))
