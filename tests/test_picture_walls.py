"""Sheets of the worst and the best pictures: which ones, in which order, what stands beside them."""

from pathlib import Path

import numpy as np
import pytest

from inpaint_jax import baselines, image_files, picture_walls
from inpaint_jax.data.source import ImageSource

SIZE, COUNT = 16, 11


def source() -> ImageSource:
    pictures = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
    return ImageSource([f"{i}.png" for i in range(COUNT)], lambda i: pictures[i], "x")


def holes() -> np.ndarray:
    """Upper rows of each picture, more of them in each; picture 3 has no hole."""
    masks = np.zeros((COUNT, SIZE, SIZE, 1), np.uint8)
    for index in range(COUNT):
        masks[index, : index + 1] = index != 3
    return masks


def fill(images: ImageSource, masks: np.ndarray, shown) -> picture_walls.Pictures:
    """Fills with 77, and checks that no more pictures are asked for than a sheet shows."""
    assert len(images) == len(masks) == len(shown) <= picture_walls.WALL
    result = {}
    for place in shown:
        image, mask = images[place], masks[place]
        completed = np.where(mask, np.uint8(77), image)
        result[place] = {"masked": image * (1 - mask), "output": image, "completed": completed, "truth": image}
    return result


def expected_sheet(order: list[int], titles: list[str], normal_maps: bool) -> np.ndarray:
    rows = []
    for index in order:
        image, mask = source()[index], holes()[index]
        telea = baselines.telea(image, mask[..., 0], normal_maps=normal_maps)
        rows.append([image * (1 - mask), telea, np.where(mask, np.uint8(77), image), image])
    return image_files.picture_grid(rows, ("masked", "Telea", "completed", "truth"), titles)


@pytest.mark.parametrize("normal_maps", [True, False])
def test_worst_and_best_pictures_with_their_figures(tmp_path: Path, normal_maps: bool):
    metric, unit = ("angular_error_deg_hole", "°") if normal_maps else ("psnr_db_hole", " dB")
    ours = np.asarray([5, 9, 1, 0, 7, 2.26, 8, 3, 4, 10, 6], np.float32)
    methods = {"ours": {metric: ours}, "telea": {metric: ours + 1}}
    picture_walls.write_walls(source(), holes(), methods, fill, tmp_path, normal_maps)
    rising = [2, 5, 7, 8, 0, 10, 4, 6, 1, 9]  # without picture 3, which has no hole
    best, worst = (rising, rising[::-1]) if normal_maps else (rising[::-1], rising)
    for name, order in (("best", best[:8]), ("worst", worst[:8])):
        titles = [
            f"{i:04d}  {ours[i]:.1f}{unit}\nTelea {ours[i] + 1:.1f}{unit}\nhole {(i + 1) / SIZE:.0%}" for i in order
        ]
        found = image_files.read_rgb(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(found, expected_sheet(order, titles, normal_maps), err_msg=name)


def test_what_is_not_a_number_is_worst():
    ours = {"psnr_db_hole": np.asarray([20, np.nan, 30, 25] + [10] * 7, np.float32)}
    assert picture_walls.ranked(ours, holes())[:2] == [2, 0]
    assert picture_walls.ranked(ours, holes())[-1] == 1
    ours = {"angular_error_deg_hole": np.asarray([20, np.nan, 30, 25] + [40] * 7, np.float32)}
    assert picture_walls.ranked(ours, holes())[:2] == [0, 2]
    assert picture_walls.ranked(ours, holes())[-1] == 1


def test_without_a_hole_there_are_no_sheets(tmp_path: Path):
    (tmp_path / "worst.png").write_bytes(b"of an earlier test")
    methods = {name: {"psnr_db_hole": np.zeros(COUNT, np.float32)} for name in ("ours", "telea")}
    picture_walls.write_walls(source(), holes() * np.uint8(0), methods, fill, tmp_path, False)
    assert not list(tmp_path.iterdir())
