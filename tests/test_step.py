"""One step against gradients taken apart: losses written out, one network at a time, plain gradient descent."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import common, unet_cosine
from inpaint_jax import optim, step
from inpaint_jax.guard import first_guard
from inpaint_jax.state import TrainState

RATE, CLIP, SCALE = 0.1, 0.5, {"generator/rest": 1.0, "discriminator": 0.25}
FAST_COMPILATION = {"xla_backend_optimization_level": 0}
FLAT = jnp.array([128, 128, 255]) / 127.5 - 1


def simplify(config):
    """Losses of weight one, plain gradient descent with clipping, no augmentation, one known fill."""
    config.data.augment = False
    config.task.update({"fill": "flat_normal", "inputs": ("masked", "mask"), "value_range": (-1.0, 1.0)})
    config.discriminator.update({"sees": "completed", "condition": "none"})
    config.losses = ml_collections.ConfigDict()
    config.losses.cosine = common.loss_term("cosine", 1.0, on="output", region="hole")
    config.losses.adversarial = common.loss_term("adversarial", 1.0)
    config.optimizer.update({"name": "sgd", "learning_rate": RATE, "schedule": "constant", "clip_norm": CLIP})
    config.optimizer.warmup_fraction, config.optimizer.discriminator_rate_ratio = 0.0, 1.0
    return config


@pytest.fixture(scope="module")
def batch(make_batch):
    mask = np.zeros((4, 32, 32, 1), np.uint8)
    for index in range(4):
        mask[index, 4 + index : 20, 6 : 16 + 3 * index] = 1
    return {**make_batch(4, 32), "mask": mask}


def begin(system, make_state):
    """A state in the middle of a run: at step 7, with rates scaled and moving averages apart from the parameters."""
    state = make_state(system.config, system.optimizers)
    scale = {group: jnp.float32(SCALE[group]) for group in system.optimizers}
    return state.replace(step=jnp.int32(7), lr_scale=scale)


class Apart:
    """Losses of both networks as functions of one network's parameters, from the state's statistics."""

    def __init__(self, system, state, batch):
        self.system, self.state = system, state
        self.image = batch["image"].astype(jnp.float32) / 127.5 - 1
        self.mask = batch["mask"].astype(jnp.float32)

    def generate(self, params):
        masked = self.image * (1 - self.mask) + FLAT * self.mask
        variables = {"params": params, "batch_stats": self.state.stats["generator"]}
        seen = jnp.concatenate([masked, self.mask], -1)
        output, new = self.system.generator.apply(variables, seen, train=True, mutable=["batch_stats"])
        return output, self.image * (1 - self.mask) + output * self.mask, new["batch_stats"]

    def judge(self, params, image, stats=None):
        variables = {"params": params, "batch_stats": self.state.stats["discriminator"] if stats is None else stats}
        logits, new = self.system.discriminator.apply(variables, image, train=True, mutable=["batch_stats"])
        return logits, new["batch_stats"]

    def cosine(self, params):
        output, _, _ = self.generate(params)
        lengths = jnp.linalg.norm(output, axis=-1) * jnp.linalg.norm(self.image, axis=-1)
        error = self.mask[..., 0] * (1 - jnp.sum(output * self.image, -1) / lengths)
        return jnp.mean(jnp.sum(error, (1, 2)) / jnp.sum(self.mask, (1, 2, 3)))

    def adversarial(self, params, discriminator):
        logits, _ = self.judge(discriminator, self.generate(params)[1])
        return jnp.mean(jnp.log1p(jnp.exp(-logits)))

    def discriminator(self, params):
        fake, _ = self.judge(params, jax.lax.stop_gradient(self.generate(self.state.params["generator"])[1]))
        real, _ = self.judge(params, self.image)
        return jnp.mean(jnp.log1p(jnp.exp(-real))) + jnp.mean(jnp.log1p(jnp.exp(fake)))

    def statistics(self):
        """D's running statistics after real, then fake, from the bare moments of each; and G's."""
        empty = jax.tree.map(jnp.zeros_like, self.state.stats["discriminator"])
        _, completed, generator = self.generate(self.state.params["generator"])
        real = self.judge(self.state.params["discriminator"], self.image, empty)[1]
        fake = self.judge(self.state.params["discriminator"], completed, empty)[1]
        old = self.state.stats["discriminator"]
        threaded = jax.tree.map(lambda a, r, f: 0.9 * (0.9 * a + r) + f, old, real, fake)
        return {"generator": generator, "discriminator": threaded}


def descend(params, gradients, group):
    length = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradients)))
    factor = RATE * SCALE[group] * jnp.minimum(1.0, CLIP / length)
    return jax.tree.map(lambda p, g: p - factor * g, params, gradients)


def assert_same(actual, expected, tolerance=2e-4):
    """Every array agrees within a share of its own largest value; arrays of rounding noise within the tree's."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(np.abs(theirs).max(), 1e-3 * largest))


def moved(after, before):
    return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), after, before)


def length(tree):
    return float(np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree))))


# One compiled program holds the step and its reference, and serves every test of its regime.


@pytest.fixture(scope="module")
def joint(make_state):
    config = simplify(unet_cosine.get_config("tiny"))
    config.regime.order = "simultaneous"
    system = step.make_system(config, 10, axis_name=None)
    train = step.make_train_step(system, "joint")

    def everything(state, batch):
        apart = Apart(system, state, batch)
        generator, discriminator = state.params["generator"], state.params["discriminator"]
        return {
            "step": train(state, {}, batch),
            "averaged": step.averaged(step.simultaneous_gradients, system, state, {}, batch),
            "cosine": jax.value_and_grad(apart.cosine)(generator),
            "adversarial": jax.value_and_grad(apart.adversarial)(generator, discriminator),
            "discriminator": jax.value_and_grad(apart.discriminator)(discriminator),
            "statistics": apart.statistics(),
        }

    return jax.jit(everything, compiler_options=FAST_COMPILATION), begin(system, make_state)


@pytest.fixture(scope="module")
def joint_result(joint, batch):
    everything, state = joint
    return everything(state, batch)


def test_simultaneous_gradients_are_those_of_both_losses_at_the_old_parameters(joint_result):
    gradients, _, _ = joint_result["averaged"]
    cosine, adversarial = joint_result["cosine"][1], joint_result["adversarial"][1]
    assert_same(gradients["generator"], jax.tree.map(jnp.add, cosine, adversarial))
    assert_same(gradients["discriminator"], joint_result["discriminator"][1])


def test_the_adversarial_term_reaches_the_generator(joint_result):
    gradients, _, _ = joint_result["averaged"]
    share = length(moved(gradients["generator"], joint_result["cosine"][1])) / length(joint_result["cosine"][1])
    assert share > 0.01


def test_metrics_are_finite_scalars_and_the_losses_written_out(joint_result):
    _, metrics = joint_result["step"]
    assert all(np.shape(value) == () and np.isfinite(value) for value in metrics.values())
    cosine, adversarial = (float(joint_result[name][0]) for name in ("cosine", "adversarial"))
    expected = {
        "loss/cosine": cosine,
        "loss/adversarial_weighted": adversarial,
        "loss/generator": cosine + adversarial,
        "loss/discriminator": float(joint_result["discriminator"][0]),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4)
    gradients, _, _ = joint_result["averaged"]
    for network, group in (("generator", "generator/rest"), ("discriminator", "discriminator")):
        norm = length(gradients[network])
        np.testing.assert_allclose(metrics[f"gradient_norm/{group}"], norm, rtol=1e-4)
        np.testing.assert_allclose(metrics[f"learning_rate/{group}"], RATE * SCALE[group], rtol=1e-6)
        moved_by = min(norm, CLIP) * RATE * SCALE[group]
        np.testing.assert_allclose(metrics[f"update_norm/{group}"], moved_by, rtol=1e-4)
    assert 0 <= metrics["discriminator/accuracy"] <= 1


def test_statistics_run_from_real_to_fake_and_once_through_the_generator(joint_result):
    assert_same(joint_result["step"][0].stats, joint_result["statistics"])


def test_parameters_descend_with_clipping_and_the_rate_of_their_group(joint, joint_result):
    state, (new, _) = joint[1], joint_result["step"]
    gradients, _, _ = joint_result["averaged"]
    for network, group in (("generator", "generator/rest"), ("discriminator", "discriminator")):
        expected = descend(state.params[network], gradients[network], group)
        assert_same(moved(new.params[network], state.params[network]), moved(expected, state.params[network]), 1e-2)
        assert length(moved(new.params[network], expected)) < 1e-4 * RATE * SCALE[group]


def test_step_counter_and_moving_averages(joint, joint_result):
    state, (new, _) = joint[1], joint_result["step"]
    assert (int(new.step), int(new.guard["skipped"])) == (8, 0)
    # At step 8 the warmup's decay is (1 + 8) / (10 + 8).
    for average, old, now in (
        (new.ema_params, state.ema_params, new.params["generator"]),
        (new.ema_stats, state.ema_stats, new.stats["generator"]),
    ):
        assert_same(average, jax.tree.map(lambda a, b: (a + b) / 2, old, now), 1e-6)


def test_gradients_that_are_not_finite_skip_the_update(joint, batch):
    everything, state = joint
    poisoned = jax.tree.map(np.array, state)
    poisoned.params["discriminator"]["conv0"]["kernel"][0, 0, 0, 0] = np.inf
    new, scalars = everything(poisoned, batch)["step"]
    assert scalars["update_norm/discriminator"] == 0
    for before, after in ((poisoned.params, new.params), (poisoned.opt, new.opt), (poisoned.stats, new.stats)):
        jax.tree.map(np.testing.assert_array_equal, after, before)
    assert int(new.step) == 8
    assert (new.guard["skipped"], new.guard["skipped_in_a_row"], new.guard["last_skipped"]) == (1, 1, 8)
    again, scalars = everything(jax.tree.map(np.array, new), batch)["step"]
    assert (again.guard["skipped"], again.guard["skipped_in_a_row"], again.guard["last_skipped"]) == (2, 2, 9)
    assert scalars["guard/skipped_in_a_row"] == 2
    again.params["discriminator"]["conv0"]["kernel"] = state.params["discriminator"]["conv0"]["kernel"]
    mended, _ = everything(jax.tree.map(np.array, again), batch)["step"]
    assert (mended.guard["skipped"], mended.guard["skipped_in_a_row"], mended.guard["last_skipped"]) == (2, 0, 9)


def test_sequential_trains_the_discriminator_first_and_the_generator_against_the_new_one(make_state, batch):
    config = simplify(unet_cosine.get_config("tiny"))
    config.regime.order = "sequential"
    system = step.make_system(config, 10, axis_name=None)
    train = step.make_train_step(system, "joint")
    state = begin(system, make_state)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILATION)
    def everything(state, batch):
        apart = Apart(system, state, batch)
        generator, discriminator = state.params["generator"], state.params["discriminator"]
        judge = descend(discriminator, jax.grad(apart.discriminator)(discriminator), "discriminator")
        answers = []
        for against in (judge, discriminator):
            gradients = jax.grad(lambda params, d=against: apart.cosine(params) + apart.adversarial(params, d))(
                generator
            )
            answers.append(descend(generator, gradients, "generator/rest"))
        return train(state, {}, batch), judge, *answers, apart.statistics()

    (new, metrics), judge, against_new, against_old, statistics = everything(state, batch)
    assert length(moved(new.params["discriminator"], judge)) < 1e-4 * RATE
    assert length(moved(new.params["generator"], against_new)) < 1e-4 * RATE
    assert length(moved(against_new, against_old)) > 1e-3 * RATE, "old and new D must differ for this test to tell"
    assert_same(new.stats, statistics)
    assert all(np.isfinite(value) for value in metrics.values())
    assert {int(leaf) for leaf in jax.tree.leaves(new.opt)} == {1}


def test_generator_phase_with_accumulation_averages_the_gradients_of_its_microbatches(make_state, batch):
    config = simplify(unet_cosine.get_config("tiny"))
    config.discriminator.name, config.batch_size, config.accumulate = "none", 2, 2
    del config.losses.adversarial
    system = step.make_system(config, 10, axis_name=None)
    train = step.make_train_step(system, "generator")
    state = begin(system, make_state)
    assert set(state.params) == {"generator"}
    assert set(system.optimizers) == {"generator/rest"}

    @functools.partial(jax.jit, compiler_options=FAST_COMPILATION)
    def everything(state, batch):
        values, gradients, later = [], [], state
        for part in (0, 1):
            apart = Apart(system, later, {name: array[part::2] for name, array in batch.items()})
            value, gradient = jax.value_and_grad(apart.cosine)(state.params["generator"])
            stats = apart.generate(state.params["generator"])[2]
            later = later.replace(stats={"generator": stats})
            values.append(value)
            gradients.append(gradient)
        mean = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
        return train(state, {}, batch), values, descend(state.params["generator"], mean, "generator/rest"), stats

    (new, metrics), values, expected, stats = everything(state, batch)
    assert length(moved(new.params["generator"], expected)) < 1e-4 * RATE
    assert_same(new.stats, {"generator": stats})
    np.testing.assert_allclose(metrics["loss/generator"], np.mean(values), rtol=1e-4)
    assert abs(values[0] - values[1]) > 1e-3, "the microbatches must differ for this test to tell"
    names = {"loss/generator", "loss/cosine", "loss/cosine_weighted"}
    names |= {f"guard/{name}" for name in ("skipped", "skipped_in_a_row", "surges", "last_skipped", "level")}
    names |= {f"{kind}/generator/rest" for kind in ("gradient_norm", "update_norm", "learning_rate")}
    assert set(metrics) == names
    assert int(new.step) == 8


def test_groups_without_gradients_keep_parameters_optimiser_state_and_count(tiny_config):
    params = {
        "generator": {"down0": {"kernel": jnp.ones(2)}, "vgg_conv1": {"kernel": jnp.ones(3)}},
        "discriminator": {"conv0": {"kernel": jnp.ones(4)}},
    }
    optimizers = {group: optim.make_optimizer(tiny_config.optimizer, group, 10) for group in optim.group_names(params)}
    state = TrainState(
        step=jnp.int32(0),
        params=params,
        stats={"generator": {}, "discriminator": {}},
        opt={g: o.init(optim.select(params[g.split("/")[0]], g)) for g, o in optimizers.items()},
        ema_params=params["generator"],
        ema_stats={},
        lr_scale={
            "generator/vgg": jnp.float32(0.0),
            "generator/rest": jnp.float32(1.0),
            "discriminator": jnp.float32(1),
        },
        guard=first_guard(),
    )
    schedules = {group: lambda count: 0.5 + count for group in optimizers}
    system = step.System(tiny_config, None, None, optimizers, schedules)
    judged, _ = step._update(system, state, {"discriminator": params["discriminator"]}, {"discriminator": {}}, {})
    assert np.all(judged.params["discriminator"]["conv0"]["kernel"] < 1)
    for group in ("generator/vgg", "generator/rest"):
        jax.tree.map(np.testing.assert_array_equal, judged.opt[group], state.opt[group])
    jax.tree.map(np.testing.assert_array_equal, judged.params["generator"], params["generator"])
    # A rate scale of zero stops one group and not the other; both have counted an update.
    generated, norms = step._update(system, state, {"generator": params["generator"]}, {"generator": {}}, {})
    np.testing.assert_array_equal(generated.params["generator"]["vgg_conv1"]["kernel"], 1.0)
    assert np.all(generated.params["generator"]["down0"]["kernel"] < 1)
    assert norms["gradient_norm/generator/vgg"] == pytest.approx(np.sqrt(3))
    # What is logged as the rate is that of this update, scale included.
    assert norms["learning_rate/generator/vgg"] == 0
    assert norms["learning_rate/generator/rest"] == 0.5
    _, later = step._update(system, generated, {"generator": params["generator"]}, {"generator": {}}, {})
    assert later["learning_rate/generator/rest"] == 1.5
    jax.tree.map(np.testing.assert_array_equal, generated.opt["discriminator"], state.opt["discriminator"])


def test_unknown_names_fail_before_anything_is_compiled(tiny_config):
    system = step.make_system(tiny_config, 10)
    with pytest.raises(ValueError, match=r"unknown kind of phase 'warmup': known are generator, disc"):
        step.make_train_step(system, "warmup")
    tiny_config.losses.cosine.fn = "sine"
    with pytest.raises(ValueError, match=r"config\.losses\.cosine\.fn = 'sine'"):
        step.make_system(tiny_config, 10)


def test_a_discriminator_that_is_too_accurate_stands_still_and_the_generator_goes_on(batch, make_state):
    config = simplify(unet_cosine.get_config("tiny"))
    config.discriminator.accuracy_limit = 0.5
    system = step.make_system(config, 10, axis_name=None)
    state = begin(system, make_state)
    train = jax.jit(step.make_train_step(system, "joint"), compiler_options=FAST_COMPILATION)
    new, metrics = train(state, {}, batch)
    assert float(metrics["discriminator/accuracy"]) > 0.5
    assert float(metrics["discriminator/held"]) == 1
    assert float(metrics["update_norm/discriminator"]) == 0 < float(metrics["update_norm/generator/rest"])
    for room in ("params", "stats"):
        after, before = getattr(new, room), getattr(state, room)
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, after["discriminator"], before["discriminator"])))
        assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, after["generator"], before["generator"])))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, new.opt["discriminator"], state.opt["discriminator"])))
    assert int(new.guard["skipped"]) == 0
