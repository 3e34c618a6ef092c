"""Training regimes as a pure function: which phase is on, what the best is, when a phase or the run ends."""

import dataclasses
import math
from collections.abc import Collection, Mapping

import ml_collections

from configs import common
from inpaint_jax import metrics
from inpaint_jax.state import RegimeState

# What a phase trains: both networks; the generator against the discriminator as it is (or alone, where there is none);
# the generator on its reconstruction losses alone; the discriminator against the generator as it is.
KINDS = ("joint", "generator", "reconstruction", "discriminator")
SAVE_BEST, STOP, SCALE_RATE = "save_best", "stop", "scale_rate"
MOST_RUNS = 10_000  # of a phase in a row; more can only be a slip
# What a field of a phase has to be, in words.
_TYPES = {bool: "True or False", int: "a whole number", str: "a text", tuple: "a tuple"}


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
    endless = sequence(config) if config.regime.repeat else sequence(config)[:-1]
    for name in config.regime.sequence:
        if name in endless and not config.patience and not _has_length(config.regime.phases[name]):
            raise ValueError(
                f"config.regime.phases.{name} would never end: give it steps or epochs, or set config.patience"
            )
        monitors[f"config.regime.phases.{name}.monitor"] = config.regime.phases[name].monitor or config.regime.monitor
    known = validated_values(config)
    for field, monitor in monitors.items():
        if monitor not in known:
            raise ValueError(f"{field} = {monitor!r}: known for {config.data.kind} are {', '.join(known)}")
    return RegimeState(phase=config.regime.sequence[0] if config.regime.sequence else _implicit(config))


def sequence(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Returns the phases in their order, each as often in a row as its `runs` say; () without phases."""
    return tuple(name for name in config.regime.sequence for _ in range(config.regime.phases[name].runs))


def planned_steps(config: ml_collections.ConfigDict, steps_per_epoch: int) -> int:
    """Returns how many steps the phases with a length may take together, 0 for a sequence that repeats."""
    if config.regime.repeat:
        return 0
    phases = [config.regime.phases[name] for name in sequence(config)]
    return sum(phase.steps or phase.epochs * steps_per_epoch for phase in phases)


def ends_by_itself(config: ml_collections.ConfigDict) -> bool:
    """Returns whether every phase has a length and none comes again, so that more epochs would not be trained."""
    phases = [config.regime.phases[name] for name in config.regime.sequence]
    return bool(phases) and not config.regime.repeat and all(_has_length(phase) for phase in phases)


def run_in_phase(config: ml_collections.ConfigDict, regime: RegimeState) -> tuple[int, int]:
    """Returns which run of the present phase is on, from 1, and how many there are in a row; (1, 1) without phases."""
    if not config.regime.sequence:
        return 1, 1
    number = regime.phase_index % len(sequence(config))
    for name in config.regime.sequence:
        runs = config.regime.phases[name].runs
        if number < runs:
            break
        number -= runs
    return number + 1, runs


def validated_values(config: ml_collections.ConfigDict) -> list[str]:
    """Returns the names of the values that validation gives."""
    names = metrics.validated_metrics(config.data.kind == "normal_maps", config.evaluation.lpips)
    names += [f"loss/{name}" for name, term in config.losses.items() if term.weight]
    return [*names, "loss/generator", *(["loss/discriminator"] if config.discriminator.name != "none" else [])]


def _implicit(config: ml_collections.ConfigDict) -> str:
    return "generator" if config.discriminator.name == "none" else "joint"


def _validate_phase(config: ml_collections.ConfigDict, name: str) -> None:
    phase, field = config.regime.phases[name], f"config.regime.phases.{name}"
    _validate_fields(phase, field)
    if phase.trains not in KINDS:
        raise ValueError(f"{field}.trains = {phase.trains!r}: use one of {', '.join(KINDS)}")
    if phase.trains in ("joint", "discriminator") and config.discriminator.name == "none":
        raise ValueError(f"{field}.trains = {phase.trains!r} needs a discriminator: set config.discriminator.name")
    for length in ("steps", "epochs"):
        if phase[length] < 0:
            raise ValueError(f"{field}.{length} = {phase[length]}: must be a whole number, and 0 = until it converges")
    if phase.steps and phase.epochs:
        raise ValueError(f"{field} has steps = {phase.steps} and epochs = {phase.epochs}: set one of them to 0")
    if not 1 <= phase.runs <= MOST_RUNS:
        raise ValueError(f"{field}.runs = {phase.runs}: must be from 1 to {MOST_RUNS}")
    if phase.stops_early and not _has_length(phase):
        raise ValueError(
            f"{field}.stops_early = True is for a phase with a length: give it steps or epochs, or leave stops_early "
            "out, because without a length it ends when it converges"
        )
    if phase.restart and (config.optimizer.schedule != "constant" or config.optimizer.warmup_fraction):
        raise ValueError(
            f"{field}.restart = True begins the learning rate's schedule anew, and its length is that of the whole "
            "training: set config.optimizer.schedule = 'constant' and config.optimizer.warmup_fraction = 0.0"
        )
    if phase.stops_early and not config.patience:
        raise ValueError(f"{field}.stops_early = True needs config.patience: set it to a number of epochs")


def _validate_fields(phase: ml_collections.ConfigDict, field: str) -> None:
    defaults = common.phase("joint")
    fields = set(phase.keys()) if isinstance(phase, ml_collections.ConfigDict) else set()
    if unknown := fields - set(defaults):
        raise ValueError(f"{field}.{min(unknown)} is no field of a phase: they are {', '.join(sorted(defaults))}")
    if missing := set(defaults) - fields:
        raise ValueError(f"{field} lacks the fields {', '.join(sorted(missing))}: make it with common.phase(...)")
    for key, default in defaults.items():
        # A list does where a tuple is asked for, and True is no number.
        given = tuple if isinstance(phase[key], list) else type(phase[key])
        if given is not type(default):
            raise ValueError(f"{field}.{key} = {phase[key]!r}: must be {_TYPES[type(default)]}")


def _has_length(phase: ml_collections.ConfigDict) -> bool:
    return bool(phase.steps or phase.epochs)


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


def tick(config: ml_collections.ConfigDict, regime: RegimeState, *, step: int, steps_per_epoch: int) -> RegimeState:
    """Returns the regime after a step: the next run or phase once one with a length has done its steps.

    Where validation is due too, `advance` comes first: what it finds belongs to the phase that was trained.
    """
    if not _counted_out(config, regime, step, steps_per_epoch):
        return regime
    return _next_phase(config, regime, step)


def _counted_out(config: ml_collections.ConfigDict, regime: RegimeState, step: int, steps_per_epoch: int) -> bool:
    if not config.regime.sequence or not _has_length(config.regime.phases[regime.phase]):
        return False
    phase = config.regime.phases[regime.phase]
    return step - regime.phase_start >= (phase.steps or phase.epochs * steps_per_epoch)


def resume(
    config: ml_collections.ConfigDict, regime: RegimeState, *, step: int, steps_per_epoch: int, more_epochs: bool
) -> RegimeState:
    """Returns a stored regime to go on with; where more epochs are asked for, early stopping waits anew.

    A sequence whose last phase has a length, and has ended, stays at its end.

    Raises:
        ValueError: the config has another phase in its place.
    """
    phases = sequence(config)
    expected = phases[regime.phase_index % len(phases)] if phases else _implicit(config)
    if regime.phase != expected:
        raise ValueError(
            f"the run stands in the phase {regime.phase!r}, and config.regime.sequence has {expected!r} in its place: "
            "restore the sequence and the runs of its phases, or start over with --restart"
        )
    ended = _counted_out(config, regime, step, steps_per_epoch)
    if regime.stopped and not config.regime.repeat and regime.phase_index + 1 < len(phases):
        raise ValueError(
            f"the run has ended its sequence of {regime.phase_index + 1} phases, and config.regime has {len(phases)} "
            "now: start over with --restart"
        )
    ended = ended or (regime.stopped and bool(phases) and config.regime.phases[regime.phase].stops_early)
    return dataclasses.replace(regime, stopped=False, waited_epochs=0) if more_epochs and not ended else regime


def advance(
    config: ml_collections.ConfigDict, regime: RegimeState, *, step: int, epoch: int, values: Mapping[str, float]
) -> tuple[RegimeState, tuple[str, ...]]:
    """Takes one validation result and returns the next regime and what to do, of SAVE_BEST, SCALE_RATE and STOP.

    A phase without a length converges when its monitored value has not improved for `config.patience` epochs, at an
    epoch that is a multiple of `config.epoch_break`. Then comes a rate reaction, if some are left; else the next
    phase, if there is one; else the end. A sequence that repeats ends when a phase without a length that trains the
    generator has converged without a better generator than any phase before.

    In a phase with a length the same ends the present run alone, and only if the phase `stops_early`: then come both
    a rate reaction, if some are left, and the next run or phase, or the end.

    Args:
        step, epoch: optimiser steps and epochs done.
        values: of the validation split, by name.
    """
    phase = config.regime.phases[regime.phase] if config.regime.sequence else None
    regime, actions = _compared(config, regime, step, epoch, values)
    counted = phase is not None and _has_length(phase)
    if not config.patience or regime.waited_epochs < config.patience or epoch % config.epoch_break:
        return regime, actions
    if counted and not phase.stops_early:
        return regime, actions
    if regime.reactions < config.regime.reactions:
        regime, actions = dataclasses.replace(regime, reactions=regime.reactions + 1), (*actions, SCALE_RATE)
        if not counted:
            return dataclasses.replace(regime, waited_epochs=0), actions
    fruitless = not counted and kind(config, regime) != "discriminator" and not regime.phase_found_best
    if phase is None or (config.regime.repeat and fruitless):
        regime = dataclasses.replace(regime, stopped=True)
    else:
        regime = _next_phase(config, regime, step)
    return regime, (*actions, STOP) if regime.stopped else actions


def _compared(
    config: ml_collections.ConfigDict, regime: RegimeState, step: int, epoch: int, values: Mapping[str, float]
) -> tuple[RegimeState, tuple[str, ...]]:
    """Returns the regime with the bests and the wait after a validation, and SAVE_BEST if the generator is the best."""
    monitor = config.regime.phases[regime.phase].monitor if config.regime.sequence else ""
    monitor = monitor or config.regime.monitor
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
    return dataclasses.replace(regime, validated_epoch=epoch), actions


def _better(name: str, value: float, best: float | None) -> bool:
    if not math.isfinite(value):
        return False
    return best is None or (value > best if metrics.direction_of(name) == "max" else value < best)


def _next_phase(config: ml_collections.ConfigDict, regime: RegimeState, step: int) -> RegimeState:
    """Returns the regime at the start of the next run or phase, its best and waits anew, or stopped after the last."""
    phases, index = sequence(config), regime.phase_index + 1
    if index >= len(phases) and not config.regime.repeat:
        return dataclasses.replace(regime, stopped=True)
    return dataclasses.replace(
        regime,
        phase=phases[index % len(phases)],
        phase_index=index,
        phase_start=step,
        phase_best=None,
        phase_found_best=False,
        waited_epochs=0,
    )
