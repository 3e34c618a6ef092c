"""Best by the metric's direction, patience and the epochs at which stopping acts."""

import copy

import pytest

from inpaint_jax.regimes import advance, first_regime


def run(config, values):
    regime, history = first_regime(config), []
    for epoch, value in enumerate(values, start=1):
        earlier = copy.deepcopy(regime)
        following, actions = advance(config, regime, step=10 * epoch, epoch=epoch, value=value)
        assert regime == earlier, "advance changed its argument"
        assert advance(config, regime, step=10 * epoch, epoch=epoch, value=value) == (following, actions)
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
    [(0, 1, 1, None), (2, 1, 1, 3), (2, 4, 1, 4), (4, 1, 2, 3), (3, 1, 1, 4)],
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
