"""The generators that come along: small, documented, better than what needs no model, and taken where none is named."""

import tomllib
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from inpaint_jax import baselines, demo, filling, image_files, metrics, weights
from inpaint_jax.data import bundled_photos, procedural_normals

ROOT = Path(__file__).parents[1]
NAMES = ("normal_maps", "photographs")
LARGEST = 8_000_000  # bytes


def strokes(side: int) -> np.ndarray:
    """Returns a hole, bool (side, side): two thick lines and a square."""
    hole = np.zeros((side, side), np.uint8)
    cv2.line(hole, (side // 8, side // 6), (side - side // 6, side // 2), 1, side // 16)
    cv2.line(hole, (side // 5, side - 5), (side // 2, side // 3), 1, side // 20)
    hole[side * 5 // 8 : side * 7 // 8, side * 5 // 8 : side * 7 // 8] = 1
    return hole.astype(bool)


def score(filled: np.ndarray, truth: np.ndarray, hole: np.ndarray, normal_maps: bool) -> dict[str, float]:
    pictures = [jnp.asarray(x[None] / np.float32(255)) for x in (filled, truth)]
    of = metrics.image_metrics(*pictures, jnp.asarray(hole[None, ..., None], jnp.float32), normal_maps)
    return {name: float(values[0]) for name, values in of.items()}


@pytest.fixture(scope="module")
def models() -> dict:
    return demo.load_models(demo.models_for([]))


def test_they_come_along_small_and_documented(models):
    assert tuple(models) == NAMES == tuple(weights.shipped_generators())
    assert [model["normal_maps"] for model in models.values()] == [True, False]
    for folder in weights.shipped_generators().values():
        assert (folder / weights.WEIGHTS).stat().st_size < LARGEST
        arrays = safetensors.numpy.load_file(folder / weights.WEIGHTS)
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.float16)}
        config, _ = weights.load_generator(folder)
        assert not Path(config.data.path).is_absolute(), "no one else has that folder"
        card = (folder / "README.md").read_text()
        for heading in ("## Data", "## Licence", "## Figures", "## Limits"):
            assert heading in card, f"{folder.name}: no {heading}"


def test_an_installed_package_has_them():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["inpaint_jax"]
    package = weights.SHIPPED.parent
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    assert packed >= {path for path in weights.SHIPPED.rglob("*") if path.is_file()}


def test_normal_maps_are_filled_better_than_by_opencv(models):
    errors = {"ours": [], "telea": [], "navier_stokes": []}
    hole = strokes(128)
    for index in range(6):
        truth = procedural_normals.render_normal_map(demo.EXAMPLE_SEED, 100 + index, 128)
        masked = np.where(hole[..., None], 0, truth).astype(np.uint8)
        fills = {
            "ours": models["normal_maps"]["inpainter"](masked, hole),
            "telea": baselines.telea(masked, hole.astype(np.uint8)),
            "navier_stokes": baselines.navier_stokes(masked, hole.astype(np.uint8)),
        }
        for name, filled in fills.items():
            errors[name].append(score(filled, truth, hole, True)["angular_error_deg_hole"])
    means = {name: np.mean(values) for name, values in errors.items()}
    assert means["ours"] < 0.85 * min(means["telea"], means["navier_stokes"]), means


def test_photographs_are_filled_in_their_colours(models):
    hole = strokes(128)
    for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
        truth = cv2.resize(bundled_photos.photograph(name)[0][:300, :300], (128, 128), interpolation=cv2.INTER_AREA)
        filled = models["photographs"]["inpainter"](np.where(hole[..., None], 0, truth).astype(np.uint8), hole)
        flat = baselines.mean_fill(truth, hole.astype(np.uint8), False)
        ours, mean = (score(x, truth, hole, False)["psnr_db_hole"] for x in (filled, flat))
        assert ours > mean + 1.0, (name, ours, mean)


@pytest.mark.parametrize("bits", [8, 16])
def test_inpaint_takes_the_one_for_the_picture(tmp_path, caplog, monkeypatch, bits: int):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()  # of the user's, and no generator
    caplog.set_level("INFO", logger="inpaint_jax")
    hole = strokes(96)
    pictures = {
        "normal_maps": procedural_normals.render_normal_map(demo.EXAMPLE_SEED, 5, 96),
        "photographs": bundled_photos.photograph("coffee.png")[0][:96, :96],
    }
    pictures["grey"] = pictures["photographs"][..., :1]
    image_files.write_png(tmp_path / "mask.png", hole * np.uint8(255))
    for name, picture in pictures.items():
        picture = picture if bits == 8 else picture.astype(np.uint16) * 257
        image_files.write_picture(tmp_path / f"{name}.png", picture)
        job = filling.Job(tmp_path / f"{name}.png", tmp_path / "mask.png", tmp_path / "out.png")
        caplog.clear()
        filling.fill_file(None, job, filling.Options())
        taken = "normal_maps" if name == "normal_maps" else "photographs"
        assert f"{taken!r}, which comes along" in caplog.text
        np.testing.assert_array_equal(image_files.read_picture(job.out)[~hole], picture[~hole])


def test_options_of_normal_maps_ask_for_theirs(caplog):
    """Maps of two channels do not look like normal maps."""
    caplog.set_level("INFO", logger="inpaint_jax")
    picture, hole = np.full((8, 8, 3), 128, np.uint8), np.eye(8, dtype=bool)
    for options in (filling.Options(two_channels=True), filling.Options(normal_y="down")):
        assert filling.shipped_inpainter(picture, hole, options)[0] == "normal_maps"
    assert filling.shipped_inpainter(picture, hole, filling.Options())[0] == "photographs"
