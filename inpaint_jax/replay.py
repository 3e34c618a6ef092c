"""Any training step of a run again, bit by bit, with what went in and what came out.

Every random choice is keyed by step and slot, so that a state and a number of steps are all that it takes: the steps
after the nearest checkpoint are trained again by the trainer's own functions, phases and validations included.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from inpaint_jax import (
    checkpoint,
    course,
    environment,
    health,
    integrity,
    losses,
    regimes,
    replay_pictures,
    replay_run,
    run_folder,
)
from inpaint_jax import config as config_module
from inpaint_jax.data import pipeline
from inpaint_jax.records import metrics_row
from inpaint_jax.run import Run
from inpaint_jax.state import RegimeState, TrainState

log = logging.getLogger("inpaint_jax")

RESULT, ARRAYS = "replay.json", "batch.npz"


def replay(
    folder: Path, step: int, out: Path | None = None, *, from_start: bool = False, allow_changes: bool = False
) -> bool:
    """Trains one step of a run again and writes what went in and what came out; the run may be training meanwhile.

    Args:
        folder: the run folder, in which nothing but `replay/` is written.
        step: the step, counted from 1.
        out: folder to write, in place of an earlier replay; default `<folder>/replay/step_<step>`.
        from_start: begin with the state before the first step instead of a checkpoint.
        allow_changes: go on even though config or data differ from the run's.

    Returns:
        Whether the replay equals, bit by bit, all that the run recorded of the repeated steps.

    Raises:
        ValueError: one sentence on why the step cannot be replayed, and on which can.
    """
    stored = config_module.read_run(folder)
    out = out or folder / run_folder.REPLAY / f"step_{step:08d}"
    _check_out(out)
    recorded = replay_run.read_recorded(folder, step, from_start)
    replay_run.check_step(stored, recorded, step)
    config, said = replay_run.config_of(folder, stored, recorded.kept, step)
    with replay_run.assembled(config, folder) as run:
        if step > run.total_steps:
            raise ValueError(f"--step={step}: the run ends with step {run.total_steps}")
        if from_start:
            first, state, regime = replay_run.begin_from_start(run, folder, recorded.kept, allow_changes)
        else:
            first, state, regime = replay_run.begin(run, folder, recorded.kept, step, allow_changes, said)
        differences = replay_run.other_environment(folder)
        for line in differences:
            log.warning("not as when the run was started last, so that bits may differ: %s", line)
        run_folder.check_writable(out.parent, "--out")  # before what may take long
        result, arrays = _repeat(run, state, regime, recorded.rows, first, step)
    result["compared"]["checkpoint"] = _same_as_checkpoint(folder, recorded.kept, step, result["state_sha256"]["after"])
    result["health"] = {"verdict": health.diagnose(recorded.recent), **health.averages(recorded.recent)}
    result = {"run": str(folder.resolve()), "step": step, "from_checkpoint": first, **result}
    result |= {"config_hashes": config_module.hashes(config), "environment": environment.describe_environment()}
    result["environment_differences"] = differences
    _write(out, run, result, arrays)
    return _told(result["compared"], step, stored.log_every_steps, out)


def _check_out(out: Path) -> None:
    """Raises ValueError if the folder holds something else than a replay, which must not be replaced."""
    if out.exists() and not (out / RESULT).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"--out={out} holds something else than a replay: choose another folder")


def _repeat(
    run: Run, state: TrainState, regime: RegimeState, rows: Mapping[tuple[str, int], dict], first: int, step: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Trains the steps after `first` again, and returns what there is to tell of the last one, and its arrays."""
    log.info("from the state of step %d, %d steps to step %d", first, step - first, step)
    frozen, state = run.parallel.replicate(run.frozen), run.parallel.replicate(state)
    programs, tenth = {}, max(100, (step - first) // 10)
    compared = {"rows": 0, "equal_rows": 0, "row_of_the_step": None, "first_difference": None}
    for number, batch in enumerate(course.batches_after(run, first, step), first + 1):
        if regime.stopped:
            raise ValueError(f"--step={step}: the run ended at step {number - 1}, where its regime stopped it")
        if number == step:
            result, arrays = _before(run, state, frozen, regime, batch, step)
        if regime.phase not in programs:
            programs[regime.phase] = course.compiled_step(run, regime)
        state, scalars = programs[regime.phase](state, frozen, run.parallel.shard(batch))
        phase, validation, actions = regime.phase, None, ()
        if course.due(run, regime, number)[0]:
            validation, _ = course.validated(run, state, frozen)
            epoch = run.epochs_done(number)
            regime, actions = regimes.advance(run.config, regime, step=number, epoch=epoch, values=validation)
        state, regime = course.end_step(run, state, regime, actions, number)
        if number == step or ("train", number) in rows:
            scalars = {name: float(value) for name, value in run.parallel.unreplicate(scalars).items()}
            _compare(compared, rows, metrics_row(run, number, "train", phase, scalars), step)
        if validation:
            _compare(compared, rows, metrics_row(run, number, "val", phase, validation), step)
        if number % tenth == 0:
            log.info("step %d of %d", number, step)
    result |= {"metrics": _plain(scalars), "validation": _plain(validation or {}), "actions": list(actions)}
    result["guard"] |= {
        "update_left_out": scalars["guard/skipped"] > result["guard"]["before"]["skipped"],
        "surge": scalars["guard/surges"] > result["guard"]["before"]["surges"],
    }
    result["regime"]["after"] = regime.to_json()
    result["state_sha256"]["after"] = integrity.tree_hash(_on_host(run, state))
    return {**result, "compared": compared}, arrays


def _on_host(run: Run, state: TrainState) -> TrainState:
    return jax.device_get(run.parallel.unreplicate(state))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns numbers for JSON, None for those that are not finite."""
    return {name: value if math.isfinite(value := float(number)) else None for name, number in values.items()}


def _before(
    run: Run, state: TrainState, frozen: dict, regime: RegimeState, batch: dict[str, np.ndarray], step: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns what is known before a step: where the run stands, the hash of its state, the batch and its examples."""
    config, kind = run.config, regimes.kind(run.config, regime)
    look = run.parallel.evaluate(replay_pictures.make_look(run.system, kind))
    variables = {"params": state.params, "stats": state.stats, "frozen": frozen}
    looked = run.parallel.gather(look(variables, run.parallel.shard(batch)))
    values = looked.pop("values")
    here = _on_host(run, state)
    result = {
        "epoch": (step - 1) // run.steps_per_epoch + 1,
        "phase": regime.phase,
        "trains": kind,
        "frozen_groups": list(regimes.frozen_groups(config, regime)),
        "regime": {"before": regime.to_json()},
        "lr_scale": _plain(here.lr_scale),
        "guard": {"before": _plain(here.guard)},
        "state_sha256": {"before": integrity.tree_hash(here)},
        "batch_sha256": integrity.tree_hash(batch),
        "examples": _examples(run, batch["slot"], looked["mask"], values),
    }
    return result, {"source": batch["image"], "slot": batch["slot"], **looked}


def _examples(run: Run, slots: np.ndarray, masks: np.ndarray, values: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Returns for each example its slot, the picture that it was made of, its hole ratio and its losses."""
    config, source = run.config, run.splits["train"]
    pictures = pipeline.pictures_of(source, seed=config.seed, batch=len(slots), slots=slots)
    examples = [
        {"slot": int(slot), "picture": str(source.names[index]), "index": index}
        for slot, index in zip(slots, pictures, strict=True)
    ]
    if run.mask_files is not None:
        drawn = pipeline.mask_files_of(run.mask_files, seed=config.seed, slots=slots)
        for example, index in zip(examples, drawn, strict=True):
            example["mask_file"] = str(run.mask_files.names[index])
    loss = np.broadcast_to(losses.weighted_sum(config.losses, values), len(slots))
    for place, example in enumerate(examples):
        own = {"hole_ratio": masks[place].mean(), "loss": loss[place]}
        example |= _plain(own | {name: value[place] for name, value in values.items()})
    return examples


def _compare(compared: dict[str, Any], rows: Mapping[tuple[str, int], dict], row: dict, step: int) -> None:
    """Compares a row with the run's own, if it wrote one, value by value, and notes what comes of it."""
    stored = rows.get((row["split"], row["step"]))
    if stored is None:
        return
    # As text: 0.0 and -0.0 are equal numbers.
    fields = {
        name: {"run": stored.get(name), "replay": row.get(name)}
        for name in sorted(row.keys() | stored.keys())
        if name not in row or name not in stored or json.dumps(row[name]) != json.dumps(stored[name])
    }
    compared["rows"] += 1
    compared["equal_rows"] += not fields
    if fields and compared["first_difference"] is None:
        compared["first_difference"] = {"step": row["step"], "split": row["split"], "fields": fields}
    if row["step"] == step and row["split"] == "train":
        compared["row_of_the_step"] = not fields


def _same_as_checkpoint(folder: Path, kept: list[int], step: int, after: str) -> bool | None:
    """Returns whether the state after the step is the one that the run saved; None if it saved none, or lost it."""
    if step not in kept:
        return None
    try:
        return checkpoint.read_record(folder / run_folder.CHECKPOINTS, step)[1] == after
    except integrity.DamagedError as error:
        log.warning("the checkpoint of step %d cannot be compared with: %s", step, error)
        return None


def _write(out: Path, run: Run, result: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Writes pictures, arrays and figures to a temporary folder and renames it, in place of an earlier replay."""
    temporary, earlier = (out.with_name(f".{out.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        temporary.mkdir()
        columns = replay_pictures.pictures(run.config, arrays)
        names = [example["picture"] for example in result["examples"]]
        replay_pictures.write(temporary, columns, names, result["examples"])
        np.savez(temporary / ARRAYS, **arrays)
        run_folder.write_json(temporary / RESULT, result)
        if out.exists():
            out.rename(earlier)
        temporary.rename(out)
        shutil.rmtree(earlier, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _told(compared: dict[str, Any], step: int, log_every_steps: int, out: Path) -> bool:
    """Logs how the replay compares with what the run recorded, and returns whether all of it is equal."""
    log.info("the replay of step %d is in %s", step, out)
    if difference := compared["first_difference"]:
        fields = ", ".join(difference["fields"])
        log.warning(
            "it is not the run's: the %s row of step %d differs in %s; another machine or number of cores, other "
            "packages, code or XLA flags do that, and GPUs without config.deterministic",
            difference["split"], difference["step"], fields,
        )  # fmt: skip
        return False
    if compared["checkpoint"] is False:
        log.warning("it is not the run's: the state after step %d is not the one that the run saved", step)
        return False
    same = ["the run's row of this step"] if compared["row_of_the_step"] else []
    same += [f"other rows: {others}"] if (others := compared["rows"] - len(same)) else []
    same += ["the state that the run saved after it"] if compared["checkpoint"] else []
    if same:
        log.info("equal, bit by bit: %s", ", ".join(same))
    if not compared["row_of_the_step"]:
        log.info("the run wrote no row of this step (it writes one each %d steps)", log_every_steps)
    return True
