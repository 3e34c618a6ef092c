"""Metrics against scikit-image, plain NumPy and cases worked out by hand."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from inpaint_jax import metrics

SIZE = (24, 40)
HOLE_KEYS = ("psnr_db_hole", "ssim_hole", "l1_hole", "angular_error_deg_hole")
GRADIENTS = {name for pair in metrics.RATIOS.values() for name in pair}
PERFECT = {
    "psnr_db_full": 100.0,
    "psnr_db_hole": 100.0,
    "ssim_full": 1.0,
    "ssim_hole": 1.0,
    "l1_full": 0.0,
    "l1_hole": 0.0,
    "angular_error_deg_hole": 0.0,
}
compute = jax.jit(functools.partial(metrics.image_metrics, normal_maps=True))


def smooth_noise(seed: int, batch: int = 4) -> np.ndarray:
    """Random pictures (B, *SIZE, 3) in [0, 1], blurred along both axes so that SSIM has structure to compare."""
    images = np.random.default_rng(seed).random((batch, *SIZE, 3))
    for axis in (1, 2):
        images = sum(np.roll(images, shift, axis) for shift in range(4)) / 4
    return images.astype(np.float32)


def example(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A target, a prediction off by noise that grows with the index, and a mask with a quarter of hole."""
    random = np.random.default_rng(seed + 1000)
    target = smooth_noise(seed)
    scale = np.array([0.001, 0.02, 0.1, 0.5]).reshape(4, 1, 1, 1)
    prediction = np.clip(target + scale * random.standard_normal(target.shape), 0, 1).astype(np.float32)
    mask = (random.random((4, *SIZE, 1)) < 0.25).astype(np.float32)
    return prediction, target, mask


def reference_steepness(image: np.ndarray, hole: np.ndarray, in_hole: int) -> float:
    """The mean difference over pairs of neighbours of which `in_hole` lie in the hole."""
    pairs = [((y, x), (y + dy, x + dx)) for y, x in np.ndindex(*SIZE) for dy, dx in ((0, 1), (1, 0))]
    pairs = [(a, b) for a, b in pairs if b[0] < SIZE[0] and b[1] < SIZE[1] and int(hole[a]) + int(hole[b]) == in_hole]
    return np.mean([np.abs(image[a] - image[b]) for a, b in pairs])


def reference_ssim(prediction: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    return structural_similarity(
        prediction.astype(np.float64),
        target.astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=-1,
        full=True,
    )


def reference_angle(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Angles in degrees from half of the chord between unit vectors, in float64: another formula than the code's."""
    p, t = (2 * values.astype(np.float64) - 1 for values in (prediction, target))
    p, t = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (p, t))
    half_chord = np.linalg.norm(p - t, axis=-1) / 2
    half_sum = np.linalg.norm(p + t, axis=-1) / 2
    return np.degrees(2 * np.arctan2(half_chord, half_sum))


def test_full_and_hole_forms_agree_with_scikit_image_and_numpy():
    prediction, target, mask = example(seed=0)
    result = {name: np.asarray(values) for name, values in compute(prediction, target, mask).items()}
    for i in range(len(target)):
        p, t, hole = prediction[i], target[i], mask[i, ..., 0] == 1
        similarity, similarity_map = reference_ssim(p, t)
        expected = {
            "psnr_db_full": peak_signal_noise_ratio(t, p, data_range=1),
            "psnr_db_hole": peak_signal_noise_ratio(t[hole], p[hole], data_range=1),
            "ssim_full": similarity,
            "ssim_hole": similarity_map[hole].mean(),
            "l1_full": np.abs(p - t).mean(),
            "l1_hole": np.abs(p - t)[hole].mean(),
            "gradient_hole": reference_steepness(p, hole, in_hole=2),
            "true_gradient_hole": reference_steepness(t, hole, in_hole=2),
            "seam_hole": reference_steepness(p, hole, in_hole=1),
            "true_seam_hole": reference_steepness(t, hole, in_hole=1),
            "angular_error_deg_hole": reference_angle(p, t)[hole].mean(),
        }
        assert result.keys() == expected.keys()
        for name, value in expected.items():
            assert result[name][i] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_ssim_map_agrees_with_scikit_image_up_to_the_border():
    prediction, target, _ = example(seed=1)
    similarity = np.asarray(jax.jit(metrics.ssim_map)(prediction, target))
    for i in range(len(target)):
        np.testing.assert_allclose(similarity[i], reference_ssim(prediction[i], target[i])[1], atol=1e-4)


def test_ssim_of_nearly_flat_bright_images_does_not_suffer_from_rounding():
    """The variances there are below float32's rounding of the squares, where a naive SSIM falls apart."""
    target = 0.99 + 1e-4 * smooth_noise(seed=2)
    prediction = target + np.float32(1e-4) * smooth_noise(seed=3)
    similarity = np.asarray(jax.jit(metrics.ssim_map)(prediction, target))
    for i in range(len(target)):
        np.testing.assert_allclose(similarity[i], reference_ssim(prediction[i], target[i])[1], atol=1e-5)


def test_perfect_images_reach_the_documented_bounds_exactly():
    _, target, mask = example(seed=4)
    result = compute(target, target, mask)
    for name, value in PERFECT.items():
        np.testing.assert_array_equal(result[name], np.full(4, value), err_msg=name)


def test_an_error_too_small_to_matter_does_not_exceed_the_cap():
    target = np.full((1, *SIZE, 3), 0.5, np.float32)
    result = compute(target + np.float32(1e-6), target, np.ones((1, *SIZE, 1), np.float32))
    assert result["psnr_db_full"] == metrics.PSNR_CAP_DB


def test_without_a_hole_the_hole_forms_are_perfect_and_the_full_forms_are_not():
    prediction, target, mask = example(seed=5)
    mask[1] = 0
    result = compute(prediction, target, mask)
    for name in HOLE_KEYS:
        assert result[name][1] == PERFECT[name]
        assert result[name][2] != PERFECT[name]
    assert result["psnr_db_full"][1] < 60


def test_hand_made_hole():
    """Two hole pixels, one perfect and one off by 0.3 in one of three channels; the known part is all wrong."""
    target = np.full((1, *SIZE, 3), 0.5, np.float32)
    mask = np.zeros((1, *SIZE, 1), np.float32)
    mask[0, 3, 4:6] = 1
    prediction = np.where(mask == 1, target, 1.0).astype(np.float32)
    prediction[0, 3, 4, 2] += 0.3
    result = compute(prediction, target, mask)
    assert result["l1_hole"][0] == pytest.approx(0.3 / 6, rel=1e-5)
    assert result["psnr_db_hole"][0] == pytest.approx(10 * np.log10(6 / 0.09), rel=1e-5)


@pytest.mark.parametrize(
    ("vector", "degrees"), [((0, 0, 1), 0), ((0.6, 0, 0.8), 36.8699), ((0, 1, 0), 90), ((0, 0, -1), 180)]
)
def test_angle_of_known_vectors_whatever_their_length(vector, degrees):
    for length in (1.0, 0.25):
        prediction = np.broadcast_to((np.float32(length) * np.array(vector) + 1) / 2, (1, *SIZE, 3))
        target = np.broadcast_to(np.array([0.5, 0.5, 1.0]), (1, *SIZE, 3))
        ones = np.ones((1, *SIZE, 1), np.float32)
        angle = metrics.angular_error_deg(prediction.astype(np.float32), target.astype(np.float32), ones)
        assert angle[0] == pytest.approx(degrees, abs=2e-4)


def test_vector_of_length_zero_counts_as_a_right_angle():
    ones = np.ones((1, *SIZE, 1), np.float32)
    zero, up = np.full((1, *SIZE, 3), 0.5, np.float32), np.ones((1, *SIZE, 3), np.float32)
    assert metrics.angular_error_deg(zero, up, ones)[0] == 90


@given(exponent=st.floats(-5, -1), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_small_angles_keep_their_digits(exponent, seed):
    """An arccosine of float32 dot products cannot tell angles below 0.02 degrees from zero."""
    random = np.random.default_rng(seed)
    target = random.standard_normal((1, 2, 2, 3))
    target /= np.linalg.norm(target, axis=-1, keepdims=True)
    prediction = target + 10.0**exponent * random.standard_normal(target.shape)
    target, prediction = (((v * 0.4 + 1) / 2).astype(np.float32) for v in (target, prediction))
    angle = metrics.angular_error_deg(prediction, target, np.ones((1, 2, 2, 1), np.float32))
    assert angle[0] == pytest.approx(reference_angle(prediction, target).mean(), rel=1e-3)


def ratios(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    values = metrics.mean_metrics(jax.device_get(compute(prediction, target, mask)))
    assert not GRADIENTS & set(values)
    return values["gradient_ratio_hole"], values["seam_ratio_hole"]


def test_ratios_of_a_blurred_a_noisy_and_a_shifted_fill():
    prediction, target, mask = example(seed=3)
    flat = np.where(mask == 1, np.float32(0.5), target)
    assert ratios(flat, target, mask)[0] < 0.01
    assert ratios(np.where(mask == 1, prediction, target), target, mask)[0] > 1.2
    # A step at the outline of a block alone, which leaves everything inside as it was.
    block = np.zeros_like(mask)
    block[:, 6:18, 10:30] = 1
    inside, seam = ratios(target + np.float32(0.3) * block, target, block)
    assert inside == pytest.approx(1, abs=1e-5)
    assert seam > 2
    assert ratios(target, target, mask) == (1, 1)


def test_ratios_of_pictures_without_gradients_or_pairs_are_one():
    _, target, mask = example(seed=3)
    assert ratios(0 * target, 0 * target, mask) == (1, 1)
    assert ratios(0 * target, target, np.zeros_like(mask)) == (1, 1)
    assert ratios(target, target, np.ones_like(mask)) == (1, 1)


def test_nearly_flat_pictures_do_not_outweigh_those_with_structure():
    _, target, mask = example(seed=3)
    target[1:] = 0.5 + 0.001 * (target[1:] - 0.5)
    fill = target.copy()
    fill[0], fill[1:] = 0.5, 0.5 + 3 * (target[1:] - 0.5)  # the picture flat, the flat ones three times as steep
    assert ratios(fill, target, mask)[0] < 0.02


@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_metrics_are_finite_ordered_and_blind_to_known_pixels_in_hole_forms(seed):
    prediction, target, mask = example(seed)
    result = compute(prediction, target, mask)
    assert all(np.isfinite(values).all() for values in result.values())
    for name in metrics.validated_metrics(normal_maps=True, lpips=False):
        # The noise grows with the index, so the score gets worse from image to image.
        better_first = np.diff(result[name]) < 0 if metrics.direction_of(name) == "max" else np.diff(result[name]) > 0
        assert better_first.all(), name
    other_known = np.where(mask == 1, prediction, target)
    blind = compute(other_known, target, mask)
    for name in ("psnr_db_hole", "l1_hole", "angular_error_deg_hole"):
        np.testing.assert_allclose(blind[name], result[name], rtol=1e-5)


@pytest.mark.parametrize("normal_maps", [True, False])
def test_validated_metrics_are_those_of_the_means_that_have_a_direction(normal_maps):
    prediction, target, mask = example(seed=6)
    score = functools.partial(metrics.image_metrics, normal_maps=normal_maps)
    shapes = jax.eval_shape(score, prediction, target, mask)
    names = metrics.mean_metrics({name: np.ones(4) for name in shapes})
    own = metrics.validated_metrics(normal_maps, lpips=False)
    assert own == [name for name in metrics.METRIC_DIRECTION if name in names]
    assert set(names) - set(own) <= set(metrics.RATIOS)
    assert set(metrics.validated_metrics(normal_maps, lpips=True)) - set(own) == {"lpips_full", "lpips_hole"}
    assert ("angular_error_deg_hole" in own) == normal_maps
    assert ("completeness_hole" in own) != normal_maps


def test_photographs_keep_the_metrics_that_they_share_with_normal_maps():
    prediction, target, mask = example(seed=7)
    ours = jax.jit(functools.partial(metrics.image_metrics, normal_maps=False))(prediction, target, mask)
    theirs = compute(prediction, target, mask)
    assert theirs.keys() - ours.keys() == {"angular_error_deg_hole"}
    for name in theirs.keys() & ours.keys():
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, err_msg=name)


def test_images_below_the_window_are_refused_with_their_size():
    small = np.zeros((1, 10, 16, 3), np.float32)
    with pytest.raises(ValueError, match="11x11 pixels, but these are 10x16"):
        metrics.ssim_map(small, small)
