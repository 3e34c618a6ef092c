"""What the eye holds against a filled photograph, in numbers: noise, unpainted parts, one colour, white spaces.

Every function is pure, looks at the pixels of the hole alone, and returns one finite number per image whatever the
hole: nothing that is known beside it makes a flat fill look painted, and no seam counts as noise. Noise and spread of
colour are measured of one picture, to be compared with the truth's; the others compare a fill with the truth.
"""

import jax
import jax.numpy as jnp
import numpy as np

WINDOW = 11  # pixels: side of the Gaussian window of local statistics, that of SSIM
WINDOW_SIGMA = 1.5  # pixels

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

# A local standard deviation of luminance, five steps of 8 bits. On photographs of landscapes and of faces it parts
# foliage, stones, hair, eyes and outlines from sky, calm skin and out-of-focus background: at half of it, haze and the
# noise of dark places count as structure too; at twice, part of the grass, stones and hair no longer do. A third of the
# pixels of landscapes of 256 x 256 lie above it, half of those of faces.
STRUCTURE = 0.02
# The share of the truth's local deviation from which on a fill counts as painted. Other leaves than the true ones are
# a good fill, with calm spots where the truth has lively ones: other parts of the same photographs paint two thirds of
# the structure of landscapes by this measure, and a smooth fill from the border half, most of it at strong edges, where
# it is a steep ramp. At half, blurred objects would count as missing; at 0.15, most ramps as painted.
PAINTED = 0.25

WHITE = 0.95  # least value of all channels from which on a pixel looks white: 243 of 255
# Clouds, snow and foam of the truth excuse a white that is a little brighter or lies a little beside them: a pixel
# counts only if no pixel of the truth around it is as bright as this.
NEARLY_WHITE = 0.9
WHITE_REACH = 5  # pixels: side of the square around a pixel in which the truth is looked at


def region_mean(values: jax.Array, region: jax.Array, empty: float) -> jax.Array:
    """Averages a map over the pixels of a region and all channels, image by image.

    Args:
        values: float32 (B, H, W, C).
        region: float32 (B, H, W, 1), 1 where a pixel counts.
        empty: the result for an image in which no pixel counts.

    Returns:
        float32 (B,) in the unit of `values`.
    """
    area = jnp.sum(region, axis=(1, 2, 3)) * values.shape[-1]
    total = jnp.sum(values * region, axis=(1, 2, 3))
    return jnp.where(area > 0, total / jnp.maximum(area, 1.0), empty)


def _gaussian_matrix(size: int) -> np.ndarray:
    """Returns the window as a float32 (size, size) matrix; beyond the border the line is mirrored."""
    radius = WINDOW // 2
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / WINDOW_SIGMA) ** 2)
    sources = np.pad(np.arange(size), radius, mode="symmetric")
    matrix = np.zeros((size, size))
    for shift, weight in enumerate(weights / weights.sum()):
        np.add.at(matrix, (np.arange(size), sources[shift : shift + size]), weight)
    return matrix.astype(np.float32)


def gaussian_blur(images: jax.Array) -> jax.Array:
    """Blurs float32 (B, H, W, C) with a Gaussian of 11 x 11 pixels and a sigma of 1.5; the border is mirrored."""
    # As matrix products, since a convolution per channel is slow on a CPU: 32 images of 64 x 64 take half the time
    # that sums of shifted images do. A GPU would by default multiply in TF32, too coarse for variances.
    rows, columns = _gaussian_matrix(images.shape[1]), _gaussian_matrix(images.shape[2])
    return jnp.einsum("yh,bhwc,xw->byxc", rows, images, columns, precision=jax.lax.Precision.HIGHEST)


def noise(image: jax.Array, mask: jax.Array) -> jax.Array:
    """Estimates the standard deviation of the noise in the hole.

    Immerkaer, "Fast noise variance estimation", Computer Vision and Image Understanding 64(2), 1996: the mean absolute
    response to [1 -2 1; -2 4 -2; 1 -2 1], which is blind to ramps and to upright and level edges, times
    sqrt(pi / 2) / 6. Averaged over the responses of the three channels: noise of a standard deviation in each channel
    then reads as that, be it grey or coloured, where luminance would take two thirds of the coloured. Fine texture and
    slanted edges count as noise: compare with the truth's.

    Args:
        image: float32 (B, H, W, 3) in [0, 1], H and W at least 3.
        mask: float32 (B, H, W, 1), 1 = hole, 0 = known.

    Returns:
        float32 (B,) in the value range, over the pixels whose neighbours all eight lie in the hole as well; 0 for an
        image without such a pixel, as in a hole of lines two pixels wide.
    """
    # The kernel is the product of a second difference down and one across.
    response = jnp.abs(jnp.diff(jnp.diff(image, n=2, axis=1), n=2, axis=2))
    inside = mask[:, :-2] * mask[:, 1:-1] * mask[:, 2:]
    inside = inside[:, :, :-2] * inside[:, :, 1:-1] * inside[:, :, 2:]
    return region_mean(response, inside, empty=0.0) * float(np.sqrt(np.pi / 2.0) / 6.0)


def colour_spread(image: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes how far the colours in the hole lie apart, whatever their brightness.

    Args:
        image: float32 (B, H, W, 3) in [0, 1].
        mask: float32 (B, H, W, 1), 1 = hole, 0 = known.

    Returns:
        float32 (B,): the root of the summed variances of Cb and Cr (ITU-R BT.601, each of range 1) over the pixels of
        the hole; 0 for grey, for one colour and for an image without a hole.
    """
    red, green, blue = (image[..., channel : channel + 1] for channel in range(3))
    # Cb = (blue - luminance) / 1.772 and Cr = (red - luminance) / 1.402, in differences that are exactly 0 for grey.
    cb = (LUMA[0] * (blue - red) + LUMA[1] * (blue - green)) / (2.0 * (1.0 - LUMA[2]))
    cr = (LUMA[1] * (red - green) + LUMA[2] * (red - blue)) / (2.0 * (1.0 - LUMA[0]))
    variance = 0.0
    for chroma in (cb, cr):
        mean = region_mean(chroma, mask, empty=0.0)[:, None, None, None]
        variance += region_mean(jnp.square(chroma - mean), mask, empty=0.0)
    return jnp.sqrt(variance)


def _local_variance(image: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the variance of luminance in the window around each pixel, of the hole's pixels alone, (B, H, W, 1)."""
    # No matrix product, which a GPU would round to TF32. Around 0, where squares round less; known pixels become zeros.
    luminance = sum(weight * image[..., channel : channel + 1] for channel, weight in enumerate(LUMA))
    luminance = mask * (luminance - 0.5)
    blurred = gaussian_blur(jnp.concatenate([mask, luminance, jnp.square(luminance)], axis=-1))
    # In the hole the window's own centre weighs 0.07; elsewhere nothing is asked for.
    weight = jnp.maximum(blurred[..., :1], 1e-3)
    return jnp.maximum(blurred[..., 2:] / weight - jnp.square(blurred[..., 1:2] / weight), 0.0)


def painted_structure(image: jax.Array, truth: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes the share of the hole that has structure in the truth and is painted in an image, whatever is there.

    Structure is where the truth's local standard deviation of luminance is above `STRUCTURE`; painted is where that of
    the image is at least `PAINTED` times as large. The Gaussian window is that of SSIM, and of it only the pixels of
    the hole count. Noise is paint here: see `noise`. Of the truth itself it is the share that has structure, which
    makes the share of the structure that a fill has painted:
    `painted_structure(fill, truth, mask) / painted_structure(truth, truth, mask)`.

    Args:
        image: float32 (B, H, W, 3) in [0, 1], a fill or the truth.
        truth: float32 (B, H, W, 3) in [0, 1].
        mask: float32 (B, H, W, 1), 1 = hole, 0 = known.

    Returns:
        float32 (B,) in [0, 1]; 0 where the hole has no structure.
    """
    of_image, of_truth = _local_variance(image, mask), _local_variance(truth, mask)
    painted = (of_truth > STRUCTURE**2) & (of_image >= PAINTED**2 * of_truth)
    return region_mean(painted.astype(jnp.float32), mask, empty=0.0)


def white(fill: jax.Array, truth: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes the share of the hole that is white in the fill and not in the truth.

    Args:
        fill: float32 (B, H, W, 3) in [0, 1].
        truth: float32 (B, H, W, 3) in [0, 1].
        mask: float32 (B, H, W, 1), 1 = hole, 0 = known.

    Returns:
        float32 (B,) in [0, 1]: the share of the hole's pixels where all channels of the fill are above `WHITE`, and no
        pixel of the truth in the hole and in the square of `WHITE_REACH` pixels around it has all channels above
        `NEARLY_WHITE`; 0 for an image without a hole.
    """
    darkest = [mask * jnp.min(image, axis=-1, keepdims=True) for image in (fill, truth)]
    side, step = (1, WHITE_REACH, WHITE_REACH, 1), (1, 1, 1, 1)
    around = jax.lax.reduce_window(darkest[1], -jnp.inf, jax.lax.max, side, step, "SAME")
    return region_mean(((darkest[0] > WHITE) & (around <= NEARLY_WHITE)).astype(jnp.float32), mask, empty=0.0)
