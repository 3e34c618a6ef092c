"""The small patch discriminator of the face systems: 35,553 parameters at width 32 with 3 input channels."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from inpaint_jax.models.layers import Conv, normalisation


class SmallPatchDiscriminator(nn.Module):
    """Maps images (B, H, W, C) to float32 logits (B, h, w, 1), one for each overlapping 22x22 patch.

    h = H // 4 - 1 and w = W // 4 - 1; images below 8x8 pixels, which leave no logit, raise ValueError.

    Attributes:
        width: features of the first layer; then twice as many.
        norm: batch | instance | none; of the second layer, which has a bias beside it as published.
        dtype: compute type; parameters and logits are float32.
        axis_name: mapped axis over which batch statistics are synchronised; None = none.
    """

    width: int = 32
    norm: str = "batch"
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if min(x.shape[1:3]) < 8:
            raise ValueError(
                f"the small patch discriminator needs pictures of at least 8x8 pixels, got {x.shape[1]}x{x.shape[2]}; "
                "use a larger size"
            )
        x = x.astype(self.dtype)
        x = nn.leaky_relu(Conv(self.width, 4, stride=2, padding=1, dtype=self.dtype, name="conv0")(x), 0.2)
        x = Conv(2 * self.width, 4, stride=2, padding=1, dtype=self.dtype, name="conv1")(x)
        if self.norm != "none":
            x = normalisation(self.norm, self.dtype, self.axis_name, "conv1_norm")(x, not train)
        x = nn.leaky_relu(x, 0.2)
        return Conv(1, 4, stride=1, padding=1, dtype=self.dtype, name="logits")(x).astype(jnp.float32)
