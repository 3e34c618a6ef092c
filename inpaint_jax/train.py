"""The training loop. At step S: train, metrics row, evaluate, regime, flush rows, checkpoint.

A checkpoint at S commits everything up to S; whatever lies beyond it on disk is dropped at the next start.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from inpaint_jax import checkpoint, command_line, evaluate, regimes, run_folder, weights
from inpaint_jax import config as config_module
from inpaint_jax import data as data_module
from inpaint_jax import masks as masks_module
from inpaint_jax.data import pipeline
from inpaint_jax.monitor import Monitor
from inpaint_jax.parallel import Parallel, check_divisible, make_parallel
from inpaint_jax.state import RegimeState, TrainState, create_state
from inpaint_jax.step import System, make_eval_step, make_system, make_train_step

FINISHED, PREEMPTED = 0, 75

log = logging.getLogger("inpaint_jax")


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything fixed in a run, assembled by `assemble`.

    Attributes:
        fingerprints: what data and validation masks are, to refuse going on with others.
        steps_per_epoch, total_steps: optimiser steps.
    """

    config: ml_collections.ConfigDict
    workdir: Path
    splits: data_module.Splits
    mask_files: Any
    val_masks: np.ndarray
    fingerprints: dict[str, str]
    steps_per_epoch: int
    total_steps: int
    parallel: Parallel
    system: System
    eval_step: Any

    def epochs_done(self, step: int) -> int:
        """Returns the whole epochs in `step` optimiser steps."""
        return step // self.steps_per_epoch


def assemble(config: ml_collections.ConfigDict, workdir: Path) -> Run:
    """Reads the data and builds the system; fails on anything wrong before the first step.

    Raises:
        ValueError: one sentence on what is wrong and how to mend it.
    """
    splits = data_module.load_splits(config.data, config.image_size, workdir / run_folder.DATA)
    batch = config.batch_size * config.accumulate
    steps_per_epoch = pipeline.steps_per_epoch(len(splits["train"]), batch)
    total_steps = config.epochs * steps_per_epoch
    if config.max_steps:
        total_steps = min(total_steps, config.max_steps)
    parallel = make_parallel(config.parallel)
    check_divisible(config.batch_size, parallel.count)
    mask_files = None
    if config.mask.name == "files":
        mask_files = data_module.load_mask_files(config.mask.path, config.image_size)
    else:
        masks_module.validate_mask_spec(evaluate.task.mask_spec(config), config.image_size)
    val_masks = evaluate.evaluation_masks(
        config, "val", evaluate.limited(len(splits["val"]), config.evaluation.val_limit), workdir / run_folder.MASKS
    )
    fingerprints = {f"{name} split": source.fingerprint for name, source in splits.items() if name != "test"}
    return Run(
        config=config,
        workdir=workdir,
        splits=splits,
        mask_files=mask_files,
        val_masks=val_masks.unpack(),
        fingerprints={**fingerprints, "validation masks": val_masks.id},
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        parallel=parallel,
        system=make_system(config, total_steps),
        eval_step=parallel.evaluate(make_eval_step(config)),
    )


def begin(run: Run, checkpoints: checkpoint.Checkpoints) -> tuple[TrainState, RegimeState]:
    """Returns the state to go on from: the newest checkpoint's, or a new one; drops rows beyond it."""
    config, workdir = run.config, run.workdir
    if checkpoints.latest_step() is None:
        state, regime = jax.jit(lambda: create_state(config, run.system.optimizers))(), regimes.first_regime(config)
        run_folder.truncate_rows(workdir / run_folder.METRICS, -1)
        return state, regime
    template = jax.eval_shape(lambda: create_state(config, run.system.optimizers))
    state, record = checkpoints.restore(template)
    checkpoint.check_fingerprints(record["fingerprints"], run.fingerprints)
    regime = RegimeState.from_json(record["regime"])
    step = int(state.step)
    rows = run_folder.truncate_rows(workdir / run_folder.METRICS, step)
    if regime.best_step == step and checkpoints.best_step() != step:
        checkpoints.save_best(step, generator_variables(state))
    log_earlier_run(run, step, regime, rows)
    return state, regime


def log_earlier_run(run: Run, step: int, regime: RegimeState, rows: list[dict]) -> None:
    """Logs what the run has done so far: steps, epochs, last and best numbers, wall time."""
    seconds = sum(row["seconds"] for row in run_folder.read_rows(run.workdir / run_folder.TIMING))
    log.info(
        "going on from step %d of %d (epoch %d of %d) after %.0f s of training in %s",
        step, run.total_steps, run.epochs_done(step), run.config.epochs, seconds, run.workdir,
    )  # fmt: skip
    for split in ("train", "val"):
        if last := next((row for row in reversed(rows) if row["split"] == split), None):
            numbers = "  ".join(f"{k} {v:.4g}" for k, v in last.items() if isinstance(v, float) and k != "epoch")
            log.info("last %s row, step %d: %s", split, last["step"], numbers)
    if regime.best is not None:
        log.info("best %s so far: %.4f at step %d", run.config.regime.monitor, regime.best, regime.best_step)


def generator_variables(state: TrainState) -> dict:
    """Returns the variables of the generator that is evaluated, exported and used: the moving averages."""
    return {"params": state.ema_params, "batch_stats": state.ema_stats}


def timed(batches: Iterator[dict], waits: list[float]) -> Iterator[dict]:
    """Passes batches through and adds the seconds spent waiting for each to `waits[0]`."""
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        waits[0] += time.perf_counter() - start
        if batch is None:
            return
        yield batch


def fit(run: Run, checkpoints: checkpoint.Checkpoints, preemption: checkpoint.Preemption) -> bool:
    """Trains to the end of the run; returns False if preempted, the state saved.

    Raises:
        FloatingPointError: a loss became non-finite; the last checkpoint is from before.
    """
    config, parallel = run.config, run.parallel
    state, regime = begin(run, checkpoints)
    step = int(state.step)
    if step >= run.total_steps or regime.stopped:
        return True
    train_step = parallel.train(make_train_step(run.system, regime.phase))
    state, frozen = parallel.replicate(state), parallel.replicate({})
    batch = config.batch_size * config.accumulate
    waits = [0.0]
    batches = pipeline.train_batches(
        run.splits["train"], seed=config.seed, batch=batch, start_step=step, stop_step=run.total_steps,
        threads=config.data.reader_threads, masks=run.mask_files,
    )  # fmt: skip
    monitor = Monitor(run.workdir, step, run.total_steps)
    rows = run_folder.RowFile(run.workdir / run_folder.METRICS)
    timing = run_folder.RowFile(run.workdir / run_folder.TIMING)
    mark, mark_step, logged_step = time.perf_counter(), step, step
    try:
        for data in timed(batches, waits):
            state, scalars = train_step(state, frozen, parallel.shard(data))
            step += 1
            epoch_ends = step % run.steps_per_epoch == 0
            epoch = run.epochs_done(step)
            last = step == run.total_steps or preemption.requested is not None
            validates = (epoch_ends and (epoch % config.eval_every_epochs == 0)) or step == run.total_steps
            saves = last or validates or step % config.checkpoint_every_steps == 0
            if step % config.log_every_steps == 0 or saves:
                values = {k: float(v) for k, v in parallel.unreplicate(scalars).items()}
                check_finite(values, logged_step, step)
                logged_step = step
            if step % config.log_every_steps == 0:
                rows.write([{"step": step, "epoch": step / run.steps_per_epoch, "split": "train", **values}])
                monitor.scalars(step, "train", values)
            if validates:
                regime = validate(run, state, regime, step, rows, monitor)
            if step % config.log_every_steps == 0 or saves:
                seconds = time.perf_counter() - mark
                pace = (step - mark_step) * batch / seconds
                timing.write([{"step": step, "seconds": seconds, "images_per_s": pace, "data_wait_s": waits[0]}])
                monitor.progress(step, epoch, config.epochs, pace)
                mark, mark_step, waits[0] = time.perf_counter(), step, 0.0
            if saves:
                rows.commit()
                timing.commit()
                host_state = jax.device_get(parallel.unreplicate(state))
                checkpoints.save(host_state, checkpoint.run_record(regime, run.fingerprints))
                if regime.best_step == step:
                    checkpoints.save_best(step, generator_variables(host_state))
            if regime.stopped:
                log.info("early stopping after epoch %d: no better value for %d epochs", epoch, regime.waited_epochs)
                break
            if preemption.requested and step < run.total_steps:
                log.warning("%s: state of step %d saved; run the same command again", preemption.requested, step)
                return False
    finally:
        for closable in (rows, timing, monitor):
            closable.close()
        checkpoints.wait()
    return True


def check_finite(values: dict[str, float], earlier: int, step: int) -> None:
    """Raises FloatingPointError with the step range if a value of this step is not finite."""
    bad = sorted(name for name, value in values.items() if not math.isfinite(value))
    if bad:
        raise FloatingPointError(
            f"{', '.join(bad)} became non-finite between steps {earlier + 1} and {step}: lower "
            "config.optimizer.learning_rate or set config.optimizer.clip_norm, and run the same command again"
        )


def validate(
    run: Run, state: TrainState, regime: RegimeState, step: int, rows: run_folder.RowFile, monitor: Monitor
) -> RegimeState:
    """Evaluates the moving averages on the validation split, writes its row and samples, and advances the regime."""
    config, epoch = run.config, run.epochs_done(step)
    shows = epoch in (0, 1) or epoch % config.sample_every_epochs == 0 or step == run.total_steps
    per_image, pictures = evaluate.evaluate(
        run.eval_step, run.parallel, generator_variables(state), run.splits["val"], run.val_masks,
        config.evaluation.batch_size, range(config.evaluation.samples) if shows else (),
    )  # fmt: skip
    values = evaluate.means(per_image)
    rows.write([{"step": step, "epoch": step / run.steps_per_epoch, "split": "val", **values}])
    monitor.scalars(step, "val", values)
    monitor.epoch_line(step, step / run.steps_per_epoch, config.epochs, values)
    if pictures:
        monitor.samples(step, [pictures[i] for i in sorted(pictures)])
    value = values[config.regime.monitor]
    regime, _ = regimes.advance(config, regime, step=step, epoch=epoch, value=value)
    return regime


def run_training(config: ml_collections.ConfigDict, workdir: Path, restart: bool, allow_changes: bool) -> int:
    """Trains or goes on, then tests; returns the exit code, 0 finished or 75 preempted.

    Args:
        restart: start over, removing what an earlier run left in the folder.
        allow_changes: go on even though the config differs in what decides numbers.

    Raises:
        ValueError: one sentence on what is wrong and how to mend it.
    """
    config_module.validate(config)
    lock = run_folder.prepare(workdir, restart)
    command_line.log_to_file(workdir / run_folder.LOG)
    with lock, checkpoint.Preemption() as preemption:
        check_config(config, workdir, allow_changes)
        run = assemble(config, workdir)
        checkpoints = checkpoint.Checkpoints(workdir / run_folder.CHECKPOINTS)
        run_folder.write_text(workdir / run_folder.CONFIG, config_module.to_json(config))
        try:
            if not fit(run, checkpoints, preemption):
                return PREEMPTED
            finish(run, checkpoints)
        finally:
            checkpoints.close()
    return FINISHED


def check_config(config: ml_collections.ConfigDict, workdir: Path, allow_changes: bool) -> None:
    """Raises ValueError if the folder holds a run whose config differs in what decides numbers."""
    stored = workdir / run_folder.CONFIG
    if not stored.exists():
        return
    differences = config_module.resume_differences(config_module.from_json(stored.read_text()), config)
    if differences and not allow_changes:
        lines = "".join(f"\n  {line}" for line in differences)
        raise ValueError(
            f"the run in {str(workdir)!r} began with another config; use --restart, another --workdir, "
            f"or --allow_config_changes to go on all the same:{lines}"
        )
    for line in differences:
        log.warning("config changed: %s", line)


def finish(run: Run, checkpoints: checkpoint.Checkpoints) -> None:
    """Exports the best generator, tests it beside the baselines, and writes `test/results.json`."""
    template = jax.eval_shape(lambda: generator_variables(create_state(run.config, {})))
    variables = checkpoints.restore_best(template)
    megabytes = weights.save_generator(run.workdir / run_folder.GENERATOR, variables, run.config)
    log.info("testing the generator of step %d", checkpoints.best_step())
    timing = run_folder.read_rows(run.workdir / run_folder.TIMING)
    seconds = sum(row["seconds"] for row in timing)
    steps = checkpoints.latest_step()
    tested = evaluate.test_phase(run.config, run.eval_step, run.parallel, variables, run.splits["test"], run.workdir)
    results = {
        "config": str(run.workdir.name),
        "hashes": config_module.hashes(run.config),
        **{name: tested.pop(name) for name in ("dataset", "images", "mask_set")},
        "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
        "model_megabytes": megabytes,
        **tested,
        "train": {
            "steps": steps,
            "best_step": checkpoints.best_step(),
            "epochs": steps / run.steps_per_epoch,
            "seconds": seconds,
            "images_per_second": steps * run.config.batch_size * run.config.accumulate / max(seconds, 1e-9),
            "data_wait_share": sum(row["data_wait_s"] for row in timing) / max(seconds, 1e-9),
        },
    }
    evaluate.write_results(run.workdir, results)
    evaluate.log_results(results)
    log.info("pictures and figures are in %s", run.workdir / run_folder.TEST)
