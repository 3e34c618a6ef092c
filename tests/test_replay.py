"""Replaying a step: the bits of the training, across phases and validations, from a run folder that is only read."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from configs import common, unet_cosine
from inpaint_jax import augment, checkpoint, config, keys, replay, replay_pictures, run_folder, starts, task, train
from inpaint_jax.data import procedural_normals
from inpaint_jax.parallel import make_parallel
from inpaint_jax.preemption import Preemption
from inpaint_jax.run import assemble
from inpaint_jax.step import make_system

ROOT = Path(__file__).parents[1]
STEPS = 10  # two epochs of four and a half
WARM = 3


def phased():
    """Three steps of reconstruction, then runs of both networks that restart, stop early and scale a rate."""
    c = unet_cosine.get_config("tiny")
    c.regime.phases.warm = common.phase("reconstruction", steps=WARM)
    # What it watches gets worse at such a rate.
    c.regime.phases.both = common.phase("joint", epochs=3, runs=9, restart=True, stops_early=True)
    c.regime.phases.both.monitor = "loss/discriminator"
    c.regime.sequence, c.patience, c.regime.reactions = ("warm", "both"), 1, 1
    c.optimizer.schedule, c.optimizer.warmup_fraction, c.optimizer.learning_rate = "constant", 0.0, 0.03
    c.max_steps, c.epochs = STEPS, 9
    c.log_every_steps, c.checkpoint_every_steps, c.keep_checkpoints = 2, 1, 100
    return c


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, trained to its end, that kept the state of every step."""
    folder = tmp_path_factory.mktemp("replay") / "whole"
    folder.mkdir()
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints", phased().keep_checkpoints)
    assert train.fit(assemble(phased(), "phased", folder), checkpoints, Preemption(), False, starts.Start(folder))
    checkpoints.close()
    return folder


def copy_with(whole: Path, folder: Path, kept: tuple[int, ...]) -> Path:
    shutil.copytree(whole, folder)
    for path in (folder / "checkpoints/last").iterdir():
        if int(path.name.removeprefix("step_")) not in kept:
            shutil.rmtree(path)
    return folder


@pytest.fixture
def sparse(whole: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function (kept steps) -> the run as if it had kept the states of these steps alone."""
    return lambda *kept: copy_with(whole, tmp_path / "run", kept)


@pytest.fixture(scope="module")
def replayed(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the replay of step 8 from step 2: two phases begin on the way, and two validations are due."""
    folder = copy_with(whole, tmp_path_factory.mktemp("replay") / "sparse", (2, 9))
    assert replay.replay(folder, 8)
    return folder / "replay/step_00000008"


def saved(whole: Path, step: int) -> tuple[dict, str]:
    """Returns what lies beside the state that the run saved after a step, and the state's hash."""
    return checkpoint.read_record(whole / "checkpoints", step)


def result(folder: Path) -> dict:
    return json.loads((folder / "replay.json").read_text())


def row(folder: Path, step: int) -> dict:
    rows = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return next(row for row in rows if (row["step"], row["split"]) == (step, "train"))


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Returns every file, its bytes and the time of its last change, outside of replays."""
    files = (path for path in folder.rglob("*") if path.is_file() and "replay" not in path.relative_to(folder).parts)
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_state_and_rows_are_those_of_the_run(whole, replayed):
    regimes = {step: saved(whole, step)[0]["regime"] for step in (2, 3, 7, 8)}
    assert [regimes[step]["phase_start"] for step in (2, 3, 7, 8)] == [0, 3, 3, 8], "a phase began, a run ended early"
    assert (regimes[7]["reactions"], regimes[8]["reactions"]) == (0, 1)
    found = result(replayed)
    assert (found["from_checkpoint"], found["phase"], found["trains"], found["epoch"]) == (2, "both", "joint", 2)
    assert found["state_sha256"] == {"before": saved(whole, 7)[1], "after": saved(whole, 8)[1]}
    assert found["regime"] == {"before": regimes[7], "after": regimes[8]}
    assert found["actions"] == ["save_best", "scale_rate"]
    compared = found["compared"]
    assert (compared["rows"], compared["equal_rows"]) == (3 + 2, 3 + 2), "of steps 4, 6, 8, and both validations"
    assert (compared["row_of_the_step"], compared["checkpoint"], compared["first_difference"]) == (True, None, None)
    stored = {name: value for name, value in row(whole, 8).items() if name in found["metrics"]}
    assert stored == found["metrics"]
    assert {"loss/cosine", "loss/cosine_weighted", "learning_rate/discriminator", "guard/level"} <= set(stored)


def test_pictures_are_those_of_the_batch(replayed):
    c, found, arrays = phased(), result(replayed), np.load(replayed / "batch.npz")
    assert [example["slot"] for example in found["examples"]] == [28, 29, 30, 31]
    for place, example in enumerate(found["examples"]):
        index = int(example["picture"].removeprefix("train_"))
        source = procedural_normals.render_normal_map(20260101, index, 32, "up")
        np.testing.assert_array_equal(arrays["source"][place], source)
        key = keys.slot_keys(c.seed, "augment", np.array([example["slot"]]))[0]
        turned = augment.augment(key, source / np.float32(127.5) - 1, "up")
        names = ("image", "mask", "input", "output", "completed")
        pictures = {name: np.asarray(Image.open(replayed / f"images/{place:04d}_{name}.png")) for name in names}
        np.testing.assert_array_equal(pictures["image"], np.round((np.asarray(turned) + 1) * 127.5))
        hole = pictures["mask"][..., 0] > 0
        assert example["hole_ratio"] == pytest.approx(hole.mean())
        np.testing.assert_array_equal(pictures["completed"][~hole], pictures["image"][~hole])
        np.testing.assert_array_equal(pictures["completed"][hole], pictures["output"][hole])
        np.testing.assert_array_equal(pictures["input"][~hole], pictures["image"][~hole])
        assert (pictures["output"][~hole] != pictures["image"][~hole]).any()
    assert Image.open(replayed / "batch.png").width > 5 * 128
    # The answers are the step's own: their losses are those in its metrics, to the last bits of another program.
    for name in ("loss/cosine", "loss/distance", "discriminator/logit_real", "discriminator/logit_fake"):
        mean = np.mean([example[name] for example in found["examples"]])
        assert mean == pytest.approx(found["metrics"][name], rel=1e-3, abs=1e-5)


def test_a_run_that_is_training_is_only_read_and_damage_stays_where_it_is(whole, sparse, caplog, monkeypatch):
    folder = sparse(4, 5)
    (folder / "checkpoints/last/step_5/hashes/metadata").write_text("{}")
    (folder / "checkpoints/last/step_7.orbax-checkpoint-tmp").mkdir()
    monkeypatch.setattr(logging.getLogger("inpaint_jax"), "propagate", True)
    with run_folder.lock(folder):
        before = contents(folder)
        assert replay.replay(folder, 6)
        assert contents(folder) == before
        with pytest.raises(ValueError, match="another process"):
            run_folder.lock(folder)
    assert "the checkpoint of step 5 is left out: its hashes are not as they were written" in caplog.text
    assert (folder / "checkpoints/last/step_7.orbax-checkpoint-tmp").is_dir()
    found = result(folder / "replay/step_00000006")
    assert (found["from_checkpoint"], found["state_sha256"]["after"]) == (4, saved(whole, 6)[1])
    assert [path.name for path in (folder / "replay").iterdir()] == ["step_00000006"]


def test_steps_before_the_first_checkpoint_are_reached_from_the_start(whole, sparse, tmp_path):
    folder = sparse(9, 10)
    with pytest.raises(
        ValueError, match=r"step=3: no .*those of 9, 10 are: steps from 10 on .*--from_start trains the 2"
    ):
        replay.replay(folder, 3)
    assert replay.replay(folder, 3, tmp_path / "out", from_start=True)
    assert result(tmp_path / "out")["state_sha256"]["after"] == saved(whole, 3)[1]
    assert not (folder / "replay").exists()


def test_what_the_run_recorded_otherwise_is_told(whole, sparse, caplog, monkeypatch):
    folder = sparse(5, 6)
    monkeypatch.setattr(logging.getLogger("inpaint_jax"), "propagate", True)
    path, value = folder / "metrics.jsonl", row(folder, 6)["loss/cosine"]
    path.write_text(path.read_text().replace(json.dumps(value), json.dumps(float(np.nextafter(value, 1.0)))))
    # What a run that goes on with more epochs writes there is not yet true of this step.
    later = config.read_run(folder)
    later.ema_decay, later.epochs, later.data.reader_threads = 0.5, 30, 3
    (folder / "config.json").write_text(config.to_json(later))
    assert not replay.replay(folder, 6)
    found = result(folder / "replay/step_00000006")
    assert found["state_sha256"]["after"] == saved(whole, 6)[1]
    assert (found["compared"]["row_of_the_step"], found["compared"]["checkpoint"]) == (False, True)
    assert set(found["compared"]["first_difference"]["fields"]) == {"loss/cosine"}
    assert "it is not the run's: the train row of step 6 differs in loss/cosine" in caplog.text


def test_refusals_write_nothing(sparse, tmp_path, monkeypatch):
    folder = sparse(9, 10)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/picture.png").write_text("mine")
    before = contents(tmp_path)
    for arguments, message in [
        ((tmp_path / "nothing", 3), r"nothing' is no run folder"),
        ((folder, 0), r"--step=0: steps count from 1"),
        ((folder, 9), r"--step=9: no checkpoint of an earlier step"),
        ((folder, 12), r"--step=12: the run has come to step 10 and not further"),
        ((folder, 11), r"--step=11: the run ends with step 10"),
        ((folder, 10, tmp_path / "mine"), r"mine holds something else than a replay"),
    ]:
        with pytest.raises(ValueError, match=message):
            replay.replay(*arguments)
    with monkeypatch.context() as patch:
        patch.setattr(procedural_normals, "VERSION", "another")
        with pytest.raises(ValueError, match=r"the train split and val split changed .*restore them, or --allow"):
            replay.replay(folder, 10)
    assert contents(tmp_path) == before
    shutil.rmtree(folder / "checkpoints/last/step_10")
    edited = config.read_run(folder)
    edited.ema_decay = 0.125
    (folder / "config.json").write_text(config.to_json(edited))
    with pytest.raises(ValueError, match=r"step 9 was trained with: .*\n  ema_decay: 0\.\d+ -> 0\.125"):
        replay.replay(folder, 10)
    assert not (folder / "replay").exists()


def test_examples_of_microbatches_come_in_the_order_of_the_batch(make_state, make_batch):
    c = unet_cosine.get_config("tiny")
    c.accumulate = 2
    system, parallel = make_system(c, 9), make_parallel("shard_map", jax.devices()[:2])
    state, batch = make_state(c, system.optimizers), make_batch(8, 32, 3)
    variables = parallel.replicate({"params": state.params, "stats": state.stats, "frozen": {}})
    look = parallel.evaluate(replay_pictures.make_look(system, "reconstruction"))
    looked = parallel.gather(look(variables, parallel.shard(batch)))
    example = task.training_example(c, batch)
    np.testing.assert_allclose(looked["image"], example["image"], atol=1e-6)
    np.testing.assert_array_equal(looked["mask"], example["mask"])
    shapes = {name: value.shape for name, value in looked["values"].items()}
    assert shapes == {"loss/cosine": (8,), "loss/distance": (8,)}


def test_the_command(sparse, tmp_path):
    folder = sparse(9, 10)

    def run(*arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, ROOT / "launch/replay.py", *map(str, arguments)]
        # With the devices and flags of this process, in which the run was trained.
        return subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ, cwd=tmp_path)

    (folder / "replay/step_00000010").mkdir(parents=True)
    (folder / "replay/step_00000010/replay.json").write_text("an earlier one")
    ran = run(folder, "--step", 10)
    assert ran.returncode == 0, ran.stderr
    assert (
        "equal, bit by bit: the run's row of this step, other rows: 1, the state that the run saved after it"
        in ran.stderr
    )
    assert "not as when" not in ran.stderr
    assert "read_only" not in ran.stderr, "Orbax warns of what is meant to be"
    assert result(folder / "replay/step_00000010")["compared"]["checkpoint"] is True
    assert [path.name for path in (folder / "replay").iterdir()] == ["step_00000010"], "replaced, nothing left behind"
    ran = run(folder, "--step", 3)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("error: --step=3: no checkpoint")
    assert run(folder).returncode == 2
