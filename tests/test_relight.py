"""Shading of normal maps against values worked out by hand."""

import numpy as np
import pytest

from inpaint_jax.relight import relight

FLAT, RIGHT, LEFT, TOP, BOTTOM = (128, 128, 255), (255, 128, 128), (0, 128, 128), (128, 255, 128), (128, 0, 128)


def grey(colour: tuple[int, int, int], azimuth: float, elevation: float, normal_y: str = "up") -> int:
    shaded = relight(np.full((2, 3, 3), colour, np.uint8), azimuth, elevation, normal_y)
    assert (shaded.shape, shaded.dtype) == ((2, 3, 3), np.uint8)
    assert len(np.unique(shaded)) == 1
    return int(shaded[0, 0, 0])


@pytest.mark.parametrize(
    ("colour", "azimuth", "elevation", "expected"),
    [
        # Light along the normal, seen from above as well: 0.08 + 0.72 + 0.2 of white.
        (FLAT, 0, 90, 255),
        (FLAT, 222, 90, 255),
        # Light along the normal, at a right angle to the view: the highlight is cos 45 ** 32 = 0.00002; 0.8 of 255.
        (RIGHT, 0, 0, 204),
        (LEFT, 180, 0, 204),
        (TOP, 90, 0, 204),
        (BOTTOM, 270, 0, 204),
        # Turned away from the light: 0.08 of 255, without highlight.
        (RIGHT, 180, 0, 20),
        (LEFT, 0, 0, 20),
        (TOP, 270, 0, 20),
        (BOTTOM, 90, 0, 20),
        # Light 60 degrees from the normal: cos 60 = 0.5, highlight cos 30 ** 32 = 0.01; 0.08 + 0.36 + 0.002 = 0.442 of
        # 255 is 113; x = y = 1/255 instead of 0 changes less than a level.
        (FLAT, 180, 30, 113),
        # Normal halfway between light and view, 22.5 degrees from each: 0.08 + 0.72 * 0.924 + 0.2 = 0.945 of 255.
        ((176, 128, 245), 0, 45, 241),
    ],
)
def test_brightness_is_as_computed_by_hand(colour, azimuth, elevation, expected):
    assert abs(grey(colour, azimuth, elevation) - expected) <= 1


def test_green_down_mirrors_the_light_at_the_horizon():
    assert (grey(TOP, 90, 0, "down"), grey(BOTTOM, 90, 0, "down")) == (20, 204)
    assert grey(RIGHT, 0, 0, "down") == 204
    up = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    down = np.stack([up[..., 0], 255 - up[..., 1], up[..., 2]], axis=-1)
    np.testing.assert_array_equal(relight(down, 70, 30, "down"), relight(up, 70, 30, "up"))


def test_length_of_a_normal_does_not_count():
    # 0.8, 0, 0.6 and half of it; 128 is the nearest level to 0.
    whole, half = grey((230, 128, 204), 20, 50), grey((179, 128, 166), 20, 50)
    assert abs(whole - half) <= 1
    assert whole > 100


@pytest.mark.parametrize(
    ("normals", "normal_y", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "up", r"uint8 \(H, W, 3\), not float32"),
        (np.zeros((4, 4), np.uint8), "up", r"not uint8 \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), "up", r"not uint8 \(4, 4, 4\)"),
        (np.zeros((4, 4, 3), np.uint8), "left", "unknown normal_y 'left'; known: up, down"),
    ],
)
def test_other_arrays_and_conventions_are_refused(normals, normal_y, message):
    with pytest.raises(ValueError, match=message):
        relight(normals, 0, 45, normal_y)
