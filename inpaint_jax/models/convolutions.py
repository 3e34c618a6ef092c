"""Convolution and transposed convolution, in the formulations that run fast.

Kernels always have the standard layout (kernel height, kernel width, input channels, output channels); a formulation
rearranges them inside its call, so checkpoints do not depend on it. The formulations give equal numbers up to rounding:

* ``plain``: one call of ``lax.conv_general_dilated``.
* ``two_by_two``: the 4x4 stride-2 convolution as a 2x2 convolution of the space-to-depth image (four times the
  channels, half the size), and its transposed counterpart as a 2x2 convolution to four times the channels whose
  outputs interleave (sub-pixel convolution; Shi et al. 2016, https://arxiv.org/abs/1609.05158).
* ``matrix``: gathered neighbourhoods times the kernel as a matrix; of the transposed convolution, the products with
  all sixteen taps, added up where they meet. Kernels are taken as they lie.
* ``winograd``: with a third to a half of the multiplications, 3x3 at stride 1 by :mod:`inpaint_jax.models.winograd`,
  4x4 and its transpose by :mod:`inpaint_jax.models.winograd_even`.

``auto`` takes the one that :func:`choose_convolution` or :func:`choose_transposed` names.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from inpaint_jax.models import winograd, winograd_even

FORMULATIONS = ("auto", "plain", "two_by_two", "matrix", "winograd")

# Of what follows, all was measured on XLA:CPU.
# With so few outputs XLA has no fast path for the kernel gradient of a strided convolution: 10 to 40 times slower.
STRIDED_POSITIONS = 100
# With fewer channels, products are too small a part of the time: at stride 1 on both sides, else on the wider one.
WINOGRAD_CHANNELS = {1: 32, 2: 64}

# What those formulations need that do not exist for every convolution.
_NEEDS = {
    "two_by_two": "a 4x4 kernel, stride 2, padding 1 and an even image size",
    "winograd": "float32, padding 1, and a 3x3 kernel, stride 1, an even height and a width that is a multiple of 4, "
    "or a 4x4 kernel and stride 1, or stride 2 and a height and width that are multiples of 4",
}

_DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")


_portable = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Have what is traced within take the formulations of GPUs and TPUs, for a program that runs anywhere."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def on_cpu() -> bool:
    """Return whether formulations are chosen for CPUs."""
    return jax.default_backend() == "cpu" and not _portable.get()


def halves(kernel_size: int, stride: int, padding: int, dilation: int, height: int, width: int) -> bool:
    """Return whether a convolution is the 4x4 stride-2 one that halves an even-sized image exactly."""
    return (kernel_size, stride, padding, dilation) == (4, 2, 1, 1) and height % 2 == 0 and width % 2 == 0


def winograds(
    kernel_size: int, stride: int, padding: int, dilation: int, height: int, width: int, dtype: jnp.dtype
) -> bool:
    """Return whether a convolution is one that exists as ``winograd``."""
    # In bfloat16 the combinations would lose digits.
    if dtype != jnp.float32 or (padding, dilation) != (1, 1):
        return False
    if (kernel_size, stride) == (4, 2):
        return height % winograd_even.TILE == 0 and width % winograd_even.TILE == 0
    whole = height % winograd.TILE[0] == 0 and width % winograd.TILE[1] == 0
    return (kernel_size, stride) == (4, 1) or ((kernel_size, stride) == (3, 1) and whole)


def choose_convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: int, dilation: int) -> str:
    """Return the formulation in which a convolution trains fastest on the current backend; see :func:`convolution`."""
    kernel_size, (batch, height, width, _) = len(kernel), x.shape
    geometry = (kernel_size, stride, padding, dilation, height, width)
    if on_cpu():
        reach = dilation * (kernel_size - 1) + 1
        positions = ((height + 2 * padding - reach) // stride + 1) * ((width + 2 * padding - reach) // stride + 1)
        light = not _kernel_outweighs(kernel, batch * positions)
        if light and winograds(*geometry, x.dtype) and _wide(kernel, stride):
            return "winograd"
        if stride > 1 and (not light or positions <= STRIDED_POSITIONS):
            return "matrix"
    return "two_by_two" if halves(*geometry) else "plain"


def choose_transposed(x: jax.Array, kernel: jax.Array) -> str:
    """Return the formulation in which the 4x4 stride-2 transposed convolution trains fastest on the current backend."""
    if on_cpu():
        if _kernel_outweighs(kernel, math.prod(x.shape[:3])):
            return "matrix"
        if doubles_by_winograd(x) and _wide(kernel, 2):
            return "winograd"
    return "two_by_two"


def _kernel_outweighs(kernel: jax.Array, positions: int) -> bool:
    """Returns whether a kernel weighs more than a batch's maps, the smaller ones: it is best taken as it lies."""
    return 4 * positions <= sum(kernel.shape[2:])


def _wide(kernel: jax.Array, stride: int) -> bool:
    return (min if stride == 1 else max)(kernel.shape[2:]) >= WINOGRAD_CHANNELS[stride]


def doubles_by_winograd(x: jax.Array) -> bool:
    """Return whether the transposed convolution of these images exists as ``winograd``."""
    return x.dtype == jnp.float32 and x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0


def _pad(x: jax.Array, padding: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def _valid_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=_DIMENSION_NUMBERS)


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
        formulation: one of FORMULATIONS; ``two_by_two`` exists where :func:`halves` holds, ``winograd`` where
            :func:`winograds` does.

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
        if kernel.shape[0] == 3:
            return winograd.convolve(x, kernel)
        return (winograd_even.convolve if stride == 1 else winograd_even.halve)(x, kernel)
    if formulation == "two_by_two" and halves(*geometry):
        return _valid_convolution(winograd_even.blocks_of(x), winograd_even.pixel_kernel(kernel))
    if formulation in _NEEDS:
        raise ValueError(
            f"formulation {formulation!r} needs {_NEEDS[formulation]}, got kernel {geometry[0]}, stride {stride}, "
            f"padding {padding}, dilation {dilation}, image {x.shape[1]}x{x.shape[2]}, {x.dtype}; use 'auto'"
        )
    raise ValueError(f"unknown formulation {formulation!r}; use one of {', '.join(FORMULATIONS)}")


def _sub_pixel_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    height, width = x.shape[1:3]
    channels, features = kernel.shape[2:]
    # Output row 2m + p is the sum over t of padded input row m + p + t times flipped kernel row 2t + p.
    taps = kernel[::-1, ::-1].reshape(2, 2, 2, 2, channels, features).transpose(0, 2, 4, 1, 3, 5)
    phases = _valid_convolution(_pad(x, 1), taps.reshape(2, 2, channels, 4 * features))
    phases = phases.reshape(*phases.shape[:3], 2, 2, features)
    rows = [jnp.stack([phases[:, p : p + height, q : q + width, p, q] for q in range(2)], axis=3) for p in range(2)]
    return jnp.stack(rows, axis=2).reshape(x.shape[0], 2 * height, 2 * width, features)


def _tap_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    batch, height, width, channels = x.shape
    features = kernel.shape[3]
    pixels = batch * height * width
    # One product for each tap, so that the kernel, which is large where images are small, need not be rearranged.
    repeated = jnp.broadcast_to(x.reshape(1, pixels, channels), (16, pixels, channels))
    products = jnp.einsum("tpc,tcf->tpf", repeated, kernel.reshape(16, channels, features))
    products = products.reshape(4, 4, batch, height, width, features)
    rows = _overlap(products, 2)  # (4, B, 2H, W, F)
    return _overlap(rows, 2)


def _overlap(products: jax.Array, axis: int) -> jax.Array:
    """Adds products with four taps, along the first axis, where they meet: output[2i - 1 + a] += products[a, i]."""

    def moved(x: jax.Array, before: int, after: int) -> jax.Array:
        widths = [(before, after) if place == axis else (0, 0) for place in range(x.ndim)]
        return lax.slice_in_dim(jnp.pad(x, widths), after, after + x.shape[axis], axis=axis)

    even = products[1] + moved(products[3], 1, 0)
    odd = products[2] + moved(products[0], 0, 1)
    return winograd.interleave([even, odd], axis)


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
        formulation = choose_transposed(x, kernel)
    if formulation == "plain":
        return lax.conv_general_dilated(
            x, kernel[::-1, ::-1], (1, 1), [(2, 2)] * 2, lhs_dilation=(2, 2), dimension_numbers=_DIMENSION_NUMBERS
        )
    if formulation == "matrix":
        return _tap_products(x, kernel)
    if formulation == "two_by_two":
        return _sub_pixel_convolution(x, kernel)
    if formulation == "winograd":
        if not doubles_by_winograd(x):
            raise ValueError(
                "formulation 'winograd' of the transposed convolution needs float32 and an even height and width, got "
                f"image {x.shape[1]}x{x.shape[2]}, {x.dtype}; use 'auto'"
            )
        return winograd_even.double(x, kernel)
    raise ValueError(f"unknown formulation {formulation!r}; use one of {', '.join(FORMULATIONS)}")
