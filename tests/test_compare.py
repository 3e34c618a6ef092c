"""Comparisons of hand-written run folders: figures against NumPy, what is refused, and what the pictures show."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import unet_cosine
from inpaint_jax import baselines, compare, compare_curves, compare_page, image_files
from inpaint_jax import config as config_module

ROOT = Path(__file__).parents[1]
BASELINES = {"mean_fill": (10.0, 25.0), "telea": (7.6, 27.0)}
# A picture in which OpenCV's methods have something to continue, with a black hole.
MASKED = np.tile(np.add.outer(np.arange(40, 168, 4), np.arange(0, 64, 2)).astype(np.uint8)[..., None], 3)
MASKED[8:20, 10:24] = 0


def write_run(
    folder: Path, seed: int, values: tuple[float, float], rate: float = 1e-3, colour: int = 0, **changes
) -> Path:
    """Writes a finished run with an angular error and a PSNR, and two test pictures of one colour."""
    config = unet_cosine.get_config("tiny")
    config.seed, config.optimizer.learning_rate = seed, rate
    metrics = ("angular_error_deg_hole", "psnr_db_hole")
    results = {
        "config": "unet_cosine.py:tiny",
        "hashes": config_module.hashes(config),
        "dataset": {"source": "procedural_normals", "fingerprint": "f1"},
        "images": 6,
        "mask_set": "lines-6",
        "metrics": dict(zip(metrics, values, strict=True)),
        "baselines": {name: dict(zip(metrics, pair, strict=True)) for name, pair in BASELINES.items()},
        "train": {"steps": 12, "seconds": 3.0},
        **changes,
    }
    (folder / "test").mkdir(parents=True)
    (folder / "config.json").write_text(config_module.to_json(config))
    (folder / "test/results.json").write_text(json.dumps(results))
    for index in (0, 1):
        for name, level in {"completed": colour, "output": 99, "truth": 200}.items():
            picture = np.full((32, 32, 3), level + index, np.uint8)
            image_files.write_png(folder / f"test/images/{index:04d}_{name}.png", picture)
        image_files.write_png(folder / f"test/images/{index:04d}_masked.png", MASKED)
        image_files.write_png(folder / f"test/images/{index:04d}_mask.png", np.uint8(MASKED[..., 0] == 0) * 255)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two groups: three seeds of one rate, one seed of another."""
    for seed, values in enumerate([(5.8, 30.2), (6.1, 30.0), (5.9, 30.5)]):
        write_run(tmp_path / f"runs/fast/seed{seed}", seed, values, colour=60 + 10 * seed)
    write_run(tmp_path / "runs/slow/seed4", 4, (6.5, 29.0), rate=1e-4, colour=120)
    return tmp_path / "runs"


def groups_of(*folders: Path) -> list[compare.Group]:
    found = compare.find_runs(folders, skip_unfinished=False)
    compare.check_comparable(found)
    return compare.group_runs(found)


def command(*arguments: str | Path) -> subprocess.CompletedProcess:
    full = [sys.executable, ROOT / "launch" / "compare.py", *arguments]
    return subprocess.run(full, capture_output=True, text=True, timeout=120)


def test_command_writes_figures_that_numpy_finds_too(runs: Path, tmp_path: Path):
    ran = command(runs / "fast", runs / "slow", "--html", "--out", tmp_path / "out")
    assert ran.returncode == 0, ran.stderr
    assert not list(tmp_path.rglob("*tmp*"))
    with (tmp_path / "out/compare.csv").open() as file:
        rows = {(row["group"], row["metric"]): row for row in csv.DictReader(file)}
    assert len(rows) == (2 + len(BASELINES)) * 2
    row = rows["unet_cosine:tiny optimizer.learning_rate=0.001", "angular_error_deg_hole"]
    values = [5.8, 6.1, 5.9]
    assert float(row["mean"]) == pytest.approx(np.mean(values))
    assert float(row["standard_deviation"]) == pytest.approx(np.std(values, ddof=1))
    assert (row["min"], row["max"], row["seeds"]) == ("5.8", "6.1", "3")
    assert (row["unit"], row["direction"]) == ("degrees", "lower is better")
    one = rows["unet_cosine:tiny optimizer.learning_rate=0.0001", "psnr_db_hole"]
    assert (one["mean"], one["standard_deviation"], one["seeds"]) == ("29.0", "", "1")
    assert (one["unit"], one["direction"]) == ("dB", "higher is better")
    assert (rows["Telea", "psnr_db_hole"]["mean"], rows["Telea", "psnr_db_hole"]["config"]) == ("27.0", "baseline")
    assert "5.93 ± 0.15*" in ran.stdout
    assert " 30.23 ± 0.25*" in ran.stdout
    page = (tmp_path / "out/compare.html").read_text()
    assert "<strong>5.93 &#177; 0.15</strong>" in page
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")
    assert "optimizer.learning_rate" in page


def test_curves_show_each_seed_and_the_gap_between_training_and_validation(runs: Path):
    first = groups_of(runs)
    assert compare_curves.draw_curves(first) is None, "these runs logged nothing"
    rows = []
    for epoch in range(1, 11):
        rows += [{"step": epoch, "epoch": epoch, "split": "train", "loss/cosine": 0.1 if epoch > 8 else 0.3}]
        rows += [{"step": epoch, "epoch": epoch, "split": "val", "loss/cosine": 0.2 if epoch > 8 else 0.4}]
    for folder in ("fast/seed0", "slow/seed4"):
        (runs / folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    groups = groups_of(runs)
    assert compare_curves.common_value(groups) == "loss/cosine"
    series = compare_curves.read_curves(groups[0]["runs"][0], "loss/cosine")
    assert compare_curves.final_gap(series) == pytest.approx(2.0)
    picture = compare_curves.draw_curves(groups)
    colours = {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}
    assert {(0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)} <= colours, "training and validation"
    mean = compare_curves.running_mean([1.0, None, 3.0, 8.0], 3)
    np.testing.assert_allclose(mean, [1.0, 2.0, 5.5, 5.5])


@pytest.mark.parametrize(("field", "value"), [("weight", 0.0), ("fn", "mse"), ("region", "full")])
def test_groups_without_a_loss_in_common_have_curves_of_what_validation_watches(
    runs: Path, field: str, value: float | str
):
    groups = groups_of(runs)
    config = groups[1]["runs"][0]["config"]
    for key in [key for key in config if key.startswith("losses.") and key.endswith(f".{field}")]:
        config[key] = value
    assert compare_curves.common_value(groups) == "angular_error_deg_hole"
    assert compare_curves.draw_curves(groups) is None, "these runs logged nothing"
    rows = [{"step": n, "epoch": n, "split": "val", "angular_error_deg_hole": 9.0 - n} for n in (1, 2, 3)]
    (runs / "fast/seed0/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert compare_curves.draw_curves(groups).std() > 0
    config["regime.monitor"] = "psnr_db_hole"
    assert compare_curves.common_value(groups) == ""
    assert compare_curves.draw_curves(groups) is None


def test_equal_configs_of_two_names_are_two_groups(runs: Path, tmp_path: Path):
    write_run(tmp_path / "twin", 9, (6.0, 30.0), config="other.py:tiny")
    assert [(g["config"], len(g["runs"])) for g in groups_of(runs / "fast", tmp_path / "twin")] == [
        ("unet_cosine:tiny", 3), ("other:tiny", 1),
    ]  # fmt: skip


def test_wrong_usage_and_a_comparison_without_runs(tmp_path: Path):
    ran = command("--out", tmp_path / "out")
    assert (ran.returncode, ran.stderr.splitlines()[-1][:26]) == (2, "error: give the folders of")
    ran = command(tmp_path / "absent", "--out", tmp_path / "out")
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"error: there is no folder '{tmp_path}/absent'")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"dataset": {"fingerprint": "f2"}}, ("different test pictures", "f1", "f2")),
        ({"mask_set": "squares-6"}, ("different test masks", "lines-6", "squares-6")),
        ({"images": 7}, ("different numbers of test pictures", "has images 6", "has 7")),
        ({"metrics": {"psnr_db_hole": 30.0}}, ("different metrics", "angular_error_deg_hole")),
    ],
)
def test_runs_of_different_tests_are_refused(runs: Path, tmp_path: Path, changes: dict, messages: tuple[str, ...]):
    other = write_run(tmp_path / "other", 7, (6.0, 30.0), **changes)
    with pytest.raises(ValueError, match="different") as error:
        groups_of(runs, other)
    for text in (*messages, str(runs / "fast/seed0"), str(other)):
        assert text in str(error.value)


def test_a_figure_that_is_no_number_is_refused(runs: Path, tmp_path: Path):
    other = write_run(tmp_path / "broken", 7, (float("nan"), 30.0))
    with pytest.raises(ValueError, match=r"broken' has angular_error_deg_hole = nan"):
        groups_of(runs, other)


def test_the_same_config_and_seed_twice_is_refused(runs: Path, tmp_path: Path):
    other = write_run(tmp_path / "again", 2, (6.0, 30.0))
    with pytest.raises(ValueError, match=r"same config and seed twice: .*fast/seed2' and .*again'"):
        groups_of(runs, other)


def test_unfinished_runs_are_refused_or_left_out(runs: Path, tmp_path: Path):
    running = write_run(tmp_path / "running", 8, (6.0, 30.0))
    (running / "test/results.json").unlink()
    with pytest.raises(ValueError, match=r"running' is not finished.*--skip_unfinished"):
        groups_of(runs, running)
    assert len(compare.find_runs([runs, running], skip_unfinished=True)) == 4
    assert len(compare.find_runs([tmp_path], skip_unfinished=False)) == 4  # named as part of a root
    with pytest.raises(ValueError, match="no finished run"):
        compare.find_runs([running], skip_unfinished=True)


def test_results_of_fewer_epochs_than_the_config_are_no_results(runs: Path):
    config = unet_cosine.get_config("tiny")
    config.optimizer.learning_rate, config.seed, config.epochs = 1e-4, 4, 50
    (runs / "slow/seed4/config.json").write_text(config_module.to_json(config))
    assert [run["seed"] for run in compare.find_runs([runs], skip_unfinished=False)] == [0, 1, 2]


def test_labels_say_what_differs_and_are_unique(tmp_path: Path):
    config = unet_cosine.get_config("tiny")
    for number in range(4):
        config.optimizer.learning_rate = (1e-3, 1e-4)[number % 2]
        config.generator.width, config.discriminator.width = (8, 16)[number // 2], 8 + number
        config.batch_size, config.epochs = 4 + number // 2, 3 + number
        folder = write_run(tmp_path / f"run{number}", 0, (6.0, 30.0), hashes=config_module.hashes(config))
        (folder / "config.json").write_text(config_module.to_json(config))
    labels = [group["label"] for group in groups_of(tmp_path)]
    assert len(set(labels)) == 4
    assert labels[0].startswith("unet_cosine:tiny batch_size=4, discriminator.width=8, epochs=3, and 2 more fields")
    assert len({group["label"] for group in groups_of(tmp_path / "run0", tmp_path / "run1")}) == 2


def place_of(sheet: np.ndarray, picture: np.ndarray) -> int:
    """The row of the sheet where the picture begins, pixel for pixel."""
    distance = cv2.matchTemplate(sheet, picture, cv2.TM_SQDIFF)
    row, column = np.unravel_index(distance.argmin(), distance.shape)
    np.testing.assert_array_equal(sheet[row : row + picture.shape[0], column : column + picture.shape[1]], picture)
    return int(row)


def test_the_wall_shows_each_groups_first_seed_between_masked_and_truth(runs: Path):
    wall = compare_page.draw_wall(groups_of(runs))
    # Cells of 32 x 32 pixels grow to 128; the second column's pictures are one level brighter than the first's.
    heights = []
    for level in (60, 120, 200):
        (y, x), (_, right) = (np.nonzero((wall == shade).all(-1)) for shade in (level, level + 1))
        assert len(y) >= 128 * 128
        assert np.median(x) + 128 < np.median(right)
        heights.append(np.median(y))
    assert heights == sorted(heights)
    hole = np.uint8(MASKED[..., 0] == 0)
    above = [MASKED, baselines.telea(MASKED, hole), baselines.navier_stokes(MASKED, hole)]
    places = [place_of(wall, picture.repeat(4, axis=0).repeat(4, axis=1)) for picture in above]
    assert places == sorted(places)
    assert places[-1] < heights[0]
    assert not (wall == 71).all(-1).sum() > 1000  # the second seed


def test_without_test_pictures_an_old_wall_is_removed(runs: Path, tmp_path: Path):
    out = tmp_path / "out"
    compare_page.write_comparison(groups_of(runs), out, page=True)
    assert {path.name for path in out.iterdir()} == {"compare.csv", "compare.png", "wall.png", "compare.html"}
    for path in (runs / "slow/seed4/test/images").iterdir():
        path.unlink()
    compare_page.write_comparison(groups_of(runs), out, page=False)
    assert {path.name for path in out.iterdir()} == {"compare.csv", "compare.png"}


def test_close_groups_are_those_within_a_standard_deviation(tmp_path: Path):
    for rate, values in {1e-3: (6.0, 6.2), 1e-4: (6.1, 6.3), 1e-5: (7.0, 7.1)}.items():
        for seed, value in enumerate(values):
            write_run(tmp_path / f"{rate}/{seed}", seed, (value, 30.0), rate)
    rows = compare.statistics(groups_of(tmp_path))
    assert compare.best_of(rows, "angular_error_deg_hole")["group"].endswith("learning_rate=0.001")
    close = compare.close_to_best(rows, "angular_error_deg_hole")
    assert [group.rpartition("=")[2] for group in close] == ["0.0001"]
    # Equal means are all best, none of them nearly so.
    tied = [row for row in rows if row["metric"] == "psnr_db_hole" and row["config"] != compare.BASELINE]
    assert all(compare.is_best(rows, row) for row in tied)
    assert compare.close_to_best(rows, "psnr_db_hole") == []


def test_a_lost_run_does_not_flatten_the_plot():
    runs, baselines = [5.8, 5.9, 6.1, 52.0, 180.0], [7.0, 7.6, 10.0, 10.1]
    low, high = compare_page.panel_limits(runs, baselines)
    assert (low, high) == (5.8, 7.6)  # the nearer baselines, while the runs keep an eighth
    assert compare_page.panel_limits([5.8], baselines) == (5.8, 10.1)
    assert compare_page.panel_limits([5.80, 5.81], baselines) == (5.80, 5.81)
    assert compare_page.panel_limits([5.0, 6.0], []) == (5.0, 6.0)
    assert compare_page.panel_limits([3.0], []) == (3.0, 3.0)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=9), st.lists(st.floats(-100, 100), min_size=1, max_size=5))
def test_panel_limits_lie_within_the_data_and_show_a_run(runs: list[float], baselines: list[float]):
    low, high = compare_page.panel_limits(runs, baselines)
    assert min([*runs, *baselines]) <= low <= high <= max([*runs, *baselines])
    assert any(low <= value <= high for value in runs)


def test_the_plot_marks_a_clipped_run(runs: Path, tmp_path: Path):
    def red(picture: np.ndarray) -> int:
        return int(((picture[..., 0] > 150) & (picture[..., 1] < 40) & (picture[..., 2] < 40)).sum())

    before = compare_page.draw_plot(groups_of(runs))
    np.testing.assert_array_equal(before, compare_page.draw_plot(groups_of(runs)))
    lost = write_run(tmp_path / "lost", 5, (80.0, 30.0), rate=1e-4)
    after = compare_page.draw_plot(groups_of(runs, lost))
    assert red(before) == 0
    assert red(after) > 20
