"""Losses as small pure functions with one signature, and the weighted sum that a config names.

Every reconstruction loss is `loss(prediction, target, weight) -> (B,)` in float32: prediction and target (B, H, W, C)
in the task's value range, weight (B, H, W, 1) in [0, 1]. It is the sum in the region over max(1, pixels x channels)
of the region, for each example; the mean over examples follows outside, so that nothing depends on how the batch is
spread over devices.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import ml_collections
import optax

from inpaint_jax import masks

BAND_PIXELS = 4


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


def bce_logits(logits: jax.Array, target: float) -> jax.Array:
    """Binary cross-entropy of logits (B, h, w, 1) against one target in [0, 1], mean over patches, (B,)."""
    labels = jnp.full_like(logits, target, jnp.float32)
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels).mean(axis=(1, 2, 3))


Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
LOSSES: dict[str, Loss] = {"l1": l1, "mse": mse, "cosine": cosine, "vector_distance": vector_distance}
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
        "fn": (*sorted(LOSSES), ADVERSARIAL),
        "on": ("output", "completed"),
        "region": ("full", "hole", "band"),
        "view": ("full",),
    }
    for name, term in terms.items():
        for key, known in choices.items():
            if term[key] not in known:
                raise ValueError(f"config.losses.{name}.{key} = {term[key]!r}: known are {', '.join(known)}")


def reconstruction_losses(terms: ml_collections.ConfigDict, images: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns `{"loss/<term>": (B,)}`, each term raw, without the adversarial one; arguments as in `generator_loss`."""
    return {
        f"loss/{name}": LOSSES[term.fn](images[term.on], images["image"], region_weight(images["mask"], term.region))
        for name, term in terms.items()
        if term.weight and term.fn != ADVERSARIAL
    }


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
    terms: ml_collections.ConfigDict, images: Mapping[str, jax.Array], fake_logits: jax.Array | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the weighted sum and every term raw and weighted, each a mean over the examples; weight 0 is left out.

    Args:
        terms: `config.losses`.
        images: `image`, `mask`, `output` and `completed`, (B, H, W, C).
        fake_logits: the discriminator's answer to what it sees of the generator, (B, h, w, 1); None without one.
    """
    raw = reconstruction_losses(terms, images)
    if fake_logits is not None:
        raw |= adversarial_losses(terms, fake_logits)
    raw = {name: value.mean() for name, value in raw.items()}
    weighted = {f"{name}_weighted": terms[name.removeprefix("loss/")].weight * value for name, value in raw.items()}
    return weighted_sum(terms, raw), raw | weighted


def discriminator_loss(real_logits: jax.Array, fake_logits: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns BCE(1, D(real)) + BCE(0, D(fake)) and both parts, each a mean over the examples."""
    real, fake = bce_logits(real_logits, 1.0).mean(), bce_logits(fake_logits, 0.0).mean()
    return real + fake, {"loss/discriminator_real": real, "loss/discriminator_fake": fake}
