"""Training regimes as a pure function: which phase is on, what the best is, when a phase or the run ends."""

import dataclasses
import math
from collections.abc import Collection, Mapping

import ml_collections

from inpaint_jax.metrics import METRIC_DIRECTION, direction_of
from inpaint_jax.state import RegimeState

# What a phase trains: both networks; the generator against the discriminator as it is (or alone, where there is none);
# the generator on its reconstruction losses alone; the discriminator against the generator as it is.
KINDS = ("joint", "generator", "reconstruction", "discriminator")
SAVE_BEST, STOP, SCALE_RATE = "save_best", "stop", "scale_rate"


def first_regime(config: ml_collections.ConfigDict) -> RegimeState:
    """Returns the regime before the first step.

    Raises:
        ValueError: a monitored value is not one of those that validation gives, or a phase is not as it should be.
    """
    monitors = {"config.regime.monitor": config.regime.monitor}
    for name in config.regime.sequence:
        if name not in config.regime.phases:
            known = ", ".join(sorted(config.regime.phases)) or "none"
            raise ValueError(f"config.regime.sequence names the phase {name!r}: known in config.regime.phases: {known}")
    for name in config.regime.sequence:
        _validate_phase(config, name)
        monitors[f"config.regime.phases.{name}.monitor"] = config.regime.phases[name].monitor or config.regime.monitor
    known = validated_values(config)
    for field, monitor in monitors.items():
        if monitor not in known:
            raise ValueError(f"{field} = {monitor!r}: known for {config.data.kind} are {', '.join(known)}")
    return RegimeState(phase=config.regime.sequence[0] if config.regime.sequence else _implicit(config))


def validated_values(config: ml_collections.ConfigDict) -> list[str]:
    """Returns the names of the values that validation gives."""
    names = [name for name in METRIC_DIRECTION if config.data.kind == "normal_maps" or "angular" not in name]
    names += [f"loss/{name}" for name, term in config.losses.items() if term.weight]
    return [*names, "loss/generator", *(["loss/discriminator"] if config.discriminator.name != "none" else [])]


def _implicit(config: ml_collections.ConfigDict) -> str:
    return "generator" if config.discriminator.name == "none" else "joint"


def _validate_phase(config: ml_collections.ConfigDict, name: str) -> None:
    phase, field = config.regime.phases[name], f"config.regime.phases.{name}"
    fields = set(phase.keys()) if isinstance(phase, ml_collections.ConfigDict) else set()
    if fields != {"trains", "steps", "monitor", "frozen"}:
        raise ValueError(f"{field} = {phase}: needs the fields trains, steps, monitor and frozen")
    if phase.trains not in KINDS:
        raise ValueError(f"{field}.trains = {phase.trains!r}: use one of {', '.join(KINDS)}")
    if phase.trains in ("joint", "discriminator") and config.discriminator.name == "none":
        raise ValueError(f"{field}.trains = {phase.trains!r} needs a discriminator: set config.discriminator.name")
    if not isinstance(phase.steps, int) or phase.steps < 0:
        raise ValueError(f"{field}.steps = {phase.steps}: must be a whole number, and 0 = until it converges")
    if not phase.steps and not config.patience and (config.regime.repeat or name != config.regime.sequence[-1]):
        raise ValueError(f"{field} would never end: give it steps, or set config.patience")


def check_groups(config: ml_collections.ConfigDict, groups: Collection[str]) -> None:
    """Raises ValueError if a phase freezes, or rate reactions scale, a parameter group that there is not."""
    known = ", ".join(groups)
    for name in config.regime.sequence:
        for group in config.regime.phases[name].frozen:
            if group not in groups:
                raise ValueError(f"config.regime.phases.{name}.frozen names the group {group!r}: known are {known}")
    if config.regime.reactions and not reacting_groups(config, groups):
        raise ValueError(f"config.regime.reaction_group = {config.regime.reaction_group!r}: known groups are {known}")


def reacting_groups(config: ml_collections.ConfigDict, groups: Collection[str]) -> list[str]:
    """Returns the parameter groups whose rate a reaction scales: the named one, or all of the named network."""
    named = config.regime.reaction_group
    return [group for group in groups if named in (group, group.split("/")[0])]


def kind(config: ml_collections.ConfigDict, regime: RegimeState) -> str:
    """Returns what the present phase trains, one of `KINDS`."""
    return config.regime.phases[regime.phase].trains if config.regime.sequence else regime.phase


def frozen_groups(config: ml_collections.ConfigDict, regime: RegimeState) -> tuple[str, ...]:
    """Returns the parameter groups that the present phase leaves as they are."""
    return tuple(config.regime.phases[regime.phase].frozen) if config.regime.sequence else ()


def tick(config: ml_collections.ConfigDict, regime: RegimeState, *, step: int) -> RegimeState:
    """Returns the regime after a step: the next phase once one with a number of steps has done them.

    Where validation is due too, `advance` comes first: what it finds belongs to the phase that was trained.
    """
    return _next_phase(config, regime, step) if _counted_out(config, regime, step) else regime


def _counted_out(config: ml_collections.ConfigDict, regime: RegimeState, step: int) -> bool:
    steps = config.regime.phases[regime.phase].steps if config.regime.sequence else 0
    return bool(steps) and step - regime.phase_start >= steps


def resume(config: ml_collections.ConfigDict, regime: RegimeState, *, step: int, more_epochs: bool) -> RegimeState:
    """Returns a stored regime to go on with; where more epochs are asked for, early stopping waits anew.

    A sequence whose last phase has done its steps stays at its end.

    Raises:
        ValueError: the config has another phase in its place.
    """
    sequence = config.regime.sequence
    expected = sequence[regime.phase_index % len(sequence)] if sequence else _implicit(config)
    if regime.phase != expected:
        raise ValueError(
            f"the run stands in the phase {regime.phase!r}, and config.regime.sequence has {expected!r} in its place: "
            "restore the sequence, or start over with --restart"
        )
    if not more_epochs or _counted_out(config, regime, step):
        return regime
    return dataclasses.replace(regime, stopped=False, waited_epochs=0)


def advance(
    config: ml_collections.ConfigDict, regime: RegimeState, *, step: int, epoch: int, values: Mapping[str, float]
) -> tuple[RegimeState, tuple[str, ...]]:
    """Takes one validation result and returns the next regime and what to do, of SAVE_BEST, SCALE_RATE and STOP.

    A phase without a number of steps converges when its monitored value has not improved for `config.patience` epochs,
    at an epoch that is a multiple of `config.epoch_break`. Then comes a rate reaction, if some are left; else the next
    phase, if there is one; else the end. A sequence that repeats ends when a phase that trains the generator has
    converged without a better generator than any phase before.

    Args:
        step, epoch: optimiser steps and epochs done.
        values: of the validation split, by name.
    """
    phase = config.regime.phases[regime.phase] if config.regime.sequence else None
    monitor = (phase.monitor if phase else "") or config.regime.monitor
    actions: tuple[str, ...] = ()
    # While the discriminator alone learns, the generator's loss changes with it, and the generator does not.
    generator_learns = kind(config, regime) != "discriminator"
    if not generator_learns and not regime.best_step and math.isfinite(values[config.regime.monitor]):
        # Should the run end in this phase, there is a generator to test; as a rival of later ones it does not count.
        regime = dataclasses.replace(regime, best_step=step)
        actions = (SAVE_BEST,)
    if generator_learns and _better(config.regime.monitor, values[config.regime.monitor], regime.best):
        best = values[config.regime.monitor]
        regime = dataclasses.replace(regime, best=best, best_step=step, phase_found_best=True)
        actions = (SAVE_BEST,)
    if _better(monitor, values[monitor], regime.phase_best):
        regime = dataclasses.replace(regime, phase_best=values[monitor], waited_epochs=0)
    else:
        regime = dataclasses.replace(regime, waited_epochs=regime.waited_epochs + epoch - regime.validated_epoch)
    regime = dataclasses.replace(regime, validated_epoch=epoch)
    counted = phase is not None and phase.steps
    if counted or not config.patience or regime.waited_epochs < config.patience or epoch % config.epoch_break:
        return regime, actions
    if regime.reactions < config.regime.reactions:
        return dataclasses.replace(regime, reactions=regime.reactions + 1, waited_epochs=0), (*actions, SCALE_RATE)
    fruitless = generator_learns and not regime.phase_found_best
    if phase is None or (config.regime.repeat and fruitless):
        regime = dataclasses.replace(regime, stopped=True)
    else:
        regime = _next_phase(config, regime, step)
    return regime, (*actions, STOP) if regime.stopped else actions


def _better(name: str, value: float, best: float | None) -> bool:
    if not math.isfinite(value):
        return False
    return best is None or (value > best if direction_of(name) == "max" else value < best)


def _next_phase(config: ml_collections.ConfigDict, regime: RegimeState, step: int) -> RegimeState:
    """Returns the regime at the start of the next phase, its best and waits anew, or stopped after the last."""
    sequence, index = config.regime.sequence, regime.phase_index + 1
    if index >= len(sequence) and not config.regime.repeat:
        return dataclasses.replace(regime, stopped=True)
    return dataclasses.replace(
        regime,
        phase=sequence[index % len(sequence)],
        phase_index=index,
        phase_start=step,
        phase_best=None,
        phase_found_best=False,
        waited_epochs=0,
    )
