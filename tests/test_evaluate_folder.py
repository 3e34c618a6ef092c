"""A saved generator tested on a folder: tables, sheets, masks for others, and FID with the weights at hand."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import fast_compilation
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from configs import unet_cosine
from inpaint_jax import baselines, image_files, inception, weights
from inpaint_jax.evaluate_folder import evaluate_folder
from inpaint_jax.run import generator_variables

ROOT = Path(__file__).parents[1]
COUNT = 13
BASELINES = {"mean_fill", "telea", "navier_stokes", "harmonic_fill", "flat_fill"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_state) -> Path:
    """A generator with random weights."""
    config = unet_cosine.get_config("tiny")
    folder = tmp_path_factory.mktemp("model")
    weights.save_generator(folder, generator_variables(make_state(config, {})), config)
    return folder


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory, make_batch) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    for index, image in enumerate(make_batch(COUNT, 32)["image"]):
        Image.fromarray(image).save(folder / f"map {index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory, model: Path, maps: Path) -> Path:
    """The output of a test with masks in buckets, which are saved as files too."""
    out = tmp_path_factory.mktemp("out")
    evaluate_folder(model, maps, out, bucket_masks="own", save_masks=str(out / "for_others"))
    return out


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def results_of(out: Path) -> dict:
    return json.loads((out / "test/results.json").read_text())


def test_buckets_are_filled_evenly_and_add_up(tested: Path):
    results = results_of(tested)
    rows = results["buckets"]
    assert [row["name"] for row in rows] == ["1-10 %", "10-20 %", "20-30 %", "30-40 %", "40-50 %", "50-60 %"]
    assert [row["images"] for row in rows] == [3, 2, 2, 2, 2, 2]
    for name in ("psnr_db_hole", "angular_error_deg_hole", "ssim_full"):
        for whole, parts in [
            (results["metrics"], [row["metrics"] for row in rows]),
            *((results["baselines"][b], [row["baselines"][b] for row in rows]) for b in BASELINES),
        ]:
            summed = sum(row["images"] * part[name] for row, part in zip(rows, parts, strict=True))
            assert summed / COUNT == pytest.approx(whole[name], rel=1e-6)
    lines = table(tested / "test/buckets.csv")
    assert len(lines) == 6 * (1 + len(BASELINES))
    (line,) = (line for line in lines if (line["bucket"], line["method"]) == ("40-50 %", "telea"))
    expected = rows[4]["baselines"]["telea"]["angular_error_deg_hole"]
    assert float(line["angular_error_deg_hole"]) == pytest.approx(expected, rel=1e-6)
    # The holes of the largest masks are the hardest for every baseline.
    assert rows[0]["baselines"]["telea"]["psnr_db_full"] > rows[-1]["baselines"]["telea"]["psnr_db_full"]


def test_every_picture_has_a_line(tested: Path):
    results, lines = results_of(tested), table(tested / "test/per_image.csv")
    assert [line["name"] for line in lines] == [f"map {index:02d}.png" for index in range(COUNT)]
    for method, means in (("ours", results["metrics"]), *results["baselines"].items()):
        for name in ("angular_error_deg_hole", "psnr_db_full", "l1_hole"):
            column = np.asarray([float(line[f"{method}_{name}"]) for line in lines])
            assert column.mean() == pytest.approx(means[name], rel=1e-6)
    masks = [image_files.read_mask(tested / f"for_others/map {index:02d}.png") for index in range(COUNT)]
    np.testing.assert_allclose([float(line["hole_ratio"]) for line in lines], np.mean(masks, axis=(1, 2)), rtol=1e-6)
    # Figure 4 of Telea is that of picture 4 under mask 4.
    truth = image_files.read_rgb(tested / "test/images/0004_truth.png")
    telea = baselines.telea(truth, masks[4], normal_maps=True)
    error = np.abs(telea.astype(float) - truth)[masks[4] > 0].mean() / 255
    assert float(lines[4]["telea_l1_hole"]) == pytest.approx(error, rel=1e-4)


def test_worst_and_best_pictures_are_shown(tested: Path):
    sheets = [image_files.read_rgb(tested / f"test/{name}.png") for name in ("worst", "best")]
    # Eight rows of 32 pixels, each four times as wide and high.
    assert all(len(sheet) > 8 * 4 * 32 for sheet in sheets)
    assert not np.array_equal(*sheets)


def test_others_test_on_the_same_holes(tested: Path, model: Path, maps: Path, tmp_path: Path):
    masks = tested / "for_others"
    evaluate_folder(model, maps, tmp_path, masks=str(masks))
    again, first = results_of(tmp_path), results_of(tested)
    assert again["mask_set"].split("-")[-1] == first["mask_set"].split("-")[-1]
    for part in ("metrics", "baselines", "buckets"):
        assert again[part] == first[part]
    assert (tmp_path / "test/per_image.csv").read_text() == (tested / "test/per_image.csv").read_text()


@pytest.mark.slow
def test_command_measures_fid_of_every_method(model: Path, maps: Path, tmp_path: Path):
    random, state = np.random.default_rng(0), {"fc.weight": np.zeros((1008, 2048), np.float32)}
    for layer, (height, width, channels, count) in inception.layer_shapes().items():
        deviation = np.sqrt(2 / (height * width * channels))
        kernel = random.standard_normal((count, channels, height, width), np.float32) * np.float32(deviation)
        state |= {f"{layer}.conv.weight": kernel, f"{layer}.bn.weight": np.ones(count, np.float32)}
        state |= {f"{layer}.bn.{part}": np.zeros(count, np.float32) for part in ("bias", "running_mean")}
        state[f"{layer}.bn.running_var"] = np.ones(count, np.float32)
    safetensors.numpy.save_file(state, tmp_path / "inception.safetensors")
    command = [sys.executable, ROOT / "launch" / "evaluate.py", "--model", model, "--images", maps]
    command += ["--out", tmp_path / "out", "--limit=6", "--inception", tmp_path / "inception.safetensors"]
    environment = {**os.environ, "XLA_FLAGS": fast_compilation.ONE_DEVICE}
    ran = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert "FID of 6 pictures is too high" in ran.stderr
    found = results_of(tmp_path / "out")["inception"]
    assert found["images"] == 6
    assert set(found["scores"]) == {"ours", *BASELINES}
    for name, scores in found["scores"].items():
        assert f"{name:14s} FID {scores['fid']:.3f}" in ran.stderr
        assert scores["fid"] > 0
        assert 0 <= scores["p_ids"] <= 1
        assert 0 <= scores["u_ids"] <= 1
    # Smoothly continued normals look more like the truth than a hole of one colour, even to random features.
    assert found["scores"]["harmonic_fill"]["fid"] < found["scores"]["flat_fill"]["fid"]
