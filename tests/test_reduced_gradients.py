"""Gradients that go between devices in bfloat16: half the bytes, metrics as they are, nearly the same training."""

import re

import jax
import numpy as np
import pytest

from configs import unet_cosine
from inpaint_jax import collectives, config, parallel, step
from inpaint_jax.parallel import make_parallel
from inpaint_jax.step import make_system, make_train_step

STEPS = 5
DEVICES = 2
FAST_COMPILATION = {"xla_backend_optimization_level": 0}
# Before XLA makes it fit the machine: on CPUs the sum itself may be of float32.
ALL_REDUCE = re.compile(r'"stablehlo\.all_reduce".*?\}\) : \(tensor<(\d+)x(\w+)>\)', re.DOTALL)


def config_of(dtype: str):
    tiny = unet_cosine.get_config("tiny")
    tiny.reduce_dtype = dtype
    tiny.optimizer.update({"name": "sgd", "learning_rate": 0.05})  # Adam would take a gradient's sign for its size
    return tiny


@pytest.fixture(scope="module")
def runs(make_state, make_batch):
    """Of both types: the all-reduces of the program, and the losses and gradients' norms of a few steps."""

    def run(dtype: str) -> dict:
        tiny, form = config_of(dtype), make_parallel("pmap", jax.devices()[:DEVICES])
        system = make_system(tiny, 100)
        state = form.replicate(make_state(tiny, system.optimizers))
        batches = [form.shard(make_batch(tiny.batch_size, tiny.image_size, number)) for number in range(STEPS)]
        lowered = form.train(make_train_step(system, "joint")).lower(state, {}, batches[0])
        program, metrics = lowered.compile(FAST_COMPILATION), []
        for batch in batches:
            state, scalars = program(state, {}, batch)
            metrics.append(jax.device_get(form.unreplicate(scalars)))
        sent = [(int(size), kind) for size, kind in ALL_REDUCE.findall(lowered.as_text())]
        return {"sent": sent, "metrics": metrics, "params": jax.device_get(form.unreplicate(state.params))}

    return {dtype: run(dtype) for dtype in ("float32", "bfloat16")}


def test_gradients_go_in_half_the_bytes_and_metrics_in_full(runs):
    parameters = sum(leaf.size for leaf in jax.tree.leaves(runs["float32"]["params"]))
    large = {dtype: [(size, kind) for size, kind in run["sent"] if size >= 1000] for dtype, run in runs.items()}
    ((size, kind),) = large["float32"]
    assert kind == "f32"
    assert parameters < size <= parameters + 20
    assert large["bfloat16"] == [(parameters, "bf16")]
    added = [one for one in runs["bfloat16"]["sent"] if one not in runs["float32"]["sent"]]
    assert added == [(parameters, "bf16"), (size - parameters, "f32")], "the metrics go by themselves"


def test_losses_stay_within_half_a_percent_of_those_of_float32(runs):
    """Each gradient is off by up to 2^-9 before it is sent and 2^-9 in the sum, and five steps carry that on."""
    expected, actual = (runs[dtype]["metrics"] for dtype in ("float32", "bfloat16"))
    for name in ("loss/generator", "loss/discriminator"):
        np.testing.assert_allclose([row[name] for row in actual], [row[name] for row in expected], rtol=5e-3)
        assert actual[0][name] == expected[0][name], "the first losses come before any gradient"
        assert actual[-1][name] != expected[-1][name]
    for name in ("gradient_norm/generator/rest", "gradient_norm/discriminator"):
        np.testing.assert_allclose(actual[0][name], expected[0][name], rtol=1 / 256)
        assert actual[0][name] != expected[0][name]


def test_the_mean_is_the_sum_of_rounded_gradients_divided_in_float32():
    form, tiny = make_parallel("pmap", jax.devices()[:3]), config_of("bfloat16")
    values = np.array([[1 + 2**-9, 1e-3], [1.0, 1e-3], [2.0, 1e-3]], np.float32)

    def average(state, frozen, batch):
        system = step.System(tiny, None, None, {}, {})
        gradients, scalars = step._mean_over_replicas({"g": batch["x"][0]}, {"loss": batch["x"][0, 1]}, system)
        return state, gradients | scalars

    _, found = form.train(average)(form.replicate({}), form.replicate({}), form.shard({"x": values}))
    found = jax.device_get(form.unreplicate(found))
    assert found["g"][0] == np.float32(4) / np.float32(3), "1 + 2^-9 goes as 1"
    assert found["loss"] == pytest.approx(1e-3, rel=1e-6)
    assert found["g"][1] == pytest.approx(1e-3, rel=2**-7)
    assert found["g"][1] != found["loss"]
    # XLA may divide more exactly than it was told, so that the result alone would not show this.
    program = str(parallel.trace(average, 3, {}, {}, {"x": jax.ShapeDtypeStruct(values.shape, np.float32)}))
    assert re.findall(r":(\w+)\[\d*\] = div", program) == ["f32", "f32"]


def test_microbatches_are_averaged_before_they_are_sent():
    tiny = config_of("bfloat16")
    tiny.accumulate, tiny.discriminator.name, tiny.losses.adversarial.weight = 2, "none", 0.0
    sent = [one for one in collectives.of_step(tiny, "generator") if one.of_gradients]
    assert [one.dtype for one in sent] == ["bfloat16", "float32"]


def test_the_type_is_checked_and_may_not_change_during_a_run():
    earlier, now = config_of("float32"), config_of("bfloat16")
    assert config.resume_differences(earlier, now) == ["reduce_dtype: 'float32' -> 'bfloat16'"]
    assert config.hashes(earlier)["config"] != config.hashes(now)["config"]
    with pytest.raises(ValueError, match=r"config\.reduce_dtype = 'float16': use one of 'float32', 'bfloat16'"):
        config.validate(config_of("float16"))
