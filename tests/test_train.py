"""The command a user runs, end to end: train, be stopped, go on, start over, test; kills are in `kill_storm.py`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fast_compilation
import forked_commands
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

ROOT = Path(__file__).parent.parent
EPOCHS = 6
STEPS = EPOCHS * 4  # 18 pictures in batches of 4
RESULT_FIELDS = {"config", "hashes", "dataset", "images", "mask_set", "parameters", "model_megabytes", "train"}
RESULT_FIELDS |= {"inference_seconds_per_image", "metrics", "baselines"}


def options_of(workdir: Path) -> list[str]:
    return [f"--config={ROOT / 'configs' / 'unet_cosine.py'}:tiny", f"--workdir={workdir}", f"--config.epochs={EPOCHS}"]


def one_device() -> dict[str, str]:
    """The environment of a command that finds one device, as on a user's CPU."""
    return {**os.environ, "XLA_FLAGS": fast_compilation.ONE_DEVICE}


def start(workdir: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, ROOT / "launch" / "main.py", *options_of(workdir), *options]
    return subprocess.Popen(command, env=one_device(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(workdir: Path, *options: str, code: int = 0) -> str:
    """Runs the command in a process forked where JAX is imported already; returns what it says."""
    ran = forked_commands.run("main", ROOT, *options_of(workdir), *options, environment=one_device())
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def wait_for(condition, process: subprocess.Popen) -> None:
    while not condition() and process.poll() is None:
        time.sleep(0.01)


def same_results(a: Path, b: Path) -> None:
    """Asserts that two runs ended in the same generator, bit by bit, with the same metrics rows."""
    assert (a / "metrics.jsonl").read_text() == (b / "metrics.jsonl").read_text()
    weights = "generator/generator.safetensors"
    assert (a / weights).read_bytes() == (b / weights).read_bytes()
    results = [json.loads((w / "test/results.json").read_text()) for w in (a, b)]
    assert results[0]["metrics"] == results[1]["metrics"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("run") / "finished"
    process = start(workdir)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return workdir


def test_finished_run_folder(finished: Path):
    for name in ("config.json", "log.txt", "metrics.jsonl", "timing.jsonl", "test/samples.png", "checkpoints/best"):
        assert (finished / name).exists(), name
    for name in ("buckets.csv", "per_image.csv", "worst.png", "best.png"):
        assert (finished / "test" / name).exists(), name
    assert not list(finished.rglob("*tmp*"))
    train = [row["step"] for row in rows(finished) if row["split"] == "train"]
    assert train == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows(finished) if row["split"] == "val"] == list(range(4, STEPS + 1, 4))
    samples = sorted(path.name for path in (finished / "samples").iterdir())
    assert samples == [f"step_{step:08d}.png" for step in (4, 8, 16, 24)]
    assert len(list((finished / "test/images").iterdir())) == 6 * 5


def test_results(finished: Path):
    results = json.loads((finished / "test/results.json").read_text())
    assert set(results) >= RESULT_FIELDS
    assert {"mean_fill", "flat_fill", "telea"} <= set(results["baselines"])
    for values in (results["metrics"], *results["baselines"].values()):
        assert {"psnr_db_hole", "ssim_hole", "l1_hole", "angular_error_deg_hole"} <= set(values)
        assert all(np.isfinite(value) for value in values.values())
    page = (finished / "report.html").read_text()
    assert f"{results['metrics']['angular_error_deg_hole']:.2f}" in page
    assert "Not in this run folder" not in page
    assert sum(row["images"] for row in results["buckets"]) == results["images"] == 6
    assert set(results["losses"]) == {"loss/cosine", "loss/distance"}
    stored = safetensors.numpy.load_file(finished / "generator/generator.safetensors")
    assert results["parameters"] == sum(v.size for k, v in stored.items() if k.startswith("params/"))
    assert results["train"]["steps"] == STEPS


def test_test_pictures_keep_known_pixels(finished: Path):
    folder = finished / "test/images"
    for index in range(6):
        names = ("masked", "completed", "truth", "output")
        masked, completed, truth, output = (
            np.asarray(Image.open(folder / f"{index:04d}_{name}.png")).astype(int) for name in names
        )
        hole = (completed != truth).any(-1)
        assert hole.any()
        np.testing.assert_array_equal(completed[hole], output[hole])
        shown_hole = (masked == 0).all(-1)
        np.testing.assert_array_equal(completed[~shown_hole], truth[~shown_hole])
        np.testing.assert_array_equal(masked[~shown_hole], truth[~shown_hole])
        lengths = np.linalg.norm(output / 127.5 - 1, axis=-1)
        assert np.abs(lengths - 1).max() < 0.02


def test_finished_run_skips_to_the_test(finished: Path):
    before = (finished / "metrics.jsonl").read_text(), (finished / "generator/generator.safetensors").read_bytes()
    (finished / "test/results.json").unlink()
    output = run(finished)
    assert "going on from step 24 of 24" in output
    assert "best angular_error_deg_hole so far" in output
    assert (finished / "test/results.json").exists()
    assert before[0] == (finished / "metrics.jsonl").read_text()
    assert before[1] == (finished / "generator/generator.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_preempted_run_saves_and_goes_on(finished: Path, tmp_path: Path, number: signal.Signals):
    workdir = tmp_path / "preempted"
    process = start(workdir, "--config.checkpoint_every_steps=1000")
    metrics = workdir / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(metrics.read_text()) > 0, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert f"{number.name}: state of step" in output
    step = rows(workdir)[-1]["step"]
    assert f"going on from step {step} of" in run(workdir)
    same_results(finished, workdir)


def test_larger_epochs_continues_and_restart_starts_over(finished: Path, tmp_path: Path):
    workdir = tmp_path / "longer"
    run(workdir, "--config.epochs=2", "--config.optimizer.schedule=constant")
    first = rows(workdir)
    output = run(workdir, "--config.epochs=3", "--config.optimizer.schedule=constant")
    assert "going on from step 8 of 12" in output
    assert rows(workdir)[: len(first)] == first
    assert rows(workdir)[-1]["step"] == 12
    output = run(workdir, "--config.epochs=3", "--config.seed=1", code=1)
    assert "seed: 0 -> 1" in output
    assert "optimizer.schedule: 'constant' -> 'cosine'" in output
    assert "Traceback" not in output
    (workdir / "mine.txt").write_text("kept")
    output = run(workdir, "--config.epochs=1", "--config.optimizer.schedule=constant", "--restart")
    assert "going on" not in output
    assert rows(workdir)[-1]["step"] == 4
    assert (workdir / "mine.txt").read_text() == "kept"


def test_evaluate_command_tests_on_a_folder(finished: Path, tmp_path: Path):
    maps = tmp_path / "maps"
    maps.mkdir()
    for path in (finished / "test/images").glob("*_truth.png"):
        Image.open(path).save(maps / path.name)
    command = [sys.executable, ROOT / "launch" / "evaluate.py", "--model", finished, "--images", maps]
    command += ["--out", tmp_path / "out"]
    subprocess.run(command, env=one_device(), check=True, capture_output=True, cwd=tmp_path)
    tested, own = (json.loads((w / "test/results.json").read_text()) for w in (tmp_path / "out", finished))
    # The same pictures in the same order on the same masks: the same figures as the run's own test.
    assert tested["mask_set"] == own["mask_set"]
    # Up to rounding: without a discriminator it is another program, in which a sum may be taken in another order.
    assert tested["metrics"] == pytest.approx(own["metrics"], rel=1e-6)
    assert tested["baselines"] == own["baselines"]
