"""Losses as small pure functions with one signature, and the weighted sum that a config names.

Every reconstruction loss is `loss(prediction, target, weight) -> (B,)` in float32: prediction and target (B, H, W, C)
in the task's value range, or mapped from it to [0, 1] for those that UNIT_RANGE names, weight (B, H, W, 1) in [0, 1].
It is a map of errors, of each pixel or of each channel of it, summed in the region over max(1, how many errors lie
there), for each example; the mean over examples follows outside, so that nothing depends on how the batch is spread
over devices. The map is made of whole images and weighted afterwards: an error that looks at neighbours (`edge`,
`ssim`) looks across the border of the region.

Predictions may leave [0, 1]. A loss that takes their logarithm clips them first, and a clipped value has no gradient:
nothing draws it back but other pixels, through the weights that they share.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import ml_collections
import optax

from inpaint_jax import masks, metrics, perceptual, task

BAND_PIXELS = 4

# Distance from 0, and for some losses from 1, that values keep before their logarithm is taken. A quarter of a step of
# 8 bits: clipping never changes what a picture shows, and no pixel has a gradient of more than 1000.
PROBABILITY_MARGIN = 1e-3


def _mean_in_region(error: jax.Array, weight: jax.Array) -> jax.Array:
    error = error.astype(jnp.float32)
    pixels = jnp.sum(weight, axis=(1, 2, 3)) * error.shape[-1]
    return jnp.sum(error * weight, axis=(1, 2, 3)) / jnp.maximum(pixels, 1.0)


def l1(prediction: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean absolute error."""
    return _mean_in_region(jnp.abs(prediction - target), weight)


def mse(prediction: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean squared error."""
    return _mean_in_region(jnp.square(prediction - target), weight)


def cosine(prediction: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """One minus the cosine similarity of the vectors of each pixel; needs images in [-1, 1]."""
    prediction, target = prediction.astype(jnp.float32), target.astype(jnp.float32)
    lengths = jnp.sum(jnp.square(prediction), -1) * jnp.sum(jnp.square(target), -1)
    similarity = jnp.sum(prediction * target, -1) * jax.lax.rsqrt(jnp.maximum(lengths, 1e-6))
    return _mean_in_region(1.0 - similarity[..., None], weight)


def vector_distance(prediction: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """Euclidean distance between unit vectors, about the angle in radians; robust where `cosine` is quadratic.

    Smoothed at zero: sqrt(d^2 + 1e-4). The target is normalised, the prediction is taken as it is.
    """
    target = target / jnp.maximum(jnp.linalg.norm(target, axis=-1, keepdims=True), 1e-3)
    squared = jnp.sum(jnp.square(prediction - target), axis=-1, keepdims=True)
    return _mean_in_region(jnp.sqrt(squared + 1e-4), weight)


def edge(prediction: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """Mean absolute difference of Sobel gradients, across and down, in value per pixel.

    The kernels are [-1, 0, 1] one way and [1, 2, 1] the other way over 8, which gives a ramp its slope; the border of
    the image is repeated beyond it.
    """
    difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    padded = jnp.pad(difference, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    smooth_down = padded[:, :-2] + 2.0 * padded[:, 1:-1] + padded[:, 2:]
    smooth_across = padded[:, :, :-2] + 2.0 * padded[:, :, 1:-1] + padded[:, :, 2:]
    across = (smooth_down[:, :, 2:] - smooth_down[:, :, :-2]) / 8.0
    down = (smooth_across[:, 2:] - smooth_across[:, :-2]) / 8.0
    return _mean_in_region((jnp.abs(across) + jnp.abs(down)) / 2.0, weight)


def ssim(prediction: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """One minus the structural similarity around each pixel, `metrics.ssim_map`; images in [0, 1], at least 11x11.

    Raises:
        ValueError: the images are smaller than the window.
    """
    return _mean_in_region(1.0 - metrics.ssim_map(prediction.astype(jnp.float32), target.astype(jnp.float32)), weight)


def poisson_nll(prediction: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """Negative logarithm of a Poisson likelihood, p - t log p with p = clip(prediction, 1e-3, 1); images in [0, 1].

    Least at p = t, where it is t - t log t, not 0; for t below the margin, at the margin. Predictions outside of
    [1e-3, 1] have no gradient.
    """
    p = jnp.clip(prediction.astype(jnp.float32), PROBABILITY_MARGIN, 1.0)
    return _mean_in_region(p - target * jnp.log(p), weight)


def cross_entropy(prediction: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """Cross-entropy of each channel as a probability, -t log p - (1 - t) log(1 - p); images in [0, 1].

    p = clip(prediction, 1e-3, 1 - 1e-3). Least at p = t, where it is the entropy of t, not 0; for t in a margin, at its
    end. Predictions outside of [1e-3, 1 - 1e-3] have no gradient. Across the channels of a pixel, as a softmax, it
    could not tell bright from dark.
    """
    p = jnp.clip(prediction.astype(jnp.float32), PROBABILITY_MARGIN, 1.0 - PROBABILITY_MARGIN)
    return _mean_in_region(-target * jnp.log(p) - (1.0 - target) * jnp.log1p(-p), weight)


def _shares(images: jax.Array) -> jax.Array:
    """Returns (r, g, b, 3 - r - g - b) / 3 of each pixel, all above 0, from images in [0, 1]."""
    values = jnp.clip(images.astype(jnp.float32), PROBABILITY_MARGIN, 1.0 - PROBABILITY_MARGIN)
    rest = jnp.sum(1.0 - values, axis=-1, keepdims=True)
    return jnp.concatenate([values, rest], axis=-1) / values.shape[-1]


def kl_divergence(prediction: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """Kullback-Leibler divergence KL(target || prediction) of each pixel's distribution; images in [0, 1].

    The distribution is (r, g, b, 3 - r - g - b) / 3, the channels of both images clipped to [1e-3, 1 - 1e-3]: its
    divergence, the sum of its four terms, is exactly 0 at the truth and larger elsewhere. The form t log(t / p) for
    each channel by itself, which libraries offer, has no minimum at the truth: it keeps falling as p grows, and so
    teaches white. Predictions outside of [1e-3, 1 - 1e-3] have no gradient.
    """
    divergence = optax.losses.kl_divergence(jnp.log(_shares(prediction)), _shares(target))
    return _mean_in_region(divergence[..., None], weight)


def bce_logits(logits: jax.Array, target: float) -> jax.Array:
    """Binary cross-entropy of logits (B, h, w, 1) against one target in [0, 1], mean over patches, (B,)."""
    labels = jnp.full_like(logits, target, jnp.float32)
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels).mean(axis=(1, 2, 3))


Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
LOSSES: dict[str, Loss] = {
    "l1": l1,
    "mse": mse,
    "cosine": cosine,
    "vector_distance": vector_distance,
    "edge": edge,
    "ssim": ssim,
    "poisson_nll": poisson_nll,
    "cross_entropy": cross_entropy,
    "kl_divergence": kl_divergence,
}
# Losses that take images in [0, 1], whatever the value range of the task.
UNIT_RANGE = frozenset({"ssim", "poisson_nll", "cross_entropy", "kl_divergence"})
ADVERSARIAL = "adversarial"


def region_weight(mask: jax.Array, region: str) -> jax.Array:
    """Returns the weight (B, H, W, 1) of a region: full, hole, or band (the known pixels within 4 of the hole)."""
    if region == "full":
        return jnp.ones_like(mask)
    return mask if region == "hole" else masks.band(mask, BAND_PIXELS)


def validate_losses(terms: ml_collections.ConfigDict) -> None:
    """Checks the entries of `config.losses`.

    Raises:
        ValueError: an unknown function, region or image, with the known ones.
    """
    choices = {
        "fn": (*sorted(LOSSES), perceptual.LOSS, ADVERSARIAL),
        "on": ("output", "completed"),
        "region": ("full", "hole", "band"),
        "view": ("full",),
    }
    for name, term in terms.items():
        for key, known in choices.items():
            if term[key] not in known:
                raise ValueError(f"config.losses.{name}.{key} = {term[key]!r}: known are {', '.join(known)}")


def reconstruction_losses(
    terms: ml_collections.ConfigDict, images: Mapping[str, jax.Array], value_range: tuple[float, float]
) -> dict[str, jax.Array]:
    """Returns `{"loss/<term>": (B,)}`, each term raw, without the adversarial one; arguments as in `generator_loss`."""
    return {
        f"loss/{name}": _reconstruction_loss(term, images, value_range)
        for name, term in terms.items()
        if term.weight and term.fn != ADVERSARIAL
    }


def _reconstruction_loss(
    term: ml_collections.ConfigDict, images: Mapping[str, jax.Array], value_range: tuple[float, float]
) -> jax.Array:
    weight = region_weight(images["mask"], term.region)
    if term.fn == perceptual.LOSS:
        return perceptual.perceptual_loss(images["features"][term.on], images["features"]["image"], weight)
    prediction, target = images[term.on], images["image"]
    if term.fn in UNIT_RANGE:
        # Not clipped: a loss that takes values beyond the range, such as SSIM, shall draw them back.
        prediction, target = (task.to_unit_range(image, value_range) for image in (prediction, target))
    return LOSSES[term.fn](prediction, target, weight)


def adversarial_losses(terms: ml_collections.ConfigDict, fake_logits: jax.Array) -> dict[str, jax.Array]:
    """Returns `{"loss/<term>": (B,)}` of the terms that ask the discriminator to take the generated for real, raw."""
    return {
        f"loss/{name}": bce_logits(fake_logits, 1.0)
        for name, term in terms.items()
        if term.weight and term.fn == ADVERSARIAL
    }


def weighted_sum(terms: ml_collections.ConfigDict, raw: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the generator's loss from its raw terms, `loss/<term>`, of any one shape."""
    shares = (term.weight * raw[f"loss/{name}"] for name, term in terms.items() if f"loss/{name}" in raw)
    return sum(shares, jnp.float32(0.0))


def generator_loss(
    terms: ml_collections.ConfigDict,
    images: Mapping[str, jax.Array],
    fake_logits: jax.Array | None,
    value_range: tuple[float, float],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the weighted sum and every term raw and weighted, each a mean over the examples; weight 0 is left out.

    Args:
        terms: `config.losses`.
        images: `image`, `mask`, `output` and `completed`, (B, H, W, C), and `features` of `perceptual.features_of`
            where a term looks at them.
        fake_logits: the discriminator's answer to what it sees of the generator, (B, h, w, 1); None without one.
        value_range: lowest and highest value of the images, `config.task.value_range`.
    """
    raw = reconstruction_losses(terms, images, value_range)
    if fake_logits is not None:
        raw |= adversarial_losses(terms, fake_logits)
    raw = {name: value.mean() for name, value in raw.items()}
    weighted = {f"{name}_weighted": terms[name.removeprefix("loss/")].weight * value for name, value in raw.items()}
    return weighted_sum(terms, raw), raw | weighted


def discriminator_loss(
    real_logits: jax.Array, fake_logits: jax.Array, real_label: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns BCE(real_label, D(real)) + BCE(0, D(fake)) and both parts, each a mean over the examples.

    A label below 1 keeps the discriminator from growing sure: one-sided label smoothing (Salimans et al., "Improved
    Techniques for Training GANs", 2016, section 3.4).
    """
    real, fake = bce_logits(real_logits, real_label).mean(), bce_logits(fake_logits, 0.0).mean()
    return real + fake, {"loss/discriminator_real": real, "loss/discriminator_fake": fake}
