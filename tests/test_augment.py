"""Flips and quarter turns: pixels move as in NumPy, and the vectors of normal maps turn with the surface."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inpaint_jax.augment import augment, flip_left_right, rotate_quarter

SIDE = 12
CONVENTIONS = ("none", "up", "down")


@pytest.fixture(scope="module")
def image():
    return np.random.RandomState(0).uniform(-1, 1, (SIDE, SIDE, 3)).astype(np.float32)


def normals_of(height: np.ndarray, normal_y: str) -> np.ndarray:
    """Unit normals (x right) of a height field, from central differences on its inner pixels."""
    slope_right = (height[1:-1, 2:] - height[1:-1, :-2]) / 2
    slope_up = (height[:-2, 1:-1] - height[2:, 1:-1]) / 2
    green = -slope_up if normal_y == "up" else slope_up
    vectors = np.stack([-slope_right, green, np.ones_like(green)], axis=-1)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("normal_y", ["up", "down"])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_normals_of_a_moved_surface_equal_the_moved_normals(normal_y, turns):
    height = np.random.RandomState(1).uniform(-2, 2, (SIDE, SIDE))
    normals = normals_of(height, normal_y)
    turned = rotate_quarter(jnp.asarray(normals), turns, normal_y)
    np.testing.assert_allclose(turned, normals_of(np.rot90(height, turns), normal_y), atol=1e-6)
    both = rotate_quarter(flip_left_right(jnp.asarray(normals), normal_y), turns, normal_y)
    np.testing.assert_allclose(both, normals_of(np.rot90(np.fliplr(height), turns), normal_y), atol=1e-6)


@pytest.mark.parametrize("turns", [-1, 0, 1, 2, 3, 6])
def test_photographs_move_as_in_numpy(image, turns):
    np.testing.assert_array_equal(rotate_quarter(image, turns), np.rot90(image, turns))
    np.testing.assert_array_equal(flip_left_right(image), np.fliplr(image))


@pytest.mark.parametrize("normal_y", CONVENTIONS)
def test_four_turns_and_two_flips_change_nothing(image, normal_y):
    turned, flipped = image, flip_left_right(flip_left_right(image, normal_y), normal_y)
    for _ in range(4):
        turned = rotate_quarter(turned, 1, normal_y)
    np.testing.assert_array_equal(turned, image)
    np.testing.assert_array_equal(flipped, image)


@pytest.mark.parametrize("normal_y", CONVENTIONS)
def test_augment_draws_every_variant_and_no_other(image, normal_y):
    expected = [
        np.asarray(rotate_quarter(start, turns, normal_y))
        for start in (jnp.asarray(image), flip_left_right(image, normal_y))
        for turns in range(4)
    ]
    keys = jax.random.split(jax.random.key(3), 256)
    batch = np.asarray(jax.jit(jax.vmap(lambda key: augment(key, jnp.asarray(image), normal_y)))(keys))
    matches = np.stack([(batch == variant).all(axis=(1, 2, 3)) for variant in expected], axis=1)
    np.testing.assert_array_equal(matches.sum(axis=1), 1)
    # 256 fair draws give each of eight variants 32 times, standard deviation 5.3.
    assert matches.sum(axis=0).min() >= 10
    np.testing.assert_array_equal(batch[5], augment(keys[5], jnp.asarray(image), normal_y))


def test_mistakes_are_named(image):
    with pytest.raises(ValueError, match="square image, not 8x12"):
        rotate_quarter(image[:8], 1)
    with pytest.raises(ValueError, match="'left'; known: none, up, down"):
        augment(jax.random.key(0), image, "left")
