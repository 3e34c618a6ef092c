"""Convolution, transposed convolution and batch normalisation, in the formulations that run fast.

Parameters always have the standard layout (kernel height, kernel width, input channels, output channels); a layer
rearranges them inside its call, so checkpoints do not depend on the formulation. The formulations give equal numbers up
to rounding:

* ``plain``: one call of ``lax.conv_general_dilated``.
* ``two_by_two``: the 4x4 stride-2 convolution as a 2x2 convolution of the space-to-depth image (four times the
  channels, half the size), and its transposed counterpart as a 2x2 convolution to four times the channels whose
  outputs interleave (sub-pixel convolution; Shi et al. 2016, https://arxiv.org/abs/1609.05158).
* ``matrix``: gathered neighbourhoods times the kernel as a matrix; of the transposed convolution, the 2x2 one so.
* ``winograd``: the 3x3 stride-1 convolution with half the multiplications, see :mod:`inpaint_jax.models.winograd`.

``auto`` takes the one that :func:`choose_convolution` or :func:`choose_transposed` names.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from inpaint_jax.models import winograd

FORMULATIONS = ("auto", "plain", "two_by_two", "matrix", "winograd")

# With more positions than this per image, gathering neighbourhoods costs more than it saves (measured on XLA:CPU).
MATRIX_POSITIONS = 100
# Larger maps do not stay in the processor's cache, and adding combinations takes what fewer products save. With fewer
# channels, products are too small a part of the time. (Measured on XLA:CPU.)
WINOGRAD_BYTES, WINOGRAD_CHANNELS = 9_000_000, 32

# What those formulations need that do not exist for every convolution.
_NEEDS = {
    "two_by_two": "a 4x4 kernel, stride 2, padding 1 and an even image size",
    "winograd": f"a 3x3 kernel, stride 1, padding 1, a width that is a multiple of {winograd.OUTPUTS}, and float32",
}

_DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")

Initializer = Callable[..., jax.Array]


def normal_around_one(stddev: float = 0.02) -> Initializer:
    """Return an initialiser that draws from a normal distribution with mean 1, as pix2pix does for scales.

    Args:
        stddev: standard deviation.
    """

    def initialise(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return 1.0 + stddev * jax.random.normal(key, shape, dtype)

    return initialise


def halves(kernel_size: int, stride: int, padding: int, dilation: int, height: int, width: int) -> bool:
    """Return whether a convolution is the 4x4 stride-2 one that halves an even-sized image exactly."""
    return (kernel_size, stride, padding, dilation) == (4, 2, 1, 1) and height % 2 == 0 and width % 2 == 0


def winograds(
    kernel_size: int, stride: int, padding: int, dilation: int, height: int, width: int, dtype: jnp.dtype
) -> bool:
    """Return whether a convolution is one that :mod:`inpaint_jax.models.winograd` has."""
    # In bfloat16 the combinations would lose digits.
    exact = dtype == jnp.float32 and width % winograd.OUTPUTS == 0
    return exact and (kernel_size, stride, padding, dilation) == (3, 1, 1, 1)


def choose_convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: int, dilation: int) -> str:
    """Return the formulation in which a convolution trains fastest on the current backend; see :func:`convolution`."""
    kernel_size, _, channels, features = kernel.shape
    batch, height, width, _ = x.shape
    geometry = (kernel_size, stride, padding, dilation, height, width)
    if jax.default_backend() == "cpu":
        reach = dilation * (kernel_size - 1) + 1
        positions = ((height + 2 * padding - reach) // stride + 1) * ((width + 2 * padding - reach) // stride + 1)
        # XLA has no fast path for the kernel gradient of a strided convolution with few outputs: 10 to 40 times slower.
        if stride > 1 and positions <= MATRIX_POSITIONS:
            return "matrix"
        largest = 4 * batch * height * width * max(channels, features)
        narrow = min(channels, features) < WINOGRAD_CHANNELS
        if winograds(*geometry, x.dtype) and largest <= WINOGRAD_BYTES and not narrow:
            return "winograd"
    return "two_by_two" if halves(*geometry) else "plain"


def choose_transposed(height: int, width: int) -> str:
    """Return the formulation in which the 4x4 stride-2 transposed convolution trains fastest on the current backend.

    Args:
        height, width: size of its input, in pixels.
    """
    small = (height + 1) * (width + 1) <= MATRIX_POSITIONS
    return "matrix" if jax.default_backend() == "cpu" and small else "two_by_two"


def _pad(x: jax.Array, padding: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def _valid_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=_DIMENSION_NUMBERS)


def _space_to_depth(x: jax.Array) -> jax.Array:
    batch, height, width, channels = x.shape
    blocks = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, height // 2, width // 2, 4 * channels)


def _halving_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    channels, features = kernel.shape[2:]
    blocks = kernel.reshape(2, 2, 2, 2, channels, features).transpose(0, 2, 1, 3, 4, 5)
    return _valid_convolution(_space_to_depth(_pad(x, 1)), blocks.reshape(2, 2, 4 * channels, features))


def _matrix_convolution(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1) -> jax.Array:
    size, _, channels, features = kernel.shape
    batch = x.shape[0]
    height, width = ((extent - dilation * (size - 1) - 1) // stride + 1 for extent in x.shape[1:3])
    offsets = [dilation * tap for tap in range(size)]
    neighbourhoods = jnp.concatenate(
        [
            x[:, row : row + stride * (height - 1) + 1 : stride, column : column + stride * (width - 1) + 1 : stride]
            for row in offsets
            for column in offsets
        ],
        axis=-1,
    )
    matrix = neighbourhoods.reshape(batch * height * width, size * size * channels)
    return (matrix @ kernel.reshape(size * size * channels, features)).reshape(batch, height, width, features)


def convolution(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0, dilation: int = 1, formulation: str = "auto"
) -> jax.Array:
    """Convolve (cross-correlate) images with a square kernel.

    Args:
        x: (B, H, W, C) images.
        kernel: (K, K, C, F), of x's dtype.
        stride: step between outputs, in pixels.
        padding: rows and columns of zeros added on every side.
        dilation: distance between kernel taps, in pixels.
        formulation: one of FORMULATIONS; ``two_by_two`` exists for 4x4, stride 2, padding 1 and even sizes only,
            ``winograd`` for 3x3, stride 1, padding 1 and widths that are multiples of 4.

    Returns:
        (B, H', W', F) with H' = (H + 2 padding - dilation (K - 1) - 1) // stride + 1.

    Raises:
        ValueError: the formulation is unknown, or does not exist for this convolution.
    """
    geometry = (kernel.shape[0], stride, padding, dilation, x.shape[1], x.shape[2])
    if formulation == "auto":
        formulation = choose_convolution(x, kernel, stride, padding, dilation)
    if formulation == "plain":
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(padding, padding)] * 2,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=_DIMENSION_NUMBERS,
        )
    if formulation == "matrix":
        return _matrix_convolution(_pad(x, padding), kernel, stride, dilation)
    if formulation == "winograd" and winograds(*geometry, x.dtype):
        return winograd.convolve(x, kernel)
    if formulation == "two_by_two" and halves(*geometry):
        return _halving_convolution(x, kernel)
    if formulation in _NEEDS:
        raise ValueError(
            f"formulation {formulation!r} needs {_NEEDS[formulation]}, got kernel {geometry[0]}, stride {stride}, "
            f"padding {padding}, dilation {dilation}, image {x.shape[1]}x{x.shape[2]}, {x.dtype}; use 'auto'"
        )
    raise ValueError(f"unknown formulation {formulation!r}; use one of {', '.join(FORMULATIONS)}")


def _doubling_convolution(
    x: jax.Array, kernel: jax.Array, convolve: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    height, width = x.shape[1:3]
    channels, features = kernel.shape[2:]
    # Output row 2m + p is the sum over t of padded input row m + p + t times flipped kernel row 2t + p.
    taps = kernel[::-1, ::-1].reshape(2, 2, 2, 2, channels, features).transpose(0, 2, 4, 1, 3, 5)
    phases = convolve(_pad(x, 1), taps.reshape(2, 2, channels, 4 * features))
    phases = phases.reshape(*phases.shape[:3], 2, 2, features)
    rows = [jnp.stack([phases[:, p : p + height, q : q + width, p, q] for q in range(2)], axis=3) for p in range(2)]
    return jnp.stack(rows, axis=2).reshape(x.shape[0], 2 * height, 2 * width, features)


def transposed_convolution(x: jax.Array, kernel: jax.Array, formulation: str = "auto") -> jax.Array:
    """Double the size of images by the 4x4 stride-2 transposed convolution, output[2i - 1 + a] += x[i] kernel[a].

    Args:
        x: (B, H, W, C) images.
        kernel: (4, 4, C, F), of x's dtype.
        formulation: one of FORMULATIONS.

    Returns:
        (B, 2H, 2W, F).

    Raises:
        ValueError: the formulation is unknown or the kernel is not 4x4.
    """
    if kernel.shape[:2] != (4, 4):
        raise ValueError(f"transposed_convolution needs a 4x4 kernel, got {kernel.shape[0]}x{kernel.shape[1]}")
    if formulation == "auto":
        formulation = choose_transposed(x.shape[1], x.shape[2])
    if formulation == "plain":
        return lax.conv_general_dilated(
            x, kernel[::-1, ::-1], (1, 1), [(2, 2)] * 2, lhs_dilation=(2, 2), dimension_numbers=_DIMENSION_NUMBERS
        )
    if formulation == "matrix":
        return _doubling_convolution(x, kernel, _matrix_convolution)
    if formulation == "two_by_two":
        return _doubling_convolution(x, kernel, _valid_convolution)
    raise ValueError(f"unknown formulation {formulation!r}; use one of {', '.join(FORMULATIONS)}")


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns y (B, H, W, C) plus a float32 bias (C,), in y's dtype."""
    # In float32, because the bias's gradient is a sum over all pixels, which drifts in bfloat16.
    return (y.astype(jnp.float32) + bias).astype(y.dtype)


class Conv(nn.Module):
    """Square convolution; parameters ``kernel`` (K, K, C, features) and ``bias`` (features,), float32.

    Attributes:
        features: output channels.
        kernel_size, stride, padding, dilation: in pixels, equal along both axes; padding is by zeros on every side.
        use_bias: whether to add a bias.
        dtype: compute and output dtype.
        kernel_init: initialiser of the kernel; pix2pix's by default (Isola et al. 2017, section 6.2).
        formulation: see :func:`convolution`.
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
        formulation: see :func:`transposed_convolution`.
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
