"""The training loop. At step S: train, metrics row, evaluate, regime, flush rows, checkpoint.

A checkpoint at S commits everything up to S; whatever lies beyond it on disk is dropped at the next start.
"""

import copy
import dataclasses
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import ml_collections

from inpaint_jax import (
    checkpoint,
    command_line,
    course,
    distributed,
    full_disk,
    object_store,
    regimes,
    remote_folder,
    run_folder,
    starts,
)
from inpaint_jax import config as config_module
from inpaint_jax.finish import finish
from inpaint_jax.preemption import Preemption
from inpaint_jax.records import Records
from inpaint_jax.run import Run, assemble, begin_together, check_config, generator_variables
from inpaint_jax.state import RegimeState, TrainState

FINISHED, PREEMPTED = 0, command_line.PREEMPTED

log = logging.getLogger("inpaint_jax")


def next_batch(batches: Iterator[dict], records: Records) -> dict:
    """Returns the next batch and counts the seconds spent waiting for it."""
    start = time.perf_counter()
    batch = next(batches)
    records.wait += time.perf_counter() - start
    return batch


def fit(
    run: Run,
    checkpoints: checkpoint.Checkpoints | None,
    preemption: Preemption,
    allow_changes: bool,
    start: starts.Start,
    url: str = "",
) -> bool:
    """Trains to the end of the run; returns False if preempted, with a state to go on from.

    Args:
        checkpoints: None in all processes but the first.
        start: is told how far this process comes.
        url: place on an object store where each checkpoint is put with the rest of the run folder; "" = nowhere.

    Raises:
        FloatingPointError: the divergence guard ends the run.
        ValueError: the disk is full and what the run has come to is not saved.
    """
    config, parallel = run.config, run.parallel
    state, regime = begin_together(run, checkpoints, allow_changes)
    step = int(state.step)
    start.goes_on_from(step)
    train_steps: dict[str, Callable] = {}  # by phase: each is compiled once
    kept = True  # what is saved lies at the URL too
    state, frozen = parallel.replicate(state), parallel.replicate(run.frozen)
    batches = course.batches_after(run, step, run.total_steps)
    records = Records(run, step)
    try:
        records.describe(step)
        if regime.stopped:
            log.info("step %d: the training had ended, by early stopping or with its last phase", step)
        else:
            log.info("training from step %d to %d; compiling first, which can take minutes", step, run.total_steps)
        first_step = step + 1
        while step < run.total_steps and not regime.stopped:
            phase = regime.phase
            if phase not in train_steps:
                train_steps[phase] = course.compiled_step(run, regime)
                if checkpoints:
                    # The phase's first state has been saved, and compiling can take longer than a machine waits.
                    checkpoints.wait()
                    preemption.nothing_to_save(kept and not checkpoints.missing())
            state, scalars = train_steps[phase](state, frozen, parallel.shard(next_batch(batches, records)))
            preemption.nothing_to_save(False)
            step += 1
            if step == first_step:
                records.first_step(step)
                start.first_step()
            # Read once: a signal between two looks would end the run without the save that it announces.
            preempted, actions = preemption.after(step), ()
            logs, (validates, saves) = step % config.log_every_steps == 0, course.due(run, regime, step)
            saves = saves or preempted is not None
            if logs or saves:
                values = {name: float(value) for name, value in parallel.unreplicate(scalars).items()}
                records.train(step, phase, values, logs)
            if validates:
                regime, actions = course.validate(run, state, frozen, regime, step, records)
            if logs or saves:
                records.times(step)
            start.reached(step)
            state, regime = course.end_step(run, state, regime, actions, step)
            if saves and checkpoints:
                with start.saving():
                    save(run, checkpoints, records, state, regime, actions)
                    kept = not url or send(run, checkpoints, url)
            if regime.stopped and regimes.STOP not in actions:
                log.info("step %d: the last phase has ended", step)
            if regimes.STOP in actions:
                log.info("early stopping at step %d: no better value for %d epochs", step, regime.waited_epochs)
            if preempted and step < run.total_steps:
                if checkpoints:
                    with start.saving():
                        say_where_to_go_on(checkpoints, step, preempted)
                return False
    finally:
        with start.saving():
            records.close()
            if checkpoints:
                checkpoints.wait()
    if checkpoints:
        check_saved(checkpoints, step)
    start.trained()
    return True


def check_saved(checkpoints: checkpoint.Checkpoints, step: int) -> None:
    """Raises ValueError if the disk is full and something of a training that has ended at `step` is not saved."""
    if missing := checkpoints.missing():
        raise ValueError(
            f"the disk is full: the training has ended at step {step}, and {missing} could not be saved: make space, "
            f"and run the same command again, which goes on {start_of_next(checkpoints)}"
        )


def send(run: Run, checkpoints: checkpoint.Checkpoints, url: str) -> bool:
    """Puts the run folder with the state just saved on the object store; returns whether it lies there."""
    checkpoints.wait()
    return remote_folder.keep_up(run.workdir, url)


def say_where_to_go_on(checkpoints: checkpoint.Checkpoints, step: int, preempted: str) -> None:
    """Logs the state that the same command goes on from after a signal.

    Raises:
        ValueError: the disk is full, and there is none.
    """
    checkpoints.wait()
    saved = checkpoints.latest_step()
    if saved == step:
        log.warning("%s: state of step %d saved; run the same command again", preempted, step)
        return
    words = f"{preempted}: the disk is full and the state of step {step} could not be saved: make space"
    if saved is None:
        raise ValueError(f"{words}, and run the same command again, which starts {start_of_next(checkpoints)}")
    log.warning("%s, and run the same command again, which goes on %s", words, start_of_next(checkpoints))


def start_of_next(checkpoints: checkpoint.Checkpoints) -> str:
    """Returns where the same command goes on, such as "from step 8"."""
    saved = checkpoints.latest_step()
    return "from the beginning" if saved is None else f"from step {saved}"


def save(
    run: Run,
    checkpoints: checkpoint.Checkpoints,
    records: Records,
    state: TrainState,
    regime: RegimeState,
    actions: tuple[str, ...],
) -> None:
    """Commits the rows up to the state's step, then saves the state, and the generator if it is the best."""
    # First, because what a save that failed has left goes then, and makes space for rows.
    checkpoints.wait()
    written = records.commit()
    host_state = jax.device_get(run.parallel.unreplicate(state))
    config = json.loads(config_module.to_json(run.config))
    record = checkpoint.run_record(regime, run.fingerprints, run.config.epochs, config)
    checkpoints.save(host_state, record, written)
    if regimes.SAVE_BEST in actions:
        checkpoints.save_best(int(host_state.step), generator_variables(host_state))


def run_training(
    config: ml_collections.ConfigDict,
    name: str,
    workdir: Path,
    restart: bool,
    allow_changes: bool,
    began: float | None = None,
    url: str = "",
) -> int:
    """Trains or goes on, then tests; returns the exit code, 0 finished or 75 preempted.

    Args:
        name: of the config, for the results, such as "unet_cosine:quick".
        url: where the run lies on an object store, "" = nowhere; `workdir` is this machine's folder for it then.
        restart: start over, removing what an earlier run left in the folder.
        allow_changes: go on even though config, data or masks differ in what decides numbers.
        began: seconds since the epoch at which the process began, for the ledger of starts; default now.

    Raises:
        ValueError: one sentence on what is wrong and how to mend it.
    """
    config_module.validate(config)
    with distributed.ending_together():
        if jax.process_index() > 0:
            return follow(config, name, workdir)
        return lead(config, name, workdir, restart, allow_changes, began, url)


def follow(config: ml_collections.ConfigDict, name: str, workdir: Path) -> int:
    """Trains as one of several processes, not the first; returns the exit code.

    What the first writes into the run folder, this one writes into a folder that goes at its end.

    It stays until the first has tested, or a restart of the first alone would wait for it in vain.
    """
    for handler in log.handlers:
        handler.setLevel(logging.WARNING)  # the first says what there is to say
    with tempfile.TemporaryDirectory() as scratch, Preemption() as preemption:
        own_folder = Path(scratch)
        # When the first has read all pictures, its list of checked ones spares this one the same.
        checked = json.loads(distributed.hear_long("assembled"))
        for part in (run_folder.DATA, run_folder.MASKS):
            if (workdir / part).is_dir():  # on a shared disk
                shutil.copytree(workdir / part, own_folder / part)
        for file, text in checked.items():
            run_folder.write_text(own_folder / run_folder.DATA / file, text)
        own = copy.deepcopy(config)
        own.wandb.project = ""
        run = dataclasses.replace(assemble(config, name, own_folder, trains=False), config=own)
        # The first keeps the ledger of starts: here nothing is written.
        finished = fit(run, None, preemption, False, starts.Start(own_folder))
        if finished:
            distributed.hear("tested")
        distributed.leave()
    return FINISHED if finished else PREEMPTED


def lead(
    config: ml_collections.ConfigDict,
    name: str,
    workdir: Path,
    restart: bool,
    allow_changes: bool,
    began: float | None,
    url: str,
) -> int:
    """Trains as the only process or the first of several, and tests; arguments and result are `run_training`'s."""
    with run_folder.lock(workdir), Preemption() as preemption, starts.Start(workdir, began) as start:
        preemption.leaving = lambda: start.end(starts.PREEMPTED)
        old = remote_folder.take_up(url, workdir, restart) if url else None
        run_folder.remove_unfinished(workdir)
        if not restart:
            check_config(config, workdir, allow_changes)
            if (workdir / run_folder.STARTS).exists():
                # Reading the data is part of what going on takes. A new run that the data refuse leaves nothing.
                start.begin()
        run = assemble(config, name, workdir)
        if jax.process_count() > 1:
            distributed.say_long("assembled", json.dumps(checked_pictures(config, workdir)))
        if restart:
            # Not before everything that can be wrong with the new run has been looked at.
            run_folder.remove_run(workdir)
            if url:
                remote_folder.replace(url, workdir, old)
        start.begin()
        command_line.log_to_file(workdir / run_folder.LOG)
        checkpoints = checkpoint.Checkpoints(workdir / run_folder.CHECKPOINTS, config.keep_checkpoints)
        try:
            if not fit(run, checkpoints, preemption, allow_changes, start, url):
                start.end(starts.PREEMPTED)
                if url:
                    remote_folder.keep_up(workdir, url)
                distributed.leave()
                return PREEMPTED
            if preemption.requested:
                log.warning("%s: trained to the end; run the same command again for the test", preemption.requested)
                start.end(starts.PREEMPTED)
            kept = not url or remote_folder.keep_up(workdir, url)
            if preemption.requested:
                return PREEMPTED
            preemption.nothing_to_save(kept)  # what the test writes, it can write again
            try:
                finish(run, checkpoints, start)
            except OSError as error:
                if not full_disk.is_full(error):
                    raise
                raise ValueError(
                    f"the disk is full ({error}): the training is saved, and the results of the test could not be "
                    "written: make space, and run the same command again, which goes on with the test"
                ) from error
            if url:
                remote_folder.keep_last(workdir, url)
            if jax.process_count() > 1:
                distributed.say("tested", "")
                distributed.leave()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ValueError(
                f"out of memory: lower config.batch_size ({config.batch_size}) and raise config.accumulate instead, or "
                f"for validation and test lower config.evaluation.batch_size ({config.evaluation.batch_size}) "
                f"({str(error).splitlines()[0]})"
            ) from error
        finally:
            checkpoints.close()
    return FINISHED


def checked_pictures(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, str]:
    """Returns the lists of checked pictures that other processes may rely on: of an object store, file name -> text.

    They are valid wherever the pictures are read from there, as those of a folder are on its own machine alone.
    """
    if not object_store.is_url(config.data.path):
        return {}
    return {path.name: path.read_text() for path in sorted((workdir / run_folder.DATA).glob("*.json"))}
