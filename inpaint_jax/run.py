"""What a run is made of: `assemble` reads the data and builds the system, `begin` finds where to go on."""

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from inpaint_jax import (
    checkpoint,
    distributed,
    evaluate,
    image_files,
    perceptual,
    pretrained,
    regimes,
    run_folder,
    task,
    wandb_writer,
)
from inpaint_jax import config as config_module
from inpaint_jax import data as data_module
from inpaint_jax.data import folder, pipeline
from inpaint_jax.data.source import ImageSource
from inpaint_jax.eval_step import make_eval_step
from inpaint_jax.parallel import Parallel, check_divisible, make_parallel
from inpaint_jax.state import RegimeState, TrainState, create_state
from inpaint_jax.step import System, make_system

log = logging.getLogger("inpaint_jax")

SPACE_MARGIN = 16_000_000  # bytes


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything fixed in a run, assembled by `assemble`.

    Attributes:
        fingerprints: what data, validation masks and pretrained weights are, to refuse going on with others.
        frozen: the pretrained weights, on the host.
        steps_per_epoch, total_steps: optimiser steps.
    """

    config: ml_collections.ConfigDict
    name: str
    workdir: Path
    splits: data_module.Splits
    mask_files: Any
    val_images: ImageSource
    val_masks: np.ndarray
    fingerprints: dict[str, str]
    steps_per_epoch: int
    total_steps: int
    frozen: dict
    parallel: Parallel
    system: System
    eval_step: Any

    def epochs_done(self, step: int) -> int:
        """Returns the whole epochs in `step` optimiser steps."""
        return step // self.steps_per_epoch

    def due(self, step: int) -> tuple[bool, bool]:
        """Returns whether validation and whether a checkpoint is due after `step`; the first epoch is always shown."""
        epoch_ends, epoch = step % self.steps_per_epoch == 0, self.epochs_done(step)
        ends = step == self.total_steps
        validates = ends or (epoch_ends and (epoch == 1 or epoch % self.config.eval_every_epochs == 0))
        return validates, validates or step % self.config.checkpoint_every_steps == 0


def assemble(config: ml_collections.ConfigDict, name: str, workdir: Path, trains: bool = True) -> Run:
    """Reads the data and builds the system; fails on anything wrong before the first step.

    Args:
        workdir: the run folder; what was found in the data, and masks, are stored in it.
        trains: False: no run will be written there, so that its disk need not hold one.

    Raises:
        ValueError: one sentence on what is wrong and how to mend it.
    """
    parallel = make_parallel(config.parallel)
    # All that needs no data first: a mistake in the config shows at once, and nothing is written before.
    _check_config_alone(config, parallel, workdir if trains else None)
    frozen = perceptual.load_frozen(config)
    splits = data_module.load_splits(config.data, config.image_size, workdir / run_folder.DATA)
    steps_per_epoch, total_steps = _count_steps(config, len(splits["train"]))
    _warn_of_what_may_surprise(config, regimes.planned_steps(config, steps_per_epoch), total_steps)
    mask_files = None
    if config.mask.name == "files":
        mask_files = read_mask_files(config)
    val_images = splits["val"].chosen(config.evaluation.val_limit)
    val_masks = evaluate.evaluation_masks(config, "val", len(val_images), workdir / run_folder.MASKS)
    fingerprints = {f"{name} split": source.fingerprint for name, source in splits.items() if name != "test"}
    fingerprints["validation masks"] = val_masks.id
    fingerprints |= {f"pretrained weights {name}": pretrained.fingerprint(tree) for name, tree in frozen.items()}
    if mask_files is not None:
        fingerprints["mask files"] = mask_files.fingerprint
    return Run(
        config=config,
        name=name,
        workdir=workdir,
        splits=splits,
        mask_files=mask_files,
        val_images=val_images,
        val_masks=val_masks.unpack(),
        fingerprints=fingerprints,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        frozen=frozen,
        parallel=parallel,
        system=make_system(config, total_steps),
        eval_step=parallel.evaluate(make_eval_step(config)),
    )


def _check_config_alone(config: ml_collections.ConfigDict, parallel: Parallel, workdir: Path | None) -> None:
    """Raises ValueError for what can be known before the data is read: names, masks, devices, packages, disk space."""
    regimes.first_regime(config)
    check_divisible(config.batch_size, parallel.count)
    task.validate_mask(config)
    if config.wandb.project:
        wandb_writer.library(config)
    system = make_system(config, total_steps=1)
    regimes.check_groups(config, system.optimizers)
    if workdir is not None:
        state = jax.eval_shape(lambda: create_state(config, system.optimizers))
        run_folder.check_space(workdir, needed_bytes(config, state))


def _warn_of_what_may_surprise(config: ml_collections.ConfigDict, planned: int, total_steps: int) -> None:
    if config.vgg.weights == "random" and "vgg16" in perceptual.needed_weights(config):
        log.warning('VGG16 has random weights, as config.vgg.weights says: for ImageNet\'s, "imagenet"')
    if planned > total_steps and not config.max_steps:
        log.warning(
            "the phases may take %d steps, and the run ends after %d: raise config.epochs", planned, total_steps
        )
    elif planned and planned < total_steps and regimes.ends_by_itself(config):
        log.warning(
            "the phases end the run after at most %d of its %d steps: for more, raise their runs or lengths anew",
            planned, total_steps,
        )  # fmt: skip
    if config.batch_size == 1:
        for network in ("generator", "discriminator"):
            if config[network].normalisation == "batch" and config[network].name != "none":
                log.warning(
                    "config.%s.normalisation = 'batch' with batches of 1: the test's running averages differ from what "
                    "training sees; 'instance' does the same in both", network,
                )  # fmt: skip


def read_mask_files(config: ml_collections.ConfigDict) -> ImageSource:
    """Returns the pictures of `config.mask.path`, each of them read once."""
    try:
        files = data_module.load_mask_files(config.mask.path, config.image_size)
    except OSError as error:
        raise ValueError(
            f"a file below config.mask.path, {error.filename!r}, cannot be read ({error.strerror}): mend or remove it"
        ) from error
    folder.check_masks(files)
    return files


def _count_steps(config: ml_collections.ConfigDict, pictures: int) -> tuple[int, int]:
    """Returns the optimiser steps of an epoch and of the run."""
    batch = config.batch_size * config.accumulate
    steps_per_epoch = pipeline.steps_per_epoch(pictures, batch)
    total_steps = config.epochs * steps_per_epoch
    if config.max_steps:
        total_steps = min(total_steps, config.max_steps)
    if total_steps * batch >= 2**31:
        # Slots, which key every random choice, are 32-bit integers on the devices.
        raise ValueError(
            f"config.epochs = {config.epochs}: {total_steps} steps of {batch} pictures are over the 2^31 examples that "
            "a run can tell apart: lower config.epochs, or set config.max_steps"
        )
    return steps_per_epoch, total_steps


def needed_bytes(config: ml_collections.ConfigDict, state: TrainState) -> int:
    """Returns the space that a run takes on the disk at its fullest, rather too much than too little.

    The kept checkpoints and the one that is written before the oldest goes; the best generator and the exported one,
    each with its successor beside it; the first fifty sample grids, as files and again in TensorBoard, and the
    pictures of the test, uncompressed; and a margin for logs, stored masks and the list of checked pictures.

    Args:
        state: of the run, arrays or shapes.
    """

    def size(tree: Any) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    columns, samples, side = 4, config.evaluation.samples, config.image_size
    # Grids enlarge small pictures; see image_files.picture_grid.
    shown = side * -(-image_files.GRID_SMALLEST_CELL // side)
    grids = min(config.epochs // config.sample_every_epochs + 2, 50)
    pictures = 3 * samples * columns * (2 * grids * shown**2 + 4 * side**2)
    return (config.keep_checkpoints + 1) * size(state) + 4 * size(generator_variables(state)) + pictures + SPACE_MARGIN


def first_state(run: Run) -> tuple[TrainState, RegimeState]:
    """Returns the state and the regime before the first step."""
    create = jax.jit(
        lambda frozen: create_state(run.config, run.system.optimizers, frozen), compiler_options=_quickly_compiled()
    )
    return create(run.frozen), regimes.first_regime(run.config)


def _quickly_compiled() -> dict[str, int]:
    """Returns XLA's options for a program that runs once: on CPUs random numbers take long to compile.

    The flagship's first state takes 6 s instead of 23 on one core, and has the same bits.
    """
    chosen = "xla_backend_optimization_level"
    on_cpu = jax.default_backend() == "cpu"
    return {chosen: 1} if on_cpu and chosen not in os.environ.get("XLA_FLAGS", "") else {}


def begin(run: Run, checkpoints: checkpoint.Checkpoints, allow_changes: bool) -> tuple[TrainState, RegimeState]:
    """Returns the state to go on from: the newest checkpoint's, or a new one; drops what lies beyond it.

    Raises:
        ValueError: the checkpoint does not fit, or data or masks changed and `allow_changes` is not set.
    """
    config, workdir = run.config, run.workdir
    if checkpoints.latest_step() is None:
        state, regime = first_state(run)
        run_folder.truncate_rows(workdir / run_folder.METRICS, -1)
        checkpoints.drop_best_after(-1)
        return state, regime
    template = jax.eval_shape(lambda: create_state(config, run.system.optimizers))
    state, record = checkpoints.restore(template)
    checkpoint.check_fingerprints(record["fingerprints"], run.fingerprints, allow_changes)
    step = int(state.step)
    regime = RegimeState.from_json(record["regime"])
    regime = regimes.resume(
        config, regime, step=step, steps_per_epoch=run.steps_per_epoch, more_epochs=config.epochs > record["epochs"]
    )
    checkpoints.drop_best_after(step)
    last = run_folder.truncate_rows(workdir / run_folder.METRICS, step)
    best = checkpoints.good_best_step(generator_variables(template))
    if regime.best_step == step and best != step:
        checkpoints.save_best(step, generator_variables(state))
    elif regime.best_step and best != regime.best_step:
        log.warning(
            "the best generator, of step %d, is not there any more: the best from here on is kept", regime.best_step
        )
        regime = dataclasses.replace(regime, best=None, best_step=0)
    log_earlier_run(run, step, regime, last)
    return state, regime


def begin_together(
    run: Run, checkpoints: checkpoint.Checkpoints | None, allow_changes: bool
) -> tuple[TrainState, RegimeState]:
    """Returns in every process what `begin` returns in the first.

    Args:
        checkpoints: None in all processes but the first.

    Raises:
        ValueError: as `begin`, or another process has other data, masks or another config than the first.
    """
    if jax.process_count() == 1:
        return begin(run, checkpoints, allow_changes)
    # Only what decides numbers: paths may differ from machine to machine.
    known = {**run.fingerprints, "config": config_module.hashes(run.config)["resume"], "length": run.total_steps}
    known |= {"config.parallel": run.config.parallel, "number of devices": jax.local_device_count()}
    if checkpoints:
        state, regime = begin(run, checkpoints, allow_changes)
        distributed.say("beginning", json.dumps({**known, "regime": regime.to_json()}))
        for process in range(1, jax.process_count()):
            distributed.hear(f"agreed/{process}")
    else:
        told = json.loads(distributed.hear("beginning"))
        differing = [name for name in known if told.get(name) != known[name]]
        if differing:
            raise ValueError(
                f"process {jax.process_index()} has another {' and '.join(differing)} than process 0: give all of them "
                "the same command and the same data"
            )
        distributed.say(f"agreed/{jax.process_index()}", "")
        shapes = jax.eval_shape(lambda: create_state(run.config, run.system.optimizers))
        state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        regime = RegimeState.from_json(told["regime"])
    return distributed.share_arrays(jax.device_get(state)), regime


def log_earlier_run(run: Run, step: int, regime: RegimeState, last: dict[str, dict]) -> None:
    """Logs what the run has done so far: steps, epochs, last and best numbers, wall time."""
    seconds = sum(row["seconds"] for row in run_folder.read_rows(run.workdir / run_folder.TIMING))
    log.info(
        "going on from step %d of %d (epoch %d of %d) after %.0f s of training in %s",
        step, run.total_steps, run.epochs_done(step), run.config.epochs, seconds, run.workdir,
    )  # fmt: skip
    for split in ("train", "val"):
        if row := last.get(split):
            # The others are many, and stand in the row.
            shown = [name for name in row if name in ("loss/generator", "loss/discriminator") or name.endswith("_hole")]
            numbers = "  ".join(f"{name} {row[name]:.4g}" for name in shown if isinstance(row[name], int | float))
            log.info("last %s row, step %d: %s", split, row["step"], numbers)
    if regime.best is not None:
        log.info("best %s so far: %.4f at step %d", run.config.regime.monitor, regime.best, regime.best_step)


def generator_variables(state: TrainState) -> dict:
    """Returns the variables of the generator that is evaluated, exported and used: the moving averages."""
    return {"params": state.ema_params, "batch_stats": state.ema_stats}


def validated_variables(state: TrainState) -> dict:
    """Returns what validation looks at: the averaged generator, and the discriminator as it is, for its losses."""
    variables = generator_variables(state)
    if "discriminator" in state.params:
        judge = {"params": state.params["discriminator"], "batch_stats": state.stats["discriminator"]}
        variables["discriminator"] = judge
    return variables


def check_config(config: ml_collections.ConfigDict, workdir: Path, allow_changes: bool) -> None:
    """Raises ValueError if the folder holds a run whose config differs in what decides numbers."""
    stored = workdir / run_folder.CONFIG
    if not stored.exists():
        return
    refusal = (
        f"the run in {str(workdir)!r} began with another config; use --restart, another --workdir, "
        "or --allow_config_changes to go on all the same"
    )
    check_same(config_module.read_stored(stored), config, allow_changes, refusal)


def check_same(
    earlier: ml_collections.ConfigDict, config: ml_collections.ConfigDict, allow_changes: bool, refusal: str
) -> None:
    """Logs what differs of two configs and decides numbers; ValueError with `refusal` and a list if it may not."""
    differences = config_module.resume_differences(earlier, config)
    if differences and not allow_changes:
        raise ValueError(refusal + ":" + "".join(f"\n  {line}" for line in differences))
    for line in differences:
        log.warning("config changed: %s", line)
