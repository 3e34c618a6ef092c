"""Bilinear doubling against SciPy's and JAX's own interpolation, and a convolution after it against the two steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from inpaint_jax.models.resampling import DoublingConv, convolve_doubled, double_bilinear


@pytest.mark.parametrize(("height", "width"), [(5, 8), (1, 2)])
def test_corners_aligned_equals_interpolation_on_a_grid_between_the_corners(height: int, width: int):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    places = [np.linspace(0, n - 1, 2 * n) for n in (height, width)]
    y, x_places = np.meshgrid(*places, indexing="ij")
    for image, doubled in zip(x, double_bilinear(x, corners_aligned=True), strict=True):
        grid = [np.arange(max(n, 2)) for n in (height, width)]
        known = np.pad(image, ((0, len(grid[0]) - height), (0, 0), (0, 0)), mode="edge")
        expected = RegularGridInterpolator(grid, known)(np.stack([y, x_places], -1))
        np.testing.assert_allclose(doubled, expected, atol=1e-5)


def test_half_pixel_centres_equal_jax_image_resize():
    x = np.random.default_rng(1).normal(size=(2, 6, 4, 3)).astype(np.float32)
    expected = jax.image.resize(x, (2, 12, 8, 3), "bilinear")
    np.testing.assert_allclose(double_bilinear(x, corners_aligned=False), expected, atol=1e-5)


def test_bfloat16_stays_bfloat16():
    x = np.ones((1, 2, 2, 1), jax.numpy.bfloat16)
    assert double_bilinear(jax.numpy.asarray(x), corners_aligned=True).dtype == jax.numpy.bfloat16


@pytest.mark.parametrize("corners_aligned", [True, False])
@pytest.mark.parametrize(("height", "width"), [(3, 4), (1, 2)])
def test_convolving_what_is_doubled_equals_doubling_then_convolving(height: int, width: int, corners_aligned: bool):
    random = np.random.default_rng(2)
    x, kernel, seen = (
        jnp.asarray(random.normal(size=shape), jnp.float32)
        for shape in ((2, height, width, 5), (3, 3, 5, 7), (2, 2 * height, 2 * width, 7))
    )

    def two_steps(x, kernel):
        doubled = double_bilinear(x, corners_aligned)
        return jax.lax.conv_general_dilated(doubled, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    expected, expected_pull = jax.vjp(two_steps, x, kernel)
    actual, pull = jax.vjp(lambda x, kernel: convolve_doubled(x, kernel, corners_aligned), x, kernel)
    for ours, theirs in zip((actual, *pull(seen)), (expected, *expected_pull(seen)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)])
def test_both_forms_of_a_doubling_convolution_are_equal(dtype, tolerance):
    random = np.random.default_rng(3)
    small, beside = (jnp.asarray(random.normal(size=shape), dtype) for shape in ((1, 4, 4, 6), (1, 8, 8, 3)))
    layers = [DoublingConv(5, True, nn.initializers.he_normal(), dtype, apart=apart) for apart in (True, False)]
    variables = layers[0].init(jax.random.key(0), small, beside)
    assert variables["params"]["kernel"].shape == (3, 3, 9, 5)
    apart, together = (np.asarray(layer.apply(variables, small, beside), np.float32) for layer in layers)
    np.testing.assert_allclose(apart, together, rtol=0, atol=tolerance * np.abs(together).max())
