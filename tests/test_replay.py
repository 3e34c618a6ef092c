"""Replaying a step: the same bits as in training, across phases and validations, from a run folder that is only read."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from configs import common, unet_cosine
from inpaint_jax import augment, checkpoint, config, keys, replay, run_folder, task, train
from inpaint_jax.data import procedural_normals
from inpaint_jax.step import make_system

ROOT = Path(__file__).parents[1]
STEPS = 20
WARM = 3


def phased():
    """Three steps of reconstruction, then runs of both networks that restart, stop early and scale a rate."""
    c = unet_cosine.get_config("tiny")
    c.regime.phases.warm = common.phase("reconstruction", steps=WARM)
    c.regime.phases.both = common.phase("joint", epochs=3, runs=9, restart=True, stops_early=True)
    c.regime.sequence, c.patience, c.regime.reactions = ("warm", "both"), 1, 1
    c.optimizer.schedule, c.optimizer.warmup_fraction, c.optimizer.learning_rate = "constant", 0.0, 0.03
    c.max_steps, c.epochs, c.evaluation.test_limit = STEPS, 9, 2
    c.log_every_steps, c.checkpoint_every_steps, c.keep_checkpoints = 2, 1, 100
    return c


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that kept the state of every step."""
    folder = tmp_path_factory.mktemp("replay") / "whole"
    assert train.run_training(phased(), "phased", folder, False, False) == 0
    return folder


@pytest.fixture
def sparse(whole: Path, tmp_path: Path):
    """A function (kept steps) -> the run as if it had kept the states of these steps alone."""

    def make(*kept: int) -> Path:
        shutil.copytree(whole, tmp_path / "run", dirs_exist_ok=True)
        for path in (tmp_path / "run/checkpoints/last").iterdir():
            if int(path.name.removeprefix("step_")) not in kept:
                shutil.rmtree(path)
        return tmp_path / "run"

    return make


def saved(whole: Path, step: int) -> tuple[dict, str]:
    return checkpoint.read_record(whole / "checkpoints", step)


def result(folder: Path) -> dict:
    return json.loads((folder / "replay.json").read_text())


def row(folder: Path, step: int, split: str = "train") -> dict:
    rows = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return next(row for row in rows if (row["step"], row["split"]) == (step, split))


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Returns every file, bytes and time of its last change, outside of replays."""
    files = (path for path in folder.rglob("*") if path.is_file() and "replay" not in path.relative_to(folder).parts)
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_the_run_has_what_makes_replaying_hard(whole):
    regimes = {step: saved(whole, step)[0]["regime"] for step in range(1, STEPS + 1)}
    assert (regimes[WARM]["phase"], regimes[WARM]["phase_start"]) == ("both", WARM)
    starts = sorted({regime["phase_start"] for regime in regimes.values()})
    print(starts, [r["reactions"] for r in regimes.values()])
    assert any(4 < start < 15 for start in starts), "a run that ended early, and a restart of the optimisers"
    assert regimes[STEPS]["reactions"] == 1


@pytest.mark.parametrize(("base", "step"), [(7, 12), (1, 4), (11, 13)])
def test_state_and_rows_are_those_of_the_uninterrupted_run(whole, sparse, base, step):
    folder = sparse(base)
    assert replay.replay(folder, step)
    found = result(folder / f"replay/step_{step:08d}")
    assert found["from_checkpoint"] == base
    assert found["state_sha256"] == {"before": saved(whole, step - 1)[1], "after": saved(whole, step)[1]}
    before, after = (saved(whole, number)[0]["regime"] for number in (step - 1, step))
    assert found["regime"] == {"before": before, "after": after}
    assert found["phase"] == before["phase"]
    compared = found["compared"]
    assert compared["equal_rows"] == compared["rows"] >= (step - base) // 2
    assert compared["row_of_the_step"] is (None if step % 2 else True)
    if step % 2 == 0:
        stored = row(folder, step)
        assert {name: stored[name] for name in found["metrics"]} == found["metrics"]
        assert {"loss/generator", "learning_rate/generator/rest", "guard/level"} <= set(found["metrics"])


def test_pictures_are_those_of_the_batch(whole, sparse):
    folder = sparse(13)
    replay.replay(folder, 14)
    out, c = folder / "replay/step_00000014", phased()
    found, arrays = result(out), np.load(out / "batch.npz")
    assert [example["slot"] for example in found["examples"]] == [52, 53, 54, 55]
    for place, example in enumerate(found["examples"]):
        index = int(example["picture"].removeprefix("train_"))
        source = procedural_normals.render_normal_map(20260101, index, 32, "up")
        np.testing.assert_array_equal(arrays["source"][place], source)
        key = keys.slot_keys(c.seed, "augment", np.array([example["slot"]]))[0]
        turned = augment.augment(key, source / np.float32(127.5) - 1, "up")
        names = ("image", "mask", "input", "output", "completed")
        pictures = {name: np.asarray(Image.open(out / f"images/{place:04d}_{name}.png")) for name in names}
        np.testing.assert_array_equal(pictures["image"], np.round((np.asarray(turned) + 1) * 127.5))
        hole = pictures["mask"][..., 0] > 0
        assert example["hole_ratio"] == pytest.approx(hole.mean())
        np.testing.assert_array_equal(pictures["completed"][~hole], pictures["image"][~hole])
        np.testing.assert_array_equal(pictures["completed"][hole], pictures["output"][hole])
        np.testing.assert_array_equal(pictures["input"][~hole], pictures["image"][~hole])
        assert (pictures["output"][~hole] != pictures["image"][~hole]).any()
    assert Image.open(out / "batch.png").width > 5 * 128
    # The answers are the step's own: their losses are those in its metrics, to the last bits of another program.
    for name in ("loss/cosine", "discriminator/logit_real", "discriminator/logit_fake"):
        mean = np.mean([example[name] for example in found["examples"]])
        assert mean == pytest.approx(found["metrics"][name], rel=1e-4)


def test_a_training_run_is_only_read_and_damage_is_left_where_it_is(whole, sparse, caplog, monkeypatch):
    folder = sparse(5, 8, 12)
    (folder / "checkpoints/last/step_8/hashes/metadata").write_text("{}")
    (folder / "checkpoints/last/step_15.orbax-checkpoint-tmp").mkdir()
    before = contents(folder)
    monkeypatch.setattr(logging.getLogger("inpaint_jax"), "propagate", True)
    with run_folder.lock(folder):
        before = contents(folder)
        assert replay.replay(folder, 10)
        assert contents(folder) == before
        with pytest.raises(ValueError, match="another process"):
            run_folder.lock(folder)
    assert "the checkpoint of step 8 is left out" in caplog.text
    assert (folder / "checkpoints/last/step_15.orbax-checkpoint-tmp").is_dir()
    found = result(folder / "replay/step_00000010")
    assert (found["from_checkpoint"], found["state_sha256"]["after"]) == (5, saved(whole, 10)[1])
    assert [path.name for path in (folder / "replay").iterdir()] == ["step_00000010"]


def test_steps_before_the_first_checkpoint_are_reached_from_the_start(whole, sparse, tmp_path):
    folder = sparse(18, 20)
    with pytest.raises(
        ValueError, match=r"--step=5: no checkpoint .*kept are 18, 20, .* 19 on .*--from_start trains the 4"
    ):
        replay.replay(folder, 5)
    assert replay.replay(folder, 5, tmp_path / "out", from_start=True)
    assert result(tmp_path / "out")["state_sha256"]["after"] == saved(whole, 5)[1]
    assert not (folder / "replay").exists()


def test_what_the_run_recorded_otherwise_is_told(sparse, caplog, monkeypatch):
    folder = sparse(5, 6)
    monkeypatch.setattr(logging.getLogger("inpaint_jax"), "propagate", True)
    text = (folder / "metrics.jsonl").read_text()
    value = json.dumps(row(folder, 6)["loss/cosine"])
    (folder / "metrics.jsonl").write_text(text.replace(f'"loss/cosine": {value}', f'"loss/cosine": {value}1'))
    assert not replay.replay(folder, 6)
    compared = result(folder / "replay/step_00000006")["compared"]
    assert (compared["row_of_the_step"], compared["checkpoint"]) == (False, True)
    assert set(compared["first_difference"]["fields"]) == {"loss/cosine"}
    assert "the train row of step 6 differs in loss/cosine" in caplog.text


def test_refusals_write_nothing(sparse, tmp_path, monkeypatch):
    folder = sparse(18, 20)
    before = contents(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/picture.png").write_text("mine")
    for arguments, message in [
        ((tmp_path / "nothing", 3), "nothing' is no run folder"),
        ((folder, 0), "--step=0: steps count from 1"),
        ((folder, 18), "--step=18: no checkpoint of an earlier step"),
        ((folder, 22), "--step=22: the run has come to step 20 and not further"),
        ((folder, 21), "--step=21: the run ends with step 20"),
        ((folder, 20, tmp_path / "mine"), "holds something else than a replay"),
    ]:
        with pytest.raises(ValueError, match=message):
            replay.replay(*arguments)
    with monkeypatch.context() as patch:
        patch.setattr(procedural_normals, "VERSION", "another")
        with pytest.raises(ValueError, match=r"the train split and val split changed .*restore them, or --allow"):
            replay.replay(folder, 20)
    shutil.rmtree(folder / "checkpoints/last/step_20")
    edited = (folder / "config.json").read_text().replace('"ema_decay": 0.9', '"ema_decay": 0.8')
    (folder / "config.json").write_text(edited)
    with pytest.raises(ValueError, match=r"step 18 was trained with: .*\n  ema_decay: 0.9\d* -> 0.8"):
        replay.replay(folder, 20)
    (folder / "config.json").write_text(edited.replace('"ema_decay": 0.8', '"ema_decay": 0.9'))
    assert {name: files for name, files in contents(folder).items() if name != "config.json"} == {
        name: files for name, files in before.items() if "step_20" not in name and name != "config.json"
    }
    assert not (folder / "replay").exists()


def test_a_step_has_the_config_that_its_next_checkpoint_was_saved_with(whole, sparse):
    folder = sparse(9, 11)
    later = config.read_run(folder)
    later.ema_decay, later.epochs, later.data.reader_threads = 0.5, 30, 3
    (folder / "config.json").write_text(config.to_json(later))
    assert replay.replay(folder, 10)
    assert result(folder / "replay/step_00000010")["state_sha256"]["after"] == saved(whole, 10)[1]


def test_examples_of_microbatches_come_in_the_order_of_the_batch(make_state, make_batch):
    c = unet_cosine.get_config("tiny")
    c.accumulate = 2
    system = make_system(c, 9, axis_name=None)
    state, batch = make_state(c, system.optimizers), make_batch(8, 32, 3)
    from inpaint_jax import replay_pictures

    variables = {"params": state.params, "stats": state.stats, "frozen": {}}
    looked = jax.jit(replay_pictures.make_look(system, "joint"))(variables, batch)
    example = task.training_example(c, batch)
    np.testing.assert_allclose(looked["image"], example["image"], atol=1e-6)
    np.testing.assert_array_equal(looked["mask"], example["mask"])
    assert {name: value.shape for name, value in looked["values"].items()} == {
        name: (8,) for name in ("loss/cosine", "loss/distance", "discriminator/logit_real", "discriminator/logit_fake")
    }


def test_the_command(sparse, tmp_path):
    folder = sparse(18, 20)

    def run(*arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, ROOT / "launch/replay.py", *map(str, arguments)]
        # The devices and flags of this process, in which the run was trained.
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ, cwd=tmp_path)

    for _ in range(2):
        ran = run(folder, "--step", 20)
        assert ran.returncode == 0, ran.stderr
        assert "equal, bit by bit: the run's row of this step, 1 other rows, the state that the run saved" in ran.stderr
        assert "WARNING" not in ran.stderr
    assert result(folder / "replay/step_00000020")["compared"]["checkpoint"] is True
    assert [path.name for path in (folder / "replay").iterdir()] == ["step_00000020"], "replaced, nothing left behind"
    ran = run(folder, "--step", 3)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("error: --step=3: no checkpoint")
    assert run(folder).returncode == run("--step", 3).returncode == 2
