"""The training loop. At step S: train, metrics row, evaluate, regime, flush rows, checkpoint.

A checkpoint at S commits everything up to S; whatever lies beyond it on disk is dropped at the next start.
"""

import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections

from inpaint_jax import checkpoint, command_line, evaluate, regimes, run_folder, weights
from inpaint_jax import config as config_module
from inpaint_jax.data import pipeline
from inpaint_jax.monitor import Monitor
from inpaint_jax.run import Run, assemble, begin, check_config, generator_variables
from inpaint_jax.state import RegimeState, TrainState, create_state
from inpaint_jax.step import make_train_step

FINISHED, PREEMPTED = 0, 75

log = logging.getLogger("inpaint_jax")


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
    # Only now: a config that the checkpoint or the data refuse must not replace the one of the run.
    run_folder.write_text(run.workdir / run_folder.CONFIG, config_module.to_json(config))
    step = int(state.step)
    if step >= run.total_steps or regime.stopped:
        return True
    train_step = parallel.train(make_train_step(run.system, regime.phase))
    state, frozen = parallel.replicate(state), parallel.replicate({})
    batch = config.batch_size * config.accumulate
    waits = [0.0]
    batches = pipeline.train_batches(
        run.splits["train"], seed=config.seed, batch=batch, start_step=step, stop_step=run.total_steps,
        threads=config.data.reader_threads, crop=config.image_size if config.data.fit == "crop" else 0,
        masks=run.mask_files,
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
            # Read once: a signal between two looks would end the run without the save that it announces.
            preempted = preemption.requested
            last = step == run.total_steps or preempted is not None
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
            if preempted and step < run.total_steps:
                log.warning("%s: state of step %d saved; run the same command again", preempted, step)
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
            "config.optimizer.learning_rate or set config.optimizer.clip_norm, and start over with --restart "
            "or go on from the last checkpoint with --allow_config_changes"
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
        try:
            if not fit(run, checkpoints, preemption):
                return PREEMPTED
            if preemption.requested:
                log.warning("%s: trained to the end; run the same command again for the test", preemption.requested)
                return PREEMPTED
            finish(run, checkpoints)
        finally:
            checkpoints.close()
    return FINISHED


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
