"""What the networks see, what is completed, and that random choices follow the slot alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inpaint_jax import task

FAST_COMPILATION = {"xla_backend_optimization_level": 0}
RANGES = [(-1.0, 1.0), (0.0, 1.0)]


@pytest.fixture
def example():
    random = np.random.default_rng(0)
    mask = (random.uniform(size=(2, 8, 8, 1)) < 0.4).astype(np.float32)
    return random.uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32), mask


@pytest.mark.parametrize("value_range", RANGES)
def test_uint8_survives_the_value_range(value_range):
    image = jnp.arange(256, dtype=jnp.uint8).reshape(16, 16, 1)
    inside = task.to_value_range(image, value_range)
    assert inside.dtype == jnp.float32
    assert (float(inside.min()), float(inside.max())) == pytest.approx(value_range)
    np.testing.assert_array_equal(task.to_uint8(inside, value_range), image)
    np.testing.assert_allclose(task.from_value_range(inside, value_range), np.asarray(image) / 255, atol=1e-6)
    low, high = value_range
    beyond = task.to_uint8(jnp.array([low - 1.0, high + 1.0]), value_range)
    np.testing.assert_array_equal(beyond, [0, 255])


def test_inputs_are_the_tokens_in_order(tiny_config, example):
    image, mask = example
    tiny_config.task.fill = "zero"
    masked = image * (1 - mask)
    expected = {
        "masked": masked,
        "mask": mask,
        "mask3": np.concatenate([mask] * 3, -1),
        "luminance": masked @ np.array([[0.299], [0.587], [0.114]], np.float32),
    }
    for tokens in (("masked", "mask"), ("mask", "masked"), ("luminance", "mask3"), ("masked", "mask3", "luminance")):
        tiny_config.task.inputs = tokens
        seen = task.generator_input(tiny_config, image, mask)
        assert seen.shape[-1] == task.input_channels(tiny_config)
        np.testing.assert_allclose(seen, np.concatenate([expected[token] for token in tokens], -1), atol=1e-6)
    tiny_config.task.inputs = ("masked", "depth")
    with pytest.raises(ValueError, match=r"depth.*masked, mask, mask3, luminance"):
        task.validate_task(tiny_config)
    tiny_config.task.inputs = ()
    with pytest.raises(ValueError, match=r"config\.task\.inputs is empty"):
        task.validate_task(tiny_config)


@pytest.mark.parametrize("value_range", RANGES)
@pytest.mark.parametrize("fill", ["zero", "mean", "flat_normal"])
def test_fills(tiny_config, example, fill, value_range):
    image, mask = example
    tiny_config.task.fill, tiny_config.task.value_range = fill, value_range
    masked = np.asarray(task.masked_image(tiny_config, image, mask))
    hole = mask[..., 0] == 1
    np.testing.assert_array_equal(masked[~hole], image[~hole])
    for index in range(2):
        if fill == "mean":
            expected = image[index][~hole[index]].mean(0)
        else:
            flat = np.array([128, 128, 255]) / 255 * (value_range[1] - value_range[0]) + value_range[0]
            expected = flat if fill == "flat_normal" else np.zeros(3)
        np.testing.assert_allclose(masked[index][hole[index]], np.tile(expected, (hole[index].sum(), 1)), atol=1e-6)


@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_a_picture_without_known_pixels_is_filled_with_zero(tiny_config, example, fill):
    tiny_config.task.fill = fill
    masked = task.masked_image(tiny_config, example[0], np.ones_like(example[1]))
    np.testing.assert_array_equal(masked, np.zeros_like(masked))


def test_completed_keeps_known_pixels_and_takes_the_hole_from_the_output(example):
    image, mask = example
    output = np.random.default_rng(1).uniform(-1, 1, image.shape).astype(np.float32)
    np.testing.assert_array_equal(task.complete(image, mask, output), np.where(mask == 1, output, image))


def test_discriminator_sees_the_image_and_the_condition_if_asked(tiny_config, example):
    image, mask = example
    condition = task.generator_input(tiny_config, image, mask)
    np.testing.assert_array_equal(task.discriminator_input(tiny_config, image, mask, condition), image)
    tiny_config.discriminator.condition = "input"
    seen = task.discriminator_input(tiny_config, image, mask, condition)
    np.testing.assert_array_equal(seen, np.concatenate([condition, image], -1))


@pytest.mark.parametrize("value_range", RANGES)
def test_training_examples_follow_the_slot_alone(tiny_config, make_batch, value_range):
    tiny_config.task.value_range = value_range
    assert tiny_config.data.augment
    draw = jax.jit(lambda batch: task.training_example(tiny_config, batch), compiler_options=FAST_COMPILATION)
    batch = make_batch(6, 32, step=3)
    whole = draw(batch)
    order = np.array([4, 0, 5, 2, 1, 3])
    permuted = draw({name: values[order] for name, values in batch.items()})
    halves = [draw({name: values[part] for name, values in batch.items()}) for part in (slice(0, 3), slice(3, 6))]
    for name, values in whole.items():
        np.testing.assert_array_equal(permuted[name], values[order])
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), values)
    # Other slots, or another seed, are other masks; within a batch every mask is its own.
    masks = {np.asarray(mask).tobytes() for mask in whole["mask"]}
    moved = draw({**batch, "slot": batch["slot"] + 6})["mask"]
    assert len(masks | {np.asarray(mask).tobytes() for mask in moved}) == 12
    assert set(np.unique(whole["mask"])) == {0.0, 1.0}
    assert float(whole["image"].min()) >= value_range[0] - 1e-6
    assert float(whole["image"].max()) <= value_range[1] + 1e-6


def test_pictures_with_an_upper_side_are_flipped_and_never_turned(tiny_config, make_batch):
    tiny_config.data.kind, tiny_config.data.turns = "photographs", False
    batch = make_batch(12, 32)
    drawn = np.asarray(task.to_uint8(task.training_example(tiny_config, batch)["image"], (-1.0, 1.0)))
    same = [np.array_equal(*pair) for pair in zip(drawn, batch["image"], strict=True)]
    flipped = [np.array_equal(new, old[:, ::-1]) for new, old in zip(drawn, batch["image"], strict=True)]
    assert np.logical_xor(same, flipped).all()
    assert 0 < sum(flipped) < 12


def test_masks_of_the_batch_are_used_as_they_are(tiny_config, make_batch):
    tiny_config.data.augment = False
    mask = (np.random.default_rng(0).uniform(size=(2, 32, 32, 1)) < 0.5).astype(np.uint8)
    batch = {**make_batch(2, 32), "mask": mask}
    for example in (task.training_example(tiny_config, batch), task.evaluation_example(tiny_config, batch)):
        np.testing.assert_array_equal(example["mask"], mask)
        assert example["mask"].dtype == jnp.float32
        np.testing.assert_allclose(example["image"], batch["image"] / 127.5 - 1, atol=1e-6)
