"""Schedules, parameter groups and the pieces of the optimiser chain."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inpaint_jax import optim

PARAMS = {
    "generator": {"down0": {"kernel": jnp.ones(2)}, "vgg_conv1": {"kernel": jnp.ones(3)}},
    "discriminator": {"conv0": {"kernel": jnp.ones(4)}},
}


@pytest.fixture
def settings(tiny_config):
    settings = tiny_config.optimizer
    settings.name, settings.learning_rate, settings.schedule = "sgd", 0.5, "constant"
    settings.warmup_fraction, settings.clip_norm, settings.discriminator_rate_ratio = 0.0, 0.0, 1.0
    return settings


def test_learning_rate_warms_up_then_falls_as_a_cosine(settings):
    settings.schedule, settings.warmup_fraction, settings.final_fraction = "cosine", 0.2, 0.1
    rate = optim.learning_rate(settings, "generator/rest", 100)
    np.testing.assert_allclose([rate(step) for step in (0, 10, 20)], [0.5 / 21, 0.5 * 11 / 21, 0.5], rtol=1e-5)
    assert np.all(np.diff([float(rate(step)) for step in range(21)]) > 0)
    for step in (20, 35, 60, 100):
        share = 0.5 * (1 + math.cos(math.pi * (step - 20) / 80))
        np.testing.assert_allclose(rate(step), 0.5 * (0.9 * share + 0.1), rtol=1e-5)
    np.testing.assert_allclose(rate(1000), 0.05, rtol=1e-5)


def test_constant_rate_and_the_ratio_of_the_discriminator(settings):
    settings.discriminator_rate_ratio = 4.0
    assert float(optim.learning_rate(settings, "generator/rest", 100)(77)) == 0.5
    assert float(optim.learning_rate(settings, "discriminator", 100)(77)) == 2.0


def test_groups_split_the_pretrained_encoder_from_the_rest():
    assert optim.group_names(PARAMS) == ["generator/vgg", "generator/rest", "discriminator"]
    assert optim.group_names({"generator": {"down0": {}}}) == ["generator/rest"]
    assert set(optim.select(PARAMS["generator"], "generator/vgg")) == {"vgg_conv1"}
    assert set(optim.select(PARAMS["generator"], "generator/rest")) == {"down0"}
    assert optim.select(PARAMS["discriminator"], "discriminator") == PARAMS["discriminator"]


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("adam", lambda: optax.adam(0.5, b1=0.5, b2=0.9, eps=1e-3)),
        ("sgd", lambda: optax.sgd(0.5)),
        ("rmsprop", lambda: optax.rmsprop(0.5, decay=0.99, eps=1e-3, eps_in_sqrt=False)),
        ("adagrad", lambda: optax.adagrad(0.5, initial_accumulator_value=0.0, eps=1e-6)),
    ],
)
def test_optimisers_are_those_of_optax_times_the_rate_scale(settings, name, reference):
    settings.name, settings.b1, settings.b2, settings.epsilon = name, 0.5, 0.9, 1e-3
    ours, theirs = optim.make_optimizer(settings, "generator/rest", 10), reference()
    params = {"a": jnp.array([1.0, -2.0])}
    state, expected_state = ours.init(params), theirs.init(params)
    for scale in (1.0, 0.25, 0.0):
        gradients = {"a": params["a"] * (1.0 + scale)}
        updates, state = ours.update(gradients, state, params, lr_scale=jnp.float32(scale))
        expected, expected_state = theirs.update(gradients, expected_state, params)
        np.testing.assert_allclose(updates["a"], scale * expected["a"], rtol=1e-6)


def test_rmsprop_and_adagrad_begin_and_decay_as_in_pytorch(settings):
    settings.learning_rate = 1e-3
    gradients = np.random.default_rng(0).normal(0, 1, (5, 7)) * np.logspace(-9, 0, 7)
    squares = {"rmsprop": np.zeros(7), "adagrad": np.zeros(7)}
    for name in squares:
        settings.name = name
        optimizer = optim.make_optimizer(settings, "generator/rest", 10)
        state = optimizer.init({"a": jnp.zeros(7)})
        for gradient in gradients:
            kept, added = (0.99, 0.01) if name == "rmsprop" else (1.0, 1.0)
            squares[name] = kept * squares[name] + added * gradient**2
            updates, state = optimizer.update({"a": jnp.float32(gradient)}, state, lr_scale=jnp.float32(1.0))
            # PyTorch adds its 1e-10 to Adagrad's root; optax adds under it, which matters to gradients as small as it.
            root = np.sqrt(squares[name]) + 1e-8 if name == "rmsprop" else np.sqrt(squares[name] + 1e-16)
            expected = -1e-3 * gradient / root
            np.testing.assert_allclose(updates["a"], expected, rtol=1e-4)


def test_clipping_bounds_the_gradient_before_the_optimiser(settings):
    settings.clip_norm = 1.0
    optimizer = optim.make_optimizer(settings, "generator/rest", 10)
    for gradient, expected in (([3.0, 4.0], [-0.3, -0.4]), ([0.3, 0.4], [-0.15, -0.2])):
        gradients = {"a": jnp.array(gradient)}
        updates, _ = optimizer.update(gradients, optimizer.init(gradients), gradients, lr_scale=jnp.float32(1.0))
        np.testing.assert_allclose(updates["a"], expected, rtol=1e-6)


def test_schedules_count_the_updates_of_their_own_group(settings):
    settings.schedule = "cosine"
    optimizer = optim.make_optimizer(settings, "generator/rest", 2)
    gradients = {"a": jnp.ones(1)}
    state, sizes = optimizer.init(gradients), []
    for _ in range(3):
        updates, state = optimizer.update(gradients, state, gradients, lr_scale=jnp.float32(1.0))
        sizes.append(float(updates["a"][0]))
    np.testing.assert_allclose(sizes, [-0.5, -0.25, 0.0], atol=1e-6)


def test_unknown_optimiser(settings):
    settings.name = "lion"
    with pytest.raises(ValueError, match=r"lion.*adagrad, adam, rmsprop, sgd"):
        optim.make_optimizer(settings, "generator/rest", 10)
