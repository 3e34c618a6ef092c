"""The pix2pix-style U-Net of the normal-map systems, with skips or without them (bowtie).

Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", 2017, section 6.1: 4x4 stride-2
convolutions down, 4x4 stride-2 transposed convolutions up. The published normal-map versions use no dropout; pix2pix
itself has it in the innermost levels of the decoder.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from inpaint_jax.models.layers import Conv, ConvTranspose, dropout, normalisation, recomputed, unit_normalise


class UNet(nn.Module):
    """Maps (B, size, size, C) to float32 (B, size, size, 3) in [-1, 1]; any larger multiple of `size` works too.

    Attributes:
        size: image side it is built for, a power of two; log2(size) halvings lead down to 1x1.
        width: features of the outermost level; they double inwards up to eight times as many.
        skips: concatenate each encoder level to its decoder level; False is the bowtie.
        norm: batch | instance | none.
        refine: features of a last full-resolution level that sees the input once more; 0 = the published output layer.
        residual: add the first three input channels, the masked image, to the answer before it is normalised.
        output: unit (tanh, then L2 over the channels: normal maps) | tanh.
        dropout: rate in the three innermost levels of the decoder, in training alone; 0.5 in pix2pix.
        dtype: compute type; parameters and the output are float32.
        axis_name: mapped axis over which batch statistics are synchronised; None = none.
        remat: gradients compute each level once more; see `layers.recomputed`.
    """

    size: int
    width: int = 64
    skips: bool = True
    norm: str = "batch"
    refine: int = 0
    residual: bool = False
    output: str = "unit"
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, dropout_keys: jax.Array | None = None) -> jax.Array:
        """Fills pictures; dropout_keys, one for each example, (B,), are needed in training where there is dropout."""
        masked = x[..., :3].astype(jnp.float32)
        seen = x = x.astype(self.dtype)
        skips = []
        for level in range(self._levels()):
            x = recomputed(self, partial(UNet._down, level=level, train=train), x)
            skips.append(x)
        beside = ()
        for level in reversed(range(self._levels() - 1)):
            x = recomputed(self, partial(UNet._up, level=level, train=train), dropout_keys, x, *beside)
            beside = (skips[level],) if self.skips else ()
        x = recomputed(self, UNet._out, seen, x, *beside)
        x = jnp.tanh(x.astype(jnp.float32))
        if self.residual:
            x = x + masked
        return unit_normalise(x) if self.output == "unit" else jnp.clip(x, -1.0, 1.0)

    @nn.nowrap
    def _levels(self) -> int:
        return self.size.bit_length() - 1

    @nn.nowrap
    def _features(self, level: int) -> int:
        return self.width * min(2**level, 8)

    @nn.nowrap
    def _norm(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        return normalisation(self.norm, self.dtype, self.axis_name, name)(x, not train)

    @nn.nowrap
    def _down(self, x: jax.Array, level: int, train: bool) -> jax.Array:
        # Neither the first layer nor the 1x1 bottleneck is normalised: at 1x1 with a small batch the statistics would
        # erase what the level has to say.
        plain = level == 0 or level == self._levels() - 1 or self.norm == "none"
        layer = Conv(
            self._features(level), 4, stride=2, padding=1, use_bias=plain, dtype=self.dtype, name=f"down{level}"
        )
        x = layer(x)
        return nn.leaky_relu(x if plain else self._norm(x, f"down{level}_norm", train), 0.2)

    @nn.nowrap
    def _up(
        self, dropout_keys: jax.Array | None, x: jax.Array, *beside: jax.Array, level: int, train: bool
    ) -> jax.Array:
        # The concatenation is made where it is used, so that it need not be kept beside what it consists of.
        x = jnp.concatenate([x, *beside], axis=-1)
        plain = self.norm == "none"
        x = ConvTranspose(self._features(level), use_bias=plain, dtype=self.dtype, name=f"up{level}")(x)
        x = x if plain else self._norm(x, f"up{level}_norm", train)
        if train and level >= self._levels() - 4:
            x = dropout(x, self.dropout, dropout_keys, purpose=level)
        return nn.relu(x)

    @nn.nowrap
    def _out(self, seen: jax.Array, x: jax.Array, *beside: jax.Array) -> jax.Array:
        x = jnp.concatenate([x, *beside], axis=-1)
        if not self.refine:
            return ConvTranspose(3, use_bias=True, dtype=self.dtype, name="out")(x)
        # The outermost skip is at half the resolution: without this level, known pixels beside a hole reach the output
        # only through a narrow stride-2 layer.
        x = nn.relu(ConvTranspose(self.refine, use_bias=True, dtype=self.dtype, name="up_full")(x))
        x = jnp.concatenate([x, seen], axis=-1)
        x = nn.relu(Conv(self.refine, 3, padding=1, dtype=self.dtype, name="refine")(x))
        return Conv(3, 3, padding=1, dtype=self.dtype, name="out")(x)
