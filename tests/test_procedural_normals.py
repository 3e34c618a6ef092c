"""The procedural normal maps: determinism, geometry against independent derivatives, conventions and variety."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inpaint_jax.data.procedural_normals import (
    FAMILIES,
    encode_normals,
    normals_from_height,
    render_height_field,
    render_normal_map,
)


def decode(colours):
    return colours.astype(np.float64) * 2 / 255 - 1


def test_equal_arguments_give_equal_bytes_in_any_thread_and_order():
    indices = list(range(48))
    alone = [render_normal_map(11, index, 48) for index in indices]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda index: render_normal_map(11, index, 48), indices[::-1]))[::-1]
    for first, second in zip(alone, together, strict=True):
        np.testing.assert_array_equal(first, second)


def test_global_random_state_is_neither_read_nor_moved():
    np.random.seed(0)
    first = render_normal_map(1, 2, 40)
    before = np.random.get_state()[1].copy()
    np.random.seed(1)
    np.testing.assert_array_equal(first, render_normal_map(1, 2, 40))
    np.random.seed(0)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    index=st.integers(0, 2**64 - 1),
    size=st.integers(16, 200),
    normal_y=st.sampled_from(["up", "down"]),
)
def test_any_size_holds_unit_vectors_that_face_out(seed, index, size, normal_y):
    colours = render_normal_map(seed, index, size, normal_y)
    assert colours.shape == (size, size, 3)
    assert colours.dtype == np.uint8
    vectors = decode(colours)
    # Each channel is off by at most half a level, 1 / 255, so the length by at most sqrt(3) / 255.
    assert np.abs(np.linalg.norm(vectors, axis=-1) - 1).max() <= np.sqrt(3) / 255 + 1e-6
    assert vectors[..., 2].min() > 0


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
@pytest.mark.parametrize("turned", [False, True])
def test_each_family_is_finite_and_has_relief(family, turned):
    axis = np.linspace(0, 1, 65, dtype=np.float32)
    x, y = axis[None, :], axis[::-1, None]
    if turned:
        x, y = np.float32(0.8) * x - np.float32(0.6) * y, np.float32(0.6) * x + np.float32(0.8) * y
    with_relief = 0
    for draw in range(30):
        height = family(np.random.Generator(np.random.Philox(key=[5, draw])), x, y, 1 / 64)
        assert height.shape == (65, 65)
        assert np.isfinite(height).all()
        with_relief += np.ptp(height) > 1e-3
    assert with_relief >= 20


def test_normals_of_a_smooth_height_field_agree_with_its_derivatives():
    corner = np.arange(81) - 40.0
    x, y = corner[None, :], -corner[:, None]
    height = 3 * np.sin(x / 9) * np.cos(y / 13) + 0.002 * x * y
    middle_x, middle_y = corner[None, :-1] + 0.5, -(corner[:-1, None] + 0.5)
    slope_x = np.cos(middle_x / 9) * np.cos(middle_y / 13) / 3 + 0.002 * middle_y
    slope_y = -3 / 13 * np.sin(middle_x / 9) * np.sin(middle_y / 13) + 0.002 * middle_x
    vectors = normals_from_height(height)
    np.testing.assert_allclose(-vectors[..., 0] / vectors[..., 2], slope_x, atol=2e-3)
    np.testing.assert_allclose(-vectors[..., 1] / vectors[..., 2], slope_y, atol=2e-3)


def test_a_hill_is_green_above_its_top_and_red_on_its_right():
    corner = np.arange(33) - 16.0
    hill = 8 * np.exp(-(corner[None, :] ** 2 + corner[:, None] ** 2) / 50)
    colours = encode_normals(normals_from_height(hill), "up")
    assert colours[10, 16, 1] > 160 > 100 > colours[22, 16, 1]
    assert colours[16, 22, 0] > 160 > 100 > colours[16, 10, 0]


def test_rendered_maps_agree_with_finite_differences_of_their_height_field():
    for index in range(60):
        height = render_height_field(3, index, 64)
        # Storage noise of some maps comes on top of the geometry: a few levels at most, less than one on average.
        colours = encode_normals(normals_from_height(height), "up")
        difference = np.abs(render_normal_map(3, index, 64).astype(int) - colours)
        assert np.quantile(difference, 0.99) <= 6
        assert difference.mean() < 1.5

        vectors = decode(colours)
        slope_x, slope_y = -vectors[..., 0] / vectors[..., 2], -vectors[..., 1] / vectors[..., 2]
        # Half a level of error in a component grows by the division by z, which is small where the slope is steep.
        error = (1 + np.square(slope_x) + np.square(slope_y)) / 255
        error[vectors[..., 2] < 0.1] = np.inf
        # np.gradient reaches over two pixels: compare with means of two neighbouring pixels.
        per_row, per_column = np.gradient(height.astype(np.float64))
        across = (per_column[:-1] + per_column[1:])[:, 1:-1] / 2
        slack = error[:, 1:] + error[:, :-1]
        assert (np.abs((slope_x[:, 1:] + slope_x[:, :-1]) / 2 - across) <= slack).all()
        upward = -(per_row[:, :-1] + per_row[:, 1:])[1:-1] / 2
        slack = error[1:] + error[:-1]
        assert (np.abs((slope_y[1:] + slope_y[:-1]) / 2 - upward) <= slack).all()


def test_slopes_of_unquantised_normals_have_no_curl():
    for index in range(30):
        vectors = normals_from_height(render_height_field(4, index, 64)).astype(np.float64)
        slope_x, slope_y = -vectors[..., 0] / vectors[..., 2], -vectors[..., 1] / vectors[..., 2]
        # Around each inner corner: the change of dh/dx upwards less the change of dh/dy to the right.
        up, right = -np.diff(slope_x, axis=0), np.diff(slope_y, axis=1)
        curl = (up[:, 1:] + up[:, :-1]) / 2 - (right[1:] + right[:-1]) / 2
        size = max(np.abs(slope_x).max(), np.abs(slope_y).max())
        assert np.abs(curl).max() < 1e-3 * (1 + size)
        assert size > 0.01


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_turning_the_height_field_turns_the_picture_and_its_vectors(quarters):
    height = render_height_field(6, 2, 50)
    vectors = normals_from_height(height)
    for _ in range(quarters):
        turned = np.rot90(vectors)
        vectors = np.stack([-turned[..., 1], turned[..., 0], turned[..., 2]], axis=-1)
    np.testing.assert_allclose(normals_from_height(np.rot90(height, quarters)), vectors, atol=1e-5)


def test_y_down_mirrors_the_green_channel_alone():
    for index in range(20):
        up, down = render_normal_map(8, index, 32, "up"), render_normal_map(8, index, 32, "down")
        np.testing.assert_array_equal(up[..., [0, 2]], down[..., [0, 2]])
        # A value half way between two levels may round to the same side both times.
        total = up[..., 1].astype(int) + down[..., 1]
        assert np.abs(total - 255).max() <= 1
        assert np.abs(up[..., 1].astype(int) - down[..., 1]).max() > 1


def test_indices_and_seeds_give_different_maps():
    maps = [render_normal_map(seed, index, 24) for seed in (0, 1) for index in range(100)]
    flat = np.stack(maps).reshape(200, -1).astype(np.float32) - 127.5
    squares = np.square(flat).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * flat @ flat.T, 0) / flat.shape[1])
    off_diagonal = distances[~np.eye(200, dtype=bool)]
    assert len({image.tobytes() for image in maps}) == 200
    # In grey levels, root mean square: only pairs of nearly flat maps come close to each other.
    assert np.quantile(off_diagonal, 0.01) > 3
    assert np.median(off_diagonal) > 10


def test_tilts_are_spread_like_those_of_texture_packages():
    tilts = []
    for index in range(200):
        vectors = decode(render_normal_map(9, index, 64))
        cosine = vectors[..., 2] / np.linalg.norm(vectors, axis=-1)
        tilts.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean())
    # Quantiles over images of the mean tilt; real 64-pixel tiles have about 2, 6 and 15 degrees.
    low, middle, high = np.quantile(tilts, [0.1, 0.5, 0.9])
    assert 1 < low < 4
    assert 5 < middle < 10
    assert 12 < high < 22


def test_a_hole_can_be_guessed_from_its_surroundings():
    inpainting, mean_fill = [], []
    for index in range(150):
        vectors = decode(render_normal_map(10, index, 64))
        hole = slice(30, 34)
        # Interpolating between the rows beside a horizontal gap must beat one constant normal.
        weights = (np.arange(4) + 1)[:, None, None] / 5
        guess = vectors[29] * (1 - weights) + vectors[34] * weights
        mean = np.delete(vectors, np.arange(30, 34), axis=0).mean((0, 1))
        inpainting.append(np.abs(guess - vectors[hole]).mean())
        mean_fill.append(np.abs(mean - vectors[hole]).mean())
    assert np.mean(inpainting) < 0.95 * np.mean(mean_fill)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 0, 32, "left"), 'normal_y = \'left\'.*"up".*"down"'),
        ((0, 0, 3), "size = 3"),
        ((-1, 0, 32), "seed = -1"),
        ((0, 2**64, 32), "index = "),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        render_normal_map(*arguments)
