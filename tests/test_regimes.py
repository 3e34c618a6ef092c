"""Best by the metric's direction, patience, the epochs at which stopping acts, phases, runs and rate reactions."""

import copy
import json

import ml_collections
import pytest

from configs import common
from inpaint_jax.regimes import (
    advance,
    check_groups,
    first_regime,
    resume,
    tick,
)
from inpaint_jax.state import RegimeState


def run(config, values):
    regime, history = first_regime(config), []
    every = config.eval_every_epochs
    epochs = [1, *range(max(2, every), 99, every)]  # the first is always looked at
    for epoch, value in zip(epochs, values, strict=False):
        earlier = copy.deepcopy(regime)
        when = {"step": 10 * epoch, "epoch": epoch, "values": {config.regime.monitor: value}}
        following, actions = advance(config, regime, **when)
        assert regime == earlier, "advance changed its argument"
        assert advance(config, regime, **when) == (following, actions)
        regime = following
        history.append(actions)
    return regime, history


@pytest.mark.parametrize(("monitor", "best", "at"), [("angular_error_deg_hole", 1.0, 20), ("psnr_db_hole", 5.0, 40)])
def test_best_follows_the_direction_of_the_metric(tiny_config, monitor, best, at):
    tiny_config.regime.monitor = monitor
    regime, history = run(tiny_config, [3.0, 1.0, 1.0, 5.0])
    assert (regime.best, regime.best_step) == (best, at)
    saved = [index for index, actions in enumerate(history) if actions == ("save_best",)]
    assert saved == ([0, 1] if best == 1.0 else [0, 3])


@pytest.mark.parametrize("monitor", ["angular_error_deg_hole", "psnr_db_hole"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_never_best(tiny_config, monitor, bad):
    tiny_config.regime.monitor = monitor
    regime, history = run(tiny_config, [bad, 2.0, bad])
    assert (regime.best, regime.best_step, regime.waited_epochs) == (2.0, 20, 1)
    assert history == [(), ("save_best",), ()]


@pytest.mark.parametrize(
    ("patience", "epoch_break", "eval_every", "stops_after"),
    [(0, 1, 1, None), (2, 1, 1, 3), (2, 4, 1, 4), (4, 1, 2, 4), (3, 1, 2, 3), (3, 1, 1, 4)],
)
def test_stops_when_patience_is_over_at_a_multiple_of_epoch_break(
    tiny_config, patience, epoch_break, eval_every, stops_after
):
    tiny_config.patience, tiny_config.epoch_break, tiny_config.eval_every_epochs = patience, epoch_break, eval_every
    regime, history = run(tiny_config, [1.0, 2.0, 2.0, 2.0])
    stops = [evaluations for evaluations, actions in enumerate(history, start=1) if "stop" in actions]
    assert (stops[0] if stops else None) == stops_after
    assert regime.stopped == (stops_after is not None)


def test_a_better_value_starts_the_wait_again(tiny_config):
    tiny_config.patience = 2
    regime, history = run(tiny_config, [3.0, 4.0, 2.0, 4.0])
    assert not any("stop" in actions for actions in history)
    assert regime.waited_epochs == 1


def test_first_phase_and_unknown_monitors(tiny_config):
    assert first_regime(tiny_config).phase == "joint"
    tiny_config.discriminator.name = "none"
    assert first_regime(tiny_config).phase == "generator"
    tiny_config.data.kind = "photographs"
    with pytest.raises(ValueError, match=r"angular_error_deg_hole.*psnr_db_hole"):
        first_regime(tiny_config)
    tiny_config.regime.monitor = "beauty"
    with pytest.raises(ValueError, match="beauty"):
        first_regime(tiny_config)


def follow(config, events, steps):
    """Runs `steps` steps of two an epoch; `events` maps an epoch to its validation values; returns phases by step."""
    regime, phases, stopped_at, reactions = first_regime(config), [], None, []
    for step in range(1, steps + 1):
        phases.append(regime.phase)
        # Through JSON at every step, as a kill and a restart would.
        regime = RegimeState.from_json(json.loads(json.dumps(regime.to_json())))
        assert resume(config, regime, step=step - 1, steps_per_epoch=2, more_epochs=False) == regime
        if step % 2 == 0:
            regime, actions = advance(config, regime, step=step, epoch=step // 2, values=events(step // 2))
            reactions += ["scale_rate" in actions] * ("scale_rate" in actions)
        if not regime.stopped:
            regime = tick(config, regime, step=step, steps_per_epoch=2)
        if regime.stopped:
            stopped_at = step
            break
    return phases, stopped_at, regime, len(reactions)


def test_counted_phases_follow_each_other_and_the_last_goes_on(tiny_config):
    tiny_config.regime.phases.warm = common.phase("reconstruction", steps=3)
    tiny_config.regime.phases.judge = common.phase("discriminator", steps=2)
    tiny_config.regime.phases.both = common.phase("joint")
    tiny_config.regime.sequence = ("warm", "judge", "both")
    better = lambda epoch: {"angular_error_deg_hole": 10.0 - epoch}  # noqa: E731
    phases, stopped_at, regime, _ = follow(tiny_config, better, 9)
    assert phases == ["warm"] * 3 + ["judge"] * 2 + ["both"] * 4
    assert (stopped_at, regime.phase_start, regime.best_step) == (None, 5, 8)
    # A value of a phase of D is never the best generator's.
    spiky = lambda epoch: {"angular_error_deg_hole": 0.0 if epoch == 2 else 10.0 - epoch}  # noqa: E731
    assert follow(tiny_config, spiky, 9)[2].best_step == 8
    tiny_config.regime.phases.both.steps = 2
    assert follow(tiny_config, better, 9)[1] == 7
    tiny_config.regime.repeat = True
    assert follow(tiny_config, better, 9)[0] == ["warm"] * 3 + ["judge"] * 2 + ["both"] * 2 + ["warm"] * 2


def alternating(config):
    config.regime.phases.judge = common.phase("discriminator", monitor="loss/discriminator")
    config.regime.phases.fill = common.phase("generator")
    config.regime.sequence, config.regime.repeat, config.regime.monitor = ("judge", "fill"), True, "loss/generator"
    config.patience = 2
    return config


def test_phases_to_convergence_take_turns_until_the_generator_gains_nothing(tiny_config):
    config = alternating(tiny_config)
    #           judge: better, worse, worse | fill: the generator gains twice, then waits | judge | fill: no gain
    judge_loss = [3, 2, 2.5, 2.6, 2.7, 2.7, 2.7, 2.7, 1, 1, 1, 1, 1, 1, 1, 1]
    fill_loss = [9, 9, 9, 9, 8, 7, 7.5, 7.6, 7.6, 7.6, 7.6, 7.1, 7.2, 7.3, 1, 1]
    values = lambda e: {"loss/discriminator": judge_loss[e - 1], "loss/generator": fill_loss[e - 1]}  # noqa: E731
    phases, stopped_at, regime, _ = follow(config, values, 32)
    assert phases == ["judge"] * 8 + ["fill"] * 8 + ["judge"] * 6 + ["fill"] * 6
    assert stopped_at == 28
    assert (regime.best, regime.best_step, regime.phase_best) == (7, 12, 7.1)


def test_rate_reactions_come_first_and_so_many_times(tiny_config):
    tiny_config.patience, tiny_config.regime.reactions = 2, 3
    _, stopped_at, regime, reactions = follow(tiny_config, lambda epoch: {"angular_error_deg_hole": 1.0}, 40)
    assert reactions == regime.reactions == 3
    assert stopped_at == 2 * (1 + 4 * 2)


def with_fields(**fields):
    # Assigned anew: a ConfigDict refuses another type, and an unknown field, in a phase that is there.
    def change(regime):
        regime.phases["warm"] = ml_collections.ConfigDict({**common.phase("joint"), **fields})

    return change


def without_new_fields(regime):
    regime.phases["warm"] = ml_collections.ConfigDict({"trains": "joint", "steps": 0, "monitor": "", "frozen": ()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: r.update({"sequence": ("warm", "cool")}),
            "names the phase 'cool': known in config.regime.phases: warm",
        ),
        (lambda r: r.phases.warm.update({"trains": "everything"}), r"phases\.warm\.trains = 'everything': use one of"),
        (lambda r: r.phases.warm.update({"steps": -1}), r"phases\.warm\.steps = -1"),
        (lambda r: r.update({"repeat": True}), "would never end: give it steps or epochs, or set config.patience"),
        (lambda r: r.phases.warm.update({"runs": 2}), "would never end: give it steps or epochs"),
        (lambda r: r.phases.warm.update({"epochs": -1}), r"phases\.warm\.epochs = -1"),
        (lambda r: r.phases.warm.update({"steps": 4, "epochs": 2}), r"warm has steps = 4 and epochs = 2: set one"),
        (lambda r: r.phases.warm.update({"runs": 0}), r"phases\.warm\.runs = 0: must be from 1 to"),
        (lambda r: r.phases.warm.update({"runs": 10**9}), r"phases\.warm\.runs = 1000000000: must be from 1 to"),
        (lambda r: r.phases.warm.update({"stops_early": True}), r"stops_early = True is for a phase with a length"),
        (
            lambda r: r.phases.warm.update({"stops_early": True, "epochs": 3}),
            r"warm\.stops_early = True needs config\.patience",
        ),
        (with_fields(restart=1), r"phases\.warm\.restart = 1: must be True or False"),
        (with_fields(runs=True), r"phases\.warm\.runs = True: must be a whole number"),
        (with_fields(epochs=1.5), r"phases\.warm\.epochs = 1\.5: must be a whole number"),
        (with_fields(frozen="discriminator"), r"phases\.warm\.frozen = 'discriminator': must be a tuple"),
        (with_fields(stop_early=True), r"warm\.stop_early is no field of a phase: .* stops_early"),
        (without_new_fields, "warm lacks the fields epochs, restart, runs, stops_early: make it with"),
        (lambda r: r.phases.warm.update({"monitor": "beauty"}), r"phases\.warm\.monitor = 'beauty'"),
    ],
)
def test_phases_that_cannot_be_are_said(tiny_config, change, message):
    tiny_config.regime.phases.warm = common.phase("joint")
    tiny_config.regime.sequence = ("warm",)
    first_regime(tiny_config)
    change(tiny_config.regime)
    with pytest.raises(ValueError, match=message):
        first_regime(tiny_config)
    tiny_config.regime.phases.warm = common.phase("joint")
    tiny_config.regime.sequence, tiny_config.regime.repeat = ("warm",), False
    tiny_config.discriminator.name = "none"
    with pytest.raises(ValueError, match="needs a discriminator"):
        first_regime(tiny_config)


def test_groups_that_are_not_there_are_said_before_the_first_step(tiny_config):
    groups = ("generator/rest", "discriminator")
    tiny_config.regime.phases.late = common.phase("joint", frozen=("generator/vgg",))
    tiny_config.regime.sequence, tiny_config.regime.reaction_group = ("late",), "genrator"
    with pytest.raises(ValueError, match=r"late\.frozen names the group 'generator/vgg': known are generator/rest"):
        check_groups(tiny_config, groups)
    tiny_config.regime.phases.late.frozen = ("generator/rest",)
    check_groups(tiny_config, groups)
    tiny_config.regime.reactions = 1
    with pytest.raises(ValueError, match=r"reaction_group = 'genrator': known groups are generator/rest"):
        check_groups(tiny_config, groups)


def test_a_value_at_the_last_step_of_a_phase_belongs_to_that_phase(tiny_config):
    tiny_config.regime.phases.fill = common.phase("generator", steps=4)
    tiny_config.regime.phases.judge = common.phase("discriminator", steps=4)
    tiny_config.regime.sequence, tiny_config.regime.repeat = ("fill", "judge"), True
    values = [5.0, 3.0, 2.0, 1.0, 4.0, 4.0]
    _, _, regime, _ = follow(tiny_config, lambda epoch: {"angular_error_deg_hole": values[epoch - 1]}, 12)
    assert (regime.best, regime.best_step) == (3.0, 4), "the generator's own last step, and not the discriminator's"


def test_a_run_that_ends_in_its_first_phase_of_the_discriminator_has_a_generator(tiny_config):
    config = alternating(tiny_config)
    regime, saved = first_regime(config), []
    for epoch in (1, 2, 3):
        values = {"loss/discriminator": 3.0 - epoch / 10, "loss/generator": 1.0 + epoch}
        regime, actions = advance(config, regime, step=2 * epoch, epoch=epoch, values=values)
        saved.append(actions)
    assert saved == [("save_best",), (), ()]
    assert (regime.best, regime.best_step) == (None, 2)


def test_more_epochs_take_up_early_stopping_and_no_sequence_that_is_done(tiny_config):
    stopped = RegimeState("joint", stopped=True, waited_epochs=9)
    assert resume(tiny_config, stopped, step=8, steps_per_epoch=2, more_epochs=False) == stopped
    assert resume(tiny_config, stopped, step=8, steps_per_epoch=2, more_epochs=True) == RegimeState("joint")
    tiny_config.regime.phases.both = common.phase("joint", steps=4)
    tiny_config.regime.sequence = ("both",)
    done = RegimeState("both", stopped=True)
    assert resume(tiny_config, done, step=4, steps_per_epoch=2, more_epochs=True) == done
    with pytest.raises(ValueError, match=r"stands in the phase 'joint', and .* has 'both' in its place"):
        resume(tiny_config, stopped, step=8, steps_per_epoch=2, more_epochs=True)
