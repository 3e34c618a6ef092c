"""The course of a training, step by step: batches, programs, validations, and what the regime makes of them.

The training loop follows it, a replay follows it again, and the benchmark measures parts of it.
"""

import logging
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import ml_collections
import optax

from inpaint_jax import evaluate, guard, regimes
from inpaint_jax.data import pipeline
from inpaint_jax.records import Records
from inpaint_jax.run import Run, validated_variables
from inpaint_jax.state import RegimeState, TrainState
from inpaint_jax.step import make_train_step

log = logging.getLogger("inpaint_jax")


def batches_after(run: Run, step: int, stop_step: int) -> Iterator[dict]:
    """Yields the batches of the steps after `step`, up to `stop_step`."""
    return pipeline.batches_of(
        run.config, run.splits["train"], run.mask_files, step, stop_step, run.parallel.process, run.parallel.processes
    )


def compiled_step(run: Run, regime: RegimeState) -> Callable:
    """Returns the step of the present phase, spread over the devices; it is compiled at its first call."""
    kind, frozen_groups = regimes.kind(run.config, regime), regimes.frozen_groups(run.config, regime)
    return run.parallel.train(make_train_step(run.system, kind, frozen_groups))


def due(run: Run, regime: RegimeState, step: int) -> tuple[bool, bool]:
    """Returns whether validation and whether a checkpoint is due after `step`, which was trained in `regime`."""
    validates, saves = run.due(step)
    # Where a phase ends is saved: what it has come to is known from its last step on.
    ends = regimes.tick(run.config, regime, step=step, steps_per_epoch=run.steps_per_epoch)
    validates = validates or ends.stopped
    return validates, saves or validates or ends.phase_start == step


def end_step(
    run: Run, state: TrainState, regime: RegimeState, actions: tuple[str, ...], step: int
) -> tuple[TrainState, RegimeState]:
    """Returns state and regime for the next step.

    Args:
        regime, actions: after the validation, if one was due: what it finds belongs to the phase that was trained.
    """
    if not regime.stopped:
        regime = regimes.tick(run.config, regime, step=step, steps_per_epoch=run.steps_per_epoch)
    return react(run.config, state, regime, actions, step), regime


def react(
    config: ml_collections.ConfigDict, state: TrainState, regime: RegimeState, actions: tuple[str, ...], step: int
) -> TrainState:
    """Returns the state after what the regime decided: rates scaled, and what a new run of a phase begins with.

    That is the guard's level forgotten and, if the phase has `restart`, the optimisers anew.
    """
    if regimes.SCALE_RATE in actions:
        reacts, factor = regimes.reacting_groups(config, state.lr_scale), config.regime.reaction_factor
        log.info("rate reaction: the learning rate of %s x %g", ", ".join(reacts), factor)
        scales = {group: scale * factor if group in reacts else scale for group, scale in state.lr_scale.items()}
        state = state.replace(lr_scale=scales)
    if regime.phase_start != step:
        return state
    number, runs = regimes.run_in_phase(config, regime)
    restarts = config.regime.phases[regime.phase].restart
    log.info(
        "step %d: phase %s begins%s%s", step, regime.phase,
        f" (run {number} of {runs})" if runs > 1 else "", ", optimisers restarted" if restarts else "",
    )  # fmt: skip
    return state.replace(guard=guard.forget_level(state.guard), opt=restarted(state.opt) if restarts else state.opt)


def restarted(states: dict[str, optax.OptState]) -> dict[str, optax.OptState]:
    """Returns optimiser states as before the first update, which is zeros for every optimiser of `optim.py`."""
    return jax.tree.map(lambda x: jnp.zeros_like(x, device=x.sharding), states)


def validated(
    run: Run, state: TrainState, frozen: dict, show: Iterable[int] = ()
) -> tuple[dict[str, float], evaluate.Pictures]:
    """Evaluates the moving averages on the validation split; returns the means, and the pictures of those to show."""
    per_image, pictures = evaluate.evaluate(
        run.eval_step, run.parallel, {**validated_variables(state), "frozen": frozen}, run.val_images, run.val_masks,
        run.config.evaluation.batch_size, show,
    )  # fmt: skip
    return evaluate.means(per_image), pictures


def validate(
    run: Run, state: TrainState, frozen: dict, regime: RegimeState, step: int, records: Records
) -> tuple[RegimeState, tuple[str, ...]]:
    """Evaluates the moving averages on the validation split, writes its row and samples, and advances the regime."""
    config, epoch = run.config, run.epochs_done(step)
    shows = epoch <= 1 or epoch % config.sample_every_epochs == 0 or step == run.total_steps
    values, pictures = validated(run, state, frozen, range(config.evaluation.samples) if shows else ())
    records.metrics(step, "val", regime.phase, values)
    records.monitor.epoch_line(step, step / run.steps_per_epoch, config.epochs, values, records.health_line())
    if pictures:
        records.monitor.samples(step, [pictures[i] for i in sorted(pictures)])
    advanced, actions = regimes.advance(config, regime, step=step, epoch=epoch, values=values)
    if advanced.phase_index != regime.phase_index:
        log.info("step %d: phase %s ends, no better value for %d epochs", step, regime.phase, config.patience)
    return advanced, actions
