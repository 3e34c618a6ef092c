"""The divergence guard: levels by hand, what is left out, what is said, and a run whose rate surges."""

import json
import logging

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from inpaint_jax import checkpoint, guard, optim, train
from inpaint_jax.state import create_state
from inpaint_jax.step import make_system


def watch(losses, factor=5.0, finite=None):
    """Feeds losses to the guard, one step each; returns which were accepted and the guard after each."""
    config = ml_collections.ConfigDict({"surge_factor": factor, "action": "skip"})
    judge = jax.jit(lambda state, step, fine, loss: guard.judge(config, state, step, fine, loss))
    state, accepted, states = guard.first_guard(), [], []
    for step, loss in enumerate(losses):
        fine = True if finite is None else finite[step]
        yes, judged = judge(state, jnp.int32(step), jnp.bool_(fine), jnp.float32(loss))
        state = guard.after_step(state, judged)
        accepted.append(bool(yes))
        states.append({name: value.item() for name, value in state.items()})
    return accepted, states


def test_level_is_the_mean_at_first_and_a_moving_average_later():
    losses = np.random.default_rng(0).uniform(1, 3, 250)
    accepted, states = watch(-losses)  # a loss may be negative: its size counts
    assert all(accepted)
    assert states[49]["level"] == pytest.approx(losses[:50].mean(), rel=1e-5)
    level = losses[:100].mean()
    for loss in losses[100:]:
        level += (loss - level) / 100
    assert states[-1]["level"] == pytest.approx(level, rel=1e-5)


def test_a_surge_is_left_out_and_does_not_lift_the_level():
    losses = [2.0] * 120 + [2.0, 11.0, 9.9, 50.0, 2.0]
    accepted, states = watch(losses)
    assert [step for step, yes in enumerate(accepted) if not yes] == [121, 123]
    assert states[-1]["surges"] == states[-1]["skipped"] == 2
    assert states[-1]["last_skipped"] == 124
    assert states[-1]["skipped_in_a_row"] == 0
    assert states[-1]["level"] == pytest.approx(2.079, abs=0.002)
    assert all(watch(losses, factor=0.0)[0]), "not watched"
    assert all(watch([1.0] * 50 + [1e6] * 5)[0]), "too early for a level"


def test_what_is_not_finite_is_left_out_at_once_and_is_no_surge():
    accepted, states = watch([1.0, np.nan, np.inf, 1.0], finite=[True, False, False, True])
    assert accepted == [True, False, False, True]
    assert (states[-1]["skipped"], states[-1]["surges"], states[-1]["level"]) == (2, 0, 1.0)


def test_steps_in_a_row_are_counted_where_networks_take_turns():
    config = ml_collections.ConfigDict({"surge_factor": 0.0, "action": "skip"})
    state, rows = guard.first_guard(), []
    for step, (judge, generator) in enumerate([(True, False), (True, False), (False, False), (True, True)]):
        before = state
        for finite in (judge, generator):
            _, state = guard.judge(config, state, jnp.int32(step), jnp.bool_(finite), jnp.float32(1.0))
        state = guard.after_step(before, state)
        rows.append((int(state["skipped"]), int(state["skipped_in_a_row"])))
    assert rows == [(1, 1), (2, 2), (4, 3), (4, 0)]


def test_a_new_phase_finds_its_own_level():
    config = ml_collections.ConfigDict({"surge_factor": 5.0, "action": "skip"})
    state = {**guard.first_guard(), "level": jnp.float32(0.2), "counted": jnp.int32(500), "skipped": jnp.int32(3)}
    yes, _ = guard.judge(config, state, jnp.int32(500), jnp.bool_(True), jnp.float32(8.0))
    assert not yes
    yes, after = guard.judge(config, guard.forget_level(state), jnp.int32(500), jnp.bool_(True), jnp.float32(8.0))
    assert yes
    assert (float(after["level"]), int(after["counted"]), int(after["skipped"])) == (8.0, 1, 3)


def row(step, **values):
    start = {"skipped": 0, "skipped_in_a_row": 0, "surges": 0, "last_skipped": 0, "level": 1.5}
    return {"step": step, **{f"guard/{name}": float(values.get(name, start[name])) for name in start}}


def test_words_name_the_steps_and_the_reasons(tiny_config):
    tiny_config.guard.surge_factor = 5.0
    assert guard.told(tiny_config, {}, row(50)) == ""
    earlier, now = row(50, skipped=1), row(100, skipped=4, surges=2, last_skipped=97)
    words = guard.told(tiny_config, earlier, now)
    assert words.startswith("steps 51 to 100: updates left out: 3, the last at step 97 (not finite: 1, generator loss")
    assert guard.told(tiny_config, row(6), row(7, skipped=1, last_skipped=7)).startswith("step 7: updates left out: 1")
    assert guard.told(tiny_config, now, row(150, skipped=4, surges=2, last_skipped=97)) == ""
    long = row(150, skipped=30, surges=2, last_skipped=150, skipped_in_a_row=26)
    with pytest.raises(FloatingPointError, match=r"26 of them in a row: lower config\.optimizer\.learning_rate"):
        guard.told(tiny_config, now, long)
    tiny_config.guard.action = "halt"
    with pytest.raises(FloatingPointError, match="steps 51 to 100: updates left out: 3"):
        guard.told(tiny_config, earlier, now)


def test_a_run_that_surges_keeps_finite_weights_and_its_best(tiny_config, tmp_path, monkeypatch, caplog):
    """The rate of one step wrecks the weights; what follows is left out until the run gives up."""
    monkeypatch.setattr(guard, "LEVEL_STEPS", 6)
    monkeypatch.setattr(guard, "SKIPPED_TOO_OFTEN", 5)
    monkeypatch.setattr(optim, "learning_rate", lambda *_: lambda count: jnp.where(count == 10, 3e3, 1e-4))
    monkeypatch.setattr(logging.getLogger("inpaint_jax"), "propagate", True)
    tiny_config.guard.surge_factor, tiny_config.epochs, tiny_config.optimizer.clip_norm = 2.0, 10, 0.0
    with pytest.raises(FloatingPointError, match="generator loss over 2 times its level: 1"):
        train.run_training(tiny_config, "surging", tmp_path / "run", False, False)
    assert "step 12: updates left out: 1" in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["split"] == "train"]
    assert steps[-1]["guard/skipped_in_a_row"] == 5
    assert steps[-1]["loss/generator"] > 2 * steps[-1]["guard/level"]
    checkpoints = checkpoint.Checkpoints(tmp_path / "run/checkpoints")
    assert checkpoints.best_step() == 8, "the last validation before"
    template = jax.eval_shape(lambda: create_state(tiny_config, make_system(tiny_config, 40).optimizers))
    state, _ = checkpoints.restore(template)
    checkpoints.close()
    assert int(state.step) >= 12
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
