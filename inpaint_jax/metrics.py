"""Image metrics, computed per image on the device: PSNR, SSIM, L1, sharpness, seams and the angle of normals.

Every function is pure, takes a batch and returns one number per image, so that the caller can average over
images of any number of batches and give padding a weight of zero. An image without a hole gets the score of a
perfect one in the hole forms: it is finite, and nothing was asked of the model there.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from inpaint_jax import artefacts
from inpaint_jax.artefacts import gaussian_blur, region_mean

# PSNR of a perfect image, in decibels, where the logarithm would be infinite: a mean squared error of 1e-10.
PSNR_CAP_DB = 100.0

SSIM_WINDOW = artefacts.WINDOW  # pixels
SSIM_K1 = 0.01
SSIM_K2 = 0.03

# Ratios of means over images, and what they are made of: prediction / truth. A picture that is nearly flat has next to
# no gradients, so that a ratio of its own would be noise, and would outweigh those of pictures with structure. Those
# of noise, colour and completeness are of photographs alone.
RATIOS = {
    "gradient_ratio_hole": ("gradient_hole", "true_gradient_hole"),
    "seam_ratio_hole": ("seam_hole", "true_seam_hole"),
    "noise_ratio_hole": ("noise_hole", "true_noise_hole"),
    "colour_ratio_hole": ("colour_hole", "true_colour_hole"),
    "completeness_hole": ("painted_hole", "true_structure_hole"),
}

_NOTHING = 1e-4  # a fortieth of a step of 8 bits: where truths have no gradients or colour, ratios stay numbers

# Which direction is better; see `direction_of`. A metric that is not here has none, such as a ratio that should be 1.
# Not every run has all of them; see `validated_metrics`.
METRIC_DIRECTION = {
    "psnr_db_full": "max",
    "psnr_db_hole": "max",
    "ssim_full": "max",
    "ssim_hole": "max",
    "l1_full": "min",
    "l1_hole": "min",
    "angular_error_deg_hole": "min",
    "completeness_hole": "max",
    "white_hole": "min",
    "lpips_full": "min",
    "lpips_hole": "min",
}
_OF_NORMAL_MAPS = ("angular_error_deg_hole",)
_OF_PHOTOGRAPHS = ("completeness_hole", "white_hole")
_OF_LPIPS = ("lpips_full", "lpips_hole")


def direction_of(name: str) -> str:
    """Returns which direction of a validation value is better, "min" or "max"; "" for a value that has none."""
    return "min" if name.startswith("loss/") else METRIC_DIRECTION.get(name, "")


def validated_metrics(normal_maps: bool, lpips: bool) -> list[str]:
    """Returns the metrics that validation gives and that a run may watch, because a direction is better.

    Args:
        normal_maps: whether the images are normal maps.
        lpips: whether the evaluation step adds `lpips_full` and `lpips_hole`.
    """
    absent = (_OF_PHOTOGRAPHS if normal_maps else _OF_NORMAL_MAPS) + (() if lpips else _OF_LPIPS)
    return [name for name in METRIC_DIRECTION if name not in absent]


def l1(prediction: jax.Array, target: jax.Array, region: jax.Array) -> jax.Array:
    """Computes the mean absolute error over a region.

    Args:
        prediction: float32 (B, H, W, C) in [0, 1].
        target: float32 (B, H, W, C) in [0, 1].
        region: float32 (B, H, W, 1), 1 where a pixel counts: the mask for the hole form, ones for the full form.

    Returns:
        float32 (B,) in [0, 1]; 0 where no pixel counts.
    """
    return region_mean(jnp.abs(prediction - target), region, empty=0.0)


def psnr_db(prediction: jax.Array, target: jax.Array, region: jax.Array) -> jax.Array:
    """Computes the peak signal-to-noise ratio over a region, for a peak of 1.

    Args:
        prediction: float32 (B, H, W, C) in [0, 1].
        target: float32 (B, H, W, C) in [0, 1].
        region: float32 (B, H, W, 1), 1 where a pixel counts: the mask for the hole form, ones for the full form.

    Returns:
        float32 (B,) in decibels, at most `PSNR_CAP_DB`, which is also the value where no pixel counts.
    """
    mean_squared_error = region_mean(jnp.square(prediction - target), region, empty=0.0)
    smallest_error = 10.0 ** (-PSNR_CAP_DB / 10.0)
    decibels = -10.0 * jnp.log10(jnp.maximum(mean_squared_error, smallest_error))
    return jnp.minimum(decibels, PSNR_CAP_DB)


def ssim_map(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Computes the structural similarity around every pixel, channel by channel.

    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity",
    IEEE Transactions on Image Processing 13(4), 2004, equation 13; Gaussian window of 11 x 11 pixels with a sigma of
    1.5, k1 = 0.01, k2 = 0.03, dynamic range 1.

    Args:
        prediction: float32 (B, H, W, C) in [0, 1], H and W at least 11.
        target: float32 (B, H, W, C) in [0, 1].

    Returns:
        float32 (B, H, W, C), at most 1 but for rounding, and exactly 1 for equal images.

    Raises:
        ValueError: the images are smaller than the window.
    """
    height, width = prediction.shape[1:3]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, but these are {height}x{width}: "
            "take a larger image_size."
        )
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    mean_p, mean_t = gaussian_blur(prediction), gaussian_blur(target)
    mean_difference = mean_p - mean_t
    variance_p = gaussian_blur(jnp.square(prediction)) - jnp.square(mean_p)
    variance_t = gaussian_blur(jnp.square(target)) - jnp.square(mean_t)
    variance_difference = gaussian_blur(jnp.square(prediction - target)) - jnp.square(mean_difference)
    # The paper's 2xy + c equals (x^2 + y^2 + c) - (x - y)^2. Written so, rounding in the variances of flat regions,
    # as large as c2 there, does not reach the result for similar images.
    luminance = 1.0 - jnp.square(mean_difference) / (jnp.square(mean_p) + jnp.square(mean_t) + c1)
    structure = 1.0 - variance_difference / (variance_p + variance_t + c2)
    return luminance * structure


def ssim_full(similarity: jax.Array) -> jax.Array:
    """Averages an SSIM map over the whole image as scikit-image does: without the border that needs reflection.

    Args:
        similarity: float32 (B, H, W, C) from `ssim_map`.

    Returns:
        float32 (B,), at most 1.
    """
    border = SSIM_WINDOW // 2
    height, width = similarity.shape[1:3]
    return jnp.mean(similarity[:, border : height - border, border : width - border], axis=(1, 2, 3))


def ssim_hole(similarity: jax.Array, mask: jax.Array) -> jax.Array:
    """Averages an SSIM map over the hole, up to the border of the image.

    Args:
        similarity: float32 (B, H, W, C) from `ssim_map`.
        mask: float32 (B, H, W, 1), 1 = hole, 0 = known.

    Returns:
        float32 (B,), at most 1; 1 for an image without a hole.
    """
    return region_mean(similarity, mask, empty=1.0)


def angular_error_deg(prediction: jax.Array, target: jax.Array, region: jax.Array) -> jax.Array:
    """Computes the mean angle between the normals of two normal maps over a region.

    Lengths do not matter: an encoded vector of any length stands for its direction. A vector of length zero (an
    exact 0.5 in all three channels, which no 8-bit file holds) has none and counts as 90 degrees off.

    Args:
        prediction: float32 (B, H, W, 3) in [0, 1], vector = 2 * rgb - 1.
        target: float32 (B, H, W, 3) in [0, 1].
        region: float32 (B, H, W, 1), 1 where a pixel counts.

    Returns:
        float32 (B,) in degrees, [0, 180]; 0 where no pixel counts.
    """
    p = 2.0 * prediction - 1.0
    t = 2.0 * target - 1.0
    # t x p = t x (p - t), and the right side is exactly zero for equal vectors. The arctangent keeps its precision
    # at small angles, where the arccosine of a dot product loses half of the digits.
    d = p - t
    cross = (
        t[..., 1:2] * d[..., 2:3] - t[..., 2:3] * d[..., 1:2],
        t[..., 2:3] * d[..., 0:1] - t[..., 0:1] * d[..., 2:3],
        t[..., 0:1] * d[..., 1:2] - t[..., 1:2] * d[..., 0:1],
    )
    sine = jnp.sqrt(sum(jnp.square(component) for component in cross))
    cosine = jnp.sum(p * t, axis=-1, keepdims=True)
    angle = jnp.where((sine == 0) & (cosine == 0), 90.0, jnp.rad2deg(jnp.arctan2(sine, cosine)))
    return region_mean(angle, region, empty=0.0)


def steepness(image: jax.Array, mask: jax.Array, both: bool) -> jax.Array:
    """Computes the mean absolute difference of neighbouring pixels in the hole, or across its border.

    Args:
        image: float32 (B, H, W, C) in [0, 1].
        mask: float32 (B, H, W, 1), 1 = hole, 0 = known.
        both: True takes pairs, side by side or one above the other, that lie in the hole with both pixels, which shows
            how sharp a fill is; False those with exactly one, which shows how much the outline of the hole is seen.

    Returns:
        float32 (B,) in [0, 1], over all channels; 0 where there is no such pair.
    """
    total = pairs = 0.0
    for axis in (1, 2):
        first, second = (jax.lax.slice_in_dim(mask, a, mask.shape[axis] - 1 + a, axis=axis) for a in (0, 1))
        chosen = first * second if both else jnp.abs(first - second)
        total += jnp.sum(jnp.abs(jnp.diff(image, axis=axis)) * chosen, axis=(1, 2, 3))
        pairs += jnp.sum(chosen, axis=(1, 2, 3)) * image.shape[-1]
    return total / jnp.maximum(pairs, 1.0)


def image_metrics(prediction: jax.Array, target: jax.Array, mask: jax.Array, normal_maps: bool) -> dict[str, jax.Array]:
    """Computes all metrics of a batch, one number per image; `mean_metrics` averages them over images.

    Args:
        prediction: float32 (B, H, W, 3) in [0, 1], H and W at least 11.
        target: float32 (B, H, W, 3) in [0, 1].
        mask: float32 (B, H, W, 1), 1 = hole, 0 = known.
        normal_maps: whether the images are normal maps, which adds `angular_error_deg_hole`, or photographs, which adds
            what `artefacts` measures; static under `jax.jit`.

    Returns:
        float32 (B,) per name; `direction_of` says which direction is better. An image without a hole gets the
        score of a perfect one in the hole forms: 100 dB, SSIM 1, L1 0, 0 degrees, no white, and 0 in what `RATIOS`
        compares.

    Raises:
        ValueError: the images are smaller than the SSIM window.
    """
    everywhere = jnp.ones_like(mask)
    similarity = ssim_map(prediction, target)
    metrics = {
        "psnr_db_full": psnr_db(prediction, target, everywhere),
        "psnr_db_hole": psnr_db(prediction, target, mask),
        "ssim_full": ssim_full(similarity),
        "ssim_hole": ssim_hole(similarity, mask),
        "l1_full": l1(prediction, target, everywhere),
        "l1_hole": l1(prediction, target, mask),
    }
    measures = {
        "gradient_ratio_hole": functools.partial(steepness, mask=mask, both=True),
        "seam_ratio_hole": functools.partial(steepness, mask=mask, both=False),
    }
    if normal_maps:
        metrics["angular_error_deg_hole"] = angular_error_deg(prediction, target, mask)
    else:
        metrics["white_hole"] = artefacts.white(prediction, target, mask)
        measures["noise_ratio_hole"] = functools.partial(artefacts.noise, mask=mask)
        measures["colour_ratio_hole"] = functools.partial(artefacts.colour_spread, mask=mask)
        measures["completeness_hole"] = functools.partial(artefacts.painted_structure, truth=target, mask=mask)
    for ratio, measure in measures.items():
        ours, true = RATIOS[ratio]
        metrics |= {ours: measure(prediction), true: measure(target)}
    return metrics


def mean_metrics(per_image: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the mean of every value over the images, and of each pair in `RATIOS` the ratio of the two means instead.

    Args:
        per_image: `{name: (N,)}`, N at least 1.

    Returns:
        A ratio is 1 where the fills are as steep, noisy or colourful as the truth, below 1 where they are blurred (or
        the border is) or of one colour, above 1 where they are noisy or gaudy (or the seam shows), and 1 where neither
        the fills nor the truth have any of it. `completeness_hole` is the share of the truth's structure that the fills
        have painted, at most 1.
    """
    values = {name: float(np.mean(v, dtype=np.float64)) for name, v in per_image.items()}
    for ratio, (ours, true) in RATIOS.items():
        if ours in values:
            values[ratio] = (values.pop(ours) + _NOTHING) / (values.pop(true) + _NOTHING)
    return values
