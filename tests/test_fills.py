"""Fills of the generator's input: what stays, what is smooth, how near the harmonic one is to Laplace's equation."""

import jax
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

from inpaint_jax import fills

SIZE = 32
harmonic = jax.jit(fills.harmonic)


def hole() -> np.ndarray:
    mask = np.zeros((1, SIZE, SIZE, 1), np.float32)
    mask[0, 5:12, 3:28] = 1
    mask[0, 20:, 14:18] = 1
    return mask


def smooth_image() -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    return np.stack([np.sin(3 * x + y), x * y, 0.5 - y], axis=-1)[None].astype(np.float32)


def laplace_solution(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Solves for the hole such that each pixel is the mean of its neighbours, edges repeated; (H, W, 3)."""
    size, unknown = mask.size, mask.ravel() > 0
    matrix = scipy.sparse.lil_matrix((size, size))
    for i in range(size):
        matrix[i, i] = 1
        if unknown[i]:
            row, column = divmod(i, mask.shape[1])
            for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                r, c = np.clip(r, 0, mask.shape[0] - 1), np.clip(c, 0, mask.shape[1] - 1)
                matrix[i, r * mask.shape[1] + c] -= 0.25
    right = np.where(unknown[:, None], 0, image.reshape(-1, 3)).astype(np.float64)
    return scipy.sparse.linalg.splu(matrix.tocsc()).solve(right).reshape(image.shape)


@pytest.mark.parametrize("name", sorted(fills.FILLS))
def test_known_pixels_stay_and_hidden_ones_do_not_matter(name: str):
    image, mask = smooth_image(), hole()
    filled = np.asarray(fills.FILLS[name](image, mask))
    np.testing.assert_array_equal(filled[mask[..., 0] == 0], image[mask[..., 0] == 0])
    other = np.where(mask > 0, 7.0, image).astype(np.float32)
    np.testing.assert_array_equal(filled, np.asarray(fills.FILLS[name](other, mask)))


def test_mean_is_of_the_known_pixels_of_each_image():
    image = np.concatenate([smooth_image(), -smooth_image()])
    mask = np.concatenate([hole(), hole()])
    filled = np.asarray(fills.mean(image, mask))
    for i in range(2):
        known = image[i][mask[i, ..., 0] == 0].mean(0)
        np.testing.assert_allclose(filled[i][mask[i, ..., 0] == 1], np.tile(known, (int(mask[i].sum()), 1)), atol=1e-5)


def test_harmonic_is_near_the_solution_of_laplace():
    image, mask = smooth_image(), hole()
    solution = laplace_solution(image[0], mask[0, ..., 0])
    inside = mask[0, ..., 0] > 0
    error = np.abs(np.asarray(harmonic(image, mask))[0] - solution)[inside].mean()
    error_of_mean = np.abs(np.asarray(fills.mean(image, mask))[0] - solution)[inside].mean()
    assert error < 0.02
    assert error < 0.1 * error_of_mean


def test_harmonic_keeps_a_constant_and_gives_zero_for_an_image_without_known_pixels():
    constant = np.full((1, SIZE, SIZE, 3), -0.3, np.float32)
    np.testing.assert_allclose(harmonic(constant, hole()), constant, atol=1e-6)
    np.testing.assert_array_equal(harmonic(constant, np.ones_like(hole())), np.zeros_like(constant))


def test_harmonic_names_sides_that_are_no_powers_of_two():
    with pytest.raises(ValueError, match="powers of two, not 32x30"):
        fills.harmonic(smooth_image()[:, :, :30], hole()[:, :, :30])
