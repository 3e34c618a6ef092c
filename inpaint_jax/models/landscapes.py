"""The two published landscape networks: a U-Net with pooling, and an encoder-decoder that never changes the size.

Every convolution is 3x3 with stride 1, zeros around the picture and a bias. Kernels begin as He et al. propose
("Delving Deep into Rectifiers", 2015, https://arxiv.org/abs/1502.01852): without normalisation nothing else keeps the
size of the values from layer to layer, and with pix2pix's small kernels a U-Net would begin with values that all but
vanish on their way. Before a BatchNorm, which undoes any scale, the choice only sets how fast a kernel turns.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from inpaint_jax.models.layers import BatchNorm, Conv, Initializer
from inpaint_jax.models.resampling import DoublingConv, halve_by_maximum

SIZE_MULTIPLE = 8  # pixels: the U-Net halves the picture three times

_HE = nn.initializers.he_normal()
# A tenth of He's standard deviation for the layer that draws the picture. First answers close to 0 move into [0, 1]
# together; answers as wide as He's leave many pixels below 0, where losses that take logarithms have no gradient.
_LAST = nn.initializers.variance_scaling(0.02, "fan_in", "truncated_normal")


def _conv(features: int, dtype: jnp.dtype, name: str, kernel_init: Initializer = _HE) -> Conv:
    return Conv(features, 3, padding=1, dtype=dtype, kernel_init=kernel_init, name=name)


class DoubleConv(nn.Module):
    """Two 3x3 convolutions of equally many features with a ReLU after each: (B, H, W, C) to (B, H, W, features).

    The first takes (B, H, W, C), or a map (B, H / 2, W / 2, C) to be doubled beside another (B, H, W, D).

    Attributes:
        features: output channels of both.
        dtype: compute and output type.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, beside: jax.Array | None = None) -> jax.Array:
        if beside is None:
            x = _conv(self.features, self.dtype, "conv1")(x)
        else:
            x = DoublingConv(self.features, False, _HE, self.dtype, name="conv1")(x, beside)
        return nn.relu(_conv(self.features, self.dtype, "conv2")(nn.relu(x)))


class PoolingUNet(nn.Module):
    """Maps (B, H, W, C) to float32 (B, H, W, 3) in (-1, 1); height and width are multiples of 8.

    Three blocks of two convolutions (`enc1` to `enc3`), each followed by a 2x2 max-pool; one convolution at an eighth
    of the size (`bottleneck`); back up, each time bilinearly to twice the size and beside the block of that size, in
    `dec3`, `dec2` and the single convolution `dec1`, whose three channels go through tanh. With width 64 and 6 input
    channels it has 2,662,659 parameters. It has no normalisation, so training and evaluation are the same to it.

    Attributes:
        width: features of the first block; the second and third have twice and four times as many.
        dtype: compute type; parameters and the output are float32.
    """

    width: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Fills pictures; train changes nothing.

        Raises:
            ValueError: height or width is no multiple of 8.
        """
        del train
        height, width = x.shape[1:3]
        if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            raise ValueError(
                f"PoolingUNet halves pictures three times, and {height}x{width} pixels do not allow it: crop or pad "
                f"height and width to multiples of {SIZE_MULTIPLE}"
            )
        x = x.astype(self.dtype)
        skips = []
        for level, factor in enumerate((1, 2, 4), start=1):
            x = DoubleConv(self.width * factor, self.dtype, name=f"enc{level}")(x)
            skips.append(x)
            x = halve_by_maximum(x)
        x = nn.relu(_conv(4 * self.width, self.dtype, "bottleneck")(x))
        for level, factor in ((3, 2), (2, 1)):
            x = DoubleConv(self.width * factor, self.dtype, name=f"dec{level}")(x, skips.pop())
        x = DoublingConv(3, False, _LAST, self.dtype, name="dec1")(x, skips.pop())
        return jnp.tanh(x.astype(jnp.float32))


class EncoderDecoder(nn.Module):
    """Maps (B, H, W, C) of any size to float32 (B, H, W, 3), unbounded: it is clipped where it is shown.

    Six convolutions at full resolution: `enc1` to `enc3` of width, twice and four times the width, `dec3` and `dec2`
    back to the width, `dec1` to 3. BatchNorm (`enc1_norm` and so on) follows all but the last, ReLU all but the third
    and the last. It trains on what it gives, because a clipped answer has no gradient outside of the range. With width
    64 and 6 input channels it has 744,387 parameters, the biases before each BatchNorm among them, as published,
    although BatchNorm subtracts them again.

    Attributes:
        width: features of the first convolution.
        dtype: compute type; parameters, statistics and the output are float32.
        axis_name: mapped axis over which batch statistics are synchronised; None = none.
    """

    width: int = 64
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x.astype(self.dtype)
        layers = (("enc1", 1, True), ("enc2", 2, True), ("enc3", 4, False), ("dec3", 2, True), ("dec2", 1, True))
        for name, factor, rectified in layers:
            x = _conv(self.width * factor, self.dtype, name)(x)
            norm = BatchNorm(
                axis_name=self.axis_name, dtype=self.dtype, scale_init=nn.initializers.ones, name=f"{name}_norm"
            )
            x = norm(x, use_running_average=not train)
            x = nn.relu(x) if rectified else x
        return _conv(3, self.dtype, "dec1", _LAST)(x).astype(jnp.float32)
