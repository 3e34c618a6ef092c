"""Bilinear doubling against SciPy's and JAX's own interpolation."""

import jax
import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from inpaint_jax.models.resampling import double_bilinear


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
