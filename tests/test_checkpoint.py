"""Checkpoints: what is saved comes back, and what does not fit is refused."""

import numpy as np
import pytest

from inpaint_jax.checkpoint import Checkpoints, check_fingerprints, run_record
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
    checkpoints.save(state_of(step), run_record(regime, {"train split": "a"}, 9))
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
    best = checkpoints.restore_best(state_of(0).ema_params)
    np.testing.assert_array_equal(best["conv"]["kernel"], [3, 4, 5])


def test_a_state_of_other_networks_is_refused(checkpoints):
    save(checkpoints, 1, best=False)
    checkpoints.wait()
    with pytest.raises(ValueError, match=r"step 1 cannot be read .*kernel.*\(3,\), not \(4,\).*--restart"):
        checkpoints.restore(state_of(0, width=4))


def test_a_best_of_a_later_step_is_dropped(checkpoints):
    save(checkpoints, 1, best=False)
    checkpoints.save_best(2, state_of(2).ema_params)
    checkpoints.wait()
    checkpoints.drop_best_after(2)
    assert checkpoints.best_step() == 2
    checkpoints.drop_best_after(1)
    assert checkpoints.best_step() is None


def test_other_data_is_named():
    check_fingerprints({"train split": "a", "masks": "b"}, {"train split": "a", "masks": "b"}, False)
    with pytest.raises(ValueError, match=r"the masks changed since this run began.*--restart"):
        check_fingerprints({"train split": "a", "masks": "b"}, {"train split": "a", "masks": "c"}, False)
    check_fingerprints({"train split": "a", "masks": "b"}, {"train split": "a", "masks": "c"}, True)
