"""Baselines: known pixels, means and encodings by hand, OpenCV's fills against OpenCV."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inpaint_jax import baselines


def example(seed: int, height: int = 24, width: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """A smooth random picture and a mask with one thick line, both from the seed."""
    random = np.random.default_rng(seed)
    image = cv2.resize(random.integers(0, 256, (4, 4, 3), dtype=np.uint8), (width, height))
    mask = np.zeros((height, width), np.uint8)
    ends = random.integers(0, (width, height), (2, 2))
    cv2.line(mask, ends[0].tolist(), ends[1].tolist(), 1, 3)
    return image, mask


def every_baseline():
    return [
        pytest.param(normal_maps, name, id=f"{name}-{'normals' if normal_maps else 'photographs'}")
        for normal_maps in (False, True)
        for name in baselines.baselines_for(normal_maps)
    ]


@pytest.mark.parametrize(("normal_maps", "name"), every_baseline())
@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_known_pixels_stay_and_the_truth_under_the_hole_is_not_seen(normal_maps, name, seed):
    image, mask = example(seed)
    fill = baselines.baselines_for(normal_maps)[name]
    before = image.copy()
    filled = fill(image, mask)
    assert filled.dtype == np.uint8
    np.testing.assert_array_equal(filled[mask == 0], image[mask == 0])
    other_truth = np.where(mask[..., None] == 1, 255 - image, image)
    np.testing.assert_array_equal(fill(other_truth, mask), filled)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(("normal_maps", "name"), every_baseline())
def test_image_without_a_hole_is_unchanged_and_image_without_known_pixels_is_neutral(normal_maps, name):
    image, mask = example(seed=0)
    fill = baselines.baselines_for(normal_maps)[name]
    np.testing.assert_array_equal(fill(image, np.zeros_like(mask)), image)
    neutral = (128, 128, 255) if normal_maps else (128, 128, 128)
    np.testing.assert_array_equal(fill(image, np.ones_like(mask)), np.broadcast_to(np.uint8(neutral), image.shape))


def test_mean_fill_of_a_photograph_is_the_rounded_mean_of_known_pixels():
    image, mask = np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.uint8)
    mask[0] = 1
    image[0] = 77
    image[1] = [[10, 0, 255], [20, 1, 255], [40, 1, 255]]
    filled = baselines.mean_fill(image, mask, normal_maps=False)
    np.testing.assert_array_equal(filled[0], np.broadcast_to(np.uint8([23, 1, 255]), (3, 3)))


def test_mean_fill_of_normals_is_the_mean_vector_of_unit_length():
    """Vectors tilted to the left and to the right by the same angle average to one that faces the viewer."""
    left, right = baselines.encode_normal(np.array([[-0.6, 0, 0.8], [0.6, 0, 0.8]]))
    image = np.stack([np.stack([left, right, np.zeros(3, np.uint8)])])
    mask = np.array([[0, 0, 1]], np.uint8)
    filled = baselines.mean_fill(image, mask, normal_maps=True)[0, 2]
    assert np.abs(filled.astype(int) - (128, 128, 255)).max() <= 1
    assert baselines.mean_fill(image, mask, normal_maps=False)[0, 2, 2] < 235


def test_mean_fill_of_normals_that_cancel_out_is_flat():
    image = np.array([[[0, 100, 30], [255, 155, 225], [9, 9, 9]]], np.uint8)
    filled = baselines.mean_fill(image, np.array([[0, 0, 1]], np.uint8), normal_maps=True)
    assert filled[0, 2].tolist() == [128, 128, 255]


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3))
def test_encoding_is_the_nearest_colour(vector):
    colour = baselines.encode_normal(np.array(vector)).astype(np.float64)
    assert np.abs(2 * colour / 255 - 1 - vector).max() <= 1 / 255 + 1e-9


def test_flat_fill_is_the_encoded_vector_out_of_the_surface():
    image, mask = example(seed=1)
    assert baselines.flat_fill(image, mask)[mask == 1].tolist() == [[128, 128, 255]] * int(mask.sum())
    assert baselines.encode_normal(np.array([0, 0, 1])).tolist() == [128, 128, 255]


@pytest.mark.parametrize(
    ("fill", "method"), [(baselines.telea, cv2.INPAINT_TELEA), (baselines.navier_stokes, cv2.INPAINT_NS)]
)
def test_opencv_fills_equal_opencv_on_the_masked_picture(fill, method):
    image, mask = example(seed=2)
    masked = image * (1 - mask[..., None])
    np.testing.assert_array_equal(fill(image, mask), cv2.inpaint(masked, mask, 3, method))
    np.testing.assert_array_equal(fill(image, mask, radius=5), cv2.inpaint(masked, mask, 5, method))


def test_opencv_fills_beat_the_mean_on_a_smooth_picture():
    image, mask = example(seed=3)
    error = {
        name: np.abs(fill(image, mask).astype(int) - image)[mask == 1].mean()
        for name, fill in baselines.baselines_for(normal_maps=False).items()
    }
    assert error["telea"] < error["mean_fill"] / 3
    assert error["navier_stokes"] < error["mean_fill"] / 3


def test_wrong_arguments_are_named():
    image, mask = example(seed=4)
    with pytest.raises(ValueError, match=r"0 \(known\) and 1 \(hole\) only"):
        baselines.telea(image, mask * 255)
    with pytest.raises(ValueError, match="mask must be"):
        baselines.flat_fill(image, mask[:-1])
    with pytest.raises(ValueError, match="float32"):
        baselines.mean_fill(image.astype(np.float32), mask, normal_maps=False)


def test_harmonic_fill_continues_a_slope_at_any_size():
    ramp = np.broadcast_to(np.uint8(4 * np.arange(50))[None, :, None], (37, 50, 3))
    mask = np.zeros((37, 50), np.uint8)
    mask[10:26, 12:30] = 1
    error = baselines.harmonic_fill(ramp, mask).astype(int) - ramp
    assert np.abs(error).max() <= 12
    assert np.abs(error[mask == 1]).mean() < 4
