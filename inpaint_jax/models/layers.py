"""Layers: convolution, transposed convolution, normalisation and dropout.

Parameters always have the standard layout, whatever the formulation of a convolution: see
:mod:`inpaint_jax.models.convolutions`.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from inpaint_jax.models.convolutions import convolution, transposed_convolution

Initializer = Callable[..., jax.Array]


def normal_around_one(stddev: float = 0.02) -> Initializer:
    """Return an initialiser that draws from a normal distribution with mean 1, as pix2pix does for scales.

    Args:
        stddev: standard deviation.
    """

    def initialise(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return 1.0 + stddev * jax.random.normal(key, shape, dtype)

    return initialise


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns y (B, H, W, C) plus a float32 bias (C,), in y's dtype."""
    # In float32, because the bias's gradient is a sum over all pixels, which drifts in bfloat16.
    return (y.astype(jnp.float32) + bias).astype(y.dtype)


def recomputed(module: nn.Module, part: Callable[..., jax.Array], *arrays: jax.Array | None) -> jax.Array:
    """Returns part(module, *arrays), some layers; where `module.remat` is set, gradients compute them once more.

    Then only `arrays` are kept until the backward pass, not what lies between the layers. Parameters, statistics and
    what comes out are the same either way.

    Args:
        module: the network in whose place `part` makes layers.
        part: reads no other array than these.
    """
    return nn.remat(part)(module, *arrays) if module.remat else part(module, *arrays)


class Conv(nn.Module):
    """Square convolution; parameters ``kernel`` (K, K, C, features) and ``bias`` (features,), float32.

    Attributes:
        features: output channels.
        kernel_size, stride, padding, dilation: in pixels, equal along both axes; padding is by zeros on every side.
        use_bias: whether to add a bias.
        dtype: compute and output dtype.
        kernel_init: initialiser of the kernel; pix2pix's by default (Isola et al. 2017, section 6.2).
        formulation: see :func:`inpaint_jax.models.convolutions.convolution`.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.normal(0.02)
    formulation: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        y = convolution(x.astype(self.dtype), kernel, self.stride, self.padding, self.dilation, self.formulation)
        if self.use_bias:
            y = add_bias(y, self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32))
        return y


class ConvTranspose(nn.Module):
    """4x4 stride-2 transposed convolution that doubles the size; ``kernel`` (4, 4, C, features), ``bias`` (features,).

    Attributes:
        features: output channels.
        use_bias: whether to add a bias.
        dtype: compute and output dtype; parameters are float32.
        kernel_init: initialiser of the kernel; pix2pix's by default (Isola et al. 2017, section 6.2).
        formulation: see :func:`inpaint_jax.models.convolutions.transposed_convolution`.
    """

    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.normal(0.02)
    formulation: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (4, 4, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        y = transposed_convolution(x.astype(self.dtype), kernel, self.formulation)
        if self.use_bias:
            y = add_bias(y, self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32))
        return y


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe and Szegedy 2015), lean in memory traffic.

    Parameters ``scale`` and ``bias`` (C,); running ``mean`` and ``var`` (C,) in the collection ``batch_stats``.
    The running variance is the biased one (divided by the number of values, not by one less), as in flax.

    Attributes:
        momentum: share of the old running statistics kept at each update.
        epsilon: added to the variance.
        axis_name: mapped axis over which the statistics are averaged; each replica must hold as many values.
        dtype: compute and output dtype; statistics and parameters are float32.
        scale_init: initialiser of the scale; pix2pix's by default, ``nn.initializers.ones`` for the usual one.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    scale_init: Initializer = normal_around_one(0.02)

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        """Normalise (..., C) values by the batch's statistics, or by the running ones when use_running_average."""
        channels = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        x = x.astype(self.dtype)
        if use_running_average:
            mean, var = running_mean.value, running_var.value
        else:
            axis_name = None if self.is_initializing() else self.axis_name
            mean, var = _batch_statistics(x, running_mean.value, axis_name)
            if not self.is_initializing():
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
        multiplier = scale * lax.rsqrt(var + self.epsilon)
        # In float32 inside one fused kernel: the gradients' sums over all pixels would drift if they ran in bfloat16.
        return (x.astype(jnp.float32) * multiplier + (bias - mean * multiplier)).astype(self.dtype)


def _batch_statistics(x: jax.Array, centre: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    # E[x^2] - E[x]^2 loses digits when the mean is far from zero; moments about the running mean do not,
    # and cost no second pass over the values.
    centre = lax.stop_gradient(centre)
    centred = x.astype(jnp.float32) - centre
    axes = tuple(range(x.ndim - 1))
    moments = (jnp.mean(centred, axes), jnp.mean(jnp.square(centred), axes))
    if axis_name is not None:
        moments = lax.pmean(moments, axis_name)
    offset, mean_square = moments
    return centre + offset, jnp.maximum(mean_square - jnp.square(offset), 0.0)


class InstanceNorm(nn.Module):
    """Instance normalisation over height and width (Ulyanov et al. 2016); parameters ``scale`` and ``bias`` (C,).

    Attributes:
        epsilon: added to the variance.
        dtype: compute and output dtype; statistics and parameters are float32.
        scale_init: initialiser of the scale.
    """

    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    scale_init: Initializer = normal_around_one(0.02)

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool = False) -> jax.Array:
        """Normalise (B, H, W, C) values; use_running_average changes nothing, there are no running statistics."""
        channels = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        values = x.astype(self.dtype).astype(jnp.float32)
        mean = jnp.mean(values, (1, 2), keepdims=True)
        var = jnp.mean(jnp.square(values - mean), (1, 2), keepdims=True)
        multiplier = scale * lax.rsqrt(var + self.epsilon)
        return (values * multiplier + (bias - mean * multiplier)).astype(self.dtype)


def normalisation(kind: str, dtype: jnp.dtype, axis_name: str | None, name: str) -> nn.Module:
    """Return the normalisation layer that a config names; call it with (x, use_running_average=...).

    Args:
        kind: batch | instance.
        dtype: compute and output dtype.
        axis_name: mapped axis over which batch statistics are averaged; None = none.
        name: the layer's name among the parameters.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "batch":
        return BatchNorm(dtype=dtype, axis_name=axis_name, name=name)
    if kind == "instance":
        return InstanceNorm(dtype=dtype, name=name)
    raise ValueError(f"unknown normalisation {kind!r}; use batch or instance")


def dropout(x: jax.Array, rate: float, keys: jax.Array | None, purpose: int) -> jax.Array:
    """Zero each value with probability `rate` and divide the others by 1 - rate (Srivastava et al. 2014).

    Args:
        x: (B, H, W, C) values.
        rate: from 0, which changes nothing, to below 1.
        keys: one key for each example, (B,), so that what is dropped does not depend on how a batch is spread.
        purpose: number of the layer, which makes its choice another than that of other layers.

    Raises:
        ValueError: there are no keys.
    """
    if not rate:
        return x
    if keys is None:
        raise ValueError("dropout needs a key for each example: pass dropout_keys to the network")
    kept = jax.vmap(lambda key, one: jax.random.bernoulli(jax.random.fold_in(key, purpose), 1.0 - rate, one.shape))
    return jnp.where(kept(keys, x), x / (1.0 - rate), 0.0).astype(x.dtype)


def unit_normalise(x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Scale vectors along the last axis to unit length.

    Args:
        x: (..., C) vectors of any length and float dtype.
        epsilon: vectors shorter than this are divided by it instead, so zero stays zero and its gradient is finite.

    Returns:
        (..., C) float32.
    """
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(square, epsilon**2))
