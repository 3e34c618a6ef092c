"""Checkpoints: what is saved comes back bit by bit or not at all, and what does not fit is refused."""

import contextlib
import logging
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from inpaint_jax.checkpoint import Checkpoints, check_fingerprints, kept_steps, run_record
from inpaint_jax.state import RegimeState, TrainState


def state_of(step: int, width: int = 3) -> TrainState:
    kernel = np.arange(width, dtype=np.float32) + step
    params = {"generator": {"conv": {"kernel": kernel}}}
    return TrainState(
        step=np.int32(step),
        params=params,
        stats={"generator": {}},
        opt={"generator/rest": (np.int32(step), {"kernel": 2 * kernel})},
        ema_params=params["generator"],
        ema_stats={},
        lr_scale={"generator/rest": np.float32(1)},
        guard={"skipped": np.int32(0)},
    )


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints")
    yield opened
    opened.close()


def save(checkpoints: Checkpoints, step: int, best: bool) -> None:
    regime = RegimeState("generator", best=0.1 * step, best_step=step)
    checkpoints.save(state_of(step), run_record(regime, {"train split": "a"}, 9, {}))
    if best:
        checkpoints.save_best(step, state_of(step).ema_params)


def test_the_newest_state_and_the_best_generator_come_back(checkpoints):
    for step in range(1, 6):
        save(checkpoints, step, best=step in (1, 3))
    checkpoints.wait()
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (5, 3)
    state, record = checkpoints.restore(state_of(0))
    np.testing.assert_array_equal(state.params["generator"]["conv"]["kernel"], [5, 6, 7])
    np.testing.assert_array_equal(state.opt["generator/rest"][1]["kernel"], [10, 12, 14])
    assert RegimeState.from_json(record["regime"]) == RegimeState("generator", best=0.5, best_step=5)
    step, best = checkpoints.restore_best(state_of(0).ema_params)
    assert step == 3
    np.testing.assert_array_equal(best["conv"]["kernel"], [3, 4, 5])


@pytest.mark.parametrize(("kept_then", "left"), [(2, [2, 3]), (3, [1, 2, 3])])
def test_a_state_that_a_kill_kept_from_being_removed_goes_at_the_next_start(tmp_path, kept_then, left):
    with contextlib.closing(Checkpoints(tmp_path, keep=3)) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(
                state_of(step), run_record(RegimeState("generator"), {}, 9, {"keep_checkpoints": kept_then})
            )
    # The kill came in the middle of removing it.
    (tmp_path / "last/step_1/state/manifest.ocdbt").unlink()
    with contextlib.closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
        assert int(checkpoints.restore(state_of(0))[0].step) == 3
    assert kept_steps(tmp_path) == left
    assert not (tmp_path / "set_aside").exists()


def test_a_best_that_a_kill_removed_in_part_goes_without_a_word(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        save(checkpoints, 1, best=True)
        checkpoints.wait()
        shutil.copytree(tmp_path / "best/step_1", tmp_path / "copy")
        save(checkpoints, 2, best=True)
    shutil.move(tmp_path / "copy", tmp_path / "best/step_1")
    shutil.rmtree(tmp_path / "best/step_1/hashes")
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.restore(state_of(0))
        assert checkpoints.good_best_step(state_of(0).ema_params) == 2
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["step_2"]
    assert not (tmp_path / "set_aside").exists()


def test_a_state_of_other_networks_is_refused(checkpoints):
    save(checkpoints, 1, best=False)
    checkpoints.wait()
    with pytest.raises(ValueError, match=r"step 1 cannot be read .*kernel.*\(3,\), not \(4,\).*--restart"):
        checkpoints.restore(state_of(0, width=4))


def damage(file: Path, draw: random.Random) -> None:
    """Flips a bit of a file, cuts it, or deletes it or its folder."""
    content = bytearray(file.read_bytes())
    kind = draw.choice(("flip", "flip", "cut", "delete", "delete folder"))
    if kind == "flip" and content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    elif kind == "cut" and content:
        file.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "delete folder" and not file.parent.name.startswith("step"):
        shutil.rmtree(file.parent)
    else:
        file.unlink()


@pytest.mark.parametrize("tries", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_never_restored_as_something_else(tmp_path, tries):
    opened = Checkpoints(tmp_path / "good")
    for step in (1, 2, 3):
        save(opened, step, best=False)
    opened.close()
    files = sorted(p.relative_to(tmp_path / "good") for p in (tmp_path / "good/last/step_3").rglob("*") if p.is_file())
    draw, older = random.Random(0), 0
    for _ in range(tries):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "good", folder)
        damage(folder / draw.choice(files), draw)
        opened = Checkpoints(folder)
        state, record = opened.restore(state_of(0))
        step = int(state.step)
        assert step in (2, 3), "the newest that is good"
        jax.tree.map(np.testing.assert_array_equal, state, state_of(step))
        assert RegimeState.from_json(record["regime"]).best_step == step
        assert opened.latest_step() == step, "the run goes on from there"
        assert (folder / "set_aside/last-step_3").exists() == (step == 2), "nothing is deleted"
        opened.close()
        older += step == 2
    assert 0 < older < tries, "some places matter, and some do not"


@pytest.mark.parametrize("notes", ["7", "{", "[" * 99_999, '{"commit_timestamp_nsecs": "x"}', "\0", '{"metrics": 3}'])
def test_damaged_notes_on_times_cost_no_checkpoint(checkpoints, tmp_path, notes):
    """Orbax would open none of them."""
    for step in (1, 2):
        save(checkpoints, step, best=True)
    checkpoints.close()
    for name in ("last", "best"):
        (tmp_path / f"checkpoints/{name}/step_2/_CHECKPOINT_METADATA").write_text(notes)
    again = Checkpoints(tmp_path / "checkpoints")
    state, record = again.restore(state_of(0))
    jax.tree.map(np.testing.assert_array_equal, state, state_of(2))
    assert RegimeState.from_json(record["regime"]).best_step == 2
    assert again.good_best_step(state_of(0).ema_params) == 2
    save(again, 3, best=False)
    again.close()
    assert again.latest_step() == 3


def test_a_checkpoint_set_aside_is_named_and_its_step_can_be_saved_again(checkpoints, tmp_path, caplog):
    for step in (1, 2):
        save(checkpoints, step, best=True)
    checkpoints.wait()
    for name in ("last", "best"):
        (tmp_path / f"checkpoints/{name}/step_2/hashes/metadata").write_text("{}")
    with caplog.at_level(logging.WARNING, "inpaint_jax"):
        state, _ = checkpoints.restore(state_of(0))
    place = tmp_path / "checkpoints/set_aside/last-step_2"
    expected = f"step 2 is damaged (its hashes are not as they were written) and is set aside as {place}"
    assert (int(state.step), place.is_dir()) == (1, True)
    assert expected in caplog.text
    save(checkpoints, 2, best=False)
    checkpoints.wait()
    assert int(checkpoints.restore(state_of(0))[0].step) == 2
    with pytest.raises(ValueError, match=r"no checkpoint below .*best can be read \(step 2: .*start over"):
        checkpoints.restore_best(state_of(0).ema_params)
    assert (tmp_path / "checkpoints/best/step_2").is_dir(), "nothing is deleted, or moved, where none is good"


def test_a_disk_that_fails_for_once_costs_no_training(checkpoints, tmp_path):
    for step in (1, 2):
        save(checkpoints, step, best=False)
    checkpoints.wait()
    # A loop of links: opening it is an error of the operating system, as of a disk that fails.
    file = next((tmp_path / "checkpoints/last/step_2/state/d").iterdir())
    content = file.read_bytes()
    file.unlink()
    file.symlink_to(file.name)
    with pytest.raises(ValueError, match=r"step_2 cannot be read \(.*\): nothing was changed; mend that"):
        checkpoints.restore(state_of(0))
    file.unlink()
    file.write_bytes(content)
    assert int(checkpoints.restore(state_of(0))[0].step) == 2


def test_a_copy_of_another_step_is_no_checkpoint(checkpoints, tmp_path):
    save(checkpoints, 1, best=False)
    checkpoints.close()
    shutil.copytree(tmp_path / "checkpoints/last/step_1", tmp_path / "checkpoints/last/step_7")
    again = Checkpoints(tmp_path / "checkpoints")
    assert int(again.restore(state_of(0))[0].step) == again.latest_step() == 1
    again.close()


def test_a_damaged_best_is_set_aside_before_training_goes_on(checkpoints, tmp_path):
    save(checkpoints, 1, best=True)
    checkpoints.wait()
    assert checkpoints.good_best_step(state_of(0).ema_params) == 1
    (tmp_path / "checkpoints/best/step_1/hashes/metadata").write_text("{}")
    assert checkpoints.good_best_step(state_of(0).ema_params) is None
    assert (tmp_path / "checkpoints/set_aside/best-step_1").is_dir()


def test_a_best_of_a_later_step_is_set_aside(checkpoints, tmp_path):
    save(checkpoints, 1, best=False)
    checkpoints.save_best(2, state_of(2).ema_params)
    checkpoints.wait()
    checkpoints.drop_best_after(2)
    assert checkpoints.best_step() == 2
    checkpoints.drop_best_after(1)
    assert checkpoints.best_step() is None
    assert (tmp_path / "checkpoints/set_aside/best-step_2").is_dir()


def test_other_data_is_named():
    check_fingerprints({"train split": "a", "masks": "b"}, {"train split": "a", "masks": "b"}, False)
    with pytest.raises(ValueError, match=r"the masks changed since this run began.*--restart"):
        check_fingerprints({"train split": "a", "masks": "b"}, {"train split": "a", "masks": "c"}, False)
    check_fingerprints({"train split": "a", "masks": "b"}, {"train split": "a", "masks": "c"}, True)
