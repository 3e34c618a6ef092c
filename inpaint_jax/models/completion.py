"""The completion network of globally and locally consistent image completion.

Iizuka, Simo-Serra and Ishikawa, "Globally and Locally Consistent Image Completion", SIGGRAPH 2017, section 3.2: down to
a quarter of the resolution, four dilated convolutions that see far across it, and up again.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from inpaint_jax.models.layers import Conv, ConvTranspose, normalisation

OUTPUTS = ("linear", "tanh")


class _Layer(NamedTuple):
    """One row of the published table; features = width * share, and doubling layers are the transposed ones."""

    name: str
    kernel_size: int
    share: float
    stride: int = 1
    dilation: int = 1
    doubling: bool = False


_LAYERS = (
    _Layer("down0", 5, 1),
    _Layer("down1", 3, 2, stride=2),
    _Layer("down2", 3, 2),
    _Layer("down3", 3, 4, stride=2),
    _Layer("down4", 3, 4),
    _Layer("down5", 3, 4),
    _Layer("dilated2", 3, 4, dilation=2),
    _Layer("dilated4", 3, 4, dilation=4),
    _Layer("dilated8", 3, 4, dilation=8),
    _Layer("dilated16", 3, 4, dilation=16),
    _Layer("middle0", 3, 4),
    _Layer("middle1", 3, 4),
    _Layer("up0", 4, 2, doubling=True),
    _Layer("up1", 3, 2),
    _Layer("up2", 4, 1, doubling=True),
    _Layer("up3", 3, 0.5),
)


# He et al. 2015: with pix2pix's fixed deviation of 0.02 and no normalisation, values shrink in every ReLU layer: at
# width 64 the first answers would be around 5e-7 instead of 0.1.
_AFTER_RELU = nn.initializers.he_normal()
# A quarter of the 4x4 taps of a transposed layer of stride 2 meets any one output pixel: four times the variance.
_AFTER_RELU_DOUBLING = nn.initializers.variance_scaling(8.0, "fan_in", "truncated_normal")
_LINEAR = nn.initializers.lecun_normal()


class CompletionNetwork(nn.Module):
    """Maps (B, H, W, C) to float32 (B, H, W, 3); H and W are multiples of 4.

    At width 64 without normalisation it has 6,064,579 parameters for three input channels and 6,066,179 for four.

    Attributes:
        width: features of the first layer, 64 as published; the others are 1/2, 2 and 4 times as wide. Even.
        norm: batch | instance | none; every layer but the last is normalised, and then has no bias.
        output: linear (unbounded: keeping to the value range is up to the caller) | tanh (the paper's sigmoid,
            stretched to [-1, 1]).
        dtype: compute type; parameters and the output are float32.
        axis_name: mapped axis over which batch statistics are synchronised; None = none.
    """

    width: int = 64
    norm: str = "none"
    output: str = "linear"
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Completes images; raises ValueError for a size that is no multiple of 4, an odd width, an unknown output."""
        self._check(*x.shape[1:3])
        x = x.astype(self.dtype)
        for layer in _LAYERS:
            x = self._layer(layer)(x)
            if self.norm != "none":
                x = normalisation(self.norm, self.dtype, self.axis_name, f"{layer.name}_norm")(x, not train)
            x = nn.relu(x)
        x = Conv(3, 3, padding=1, dtype=self.dtype, kernel_init=_LINEAR, name="out")(x).astype(jnp.float32)
        return jnp.tanh(x) if self.output == "tanh" else x

    def _check(self, height: int, width: int) -> None:
        if height % 4 or width % 4:
            raise ValueError(
                f"the completion network got images of {height}x{width} pixels; pad or crop them to multiples of 4"
            )
        if self.width < 2 or self.width % 2:
            raise ValueError(f"the completion network's width is {self.width}; use an even number, at least 2")
        if self.output not in OUTPUTS:
            raise ValueError(f"unknown output {self.output!r} of the completion network; use {' or '.join(OUTPUTS)}")

    def _layer(self, layer: _Layer) -> nn.Module:
        features, use_bias = int(self.width * layer.share), self.norm == "none"
        if layer.doubling:
            return ConvTranspose(features, use_bias, self.dtype, kernel_init=_AFTER_RELU_DOUBLING, name=layer.name)
        return Conv(
            features,
            layer.kernel_size,
            layer.stride,
            padding=layer.dilation * (layer.kernel_size // 2),
            dilation=layer.dilation,
            use_bias=use_bias,
            dtype=self.dtype,
            kernel_init=_AFTER_RELU,
            name=layer.name,
        )
