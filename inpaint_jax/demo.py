"""What the demo page does, without the page: models and examples by name, limits, pictures, holes and fills.

Raises ValueError with one sentence for whatever the user can mend; `demo_page` shows it.
"""

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from inpaint_jax import image_files, inference, relight, remote_folder, weights
from inpaint_jax.data import bundled_photos, procedural_normals

UPLOAD_BYTES = 20 << 20
UPLOAD_PIXELS = 12_000_000
# Long side of the picture that the browser paints on, in pixels: what lies between is painted on as it is, others are
# scaled there, and the hole is scaled back. Painting on more pixels is slow without a graphics card.
EDITOR_SIDES = (512, 1024)
VIEW_SIDE = 1024  # long side of the pictures shown, at most; the download has every pixel
HOLE_COLOUR, HOLE_OPACITY = (255, 32, 32), 0.6
# Other maps than those that models are trained on: another seed.
EXAMPLE_SEED, EXAMPLE_SIDE = 7, 256
EXAMPLE_MAPS = {"stones": 22, "panels": 5, "bricks": 32, "frames": 12}  # name -> index in the procedural set
EXAMPLE_PHOTOS = {"cat": "chelsea.png", "coffee": "coffee.png", "astronaut": "astronaut.png", "rocket": "rocket.jpg"}


def models_for(flag_values: Sequence[str]) -> dict[str, Path]:
    """Returns the models to offer, name -> folder; the first is the default.

    Args:
        flag_values: the folders given by --model: run folders, or the generator/ folders in them, or URLs; none: those
            that come along.
    """
    if not flag_values:
        return weights.shipped_generators()
    models = {}
    for given in flag_values:
        folder, whole = remote_folder.local(given, remote_folder.NOT_OF_A_MODEL), Path(given).absolute()
        name = base = whole.parent.name if whole.name == "generator" else whole.name
        number = 1
        while name in models:
            number += 1
            name = f"{base} ({number})"
        models[name] = folder
    return models


def load_models(models: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Loads generators.

    Returns:
        name -> {"inpainter": Inpainter, "normal_maps": whether it fills normal maps, "normal_y": "up" or "down"}.

    Raises:
        ValueError: a folder without a generator, or with a damaged one.
    """
    loaded = {}
    for name, folder in models.items():
        config, variables = weights.load_generator(folder)
        loaded[name] = {
            "inpainter": inference.Inpainter(config, variables),
            "normal_maps": config.data.kind == "normal_maps",
            # A model of maps of both kinds says nothing about the one at hand.
            "normal_y": "down" if config.data.normal_y == "down" else "up",
        }
    return loaded


@functools.cache
def examples(normal_maps: bool) -> dict[str, np.ndarray]:
    """Returns pictures to try a model on, name -> uint8 (H, W, 3); rendered here, or bundled with scikit-image."""
    if normal_maps:
        render = procedural_normals.render_normal_map
        return {name: render(EXAMPLE_SEED, index, EXAMPLE_SIDE) for name, index in EXAMPLE_MAPS.items()}
    return {name: bundled_photos.photograph(file)[0] for name, file in EXAMPLE_PHOTOS.items()}


def read_upload(path: str | Path) -> dict[str, np.ndarray | None]:
    """Reads an uploaded picture.

    Returns:
        {"pixels": uint8 (H, W, 3), "alpha": uint8 (H, W) or None}.

    Raises:
        ValueError: too large, or no picture; the message names the file without its folder.
    """
    path = Path(path)
    if (size := path.stat().st_size) > UPLOAD_BYTES:
        raise ValueError(
            f"{path.name} has {size / 2**20:.1f} MB, and the demo takes {UPLOAD_BYTES / 2**20:.0f}: save it smaller."
        )
    try:
        found = image_files.read_picture(path)
    except image_files.ImageFileError as error:
        # Where the server keeps its files is nobody's business.
        raise ValueError(str(error).replace(str(path), path.name)) from None
    height, width, channels = found.shape
    if found.dtype != np.uint8:
        raise ValueError(f"{path.name} has 16 bits per channel, and the demo shows 8: use launch/inpaint.py.")
    if width * height > UPLOAD_PIXELS:
        raise ValueError(
            f"{path.name} has {width}x{height} = {width * height / 1e6:.1f} million pixels, and the demo takes "
            f"{UPLOAD_PIXELS / 1e6:.0f}: scale it down."
        )
    pixels = found[..., :3] if channels > 2 else np.repeat(found[..., :1], 3, axis=-1)
    return {"pixels": pixels, "alpha": found[..., -1] if channels in (2, 4) else None}


def _scaled(image: np.ndarray, smallest: int, largest: int) -> np.ndarray:
    """Returns the picture with a long side between `smallest` and `largest` pixels, as it is where it can be."""
    side = max(image.shape[:2])
    scale = min(max(side, smallest), largest) / side
    if scale == 1:
        return image
    size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def for_editor(pixels: np.ndarray) -> dict[str, Any]:
    """Returns the value of an image editor that shows the picture, with nothing painted."""
    return {"background": _scaled(pixels, *EDITOR_SIDES), "layers": [], "composite": None}


def painted_hole(layers: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Returns what was painted in an image editor, at the picture's own size.

    Args:
        layers: uint8 (h, w, 4) of the size that the editor works in; what is not transparent is painted.
        height, width: the picture's size in pixels.

    Returns:
        uint8 (height, width), 1 = hole: at least half of the pixel is painted.
    """
    hole = np.zeros((height, width), np.uint8)
    for layer in layers:
        painted = (layer[..., 3] > 0).astype(np.float32)
        if painted.shape != hole.shape:
            shrinks = painted.size > hole.size
            painted = cv2.resize(
                painted, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            )
        hole |= (painted >= 0.5).astype(np.uint8)
    return hole


def show_hole(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Returns the picture, uint8 (H, W, 3), with its hole, uint8 (H, W), under the brush's colour."""
    tinted = image * np.float32(1 - HOLE_OPACITY) + np.float32(HOLE_COLOUR) * np.float32(HOLE_OPACITY)
    return np.where(hole[..., None] > 0, np.round(tinted).astype(np.uint8), image)


def fill(model: dict[str, Any], picture: dict | None, layers: Sequence[np.ndarray]) -> dict[str, Any]:
    """Fills the painted hole of a picture.

    Args:
        model: one of `load_models`.
        picture: as `read_upload` returns it; None = there is none.
        layers: as for `painted_hole`.

    Returns:
        {"picture": uint8 (H, W, 3), or (H, W, 4) where the upload has an alpha channel, known pixels byte-identical;
        "before", "after": uint8 (h, w, 3), at most `VIEW_SIDE` pixels; "hole": uint8 (h, w), 1 = hole; "note": what was
        done}.

    Raises:
        ValueError: no picture, nothing or everything painted, or a hole that the model cannot fill.
    """
    if picture is None:
        raise ValueError("There is no picture (it is forgotten after an hour): upload one, or choose an example.")
    pixels, inpainter = picture["pixels"], model["inpainter"]
    hole = painted_hole(layers, *pixels.shape[:2])
    if not hole.any():
        raise ValueError("Nothing is painted: draw over what is to be filled.")
    if hole.all():
        raise ValueError("Everything is painted: leave some of the picture, the fill grows from it.")
    start = time.perf_counter()
    filled = inpainter(pixels, hole)
    seconds = time.perf_counter() - start
    note = f"{hole.sum()} of {hole.size} pixels filled in {seconds:.1f} seconds; all others are as they were."
    small_hole = _scaled(hole * np.uint8(255), 1, VIEW_SIDE) >= 128
    return {
        "picture": filled if picture["alpha"] is None else np.dstack([filled, picture["alpha"]]),
        "before": _scaled(pixels, 1, VIEW_SIDE),
        "after": _scaled(filled, 1, VIEW_SIDE),
        "hole": small_hole.astype(np.uint8),
        "note": note,
    }


def relit(result: dict, azimuth: float, elevation: float, normal_y: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the normal maps of a `fill` under a light, before with the hole shown and after: see `relight`."""
    before, after = (relight.relight(result[name], azimuth, elevation, normal_y) for name in ("before", "after"))
    return show_hole(before, result["hole"]), after
