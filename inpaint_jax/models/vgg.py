"""VGG16 as encoder of a generator, as eye of a discriminator, and as the network behind perceptual loss and LPIPS.

K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015, configuration D,
https://arxiv.org/abs/1409.1556: thirteen 3x3 convolutions in five blocks with a 2x2 max-pool after each. Blocks and
layers have the names that Keras gave them, `block1_conv1` to `block5_conv3`.
"""

from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from inpaint_jax import task
from inpaint_jax.models.layers import Conv, ConvTranspose, dropout, normalisation, recomputed
from inpaint_jax.models.resampling import halve_by_maximum
from inpaint_jax.weight_files import CONVOLUTIONS, DEVIATION, MEAN, WIDTH_FACTORS

SIZE_MULTIPLE = 32  # pixels: five halvings

_HE = nn.initializers.he_normal()


class VGG16(nn.Module):
    """Maps pictures float32 (B, H, W, 3) in [0, 1] to the features before each max-pool.

    Weights are not drawn here: `pretrained.load_vgg16` gives them, and until they are put in their place every kernel
    is not a number, so that nothing works by accident without them.

    Attributes:
        width: features of the first block; 64 in the published network.
        dtype: compute type and type of the features; parameters are float32.
        remat: gradients compute each block once more; see `layers.recomputed`.
    """

    width: int = 64
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, pictures: jax.Array, blocks: int = 5, added: jax.Array | None = None) -> dict[str, jax.Array]:
        """Computes the features of the first `blocks` blocks.

        Args:
            pictures: of any size of at least 2^(blocks - 1) pixels; an odd last row or column is not pooled.
            blocks: how many, 1 to 5.
            added: (B, H, W, width), added to the first convolution before its ReLU; None = nothing.

        Returns:
            `{"block1": (B, H, W, width), "block2": (B, H/2, W/2, 2 width), …}`: the last convolution of each block,
            after its ReLU.
        """
        mean, deviation = jnp.array(MEAN), jnp.array(DEVIATION)
        x = ((pictures - mean) / deviation).astype(self.dtype)
        features = {}
        for block in range(1, blocks + 1):
            more = (added,) if block == 1 and added is not None else ()
            x = features[f"block{block}"] = recomputed(self, partial(VGG16._block, block=block), x, *more)
        return features

    @nn.nowrap
    def _block(self, x: jax.Array, *added: jax.Array, block: int) -> jax.Array:
        unknown = nn.initializers.constant(jnp.nan)
        if block > 1:
            x = halve_by_maximum(x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2])
        for layer in range(1, CONVOLUTIONS[block - 1] + 1):
            width = self.width * WIDTH_FACTORS[block - 1]
            name = f"block{block}_conv{layer}"
            x = Conv(width, 3, padding=1, dtype=self.dtype, kernel_init=unknown, name=name)(x)
            if layer == 1 and added:
                x = x + added[0].astype(self.dtype)
            x = nn.relu(x)
        return x


class VGGUNet(nn.Module):
    """A U-Net whose encoder is VGG16: maps (B, H, W, C) to float32 (B, H, W, 3) in [-1, 1]; multiples of 32.

    The features before each of VGG16's five max-pools are the skips; below the last max-pool stands one 3x3
    convolution; 4x4 stride-2 transposed convolutions lead up. The first channels of the input are the picture, in
    colour or its luminance alone, which then is the red, green and blue that VGG16 sees; further ones, the mask, enter
    by a kernel of their own, zero in the beginning, whose answer is added to VGG16's first convolution: as if that had
    more input channels.

    Attributes:
        picture_channels: 3 = colour, 1 = luminance.
        value_range: lowest and highest value of the picture.
        vgg_width: features of VGG16's first block; 64 for the pretrained one. Its parameters, below `vgg`, are the
            group `generator/vgg`.
        width: features of the outermost level of the decoder; they double inwards up to eight times as many.
        norm: batch | instance | none; of the decoder alone, but not of the bottleneck.
        dropout: rate in the three innermost levels of the decoder, in training alone.
        dtype: compute type; parameters and the output are float32.
        axis_name: mapped axis over which batch statistics are synchronised; None = none.
        remat: gradients compute each level once more; see `layers.recomputed`.
    """

    picture_channels: int = 3
    value_range: tuple[float, float] = (-1.0, 1.0)
    vgg_width: int = 64
    width: int = 64
    norm: str = "batch"
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, dropout_keys: jax.Array | None = None) -> jax.Array:
        """Fills pictures.

        Args:
            dropout_keys: one key for each example, (B,); needed in training where there is dropout.

        Raises:
            ValueError: height or width is no multiple of 32.
        """
        height, width = x.shape[1:3]
        if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            raise ValueError(
                f"VGGUNet halves pictures five times, and {height}x{width} pixels do not allow it: crop or pad height "
                f"and width to multiples of {SIZE_MULTIPLE}"
            )
        picture, others = x[..., : self.picture_channels], x[..., self.picture_channels :]
        added = None
        if others.shape[-1]:
            entry = Conv(
                self.vgg_width, 3, padding=1, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.zeros,
                name="mask_entry",
            )  # fmt: skip
            added = entry(others)
        picture = jnp.broadcast_to(task.to_unit_range(picture, self.value_range), (*picture.shape[:3], 3))
        skips = list(VGG16(self.vgg_width, self.dtype, self.remat, name="vgg")(picture, added=added).values())
        x = Conv(8 * self.width, 3, padding=1, dtype=self.dtype, kernel_init=_HE, name="bottleneck")(
            halve_by_maximum(skips[-1])
        )
        x = nn.relu(x)
        for level in reversed(range(len(WIDTH_FACTORS))):
            up = partial(VGGUNet._up, level=level, train=train)
            # The concatenation is made where it is used, so that it need not be kept beside what it consists of.
            beside = (skips[level + 1],) if level + 1 < len(WIDTH_FACTORS) else ()
            x = recomputed(self, up, dropout_keys, x, *beside)
        x = recomputed(self, VGGUNet._out, x, skips[0])
        return jnp.tanh(x.astype(jnp.float32))

    @nn.nowrap
    def _up(
        self, dropout_keys: jax.Array | None, x: jax.Array, *beside: jax.Array, level: int, train: bool
    ) -> jax.Array:
        plain, features = self.norm == "none", self.width * WIDTH_FACTORS[level]
        x = jnp.concatenate([x, *beside], axis=-1)
        x = ConvTranspose(features, use_bias=plain, dtype=self.dtype, kernel_init=_HE, name=f"up{level}")(x)
        if not plain:
            x = normalisation(self.norm, self.dtype, self.axis_name, f"up{level}_norm")(x, not train)
        if train and level >= 2:
            x = dropout(x, self.dropout, dropout_keys, purpose=level)
        return nn.relu(x)

    @nn.nowrap
    def _out(self, x: jax.Array, beside: jax.Array) -> jax.Array:
        return Conv(3, 3, padding=1, dtype=self.dtype, name="out")(jnp.concatenate([x, beside], axis=-1))


class VGGDiscriminator(nn.Module):
    """A head on VGG16's features: maps `{"features", "condition"?}` to float32 logits (B, H/8, W/8, 1), one per patch.

    `features` are those before the fourth max-pool, (B, H/8, W/8, 512); two 3x3 convolutions later, a logit sees a
    patch of 124x124 pixels. `condition` is the generator's input, (B, H, W, C), halved three times by convolutions.
    VGG16 itself stays as it was trained, outside of this module: its weights are no parameters of the discriminator.

    Attributes:
        width: features of the first convolution of the condition; the head has eight times as many.
        norm: batch | instance | none.
        dtype: compute type; parameters and logits are float32.
        axis_name: mapped axis over which batch statistics are synchronised; None = none.
    """

    width: int = 64
    norm: str = "batch"
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, seen: Mapping[str, jax.Array], train: bool) -> jax.Array:
        x = seen["features"].astype(self.dtype)
        if "condition" in seen:
            y = seen["condition"].astype(self.dtype)
            for level, factor in enumerate((1, 2, 4)):
                y = Conv(self.width * factor, 4, 2, 1, dtype=self.dtype, kernel_init=_HE, name=f"condition{level}")(y)
                y = nn.leaky_relu(y, 0.2)
            x = jnp.concatenate([x, y], axis=-1)
        plain = self.norm == "none"
        x = Conv(8 * self.width, 3, padding=1, use_bias=plain, dtype=self.dtype, kernel_init=_HE, name="head")(x)
        if not plain:
            x = normalisation(self.norm, self.dtype, self.axis_name, "head_norm")(x, not train)
        x = nn.leaky_relu(x, 0.2)
        return Conv(1, 3, padding=1, dtype=self.dtype, name="logits")(x).astype(jnp.float32)
