"""Windows around holes: where they lie, that cutting and pasting are inverse, and what the networks get of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.completion import glcic
from configs.faces import attention_hole
from inpaint_jax import task, windows

HEIGHT, WIDTH, SIDE = 24, 32, 12
corners_of = jax.jit(windows.hole_windows, static_argnums=1)


def hole(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((1, HEIGHT, WIDTH, 1), np.float32)
    mask[:, top : top + height, left : left + width] = 1
    return mask


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_window_holds_a_hole_that_fits_and_is_centred_where_the_border_lets_it(data):
    height, width = data.draw(st.integers(1, SIDE)), data.draw(st.integers(1, SIDE))
    top, left = data.draw(st.integers(0, HEIGHT - height)), data.draw(st.integers(0, WIDTH - width))
    (corner,) = np.asarray(corners_of(hole(top, left, height, width), SIDE))
    for start, first, length, extent in zip(corner, (top, left), (height, width), (HEIGHT, WIDTH), strict=True):
        assert 0 <= start <= first
        assert first + length <= start + SIDE <= extent
        before, after = first - start, start + SIDE - first - length
        assert abs(before - after) <= 1 or start in (0, extent - SIDE)


def test_without_a_hole_the_window_lies_in_the_middle():
    assert np.asarray(corners_of(hole(0, 0, 0, 0), SIDE)).tolist() == [[6, 10]]


def test_cut_and_paste_are_slices_of_each_image():
    random = np.random.default_rng(0)
    images = random.normal(size=(3, HEIGHT, WIDTH, 2)).astype(np.float32)
    patches = random.normal(size=(3, SIDE, SIDE, 2)).astype(np.float32)
    corners = np.array([[0, 0], [3, 7], [HEIGHT - SIDE, WIDTH - SIDE]], np.int32)
    seen, pasted = windows.cut(images, corners, SIDE), windows.paste(images, patches, corners)
    for index, (row, column) in enumerate(corners):
        place = np.s_[index, row : row + SIDE, column : column + SIDE]
        np.testing.assert_array_equal(seen[index], images[place])
        images[place] = patches[index]
    np.testing.assert_array_equal(pasted, images)


@pytest.fixture
def pictures():
    """Two pictures of 32x32 with a hole of 8x8 each, one of them in a corner."""
    image = np.random.default_rng(1).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    mask = np.zeros((2, 32, 32, 1), np.float32)
    mask[0, 10:18, 5:13], mask[1, 24:, 24:] = 1, 1
    return image, mask, ((6, 1), (16, 16))


def test_the_hole_variant_sees_the_window_and_pastes_its_answer_back(pictures):
    config = attention_hole.get_config("tiny")
    image, mask, corners = pictures
    seen = task.generator_input(config, image, mask)
    assert seen.shape[1:] == task.input_shapes(config)["generator"] == (16, 16, 4)
    answer = jnp.full((2, 16, 16, 3), 0.25)
    output = np.asarray(task.generator_output(config, image, mask, answer))
    for index, (row, column) in enumerate(corners):
        place = np.s_[index, row : row + 16, column : column + 16]
        np.testing.assert_array_equal(seen[index], np.concatenate([image * (1 - mask), mask], -1)[place])
        expected = image[index].copy()
        expected[row : row + 16, column : column + 16] = 0.25
        np.testing.assert_array_equal(output[index], expected)
    # What lies under the hole reaches neither the generator nor its output.
    hidden = image * (1 - mask) + 9 * mask
    np.testing.assert_array_equal(task.generator_input(config, hidden, mask), seen)
    np.testing.assert_array_equal(task.generator_output(config, hidden, mask, answer), output)


def test_a_window_is_filled_smoothly_in_pictures_of_any_size():
    config = attention_hole.get_config("tiny")
    config.task.fill = "harmonic"
    config.image_size, config.task.window = 40, 0.4
    ramp = np.linspace(-1, 1, 40, dtype=np.float32)
    image, mask = np.tile(ramp[None, None, :, None], (1, 40, 1, 3)), np.zeros((1, 40, 40, 1), np.float32)
    mask[0, 16:24, 16:24] = 1
    seen = np.asarray(task.generator_input(config, image * (1 - mask), mask))[..., :3]
    completed = task.complete(image, mask, task.generator_output(config, image * (1 - mask), mask, seen))
    # A step of the ramp is 0.05 and its way across the hole 0.4; the mean of the window would be off by up to 0.2.
    np.testing.assert_allclose(completed, image, atol=0.05)
    np.testing.assert_array_equal(completed[mask[..., 0] == 0], image[mask[..., 0] == 0])


def test_a_local_and_global_discriminator_gets_the_picture_and_its_window(pictures):
    config = glcic.get_config("tiny")
    image, mask, corners = pictures
    seen = task.discriminator_input(config, image, mask, None)
    assert {view: x.shape[1:] for view, x in seen.items()} == task.input_shapes(config)["discriminator"]
    np.testing.assert_array_equal(seen["full"], image)
    for index, (row, column) in enumerate(corners):
        np.testing.assert_array_equal(seen["window"][index], image[index, row : row + 16, column : column + 16])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.window": 0.1}, r"config\.task\.window = 0\.1 makes a window of 3 pixels: it must have from 8 to"),
        ({"mask.squares.size": (0.2, 0.6)}, r"size = \(0\.2, 0\.6\) has squares larger than the window of 16 pixels"),
        ({"mask.squares.number": (1, 2)}, r"a window of 16 pixels \(config\.task\.view\), and holes may be larger"),
        ({"mask.name": "lines"}, "holes may be larger"),
        ({"discriminator.views": ("whole",)}, r"config\.discriminator\.views = \('whole',\): give"),
        ({"mask.ratio": (0.1, 0.4)}, r"ratio = \(0\.1, 0\.4\) asks for more than one square"),
        ({"discriminator.condition": "input"}, "condition must be"),
        ({"discriminator.condition": "input", "discriminator.views": ("full",)}, "condition must be"),
    ],
)
def test_windows_that_cannot_be_are_refused(changes: dict, message: str):
    config = attention_hole.get_config("tiny")
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        task.validate_task(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask.squares.size": (0.25, 0.6)}, "squares larger than the window of 128 pixels"),
        ({"mask.ratio": (0.1, 0.4)}, "asks for more than one square"),
    ],
)
def test_a_local_discriminator_has_one_hole_that_fits_its_window(changes: dict, message: str):
    config = glcic.get_config()
    config.mask.squares.size = (0.1, 0.2)  # of any size up to the window's, without a further setting
    task.validate_task(config)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        task.validate_task(config)
