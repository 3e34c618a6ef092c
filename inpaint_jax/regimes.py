"""Training regimes as a pure function: which phase is on, what the best is, when to stop."""

import dataclasses
import math

import ml_collections

from inpaint_jax.metrics import METRIC_DIRECTION, direction_of
from inpaint_jax.state import RegimeState


def first_regime(config: ml_collections.ConfigDict) -> RegimeState:
    """Returns the regime before the first step.

    Raises:
        ValueError: the monitored metric is not one of those that validation gives.
    """
    monitor = config.regime.monitor
    known = [name for name in METRIC_DIRECTION if config.data.kind == "normal_maps" or "angular" not in name]
    known += [f"loss/{name}" for name, term in config.losses.items() if term.weight]
    known += ["loss/generator"] + (["loss/discriminator"] if config.discriminator.name != "none" else [])
    if monitor not in known:
        raise ValueError(f"config.regime.monitor = {monitor!r}: known for {config.data.kind} are {', '.join(known)}")
    return RegimeState(phase="generator" if config.discriminator.name == "none" else "joint")


def advance(
    config: ml_collections.ConfigDict, regime: RegimeState, *, step: int, epoch: int, value: float
) -> tuple[RegimeState, tuple[str, ...]]:
    """Takes one validation result and returns the next regime and what to do, of "save_best" and "stop".

    Args:
        step, epoch: optimiser steps and epochs done.
        value: the monitored metric on the validation split.
    """
    better = math.isfinite(value) and (
        regime.best is None
        or (value > regime.best if direction_of(config.regime.monitor) == "max" else value < regime.best)
    )
    if better:
        regime = dataclasses.replace(regime, best=value, best_step=step, waited_epochs=0)
    else:
        regime = dataclasses.replace(regime, waited_epochs=regime.waited_epochs + config.eval_every_epochs)
    actions = ("save_best",) if better else ()
    if config.patience and regime.waited_epochs >= config.patience and epoch % config.epoch_break == 0:
        regime = dataclasses.replace(regime, stopped=True)
        actions += ("stop",)
    return regime, actions
