"""The page of a run: what it says, what it survives, and that it needs nothing but itself."""

import html.parser
import json
import math
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import config_flags

from inpaint_jax import config as config_module
from inpaint_jax import curves, evaluate, image_files, picture_sections, report, run_folder

ROOT = Path(__file__).parent.parent
HOSTILE = '</style><script>alert("1")</script>&amp;\u2028é.py:tiny'
VOID = {"meta", "img", "input", "br", "hr"}


class Reader(html.parser.HTMLParser):
    """Collects elements, visible text and references, and checks that elements are closed in turn."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.references, self.ids, self.text, self.bold = [], [], [], [], "", []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        names = ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background")
        self.references += [value for name, value in attrs if name in names]
        self.references += [url for _, value in attrs for url in re.findall(r"url\((.*?)\)", value or "")]
        self.ids += [value for name, value in attrs if name == "id"]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.text += " " * (tag in ("td", "th"))

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data
        if "strong" in self.open:
            self.bold.append(data)


def scores(error: float) -> dict[str, float]:
    return {"angular_error_deg_hole": error, "psnr_db_hole": 40 - error, "l1_hole": error / 200}


RESULTS = {
    "config": HOSTILE,
    "dataset": {"source": "procedural_normals", "fingerprint": "f"},
    "images": 6,
    "mask_set": "lines-6-32x32-abc",
    "mean_hole_ratio": 0.171,
    "parameters": 12345,
    "metrics": scores(5.8266),
    "baselines": {"telea": scores(7.65), "mean_fill": scores(9.96), "navier_stokes": scores(7.04)},
    "large_holes": {
        "hole_ratio_over": 0.2, "images": 2, "metrics": scores(8.5), "baselines": {"telea": scores(8.25)},
    },
    "buckets": [
        {"name": "10-20 %", "images": 4, "metrics": scores(4.5), "baselines": {"telea": scores(7.35)}},
        {"name": "20-30 %", "images": 2, "metrics": scores(8.5), "baselines": {"telea": scores(8.25)}},
    ],
}  # fmt: skip


def write_rows(workdir: Path) -> None:
    """Four epochs of five steps in two phases, one divergence and one null; validation loses at the end."""
    rows = run_folder.RowFile(workdir / run_folder.METRICS)
    for step in range(1, 21):
        phase, cosine = "generator" if step <= 10 else "joint", 1.0 / step
        values = {"loss/cosine": cosine, "loss/cosine_weighted": 20 * cosine, "loss/generator": 20 * cosine}
        values |= {"gradient_norm/generator/rest": 1e30 if step == 7 else None if step == 8 else 3.0 + step % 3}
        values |= {"learning_rate/generator/rest": 1e-3, "guard/skipped": 0.0}
        if phase == "joint":
            values |= {"discriminator/accuracy": 0.5, "discriminator/logit_real": 0.1}
        row = {"step": step, "epoch": step / 5, "split": "train", "phase": phase}
        rows.write([{**row, **values}])
        if step % 5 == 0:
            error = {5: 8.0, 10: 6.0, 15: 5.99, 20: 6.5}[step]
            rows.write([{**row, "split": "val", **scores(error), "ssim_hole": None, "loss/cosine": 0.5}])
    rows.close()
    timing = run_folder.RowFile(workdir / run_folder.TIMING)
    timing.write({"step": s, "seconds": 2.0, "images": 40, "data_wait_s": 0.5, "images_per_s": 20} for s in (10, 20))
    timing.close()


@pytest.fixture
def workdir(tmp_path: Path, tiny_config) -> Path:
    """A run folder, finished but for its checkpoints, written as a run writes it."""
    folder = tmp_path / "run <1>"
    folder.mkdir()
    tiny_config.optimizer.learning_rate = 0.0123
    run_folder.write_text(folder / run_folder.CONFIG, config_module.to_json(tiny_config))
    write_rows(folder)
    evaluate.write_results(folder, {**RESULTS, "hashes": config_module.hashes(tiny_config)})
    random = np.random.default_rng(0)
    for step in range(1, 21):
        picture = random.integers(0, 256, (32, 32, 3), np.uint8)
        grid = image_files.picture_grid([[picture, picture]], ("masked", "truth"))
        image_files.write_png(folder / run_folder.SAMPLES / f"step_{step:08d}.png", grid)
    image_files.write_png(folder / "test/samples.png", grid)
    environment = {"command": ["python3", "launch/main.py", "--config", "a b.py"], "devices": ["cpu <x>", "cpu <x>"]}
    environment |= {"packages": {"jax": "0.10.2"}, "started": "2026-01-01T00:00:00+00:00"}
    run_folder.write_json(folder / run_folder.ENVIRONMENT, environment)
    log = "2026-01-01 00:00:00,000 INFO fine\n2026-01-01 00:00:09,000 WARNING the <discriminator> has won\n"
    (folder / run_folder.LOG).write_text(log)
    return folder


def read(folder: Path) -> Reader:
    return Reader(report.write_report(folder).read_text())


def test_diminishing_returns_by_hand():
    epochs, errors = [1, 2, 3, 4, 5, 6], [10.0, 8.0, 7.0, 6.99, 6.98, 6.97]
    # From epoch 3 on, 0.01 of 7 is lost per epoch: 0.14%.
    assert curves.diminishing_returns(epochs, errors, "min", 0.005) == 3
    assert curves.diminishing_returns(epochs, errors, "min", 0.001) is None
    # From epoch 2, 1.0 of 8 in the next epoch is 12.5%; from epoch 1, 2.0 of 10 is 20%.
    assert curves.diminishing_returns(epochs, errors, "min", 0.13) == 2
    assert curves.diminishing_returns(epochs, errors, "min", 0.2) == 2
    assert curves.diminishing_returns(epochs, errors, "min", 0.21) == 1
    # A late gain counts from every epoch before it: 2 of 8 in two epochs is 12.5% per epoch.
    assert curves.diminishing_returns([1, 2, 3, 4], [8, 8, 6, 6], "min", 0.12) == 3
    assert curves.diminishing_returns([1, 2, 3, 4], [8, 8, 6, 6], "min", 0.13) == 1
    # Epochs in between count: the same gain over ten epochs is a tenth per epoch.
    assert curves.diminishing_returns([1, 11], [8, 6], "min", 0.03) == 1
    assert curves.diminishing_returns([1, 11], [8, 6], "min", 0.02) is None


def test_diminishing_returns_takes_the_running_best():
    assert curves.diminishing_returns([1, 2, 3, 4], [None, 30.0, 20.0, None], "max") == 2
    assert curves.diminishing_returns([1, 2, 3], [30.0, 20.0, 33.0], "max") is None
    assert curves.diminishing_returns([1], [1.0], "min") is None
    assert curves.diminishing_returns([], [], "min") is None
    assert curves.diminishing_returns([1, 2], [0.0, 0.0], "min") == 1
    with pytest.raises(ValueError, match="direction"):
        curves.diminishing_returns([1, 2], [1.0, 2.0], "down")


@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=12))
def test_a_rate_of_zero_gives_the_epoch_of_the_best(values: list[float]):
    best = values.index(min(values)) + 1
    found = curves.diminishing_returns(range(1, len(values) + 1), values, "min", rate=0.0)
    assert found == (None if best == len(values) else best)


def test_one_divergent_value_does_not_flatten():
    calm = [1.0 + 0.1 * math.sin(i) for i in range(50)]
    low, high = curves.robust_limits([*calm, 1e30])
    assert (low, high) == (min(calm), max(calm))
    assert curves.robust_limits([*calm, -1e30])[0] == min(calm)
    assert curves.robust_limits([5.9, 5.7, 5.6, 5.5, 89.0, 5.4])[1] == 5.9
    scale, low, high = curves.axis_limits([[*calm, None, 1e30], [1.2] * 10])
    assert scale == "linear"
    assert low > 0.8
    assert high < 1.3


@pytest.mark.filterwarnings("error")  # as of a layout that has no room left for the axes
def test_a_best_value_beyond_the_axis_is_marked_at_its_edge():
    values = [1.0 + 0.1 * math.sin(i) for i in range(50)]
    epochs = list(range(50))
    inside = curves.draw({"a": (epochs, values)}, name="a", y_label="a", last_epoch=49, best="max")
    outside = curves.draw({"a": (epochs, [*values[:-1], 1e3])}, name="a", y_label="a", last_epoch=49, best="max")
    sizes = [re.search(r'viewBox="([^"]*)"', svg)[1] for svg in (inside, outside)]
    assert sizes[0] == sizes[1]


def test_what_is_no_divergence_is_shown():
    decline = [5 * 0.95**i for i in range(100)]
    assert curves.robust_limits(decline) == (decline[-1], decline[0])
    assert curves.robust_limits([0.0, *[1e-3] * 99]) == (0.0, 1e-3)  # warmup, then constant
    assert curves.robust_limits([0.0] * 99 + [1.0]) == (0.0, 1.0)  # a counter
    assert curves.robust_limits([7.4, 6.6, 6.43, 6.42])[1] == 7.4  # a short run
    assert curves.axis_limits([[1.0, 10.0, 100.0, 1000.0, 10.0]])[0] == "log"
    assert curves.axis_limits([[0.01] * 9, [7.0] * 9])[0] == "log"
    assert curves.axis_limits([[0.0, 10.0, 100.0, 1000.0, 10.0]])[0] == "linear"
    assert curves.axis_limits([[3.0]])[1:] == pytest.approx((2.85, 3.15))


@given(st.lists(st.floats(-1e38, 1e38), min_size=1, max_size=60))
@settings(max_examples=60)
def test_at_most_a_tenth_is_left_out_at_each_end(values: list[float]):
    low, high = curves.robust_limits(values)
    allowed = math.ceil(len(values) / 10)
    assert sum(value < low for value in values) <= allowed
    assert sum(value > high for value in values) <= allowed
    assert low in values
    assert high in values


def test_thinning_keeps_extremes_and_gaps():
    values = np.random.default_rng(0).normal(size=5000).tolist()
    values[1234], values[2345], values[3456] = 50.0, None, -50.0
    epochs, thinned = curves.thin(range(5000), values, points=200)
    assert len(thinned) <= 201
    assert all(values[epoch] == value for epoch, value in zip(epochs, thinned, strict=True))
    assert {50.0, None, -50.0} <= set(thinned)
    assert epochs == sorted(set(epochs))


def test_validation_beside_the_training_since_the_one_before():
    training = ([0.5, 1.0, 1.5, 2.0], [4.0, 2.0, None, 1.0])
    assert curves.beside(([1, 2, 3], [3.5, 2.0, 9.0]), training) == [(1, 3.5, 3.0), (2, 2.0, 1.0)]


def test_phases(workdir: Path):
    rows = run_folder.read_rows(workdir / run_folder.METRICS)
    assert curves.phase_bands(rows) == [("generator", 0.0, 2.0), ("joint", 2.0, 4.0)]
    assert curves.phase_bands([row for row in rows if row["phase"] == "joint"]) == []
    assert curves.phase_bands([{"step": 1, "epoch": 1.0, "split": "train"}]) == []


def test_page_holds_the_figures(workdir: Path):
    page = read(workdir)
    verdict = "Hole angular error 5.83 degrees, 24% below Telea (7.65) and 17% below Navier-Stokes (7.04), the best"
    assert verdict in page.text
    # Best of the test: ours in all three metrics; of the large holes: Telea.
    assert page.bold[:6] == ["5.83", "34.17", "0.0291", "8.25", "31.75", "0.0413"]
    assert "6 held-out pictures; mask set lines-6-32x32-abc; mean hole ratio 0.171" in page.text
    words = " ".join(page.text.split())
    assert "By share of the picture that is hole: hole angular error (degrees)" in words
    assert "method 10-20 %4 pictures 20-30 %2 pictures ours 4.50 8.50 Telea 7.35 8.25" in words
    assert "Best (star): 5.99 degrees at epoch 3; lower is better." in page.text
    assert (
        "Beyond the axis (triangle at the edge): 1, furthest 1e+30. Not finite (crosses at the bottom): 1." in page.text
    )
    assert "phases of training (generator to epoch 2; joint to epoch 4)" in page.text
    assert "4 s, 20 steps, 4 epochs" in page.text
    assert "2 x cpu <x>" in page.text
    assert "python3 launch/main.py --config 'a b.py'" in page.text
    assert "WARNING the <discriminator> has won" in page.text
    assert {"optimizer.learning_rate", "0.0123"} <= set(page.bold)
    assert "optimizer.b1" not in page.bold
    assert "to step 10 2.0 40 20.0 0.50 25.0%" in words
    # Diminishing: 6.0 at epoch 2, then 0.01 of it in two epochs.
    assert "hole angular error 2 2 6.00 5.99 0.17%" in words
    # Training's mean over steps 1 to 5 is 0.4567, over 16 to 20 0.0559.
    assert "loss/cosine 1 0.4567 0.5 +9.5% 4 0.0559 0.5 +794.4%" in words


def test_page_is_the_same_each_time_and_needs_nothing_but_itself(workdir: Path):
    text = report.write_report(workdir).read_text()
    assert report.write_report(workdir).read_text() == text
    page = Reader(text)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert all(reference.startswith(("#", "data:image/")) for reference in page.references)
    assert {reference[1:] for reference in page.references if reference.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "@import" not in text
    assert "http:" not in text
    assert text.isascii()
    assert HOSTILE in page.text
    assert [path.name for path in workdir.iterdir() if "tmp" in path.name] == []


def test_samples_run_from_the_first_to_the_last_in_a_bounded_page(workdir: Path, monkeypatch: pytest.MonkeyPatch):
    page = read(workdir)
    steps = [int(step) for step in re.findall(r"step (\d+), epoch", page.text)][: picture_sections.FRAMES]
    assert steps == [1, 5, 9, 12, 16, 20]
    monkeypatch.setattr(picture_sections, "SAMPLES_BYTES", 30_000)
    text = report.write_report(workdir).read_text()
    pictures = re.findall(r"data:image/(\w+);base64,([^\"]*)", text)
    assert [kind for kind, _ in pictures] == ["jpeg"] * 6 + ["png"]
    assert sum(len(data) for _, data in pictures[:6]) <= 30_000


def test_a_run_that_was_killed_has_its_ledger(workdir: Path):
    first = {"began": 1.7e9, "devices": 4, "from_step": 0, "step": 12, "first_step_s": 20.0, "trained_s": None}
    first |= {"saves_s": 4.0, "alive_s": 84.0, "ended": None}
    second = {**first, "began": 1.7e9 + 100, "from_step": 9, "step": 20, "trained_s": 60.0, "alive_s": 70.0}
    run_folder.write_json(workdir / run_folder.STARTS, [first])
    assert "Survived" not in read(workdir).text
    run_folder.write_json(workdir / run_folder.STARTS, [first, {**second, "ended": "finished"}])
    words = " ".join(read(workdir).text.split())
    # Of 60 s of training 3 of 12 steps were trained again: 45 s, 36 s and the test, 10 s, of 154 s.
    for figure in (
        "Survived1 killed",
        "At work2 min 34 s in 2 starts",
        "Useful59.1%",
        "Lost35 s, 22.7%",
        "Trained twice15 s, 9.7%: 3 steps",
    ):
        assert figure in words, figure
    assert "Until first steps40 s, 26.0%" in words
    assert "Away between starts16 s" in words
    assert "1 2023-11-14 22:13:20 killed 4 0 12 3 20.0 4.0 45.0 15.0 0.0" in words
    assert "2 2023-11-14 22:15:00 finished 4 9 20 0 20.0 4.0 36.0 0.0 10.0" in words


def test_unfinished_and_damaged_folders(workdir: Path, tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    page = read(empty)
    assert "Unfinished" in page.text
    for name in ("config.json", "test/results.json", "metrics.jsonl", "timing.jsonl", "log.txt", "samples/"):
        assert name in page.text
    (workdir / "test/results.json").unlink()
    (workdir / run_folder.ENVIRONMENT).write_text("{")
    (workdir / run_folder.SAMPLES / "step_00000020.png").write_bytes(b"no picture")
    with (workdir / run_folder.METRICS).open("a") as file:
        file.write('{"step": 21, "epo')  # as a kill leaves it
    page = read(workdir)
    assert "Not tested yet. Best validation: hole angular error 5.99 degrees." in page.text
    assert "environment.json, which cannot be read" in page.text
    assert "samples/step_00000020.png, which cannot be shown" in page.text
    with pytest.raises(ValueError, match="no run folder"):
        report.write_report(tmp_path / "none")


def test_results_of_fewer_epochs_are_not_taken_for_those_of_the_run(workdir: Path, tiny_config):
    tiny_config.optimizer.learning_rate = 0.0123
    tiny_config.epochs += 1
    run_folder.write_text(workdir / run_folder.CONFIG, config_module.to_json(tiny_config))
    page = read(workdir)
    assert "Not tested yet." in page.text
    assert "test/results.json, which is of an earlier config" in page.text


def test_figures_that_are_not_numbers_do_not_break(workdir: Path):
    results = json.loads((workdir / report.RESULTS).read_text())
    results["metrics"]["angular_error_deg_hole"] = None
    results["baselines"]["telea"]["psnr_db_hole"] = math.nan
    evaluate.write_results(workdir, results)
    rows = run_folder.read_rows(workdir / run_folder.METRICS)
    nulls = [{k: None if isinstance(v, float) and k != "epoch" else v for k, v in row.items()} for row in rows]
    run_folder.write_text(workdir / run_folder.METRICS, "".join(json.dumps(row) + "\n" for row in nulls))
    page = read(workdir)
    assert "not finite" in page.text
    assert "No finite value." in page.text
    assert "7.04" in page.bold
    assert "not finite" not in page.bold


def test_command_put_together_gives_the_same_config(workdir: Path, tiny_config, monkeypatch: pytest.MonkeyPatch):
    (workdir / run_folder.ENVIRONMENT).unlink()
    tiny_config.optimizer.learning_rate = 0.0123
    tiny_config.data.split_counts = (10, 4, 4)
    tiny_config.data.path = "my maps; x"
    run_folder.write_text(workdir / run_folder.CONFIG, config_module.to_json(tiny_config))
    results = {**RESULTS, "config": "unet_cosine.py:tiny", "hashes": config_module.hashes(tiny_config)}
    evaluate.write_results(workdir, results)
    command = re.search(r"python launch/main\.py .*", read(workdir).text)[0]
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", shlex.split(command)[1:])  # where config_flags looks for fields
    values(sys.argv)
    assert config_module.flatten(config.value) == config_module.flatten(tiny_config)
