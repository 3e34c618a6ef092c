"""Runs of several phases: crashes at every boundary change nothing, and stopping early changes nothing before it."""

import jax
import numpy as np
import pytest

from configs import common, unet_cosine


def phases_of(rows: list[dict]) -> list[str]:
    return [row["phase"] for row in rows if row["split"] == "train"]


@pytest.fixture
def config():
    c = unet_cosine.get_config("tiny")
    c.optimizer.schedule, c.optimizer.warmup_fraction = "constant", 0.0
    c.checkpoint_every_steps = 1000  # so that only what a phase or a validation asks for is saved
    return c


# A crash before every step takes minutes; `test_system_configs.py` has one in phases of a published system.
@pytest.mark.slow
def test_counted_phases_go_on_exactly_after_crashes_before_every_step(config, same_after_crashes):
    config.epochs = 2
    config.regime.phases.warm = common.phase("reconstruction", steps=3)
    config.regime.phases.judge = common.phase("discriminator", steps=2)
    config.regime.phases.both = common.phase("joint")
    config.regime.sequence = ("warm", "judge", "both")
    rows = same_after_crashes(config, tuple(range(2, 9)))
    assert phases_of(rows) == ["warm"] * 3 + ["judge"] * 2 + ["both"] * 3
    trains = {"warm": {"generator"}, "judge": {"discriminator"}, "both": {"generator", "discriminator"}}
    for row in rows:
        if row["split"] == "train":
            assert {name.split("/")[1] for name in row if name.startswith("learning_rate/")} == trains[row["phase"]]


@pytest.mark.slow
@pytest.mark.parametrize("crashes", [(9, 13), (4, 5, 8, 9, 12, 13, 17)])
def test_phases_to_convergence_and_rate_reactions_go_on_exactly(config, same_after_crashes, crashes):
    config.regime.phases.judge = common.phase("discriminator", monitor="loss/discriminator")
    config.regime.phases.fill = common.phase("generator")
    config.regime.sequence, config.regime.monitor = ("judge", "fill"), "loss/generator"
    config.patience, config.epochs, config.regime.reactions = 1, 5, 1
    # D stands still: its second validation brings a rate reaction, its third ends the phase.
    config.optimizer.discriminator_rate_ratio = 0.0
    rows = same_after_crashes(config, crashes)
    assert phases_of(rows) == ["judge"] * 12 + ["fill"] * 8
    rates = [row["learning_rate/generator/rest"] for row in rows if row["phase"] == "fill" and row["split"] == "train"]
    np.testing.assert_allclose(rates, config.optimizer.learning_rate / 2, rtol=1e-6)


@pytest.mark.slow
def test_stopping_early_changes_nothing_before_the_stop(config, tmp_path, train_with_crashes):
    config.epochs, config.regime.monitor = 3, "loss/discriminator"
    # A discriminator that stands still has its best at once.
    config.optimizer.discriminator_rate_ratio = 0.0
    whole = train_with_crashes(config, tmp_path / "whole")
    config.patience = 1
    stopped = train_with_crashes(config, tmp_path / "stopped")
    assert stopped[-1]["step"] < whole[-1]["step"]
    assert stopped == whole[: len(stopped)]


def test_what_a_phase_does_not_train_stays_bit_by_bit(config, make_batch, make_state):
    from inpaint_jax import step
    from inpaint_jax.parallel import make_parallel

    parallel = make_parallel("pmap", jax.devices()[:1])
    system = step.make_system(config, 12)
    state = make_state(config, system.optimizers)
    batch = make_batch(4, 32)
    for kind, frozen, kept in (
        ("discriminator", (), {"generator"}),
        ("generator", (), {"discriminator"}),
        ("joint", ("generator/rest",), {"generator"}),
    ):
        trained = parallel.train(step.make_train_step(system, kind, frozen))
        after, _ = trained(parallel.replicate(state), parallel.replicate({}), parallel.shard(batch))
        after = jax.device_get(parallel.unreplicate(after))
        for network in ("generator", "discriminator"):
            same = jax.tree.map(np.array_equal, after.params[network], state.params[network])
            assert all(jax.tree.leaves(same)) == (network in kept), (kind, network)
        if kind == "discriminator":
            jax.tree.map(np.testing.assert_array_equal, after.ema_params, state.ema_params)
    with pytest.raises(ValueError, match="no parameter group 'generator/vgg' to freeze"):
        step.make_train_step(system, "joint", ("generator/vgg",))
