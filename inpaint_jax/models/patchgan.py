"""The 70x70 PatchGAN discriminator (Isola et al. 2017, section 6.1.2)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from inpaint_jax.models.layers import Conv, normalisation


class PatchGAN(nn.Module):
    """Maps images (B, H, W, C) to float32 logits (B, h, w, 1), one for each overlapping 70x70 patch.

    Attributes:
        width: features of the first layer; then twice, four and eight times as many.
        norm: batch | instance | none; the first layer is never normalised.
        dtype: compute type; parameters and logits are float32.
        axis_name: mapped axis over which batch statistics are synchronised; None = none.
    """

    width: int = 64
    norm: str = "batch"
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x.astype(self.dtype)
        for level, (factor, stride) in enumerate(((1, 2), (2, 2), (4, 2), (8, 1))):
            plain = level == 0 or self.norm == "none"
            layer = Conv(self.width * factor, 4, stride, 1, use_bias=plain, dtype=self.dtype, name=f"conv{level}")
            x = layer(x)
            if not plain:
                norm = normalisation(self.norm, self.dtype, self.axis_name, f"conv{level}_norm")
                x = norm(x, not train)
            x = nn.leaky_relu(x, 0.2)
        return Conv(1, 4, 1, 1, use_bias=True, dtype=self.dtype, name="logits")(x).astype(jnp.float32)
