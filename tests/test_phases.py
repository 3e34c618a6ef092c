"""Runs of several phases: crashes at every boundary change nothing, and stopping early changes nothing before it."""

import json
import logging

import jax
import numpy as np
import pytest

from configs import common, unet_cosine
from inpaint_jax import config as config_module
from inpaint_jax import course, optim, run, step, train
from inpaint_jax.parallel import make_parallel
from inpaint_jax.regimes import SCALE_RATE
from inpaint_jax.state import RegimeState


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


def two_by_two(config, group: str = "generator", factor: float = 0.5):
    """Two runs with a frozen discriminator, then two that stop early: four epochs of two steps, of eight.

    The generator gains on a discriminator that hardly moves, whose loss therefore rises from epoch to epoch.
    """
    config.data.embedded_counts, config.epochs, config.patience = (10, 4, 4), 20, 1
    config.optimizer.learning_rate, config.optimizer.discriminator_rate_ratio = 3e-3, 1e-3
    config.optimizer.schedule, config.optimizer.warmup_fraction = "constant", 0.0
    config.losses.adversarial.weight = 10.0
    config.regime.phases.frozen = common.phase("joint", epochs=1, frozen=("discriminator",), runs=2, restart=True)
    config.regime.phases.unfrozen = common.phase(
        "joint", epochs=4, monitor="loss/discriminator", runs=2, restart=True, stops_early=True
    )
    config.regime.sequence, config.regime.reactions = ("frozen", "unfrozen"), 10
    config.regime.reaction_group, config.regime.reaction_factor = group, factor
    return config


def check_two_by_two(rows: list[dict], group: str, factor: float) -> None:
    assert phases_of(rows) == ["frozen"] * 4 + ["unfrozen"] * 8
    trained = [row for row in rows if row["split"] == "train"]
    starts = (0, 2, 4, 8)
    for name, top, learns in (("generator/rest", 3e-3, trained), ("discriminator", 3e-6, trained[4:])):
        assert [row for row in trained if f"learning_rate/{name}" in row] == learns, "frozen, or not"
        assert [row for row in trained if f"update_norm/{name}" in row] == learns
        reacts = name.startswith(group)
        for row in learns:
            scale = factor if reacts and row["step"] > 8 else 1.0
            np.testing.assert_allclose(row[f"learning_rate/{name}"], top * scale, rtol=1e-5)
        # Adam's first update moves every parameter by its whole rate, later ones by less.
        moved = {row["step"]: row[f"update_norm/{name}"] / row[f"learning_rate/{name}"] for row in learns}
        fresh = [moved[start + 1] for start in starts if start + 1 in moved]
        later = [value for number, value in moved.items() if number - 1 not in starts]
        assert min(fresh) > 0.97 * max(fresh)
        assert max(later) < 0.9 * min(fresh)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "factor"), [("generator", 0.5), ("discriminator", 1.1)])
def test_runs_that_restart_and_stop_early_go_on_exactly_after_crashes_before_every_step(
    config, same_after_crashes, group, factor
):
    rows = same_after_crashes(two_by_two(config, group, factor), tuple(range(1, 13)))
    check_two_by_two(rows, group, factor)


class KilledError(BaseException):
    """Ends a run where it stands."""


@pytest.mark.slow
def test_a_kill_between_validation_and_what_it_brings_changes_nothing(
    config, tmp_path, train_with_crashes, monkeypatch
):
    config = two_by_two(config)
    whole = train_with_crashes(config, tmp_path / "whole")
    check_two_by_two(whole, "generator", 0.5)
    # Before the reaction and the next run; after them, before they are saved; after the state, before the best.
    for number, (module, name) in enumerate(
        [(course, "react"), (train, "save"), (train.checkpoint.Checkpoints, "save")]
    ):
        for at in (2, 8, 12):
            workdir, reached = tmp_path / f"killed{number}_{at}", getattr(module, name)

            def killing(*arguments, reached=reached, at=at, name=name, **options):
                states = [a for a in arguments if isinstance(a, train.TrainState)]
                if int(np.ravel(states[0].step)[0]) == at:
                    raise KilledError
                return reached(*arguments, **options)

            monkeypatch.setattr(module, name, killing)
            with pytest.raises(KilledError):
                train.run_training(config.copy_and_resolve_references(), "killed", workdir, False, False)
            monkeypatch.setattr(module, name, reached)
            assert train_with_crashes(config, workdir) == whole


def test_every_optimiser_begins_at_zeros_which_is_what_a_restart_sets(tiny_config):
    settings = tiny_config.optimizer
    settings.name = "none of them"
    with pytest.raises(ValueError, match="known names are") as error:
        optim.make_optimizer(settings, "generator/rest", 10)
    names = str(error.value).split("known names are ")[1].split(", ")
    assert {"adam", "rmsprop", "adagrad"} <= set(names)
    settings.schedule, settings.clip_norm = "cosine", 1.0
    params = {"a": jax.numpy.ones(3)}
    for settings.name in names:
        optimizer = optim.make_optimizer(settings, "generator/rest", 10)
        first = optimizer.init(params)
        _, later = optimizer.update(params, first, params, lr_scale=jax.numpy.float32(1.0))
        anew = course.restarted({"generator/rest": later})["generator/rest"]
        assert optim.update_count(later) == 1
        assert jax.tree.structure(anew) == jax.tree.structure(first)
        jax.tree.map(np.testing.assert_array_equal, anew, first)
        assert [x.dtype for x in jax.tree.leaves(anew)] == [x.dtype for x in jax.tree.leaves(first)]


@pytest.mark.parametrize("form", ["pmap", "shard_map"])
def test_a_reaction_and_a_restart_change_rates_and_optimisers_alone(config, make_state, caplog, form):
    config = two_by_two(config, "discriminator", 1.1)
    parallel = make_parallel(form)
    state = make_state(config, step.make_system(config, 12).optimizers)
    state = state.replace(opt=jax.tree.map(np.ones_like, state.opt))
    spread = parallel.replicate(state)
    begins = RegimeState("unfrozen", phase_index=3, phase_start=8, reactions=1)
    with caplog.at_level(logging.INFO, "inpaint_jax"):
        logging.getLogger("inpaint_jax").addHandler(caplog.handler)
        after = course.react(config, spread, begins, (SCALE_RATE,), 8)
        logging.getLogger("inpaint_jax").removeHandler(caplog.handler)
    assert "step 8: phase unfrozen begins (run 2 of 2), optimisers restarted" in caplog.messages
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.sharding, b.sharding), after, spread)
    here = jax.device_get(parallel.unreplicate(after))
    scales = {"generator/rest": 1.0, "discriminator": 1.1}
    assert {name: float(value) for name, value in here.lr_scale.items()} == pytest.approx(scales)
    assert all(not np.any(x) for x in jax.tree.leaves(here.opt))
    kept = here.replace(opt=state.opt, lr_scale=state.lr_scale)
    jax.tree.map(np.testing.assert_array_equal, kept, state)
    # Within a run, also just after its first step has been taken up again, and without `restart`, nothing begins.
    assert course.react(config, spread, begins, (), 9) is spread
    config.regime.phases.unfrozen.restart = False
    assert course.react(config, spread, begins, (), 8).opt is spread.opt


@pytest.mark.parametrize("form", ["pmap", "shard_map"])
def test_restarted_optimisers_can_be_trained_on_all_devices(config, make_state, form):
    parallel = make_parallel(form)
    state = make_state(config, step.make_system(config, 12).optimizers)
    ones = jax.tree.map(np.ones_like, state.opt)
    # Their memory is given up in a step, as that of any state: each array has to have its own.
    counts_up = parallel.train(lambda states, frozen, batch: (jax.tree.map(lambda x: x + 1, states), {}))
    nothing, batch = parallel.replicate({}), parallel.shard({"slot": np.arange(4)})
    states = parallel.replicate(ones)
    for _ in range(2):
        states, _ = counts_up(course.restarted(states), nothing, batch)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(parallel.unreplicate(states)), ones)


def test_a_run_from_before_phases_had_runs_goes_on_and_misspelt_fields_do_not(tmp_path, config):
    config.regime.phases.warm = common.phase("reconstruction", steps=3, frozen=("discriminator",))
    config.regime.sequence = ("warm",)
    stored = json.loads(config_module.to_json(config))
    for field in ("epochs", "runs", "restart", "stops_early"):
        del stored["regime"]["phases"]["warm"][field]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    run.check_config(config, tmp_path, allow_changes=False)
    config.regime.phases.warm.runs = 2
    with pytest.raises(ValueError, match=r"regime\.phases\.warm\.runs: 1 -> 2"):
        run.check_config(config, tmp_path, allow_changes=False)
    config.regime.phases.warm.runs = 1
    config.regime.phases.warm.unlock()
    config.regime.phases.warm.rums = 2
    with pytest.raises(ValueError, match=r"regime\.phases\.warm\.rums: '\(absent\)' -> 2"):
        run.check_config(config, tmp_path, allow_changes=False)
