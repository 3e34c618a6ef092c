"""Measures of noise, colour, completeness and white: against SciPy, and on photographs spoilt in known ways."""

import functools

import cv2
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.color import rgb2ycbcr

from inpaint_jax import artefacts, metrics
from inpaint_jax.data import bundled_photos

SIZE = 64
COUNT = 6
ARTEFACTS = ("noise_ratio_hole", "colour_ratio_hole", "completeness_hole", "white_hole")

score = jax.jit(functools.partial(metrics.image_metrics, normal_maps=False))


@functools.cache
def photographs() -> np.ndarray:
    """Windows of photographs in colour, float32 (COUNT, SIZE, SIZE, 3) in [0, 1]."""
    windows = [bundled_photos.window(1, "test" if i % 2 else "val", i, SIZE) for i in range(COUNT)]
    return np.stack(windows).astype(np.float32) / np.float32(255)


def holes(seed: int = 0, kind: str = "blocks") -> np.ndarray:
    """Masks float32 (COUNT, SIZE, SIZE, 1)."""
    mask, random = np.zeros((COUNT, SIZE, SIZE, 1), np.float32), np.random.default_rng(seed)
    for own in mask:
        for _ in range(2):
            top, left = random.integers(0, SIZE - 24, 2)
            if kind == "blocks":
                own[top : top + 24, left : left + random.integers(12, 24)] = 1
            elif kind == "lines":
                own[top], own[:, left : left + 2] = 1, 1
            elif kind == "pixel":
                own[top, left] = 1
    return np.ones_like(mask) if kind == "whole" else mask


def measured(fill: np.ndarray, mask: np.ndarray, truth: np.ndarray | None = None) -> dict[str, float]:
    """Scores the fill in the hole of the photographs, as 8 bits would hold it, and returns the means."""
    truth = photographs() if truth is None else truth
    fill = np.rint(np.clip(fill, 0, 1) * 255).astype(np.float32) / np.float32(255)
    return metrics.mean_metrics(jax.device_get(score(np.where(mask == 1, fill, truth), truth, mask)))


def reference_noise(image: np.ndarray, hole: np.ndarray) -> float:
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float64)
    inside = ndimage.binary_erosion(hole, np.ones((3, 3)), border_value=0)
    responses = [ndimage.convolve(image[..., channel].astype(np.float64), kernel)[inside] for channel in range(3)]
    return np.sqrt(np.pi / 2) / 6 * np.abs(responses).mean() if inside.any() else 0.0


def reference_colour(image: np.ndarray, hole: np.ndarray) -> float:
    chroma = rgb2ycbcr(image.astype(np.float64))[hole][:, 1:] / 224  # studio swing: 224 steps for a range of 1
    return np.sqrt(chroma.var(axis=0).sum())


def reference_painted(image: np.ndarray, truth: np.ndarray, hole: np.ndarray) -> float:
    """Looks at one pixel after the other, with a window of its own."""
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    padded = [np.pad(a.astype(np.float64), 5, mode="symmetric") for a in (hole, *(grey(i) for i in (image, truth)))]
    painted = 0
    for y, x in np.argwhere(hole):
        weights, *values = (a[y : y + 11, x : x + 11] for a in padded)
        weights = weights * np.outer(line, line) / (weights * np.outer(line, line)).sum()
        ours, true = (np.sqrt((weights * (v - (weights * v).sum()) ** 2).sum()) for v in values)
        painted += true > 0.02 and ours >= true / 4
    return painted / hole.sum()


def reference_white(fill: np.ndarray, truth: np.ndarray, hole: np.ndarray) -> float:
    near = ndimage.maximum_filter((truth > 0.9).all(axis=-1) & hole, size=5, mode="constant")
    return ((fill > 0.95).all(axis=-1) & ~near)[hole].mean()


def grey(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float64) @ [0.299, 0.587, 0.114]


@pytest.mark.parametrize("kind", ["blocks", "whole"])
def test_all_measures_agree_with_scipy(kind):
    truth, mask, random = photographs(), holes(3, kind), np.random.default_rng(5)
    # Some fills are smeared, some noisy, and all have white spots.
    smeared = np.stack([cv2.GaussianBlur(image, (0, 0), 1.0 + i) for i, image in enumerate(truth)])
    fill = np.clip(
        smeared + 0.01 * random.standard_normal(truth.shape) * (np.arange(COUNT) % 2)[:, None, None, None], 0, 1
    )
    fill = np.where(random.random((COUNT, SIZE, SIZE, 1)) < 0.05, 1.0, fill).astype(np.float32)
    fill = np.where(np.arange(SIZE)[:, None] < 30, fill, smeared)
    result = jax.device_get(score(fill, truth, mask))
    for i in range(COUNT):
        hole = mask[i, ..., 0] == 1
        expected = {
            "noise_hole": reference_noise(fill[i], hole),
            "true_noise_hole": reference_noise(truth[i], hole),
            "colour_hole": reference_colour(fill[i], hole),
            "true_colour_hole": reference_colour(truth[i], hole),
            "painted_hole": reference_painted(fill[i], truth[i], hole),
            "true_structure_hole": reference_painted(truth[i], truth[i], hole),
            "white_hole": reference_white(fill[i], truth[i], hole),
        }
        for name, value in expected.items():
            # Deviations next to a threshold may fall on either side of it.
            tolerance = 1.1 / hole.sum() if name in ("painted_hole", "true_structure_hole") else 1e-5
            assert result[name][i] == pytest.approx(value, rel=1e-4, abs=tolerance), name


@pytest.mark.parametrize("kind", ["blocks", "whole", "lines", "pixel", "none"])
def test_the_truth_is_perfect_whatever_the_hole(kind):
    values = measured(photographs(), holes(1, kind))
    assert [values[name] for name in ARTEFACTS] == [1, 1, 1, 0]


@pytest.mark.parametrize("kind", ["blocks", "whole", "lines", "pixel", "none"])
def test_every_measure_is_finite_whatever_the_hole(kind):
    truth, mask = photographs(), holes(1, kind)
    for fill in (np.zeros_like(truth), np.ones_like(truth), np.random.default_rng(0).random(truth.shape)):
        for values in (jax.device_get(score(fill.astype(np.float32), truth, mask)), measured(fill, mask)):
            assert all(np.isfinite(value).all() for value in values.values())
            assert np.all(values["white_hole"] >= 0)
            assert np.all(values["white_hole"] <= 1)


@pytest.mark.parametrize("coloured", [True, False])
@pytest.mark.parametrize("sigma", [0.02, 0.06, 0.12])
def test_added_noise_is_measured_whether_coloured_or_grey(sigma, coloured):
    truth, random = 0.2 + 0.6 * photographs(), np.random.default_rng(7)  # noise must not be clipped
    noise = random.standard_normal((*truth.shape[:3], 3 if coloured else 1))
    ones = holes(0, "whole")
    before = np.asarray(artefacts.noise(truth, ones))
    after = np.asarray(artefacts.noise((truth + sigma * noise).astype(np.float32), ones))
    # Variances would add up if texture were Gaussian; it has more of the large responses.
    np.testing.assert_allclose(after, np.sqrt(before**2 + sigma**2), rtol=0.16)
    assert measured(truth + sigma * noise, ones, truth)["noise_ratio_hole"] > 1.3


def test_the_noise_of_nothing_but_noise_is_its_deviation():
    noise = np.random.default_rng(8).standard_normal((COUNT, SIZE, SIZE, 3))
    estimate = artefacts.noise((0.5 + 0.05 * noise).astype(np.float32), holes(2, "whole"))
    np.testing.assert_allclose(estimate, 0.05, rtol=0.05)


def test_ramps_and_straight_edges_are_no_noise():
    image = np.zeros((COUNT, SIZE, SIZE, 3), np.float32) + np.linspace(0, 0.5, SIZE, dtype=np.float32)[:, None]
    image[:, :, SIZE // 2 :] += 0.3
    np.testing.assert_allclose(artefacts.noise(image, holes(0, "whole")), 0, atol=1e-6)


def test_blur_lowers_noise_and_completeness_step_by_step():
    mask = holes(4)
    results = [
        measured(np.stack([cv2.GaussianBlur(image, (0, 0), sigma) for image in photographs()]), mask)
        for sigma in (0.5, 1.0, 2.0, 4.0)
    ]
    for name in ("noise_ratio_hole", "completeness_hole"):
        values = [1.0, *(result[name] for result in results)]
        assert np.all(np.diff(values) < (0 if name.startswith("noise") else 1e-9)), name
        assert values[-1] < 0.7


def test_one_colour_is_neither_complete_nor_colourful_nor_noisy():
    mask = holes(4)
    mean = np.sum(photographs() * mask, axis=(1, 2), keepdims=True) / mask.sum(axis=(1, 2), keepdims=True)
    values = measured(np.broadcast_to(mean, photographs().shape), mask)
    for name in ("completeness_hole", "colour_ratio_hole", "noise_ratio_hole"):
        assert values[name] < 0.02, name


def test_a_single_tint_with_all_details_is_complete_but_of_one_colour():
    luminance = grey(photographs())[..., None]
    values = measured(np.repeat(luminance, 3, axis=-1), holes(4))
    assert values["colour_ratio_hole"] < 0.01
    assert values["completeness_hole"] > 0.999
    assert values["noise_ratio_hole"] == pytest.approx(1, abs=0.15)
    sepia = measured(0.8 * luminance + np.array([0.12, 0.06, 0.0]), holes(4))
    assert sepia["colour_ratio_hole"] < 0.05
    assert sepia["completeness_hole"] > 0.95


def test_an_unpainted_half_halves_completeness():
    """The share is that of structured pixels: a texture everywhere, of which the fill has every other block."""
    random = np.random.default_rng(9)
    truth = np.repeat(0.3 + 0.4 * random.random((COUNT, SIZE, SIZE, 1)), 3, axis=-1).astype(np.float32)
    left = np.arange(SIZE)[:, None] < SIZE // 2
    values = measured(np.where(left, truth, 0.5), holes(0, "whole"), truth)
    assert values["completeness_hole"] == pytest.approx(0.5, abs=0.06)  # windows reach a few pixels across


def test_pictures_without_structure_in_the_hole_are_complete_and_do_not_hide_an_unpainted_one():
    truth, mask = photographs().copy(), holes(4)
    smooth = np.broadcast_to(np.linspace(0.3, 0.4, SIZE, dtype=np.float32)[:, None], truth.shape[1:])
    flat = np.full_like(truth, 0.35)
    assert measured(flat, mask, np.broadcast_to(smooth, truth.shape))["completeness_hole"] == 1
    truth[1:] = smooth
    assert measured(flat, mask, truth)["completeness_hole"] < 0.02


def test_what_lies_beside_the_hole_neither_paints_nor_roughens_a_flat_fill():
    """Noise all around, and the truth too: with windows that reach across the border a flat fill would look painted."""
    truth = np.random.default_rng(10).random((COUNT, SIZE, SIZE, 3)).astype(np.float32)
    for kind in ("blocks", "lines", "pixel"):
        mask = holes(6, kind)
        result = jax.device_get(score(np.where(mask == 1, np.float32(0.6), truth), truth, mask))
        assert not result["painted_hole"].any()
        assert not result["noise_hole"].any()
        np.testing.assert_allclose(result["colour_hole"], 0, atol=1e-6)


def test_holes_too_thin_for_noise_have_none_and_leave_the_ratio_to_the_others():
    mask, wide = holes(4), np.arange(COUNT) < 3
    mask[~wide] = 0
    mask[~wide, 20:22] = 1  # a line of two pixels
    noisy = (photographs() + 0.1 * np.random.default_rng(11).standard_normal(photographs().shape)).astype(np.float32)
    result = jax.device_get(score(noisy, photographs(), mask))
    assert not result["noise_hole"][~wide].any()
    assert not result["true_noise_hole"][~wide].any()
    ratio = result["noise_hole"][wide].mean() / result["true_noise_hole"][wide].mean()
    assert metrics.mean_metrics(result)["noise_ratio_hole"] == pytest.approx(ratio, rel=0.05)


def test_white_patches_are_counted_and_the_truth_s_own_white_is_not():
    truth, mask = 0.9 * photographs(), holes(0, "whole")  # without any white
    fill = truth.copy()
    fill[:, 10:26, 20:36] = 1.0
    np.testing.assert_allclose(score(fill, truth, mask)["white_hole"], (16 / SIZE) ** 2, rtol=1e-6)
    tinted = truth.copy()
    tinted[:, 10:26, 20:36] = (1.0, 1.0, 0.9)  # yellow
    assert not np.any(score(tinted, truth, mask)["white_hole"])
    # A cloud that the fill has two pixels beside its place is no white space; ten pixels off it is.
    for shift, expected in ((2, 0.0), (10, 16 * 8 / SIZE**2)):
        result = score(np.roll(fill, shift, axis=2), fill, mask)["white_hole"]
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-9)


@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["blocks", "lines", "pixel", "whole", "none"]))
@settings(max_examples=15, deadline=None)
def test_known_pixels_change_nothing(seed, kind):
    random, mask = np.random.default_rng(seed), holes(seed, kind)
    fill, other_fill, truth = (random.random((COUNT, SIZE, SIZE, 3)).astype(np.float32) ** 0.3 for _ in range(3))
    plain = score(np.where(mask == 1, fill, truth), truth, mask)
    changed = score(np.where(mask == 1, fill, other_fill), np.where(mask == 1, truth, 1 - truth), mask)
    for name in ("white_hole", *(part for ratio in ARTEFACTS[:3] for part in metrics.RATIOS[ratio])):
        np.testing.assert_allclose(changed[name], plain[name], rtol=1e-6, atol=1e-7, err_msg=name)
    values = metrics.mean_metrics(jax.device_get(plain))
    assert 0 <= values["completeness_hole"] <= 1
