"""The pictures of a test: samples as single files and on a sheet, and sheets of the worst and the best ones."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from inpaint_jax import baselines, buckets, image_files, metrics, monitor
from inpaint_jax.data.source import ImageSource

Pictures = dict[int, dict[str, np.ndarray]]
PerImage = dict[str, np.ndarray]

COLUMNS = ("masked", "Telea", "completed", "truth")
WALL = 8  # pictures on a sheet
_UNITS = {"angular_error_deg_hole": "°", "psnr_db_hole": " dB"}


def write_samples(
    images: ImageSource, masks: np.ndarray, pictures: Pictures, folder: Path, samples: int, normal_maps: bool
) -> None:
    """Writes `images/` with single files and `samples.png`, which shows Telea's fill beside ours.

    Args:
        masks: uint8 (N, H, W, 1).
        pictures: `{index: {"masked", "output", "completed", "truth"}}`, uint8 (H, W, 3).
        samples: rows of `samples.png`.
    """
    shutil.rmtree(folder / "images", ignore_errors=True)  # an earlier test may have shown more pictures
    (folder / "images").mkdir(parents=True)
    for index, row in sorted(pictures.items()):
        for name in monitor.SAMPLE_COLUMNS:
            image_files.write_png(folder / "images" / f"{index:04d}_{name}.png", row[name])
        image_files.write_png(folder / "images" / f"{index:04d}_mask.png", masks[index, ..., 0] * np.uint8(255))
    if shown := sorted(pictures)[:samples]:
        rows = [_row(images[index], masks[index], pictures[index], normal_maps) for index in shown]
        grid = image_files.picture_grid(rows, COLUMNS, [f"{index:04d}" for index in shown])
        image_files.write_png(folder / "samples.png", grid)


def _row(image: np.ndarray, mask: np.ndarray, pictures: dict[str, np.ndarray], normal_maps: bool) -> list[np.ndarray]:
    telea = baselines.baselines_for(normal_maps)["telea"](image, mask[..., 0])
    return [pictures["masked"], telea, pictures["completed"], pictures["truth"]]


def write_walls(
    images: ImageSource,
    masks: np.ndarray,
    methods: dict[str, PerImage],
    complete: Callable[[ImageSource, np.ndarray, Sequence[int]], Pictures],
    folder: Path,
    normal_maps: bool,
) -> None:
    """Writes `worst.png` and `best.png`: the pictures with the worst figure in the hole, and those with the best.

    They are filled once more, as the pictures of a whole test may not fit into memory. A picture without a hole is on
    neither.

    Args:
        masks: uint8 (N, H, W, 1).
        methods: `{"ours": {metric: (N,)}, "telea": …}`.
        complete: fills pictures of a source under masks, and returns those of some indices.
    """
    order = ranked(methods["ours"], masks)
    for name, chosen in (("worst", order[::-1][:WALL]), ("best", order[:WALL])):
        path = folder / f"{name}.png"
        if not chosen:
            path.unlink(missing_ok=True)  # of an earlier test
            continue
        few = ImageSource([images.names[i] for i in chosen], lambda i, chosen=chosen: images[chosen[i]], "")
        pictures = complete(few, masks[chosen], range(len(chosen)))
        rows = [_row(images[i], masks[i], pictures[place], normal_maps) for place, i in enumerate(chosen)]
        titles = [_title(i, methods, masks[i]) for i in chosen]
        image_files.write_png(path, image_files.picture_grid(rows, COLUMNS, titles))


def ranked(ours: PerImage, masks: np.ndarray) -> list[int]:
    """Returns the indices of all pictures with a hole, the best first, those that are not a number last."""
    metric = buckets.headline(ours)
    cost = -ours[metric] if metrics.direction_of(metric) == "max" else ours[metric]
    with_hole = masks.any(axis=(1, 2, 3))
    return [int(index) for index in np.argsort(cost, kind="stable") if with_hole[index]]


def _title(index: int, methods: dict[str, PerImage], mask: np.ndarray) -> str:
    metric = buckets.headline(methods["ours"])
    ours, telea = (f"{methods[method][metric][index]:.1f}{_UNITS[metric]}" for method in ("ours", "telea"))
    return f"{index:04d}  {ours}\nTelea {telea}\nhole {mask.mean():.0%}"
