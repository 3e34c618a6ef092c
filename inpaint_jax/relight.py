"""Shading a normal map with one distant light, so that normals which point the wrong way are seen."""

import numpy as np

# Shares of the brightness, together 1: a flat map under a light from straight above is white.
AMBIENT, DIFFUSE, SPECULAR = 0.08, 0.72, 0.2
SHININESS = 32  # exponent of the highlight
# The sign of the green channel that makes y grow towards the top of the picture.
NORMAL_Y = {"up": 1.0, "down": -1.0}


def relight(normals: np.ndarray, azimuth: float, elevation: float, normal_y: str = "up") -> np.ndarray:
    """Shades a normal map in grey: Lambert's law with a highlight after Blinn, seen from straight above.

    Args:
        normals: uint8 (H, W, 3): x to the right, y, z out of the surface, as v = 2 * rgb / 255 - 1; any length.
        azimuth: where the light stands, in degrees: 0 = right, 90 = top of the picture, 180 = left.
        elevation: its height over the surface, in degrees: 0 = grazing, 90 = straight above.
        normal_y: "up" if green grows towards the top of the picture (OpenGL), "down" if towards its bottom (DirectX).

    Returns:
        uint8 (H, W, 3), three equal channels.

    Raises:
        ValueError: an array of another shape or type, or an unknown `normal_y`.
    """
    if normals.dtype != np.uint8 or normals.ndim != 3 or normals.shape[2] != 3:
        raise ValueError(f"a normal map must be uint8 (H, W, 3), not {normals.dtype} {normals.shape}")
    if normal_y not in NORMAL_Y:
        raise ValueError(f"unknown normal_y {normal_y!r}; known: {', '.join(NORMAL_Y)}")
    # Never of length zero: no grey level of 8 bits is exactly 0.
    vectors = normals * np.float32(2 / 255) - np.float32(1)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors[..., 1] *= NORMAL_Y[normal_y]
    azimuth, elevation = np.radians([azimuth, elevation])
    light = np.array(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], np.float32
    )
    halfway = light + np.array([0, 0, 1], np.float32)
    halfway /= max(float(np.linalg.norm(halfway)), 1e-6)
    lambert = np.maximum(vectors @ light, 0)
    # Where the surface turns away from the light nothing is left of it: at most cos 45 degrees ** 32.
    highlight = np.maximum(vectors @ halfway, 0) ** SHININESS
    shade = AMBIENT + DIFFUSE * lambert + SPECULAR * highlight
    grey = np.round(255 * np.minimum(shade, 1)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
