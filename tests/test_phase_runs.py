"""Phases in runs of epochs: how often they come, where they stop early, what the reactions are."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_regimes import follow

from configs import common, unet_cosine
from inpaint_jax.regimes import (
    advance,
    ends_by_itself,
    first_regime,
    planned_steps,
    resume,
    run_in_phase,
    sequence,
    tick,
)
from inpaint_jax.state import RegimeState


def published(config, reactions=10, group="generator"):
    """Five runs of 100 epochs with frozen layers, then ten without, that watch the discriminator's loss."""
    config.regime.phases.frozen = common.phase("joint", epochs=100, frozen=("generator/vgg",), runs=5, restart=True)
    config.regime.phases.unfrozen = common.phase(
        "joint", epochs=100, monitor="loss/discriminator", runs=10, restart=True, stops_early=True
    )
    config.optimizer.schedule, config.optimizer.warmup_fraction = "constant", 0.0
    config.regime.sequence, config.patience = ("frozen", "unfrozen"), 25
    config.regime.reactions, config.regime.reaction_group = reactions, group
    return config


def trace(config, loss, steps_per_epoch=2, most_epochs=4000):
    """Returns (phase, run, runs, first epoch, reactions so far) of each run, the epoch of the end, and the regime."""
    regime, begun = first_regime(config), []
    for step in range(1, most_epochs * steps_per_epoch + 1):
        if regime.phase_start == step - 1:
            number, runs = run_in_phase(config, regime)
            begun.append((regime.phase, number, runs, (step - 1) / steps_per_epoch, regime.reactions))
        if step % steps_per_epoch == 0:
            epoch = step // steps_per_epoch
            values = {"loss/discriminator": loss(epoch), "angular_error_deg_hole": 1.0}
            regime, _ = advance(config, regime, step=step, epoch=epoch, values=values)
        if not regime.stopped:
            regime = tick(config, regime, step=step, steps_per_epoch=steps_per_epoch)
        if regime.stopped:
            return begun, step / steps_per_epoch, regime
    return begun, None, regime


def test_five_frozen_runs_then_ten_that_stop_early_to_the_end(tiny_config):
    config = published(tiny_config)
    frozen = [("frozen", run, 5, 100 * (run - 1), 0) for run in range(1, 6)]
    # The discriminator gains nothing: the first epoch of a run is its best, and it ends after 25 more.
    begun, end, regime = trace(config, lambda epoch: 1.0)
    assert begun == frozen + [("unfrozen", run, 10, 500 + 26 * (run - 1), run - 1) for run in range(1, 11)]
    assert (end, regime.reactions, regime.stopped) == (760, 10, True)
    # It gains in every epoch: each run has its whole length, and no rate reacts.
    begun, end, regime = trace(config, lambda epoch: -float(epoch))
    assert begun == frozen + [("unfrozen", run, 10, 500 + 100 * (run - 1), 0) for run in range(1, 11)]
    assert (end, regime.reactions) == (1500, 0)
    # It gains for 40 epochs of the first unfrozen run, and in the third, to its end at 665 + 100.
    begun, _, _ = trace(config, lambda epoch: -float(min(epoch, 540) if epoch <= 591 else min(epoch, 691)))
    assert [line[3:] for line in begun[5:9]] == [(500, 0), (565, 1), (591, 2), (691, 2)]


@pytest.mark.parametrize("reactions", [0, 3, 10, 99])
def test_stops_beyond_the_last_reaction_still_end_runs(tiny_config, reactions):
    begun, end, regime = trace(published(tiny_config, reactions), lambda epoch: 1.0)
    assert [line[4] for line in begun[5:]] == [min(run, reactions) for run in range(10)]
    assert (end, regime.reactions) == (760, min(10, reactions))


def test_runs_stop_early_at_multiples_of_epoch_break_alone(tiny_config):
    config = published(tiny_config)
    config.epoch_break = 40
    begun, _, _ = trace(config, lambda epoch: 1.0)
    assert [line[3] for line in begun[5:9]] == [500, 560, 600, 640]


def test_the_last_run_that_stops_early_ends_the_training_for_good(tiny_config):
    tiny_config.regime.phases.only = common.phase("joint", epochs=9, stops_early=True)
    tiny_config.regime.sequence, tiny_config.patience = ("only",), 2
    phases, stopped_at, regime, _ = follow(tiny_config, lambda epoch: {"angular_error_deg_hole": 1.0}, 40)
    assert (len(phases), stopped_at, regime.stopped) == (6, 6, True)
    assert resume(tiny_config, regime, step=6, steps_per_epoch=2, more_epochs=True) == regime
    stop = {"step": 6, "epoch": 3, "values": {"angular_error_deg_hole": 1.0}}
    before = RegimeState("only", phase_best=1.0, best=1.0, best_step=2, waited_epochs=1, validated_epoch=2)
    assert advance(tiny_config, before, **stop)[1] == ("stop",)
    tiny_config.regime.reactions = 1
    assert advance(tiny_config, before, **stop)[1] == ("scale_rate", "stop")


def test_patience_that_is_over_at_the_last_step_of_a_run_ends_one_run_with_one_reaction(tiny_config):
    tiny_config.regime.phases.short = common.phase("joint", epochs=3, runs=3, stops_early=True)
    tiny_config.regime.sequence, tiny_config.patience, tiny_config.regime.reactions = ("short",), 2, 9
    _, stopped_at, _, reactions = follow(tiny_config, lambda epoch: {"angular_error_deg_hole": 1.0}, 40)
    assert (stopped_at, reactions) == (18, 3)


def test_a_length_without_stops_early_is_kept_whatever_the_patience(tiny_config):
    tiny_config.regime.phases.whole = common.phase("joint", epochs=5, runs=2)
    tiny_config.regime.sequence, tiny_config.patience, tiny_config.regime.reactions = ("whole",), 1, 9
    _, stopped_at, _, reactions = follow(tiny_config, lambda epoch: {"angular_error_deg_hole": 1.0}, 40)
    assert (stopped_at, reactions) == (20, 0)


def test_a_length_in_epochs_follows_the_steps_of_an_epoch_and_one_in_steps_does_not(tiny_config):
    tiny_config.regime.phases.epochs = common.phase("joint", epochs=3)
    tiny_config.regime.phases.steps = common.phase("joint", steps=6)
    tiny_config.regime.phases.rest = common.phase("joint")
    tiny_config.regime.sequence = ("epochs", "steps", "rest")
    for steps_per_epoch in (2, 5):
        begun, _, _ = trace(tiny_config, lambda epoch: 1.0, steps_per_epoch, most_epochs=9)
        assert [line[3] * steps_per_epoch for line in begun] == [0, 3 * steps_per_epoch, 3 * steps_per_epoch + 6]


def test_phases_without_a_length_come_so_often_too(tiny_config):
    tiny_config.regime.phases.fill = common.phase("joint", runs=3)
    tiny_config.regime.sequence, tiny_config.patience = ("fill",), 4
    begun, end, _ = trace(tiny_config, lambda epoch: 1.0)
    assert [line[:4] for line in begun] == [("fill", 1, 3, 0), ("fill", 2, 3, 5), ("fill", 3, 3, 10)]
    assert end == 15


def test_a_repeated_sequence_repeats_its_runs_and_stopping_early_does_not_end_it(tiny_config):
    tiny_config.regime.phases.a = common.phase("joint", epochs=9, runs=2, stops_early=True)
    tiny_config.regime.phases.b = common.phase("generator", epochs=2)
    tiny_config.regime.sequence, tiny_config.regime.repeat, tiny_config.patience = ("a", "b"), True, 3
    begun, end, _ = trace(tiny_config, lambda epoch: 1.0, most_epochs=24)
    assert [line[:4] for line in begun] == [
        *[("a", 1, 2, 0), ("a", 2, 2, 4), ("b", 1, 1, 8)],
        *[("a", 1, 2, 10), ("a", 2, 2, 14), ("b", 1, 1, 18), ("a", 1, 2, 20)],
    ]
    assert end is None


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.booleans()), min_size=3, max_size=3),
    sequence=st.lists(st.sampled_from("abc"), min_size=1, max_size=4),
    repeat=st.booleans(),
)
def test_phases_by_step_are_the_runs_written_out(lengths, sequence, repeat):
    config = unet_cosine.get_config("tiny")
    for name, (length, runs, in_epochs) in zip("abc", lengths, strict=True):
        config.regime.phases[name] = common.phase("joint", **{"epochs" if in_epochs else "steps": length}, runs=runs)
    config.regime.sequence, config.regime.repeat = tuple(sequence), repeat
    once = []
    for name in sequence:
        length, runs, in_epochs = lengths["abc".index(name)]
        once += [name] * (runs * length * (2 if in_epochs else 1))
    phases, stopped_at, _, _ = follow(config, lambda epoch: {"angular_error_deg_hole": 1.0}, 100)
    assert phases == list(itertools.islice(itertools.cycle(once), 100))[: 100 if repeat else len(once)]
    assert stopped_at == (None if repeat or len(once) > 100 else len(once))


def test_a_run_is_not_taken_up_with_fewer_runs_before_it(tiny_config):
    config = published(tiny_config)
    regime = RegimeState("frozen", phase_index=4, phase_start=800)
    assert resume(config, regime, step=900, steps_per_epoch=2, more_epochs=False) == regime
    config.regime.phases.frozen.runs = 2
    with pytest.raises(ValueError, match=r"stands in the phase 'frozen', and .* has 'unfrozen' .*runs of its phases"):
        resume(config, regime, step=900, steps_per_epoch=2, more_epochs=False)


def test_more_runs_for_an_ended_sequence_are_refused(tiny_config):
    config = published(tiny_config)
    last = len(sequence(config)) - 1
    ended = RegimeState("unfrozen", phase_index=last, phase_start=2800, stopped=True)
    assert resume(config, ended, step=2900, steps_per_epoch=2, more_epochs=True) == ended
    config.regime.phases.unfrozen.runs += 1
    with pytest.raises(ValueError, match=rf"ended its sequence of {last + 1} phases, and .* has {last + 2} now"):
        resume(config, ended, step=2900, steps_per_epoch=2, more_epochs=True)


@pytest.mark.parametrize("change", [{"schedule": "cosine"}, {"warmup_fraction": 0.1}])
def test_a_schedule_that_would_begin_anew_with_each_run_is_refused(tiny_config, change):
    config = published(tiny_config)
    config.optimizer.update(change)
    with pytest.raises(ValueError, match=r"phases\.frozen\.restart = True begins .* schedule anew"):
        first_regime(config)


def test_steps_of_all_runs_together(tiny_config):
    config = published(tiny_config)
    assert planned_steps(config, steps_per_epoch=2) == 15 * 100 * 2
    config.regime.repeat = True
    assert planned_steps(config, steps_per_epoch=2) == 0


def test_phases_with_lengths_end_the_training_by_themselves(tiny_config):
    config = published(tiny_config)
    assert ends_by_itself(config)
    config.regime.phases.unfrozen.epochs = 0
    assert not ends_by_itself(config)
    config.regime.sequence = ("frozen",)
    assert ends_by_itself(config)
    config.regime.repeat = True
    assert not ends_by_itself(config)
    config.regime.sequence = ()
    assert not ends_by_itself(config)
