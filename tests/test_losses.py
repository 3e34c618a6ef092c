"""Losses against NumPy in float64, written out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from inpaint_jax import losses

RANDOM = np.random.default_rng(0)
PREDICTION = RANDOM.uniform(-1, 1, (3, 6, 5, 3))
TARGET = RANDOM.uniform(-1, 1, (3, 6, 5, 3))
# Example 0: a hole, example 1: no hole, example 2: all hole.
MASK = np.zeros((3, 6, 5, 1))
MASK[0, 2:4, 1:3] = 1
MASK[2] = 1


def per_pixel(name):
    difference = PREDICTION - TARGET
    if name == "l1":
        return np.abs(difference).mean(-1)
    if name == "mse":
        return (difference**2).mean(-1)
    if name == "cosine":
        lengths = np.linalg.norm(PREDICTION, axis=-1) * np.linalg.norm(TARGET, axis=-1)
        return 1 - (PREDICTION * TARGET).sum(-1) / lengths
    unit = TARGET / np.linalg.norm(TARGET, axis=-1, keepdims=True)
    return np.sqrt(((PREDICTION - unit) ** 2).sum(-1) + 1e-4)


def f32(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@pytest.mark.parametrize("name", losses.LOSSES)
def test_losses_are_means_over_the_region(name):
    values = losses.LOSSES[name](*f32(PREDICTION, TARGET, MASK))
    errors = per_pixel(name)
    expected = [errors[0, 2:4, 1:3].mean(), 0.0, errors[2].mean()]
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_bfloat16_predictions_give_float32_losses(name):
    prediction, target, mask = f32(PREDICTION, TARGET, MASK)
    values = losses.LOSSES[name](prediction.astype(jnp.bfloat16), target, mask)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, losses.LOSSES[name](prediction, target, mask), rtol=0.02)


def test_cosine_of_vectors_without_length_is_finite():
    zero = jnp.zeros((1, 2, 2, 3))
    np.testing.assert_array_equal(losses.cosine(zero, zero, jnp.ones((1, 2, 2, 1))), [1.0])


def test_bce_of_logits():
    logits = np.array([[-2.0, 0.0], [3.0, 60.0]]).reshape(2, 2, 1, 1)
    for target in (0.0, 1.0):
        sign = 1 if target else -1
        expected = np.log1p(np.exp(-sign * logits)).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(losses.bce_logits(*f32(logits), target), expected, rtol=1e-6)


def test_region_weights():
    mask = np.zeros((1, 16, 16, 1), np.float32)
    mask[0, 7, 8] = 1
    band = np.zeros_like(mask)
    band[0, 3:12, 4:13] = 1
    band[0, 7, 8] = 0
    for region, expected in (("full", np.ones_like(mask)), ("hole", mask), ("band", band)):
        np.testing.assert_array_equal(losses.region_weight(jnp.asarray(mask), region), expected)


def test_generator_loss_sums_weighted_terms_and_reports_each():
    terms = {
        "reconstruction": common.loss_term("l1", 3.0, on="completed", region="hole"),
        "everywhere": common.loss_term("mse", 0.5, on="output", region="full"),
        "adversarial": common.loss_term("adversarial", 0.1),
    }
    image, mask, output = f32(TARGET, MASK, PREDICTION)
    images = {"image": image, "mask": mask, "output": output, "completed": image + mask * 0.25}
    logits = np.array([-1.0, 0.5, 2.0]).reshape(3, 1, 1, 1)
    total, parts = losses.generator_loss(terms, images, *f32(logits))
    expected = {
        "reconstruction": (0.25 + 0 + 0.25) / 3,
        "everywhere": ((PREDICTION - TARGET) ** 2).mean(),
        "adversarial": np.log1p(np.exp(-logits)).mean(),
    }
    assert set(parts) == {f"loss/{name}{suffix}" for name in terms for suffix in ("", "_weighted")}
    for name, value in expected.items():
        np.testing.assert_allclose(parts[f"loss/{name}"], value, rtol=1e-5)
        np.testing.assert_allclose(parts[f"loss/{name}_weighted"], terms[name].weight * value, rtol=1e-5)
    np.testing.assert_allclose(total, sum(terms[name].weight * value for name, value in expected.items()), rtol=1e-5)


def test_discriminator_loss_wants_real_up_and_fake_down():
    real, fake = np.array([1.0, -2.0]).reshape(2, 1, 1, 1), np.array([0.5, 3.0]).reshape(2, 1, 1, 1)
    total, parts = losses.discriminator_loss(*f32(real, fake))
    expected_real, expected_fake = np.log1p(np.exp(-real)).mean(), np.log1p(np.exp(fake)).mean()
    np.testing.assert_allclose(parts["loss/discriminator_real"], expected_real, rtol=1e-6)
    np.testing.assert_allclose(parts["loss/discriminator_fake"], expected_fake, rtol=1e-6)
    np.testing.assert_allclose(total, expected_real + expected_fake, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fn": "l3"}, "l3.*cosine.*l1"),
        ({"region": "rim"}, "rim.*full, hole, band"),
        ({"on": "image"}, "image.*output"),
    ],
)
def test_unknown_names_are_errors_that_list_the_known(change, words):
    term = common.loss_term("l1", 1.0)
    term.update(change)
    with pytest.raises(ValueError, match=rf"config\.losses\.mine.*{words}"):
        losses.validate_losses({"mine": term})
