"""Losses against NumPy, SciPy and scikit-image in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from skimage.metrics import structural_similarity

from configs import common
from inpaint_jax import losses

RANDOM = np.random.default_rng(0)
SHAPE = (3, 12, 13, 3)
PREDICTION = RANDOM.uniform(-1, 1, SHAPE)
TARGET = RANDOM.uniform(-1, 1, SHAPE)
PROBABILISTIC = ("poisson_nll", "cross_entropy", "kl_divergence")
MARGIN = 1e-3
# Example 0: a hole, example 1: no hole, example 2: all hole.
MASK = np.zeros((*SHAPE[:3], 1))
MASK[0, 2:4, 1:3] = 1
MASK[2] = 1


def in_range_of(name, *images):
    """Images in [-1, 1] as the loss takes them."""
    return [(image + 1) / 2 if name in losses.UNIT_RANGE else image for image in images]


def shares(image):
    return np.concatenate([image, 3 - image.sum(-1, keepdims=True)], -1) / 3


def sobel(image, axis):
    """Of an image (H, W, C), channel by channel: SciPy's kernel has as many dimensions as the array."""
    return np.stack([ndimage.sobel(channel, axis, mode="nearest") / 8 for channel in np.moveaxis(image, -1, 0)], -1)


def similarity(p, t):
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    return structural_similarity(p, t, channel_axis=-1, full=True, **options)[1]


def entropies(p, t):
    """Of a coin each: the negative mean logarithm of its likelihood."""
    return -t * stats.bernoulli.logpmf(1, p) - (1 - t) * stats.bernoulli.logpmf(0, p)


PIXEL_ERRORS = {
    "l1": lambda p, t: np.abs(p - t),
    "mse": lambda p, t: (p - t) ** 2,
    "cosine": lambda p, t: 1 - (p * t).sum(-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(t, axis=-1),
    "vector_distance": lambda p, t: np.sqrt(((p - t / np.linalg.norm(t, axis=-1, keepdims=True)) ** 2).sum(-1) + 1e-4),
    "edge": lambda p, t: np.stack(
        [[np.abs(sobel(a, axis) - sobel(b, axis)) for a, b in zip(p, t, strict=True)] for axis in (0, 1)], -1
    ),
    "ssim": lambda p, t: np.stack([1 - similarity(a, b) for a, b in zip(p, t, strict=True)]),
    "poisson_nll": lambda p, t: p - t * np.log(p),
    "cross_entropy": entropies,
    "kl_divergence": lambda p, t: stats.entropy(shares(t), shares(p), axis=-1),
}


def f32(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@pytest.mark.parametrize("name", losses.LOSSES)
def test_losses_are_means_over_the_region(name):
    # Inside the margins of the logarithms, which have a test of their own.
    prediction, target = in_range_of(name, np.clip(PREDICTION, -0.99, 0.99), np.clip(TARGET, -0.99, 0.99))
    values = losses.LOSSES[name](*f32(prediction, target, MASK))
    errors = PIXEL_ERRORS[name](prediction, target)
    expected = [errors[0, 2:4, 1:3].mean(), 0.0, errors[2].mean()]
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_bfloat16_predictions_give_float32_losses(name):
    prediction, target, mask = f32(*in_range_of(name, PREDICTION, TARGET), MASK)
    values = losses.LOSSES[name](prediction.astype(jnp.bfloat16), target, mask)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, losses.LOSSES[name](prediction, target, mask), rtol=0.02)


def test_cosine_of_vectors_without_length_is_finite():
    zero = jnp.zeros((1, 2, 2, 3))
    np.testing.assert_array_equal(losses.cosine(zero, zero, jnp.ones((1, 2, 2, 1))), [1.0])


@functools.partial(jax.jit, static_argnums=0)
def single(name, prediction, target):
    """The loss of single pixels (N, 3)."""
    prediction, target = (jnp.asarray(image, jnp.float32).reshape(-1, 1, 1, 3) for image in (prediction, target))
    return losses.LOSSES[name](prediction, target, jnp.ones((len(target), 1, 1, 1)))


@pytest.mark.parametrize("name", PROBABILISTIC)
@settings(deadline=None, max_examples=40)
@given(truth=st.lists(st.integers(0, 255), min_size=3, max_size=3), seed=st.integers(0, 2**31))
def test_no_prediction_is_better_than_the_truth(name, truth, seed):
    truth = np.array(truth) / 255
    random = np.random.default_rng(seed)
    # Near and far, in single channels and in all, beyond the range too.
    steps = random.normal(size=(60, 3)) * 10.0 ** random.uniform(-2, 0.5, (60, 1)) * (random.random((60, 3)) < 0.6)
    others = np.concatenate([truth + steps, np.zeros((1, 3)), np.ones((1, 3)), truth[None]])
    values = single(name, others, np.broadcast_to(truth, others.shape))
    best = values[-1]
    assert (values >= best - 2e-7).all()
    off = np.abs(np.clip(others, MARGIN, 1 - MARGIN) - np.clip(truth, MARGIN, 1 - MARGIN)).max(-1)
    assert (values[off > 0.02] > best + 1e-5).all()
    if name == "kl_divergence":
        assert best == 0


@pytest.mark.parametrize("name", PROBABILISTIC)
def test_the_gradient_points_to_the_truth_and_is_finite_at_the_ends_and_beyond(name):
    predictions = np.repeat([-1.0, 0.0, MARGIN / 2, 2 * MARGIN, 0.3, 0.7, 1 - 2 * MARGIN, 1.0, 1.5], 3).reshape(-1, 3)
    gradients = jax.jit(jax.grad(lambda p, t: single(name, p, t).sum()))
    for truth in (0.0, 0.5, 1.0):
        targets = np.full_like(predictions, truth)
        gradient = np.asarray(gradients(jnp.asarray(predictions, jnp.float32), targets))
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() <= 1 / MARGIN
        outside = (predictions < MARGIN) | (predictions > 1)
        assert (gradient[outside] == 0).all()
        inside = (predictions > MARGIN) & (predictions < 1 - MARGIN)
        np.testing.assert_array_equal(np.sign(gradient[inside]), np.sign(predictions - truth)[inside])


@pytest.mark.parametrize("name", ["edge", "ssim"])
def test_losses_of_neighbours_have_finite_gradients_where_images_are_flat_or_equal(name):
    target, mask = f32(*in_range_of(name, TARGET), MASK)
    value_and_gradient = jax.jit(jax.value_and_grad(lambda p, t: losses.LOSSES[name](p, t, mask).sum()))
    images = (target, *(jnp.full_like(target, value) for value in (-1.0, 0.0, 0.5, 1.0, 2.0)))
    for prediction in images:
        for truth in images:
            value, gradient = value_and_gradient(prediction, truth)
            assert np.isfinite(gradient).all()
            if prediction is truth:
                assert value == 0


def test_the_edge_of_a_ramp_is_its_slope():
    columns = np.arange(SHAPE[2])[:, None] * np.array([0.01, 0.02, -0.03])
    ramp = np.broadcast_to(columns, SHAPE)
    inside = np.zeros((*SHAPE[:3], 1))
    inside[:, :, 1:-1] = 1
    # Half of the gradients, those down the columns, are zero.
    np.testing.assert_allclose(losses.edge(*f32(ramp, 0 * ramp, inside)), 0.02 / 2, rtol=1e-4)


def test_kl_divergence_does_not_teach_white():
    grey = np.full((1, 3), 0.4)
    assert single("kl_divergence", grey + 0.5, grey)[0] > single("kl_divergence", grey + 0.1, grey)[0] > 0.01


def test_losses_of_images_from_0_to_1_do_not_depend_on_the_value_range():
    names = sorted(losses.UNIT_RANGE)
    assert names == ["cross_entropy", "kl_divergence", "poisson_nll", "ssim"]
    terms = {name: common.loss_term(name, 1.0, on="output", region="hole") for name in names}
    images = {"image": TARGET, "output": 1.2 * PREDICTION}

    def values(value_range):
        low, high = value_range
        mapped = {name: (image + 1) / 2 * (high - low) + low for name, image in images.items()}
        mapped = dict(zip((*mapped, "mask"), f32(*mapped.values(), MASK), strict=True))
        return losses.reconstruction_losses(terms, mapped, value_range)

    symmetric, unit = values((-1.0, 1.0)), values((0.0, 1.0))
    for name in names:
        direct = losses.LOSSES[name](*f32((images["output"] + 1) / 2, (TARGET + 1) / 2, MASK))
        assert direct[0] > 0.05
        np.testing.assert_allclose(symmetric[f"loss/{name}"], direct, rtol=1e-4)
        np.testing.assert_allclose(unit[f"loss/{name}"], direct, rtol=1e-4)


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
    total, parts = losses.generator_loss(terms, images, *f32(logits), (-1.0, 1.0))
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


@pytest.mark.parametrize("real_label", [1.0, 0.9])
def test_discriminator_loss_wants_real_up_and_fake_down(real_label):
    real, fake = np.array([1.0, -2.0]).reshape(2, 1, 1, 1), np.array([0.5, 3.0]).reshape(2, 1, 1, 1)
    total, parts = losses.discriminator_loss(*f32(real, fake), real_label)
    softplus = {"real": np.log1p(np.exp(-real)).mean(), "not real": np.log1p(np.exp(real)).mean()}
    expected_real = real_label * softplus["real"] + (1 - real_label) * softplus["not real"]
    expected_fake = np.log1p(np.exp(fake)).mean()
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
