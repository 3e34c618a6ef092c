"""The attention U-Net of the face systems: 3x3 convolutions without normalisation, self-attention at an eighth.

The layout is that of the published face-inpainting GAN, 4,880,836 parameters at width 64 with 4 input channels. The
attention is that of Zhang et al., "Self-Attention Generative Adversarial Networks", ICML 2019, section 3
(https://arxiv.org/abs/1805.08318).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from inpaint_jax.models.layers import Conv, Initializer
from inpaint_jax.models.resampling import DoublingConv, halve_by_maximum

SLOPE = 0.2

# He's initialisation for leaky ReLU (He et al. 2015, section 2.2): each layer keeps the mean square of its input.
# pix2pix's normal(0.02) relies on normalisation to restore the scale. There is none here: at width 16 the signal would
# shrink 100,000-fold down to the bottleneck, and its gradients to 1e-10, below Adam's epsilon of 1e-8.
_HE = nn.initializers.variance_scaling(2 / (1 + SLOPE**2), "fan_in", "normal")

# The first answers are near mid-grey, where tanh passes gradients on whole; at He's scale up to 40% of them would begin
# beyond 0.9, where it passes on less than a fifth.
_LAST = nn.initializers.variance_scaling(0.01, "fan_in", "normal")


class SelfAttention(nn.Module):
    """Adds to each position of (B, H, W, C) what it attends to among all positions: gamma * attention + x.

    Zhang et al. 2019, section 3, without the last 1x1 convolution of theirs: logits are plain
    products of queries and keys (C/8 channels), not divided by a square root; values have all C channels. The scalar
    parameter ``gamma`` starts at 0, so a new network has none of it.

    Memory grows with (H W)^2, and is small here: of the network at width 64 on 256x256 pixels, whose 32x32 positions
    it sees, forward and backward it takes 16 of 356 MiB a picture (compiled for a CPU, float32). So it is written
    plainly; ``jax.nn.dot_product_attention`` takes no values wider than the keys.

    Attributes:
        dtype: compute and output dtype; parameters and the softmax are float32.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        x = x.astype(self.dtype)

        def project(name: str, features: int, kernel_init: Initializer) -> jax.Array:
            layer = Conv(features, 1, dtype=self.dtype, kernel_init=kernel_init, name=name)
            return layer(x).reshape(batch, height * width, features)

        # Small queries and keys: with no square root to divide by, larger ones would begin with all attention on one
        # position, where the softmax passes no gradient on.
        query, key = (project(n, max(channels // 8, 1), nn.initializers.normal(0.02)) for n in ("query", "key"))
        value = project("value", channels, nn.initializers.lecun_normal())
        gamma = self.param("gamma", nn.initializers.zeros, (), jnp.float32)
        logits = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=jnp.float32)
        weights = nn.softmax(logits, axis=-1).astype(self.dtype)
        attended = jnp.einsum("bqk,bkc->bqc", weights, value).reshape(x.shape)
        # In float32, because gamma's gradient is a sum over all values, which drifts in bfloat16.
        return (gamma * attended.astype(jnp.float32) + x.astype(jnp.float32)).astype(self.dtype)


class Convolutions(nn.Module):
    """3x3 convolutions one behind the other, LeakyReLU 0.2 after each but a last one that draws the picture.

    The first takes (B, H, W, C), or a map (B, H / 2, W / 2, C) to be doubled beside another (B, H, W, D).

    Attributes:
        features: output channels of each.
        draws: whether the last one is the network's last layer, which has a small kernel and no LeakyReLU.
        dtype: compute and output dtype; parameters are float32.
    """

    features: tuple[int, ...]
    draws: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, beside: jax.Array | None = None) -> jax.Array:
        for number, features in enumerate(self.features):
            last = self.draws and number == len(self.features) - 1
            options = {"dtype": self.dtype, "kernel_init": _LAST if last else _HE, "name": f"conv{number}"}
            if number == 0 and beside is not None:
                x = DoublingConv(features, corners_aligned=True, **options)(x, beside)
            else:
                x = Conv(features, 3, padding=1, **options)(x)
            x = x if last else nn.leaky_relu(x, SLOPE)
        return x


class AttentionUNet(nn.Module):
    """Maps (B, H, W, C), height and width multiples of 8, to float32 (B, H, W, 3) in [-1, 1].

    Attributes:
        width: features at full resolution; twice and four times as many further in.
        residual: add the first three input channels, the masked image, to the answer; False as published.
        dtype: compute type; parameters and the output are float32.
    """

    width: int = 64
    residual: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the whole picture, holes filled; `train` changes nothing, as there is no normalisation.

        Raises:
            ValueError: the height or width is not a multiple of 8.
        """
        if x.shape[1] % 8 or x.shape[2] % 8:
            raise ValueError(
                f"the attention U-Net halves pictures three times, so height and width must be multiples of 8, got "
                f"{x.shape[1]}x{x.shape[2]}; pad, crop or resize the picture to such a size"
            )

        def convolutions(*x: jax.Array, name: str, features: tuple[int, ...], draws: bool = False) -> jax.Array:
            return Convolutions(features, draws, self.dtype, name=name)(*x)

        full, half, quarter = self.width, 2 * self.width, 4 * self.width
        masked = x[..., :3].astype(jnp.float32)
        x = x.astype(self.dtype)
        skip1 = convolutions(x, name="enc1", features=(full, full))
        skip2 = convolutions(halve_by_maximum(skip1), name="enc2", features=(half, half))
        skip3 = convolutions(halve_by_maximum(skip2), name="enc3", features=(quarter, quarter))
        x = SelfAttention(self.dtype, name="attention")(halve_by_maximum(skip3))
        x = convolutions(x, name="bottleneck", features=(quarter, quarter))
        x = convolutions(x, skip3, name="dec3", features=(quarter, quarter))
        x = convolutions(x, skip2, name="dec2", features=(half, half))
        x = convolutions(x, skip1, name="dec1", features=(full, 3), draws=True)
        x = jnp.tanh(x.astype(jnp.float32))
        return jnp.clip(x + masked, -1.0, 1.0) if self.residual else x
