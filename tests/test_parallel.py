"""The same training on one, two and four devices, by `pmap` and by `jit(shard_map)`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import unet_cosine
from inpaint_jax import models, step
from inpaint_jax.parallel import AXIS, check_divisible, make_parallel
from inpaint_jax.state import TrainState

FORMS = [("pmap", 1), ("pmap", 2), ("pmap", 4), ("shard_map", 4)]
SPREAD = FORMS[1:]
STEPS = 10
FAST_COMPILATION = {"xla_backend_optimization_level": 0}


def form_of(kind, devices):
    return make_parallel(kind, jax.devices()[:devices])


@pytest.fixture(scope="module")
def runs(make_state, make_batch):
    """Ten steps of the flagship in every form from the same state, and the gradients of the first step."""
    config = unet_cosine.get_config("tiny")
    # Long enough a run for the warmup to last all ten steps. At the full rate Adam turns the rounding of gradients near
    # zero into steps of the size of the rate, and losses part within three steps.
    config.optimizer.update({"name": "adam", "warmup_fraction": 0.02})
    config.generator.dropout = 0.5
    system = step.make_system(config, 50 * STEPS)
    first = make_state(config, system.optimizers)
    train_step = step.make_train_step(system, "joint")

    def step_with_gradients(state, frozen, batch):
        # One program for both: the compiler merges what they share.
        gradients, _, _ = step.averaged(step.simultaneous_gradients, system, state, {}, batch)
        state, metrics = train_step(state, frozen, batch)
        return state, {"metrics": metrics, "gradients": gradients}

    def run(kind, devices):
        form = form_of(kind, devices)
        state, results = form.replicate(first), []
        given = jax.tree.leaves(state)
        batches = [form.shard(make_batch(config.batch_size, config.image_size, number)) for number in range(STEPS)]
        train = form.train(step_with_gradients).lower(state, {}, batches[0]).compile(FAST_COMPILATION)
        for number, batch in enumerate(batches):
            state, result = train(state, {}, batch)
            results.append(jax.device_get(form.unreplicate(result if number == 0 else {"metrics": result["metrics"]})))
        return {
            "losses": [{k: v for k, v in result["metrics"].items() if "loss" in k} for result in results],
            "gradients": results[0]["gradients"],
            "state": jax.device_get(form.unreplicate(state)),
            "donated": [leaf.is_deleted() for leaf in given],
        }

    return {form: run(*form) for form in FORMS}


@pytest.mark.parametrize(("kind", "devices"), FORMS)
def test_a_state_is_placed_before_the_first_step_as_after_it(kind, devices):
    # Otherwise the second step would be compiled once more.
    form = form_of(kind, devices)
    state = form.replicate({"weights": np.arange(3, dtype=np.float32)})
    before = state["weights"].sharding
    train = form.train(lambda state, frozen, batch: ({"weights": state["weights"] + 1}, {}))
    state, _ = train(state, form.replicate({}), form.shard({"slot": np.arange(4, dtype=np.int32)}))
    assert state["weights"].sharding == before
    np.testing.assert_array_equal(form.unreplicate(state)["weights"], [1, 2, 3])


@pytest.mark.parametrize("form", SPREAD)
def test_averaged_gradients_are_those_of_one_device(runs, form):
    """Within 1e-4 of each array's largest value: rounding; a sum in the place of the mean is 2 to 4 times as large."""
    expected, actual = runs["pmap", 1]["gradients"], runs[form]["gradients"]
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(theirs).max() > 0
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_pmap_and_shard_map_give_the_same_state_to_the_bit(runs):
    jax.tree.map(np.testing.assert_array_equal, runs["shard_map", 4]["state"], runs["pmap", 4]["state"])


@pytest.mark.parametrize("form", SPREAD)
def test_losses_of_ten_steps_do_not_depend_on_the_number_of_devices(runs, form):
    for expected, actual in zip(runs["pmap", 1]["losses"], runs[form]["losses"], strict=True):
        assert {"loss/generator", "loss/discriminator"} <= set(actual)
        for name, value in expected.items():
            np.testing.assert_allclose(actual[name], value, rtol=1e-5, err_msg=name)
    assert runs[form]["losses"][0] != runs[form]["losses"][-1]


@pytest.mark.parametrize("form", FORMS)
def test_the_state_is_donated(runs, form):
    assert all(runs[form]["donated"])


@pytest.mark.parametrize("form", FORMS)
def test_trees_and_batches_survive_the_round_trip(form):
    parallel = form_of(*form)
    assert parallel.count == form[1]
    tree = {"step": np.int32(3), "kernel": np.arange(6.0, dtype=np.float32).reshape(1, 2, 3)}
    back = parallel.unreplicate(parallel.replicate(tree))
    for name, value in tree.items():
        assert back[name].shape == np.shape(value)
        np.testing.assert_array_equal(back[name], value)
    batch = {"slot": np.arange(8, dtype=np.int32), "image": np.arange(16, dtype=np.uint8).reshape(8, 2)}
    evaluate = parallel.evaluate(lambda variables, batch: jax.tree.map(lambda x: x + variables["step"], batch))
    result = parallel.gather(evaluate(parallel.replicate({"step": np.uint8(1)}), parallel.shard(batch)))
    for name, value in batch.items():
        np.testing.assert_array_equal(result[name], value + 1)


def mean_brightness_squared(system, state, frozen, example):
    """Stands for any gradient that depends on which examples share a microbatch, as batch statistics do."""
    mean = jax.lax.pmean(jnp.mean(example["image"]), AXIS)
    return {"generator": jnp.square(mean)}, {}, {}


def test_microbatches_hold_the_same_examples_on_any_number_of_devices(tiny_config, make_batch):
    tiny_config.accumulate, tiny_config.data.augment = 2, False
    system = step.System(tiny_config, models.build_generator(tiny_config, AXIS), None, {}, {})
    batch = {**make_batch(8, 4), "mask": np.ones((8, 4, 4, 1), np.uint8)}
    values = []
    for form in FORMS:
        parallel = form_of(*form)
        empty = TrainState(np.int32(0), {}, {"generator": {}}, {}, {}, {}, {}, {})
        measure = parallel.train(lambda s, _, b: (s, step.averaged(mean_brightness_squared, system, s, {}, b)[0]))
        _, result = measure(parallel.replicate(empty), parallel.replicate({}), parallel.shard(batch))
        values.append(float(parallel.unreplicate(result)["generator"]))
    np.testing.assert_allclose(values, values[0], rtol=1e-5)


def test_what_cannot_be_spread_is_an_error():
    check_divisible(8, 4)
    with pytest.raises(ValueError, match=r"config\.batch_size = 6 .* 4 devices: use a multiple of 4"):
        check_divisible(6, 4)
    with pytest.raises(ValueError, match=r"config\.parallel = 'threads': use 'pmap' or 'shard_map'"):
        make_parallel("threads")
