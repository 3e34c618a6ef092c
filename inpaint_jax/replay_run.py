"""What a replay begins with: recorded rows, the config of a step, the state before it. Nothing here writes."""

import dataclasses
import json
import logging
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import ml_collections

from inpaint_jax import checkpoint, environment, health, integrity, json_files, regimes, run_folder
from inpaint_jax import config as config_module
from inpaint_jax.run import Run, assemble, check_same, first_state
from inpaint_jax.state import RegimeState, TrainState, create_state

log = logging.getLogger("inpaint_jax")

_MEND = "restore them"


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What a run has written of its steps, as far as a replay asks for it.

    Attributes:
        kept: steps of the kept checkpoints, ascending.
        rows: rows of the steps that may be replayed, by (split, step).
        recent: the last training rows up to the wanted step, for the health of the networks.
        last: the last step of which there is a row or a checkpoint.
    """

    kept: list[int]
    rows: dict[tuple[str, int], dict]
    recent: list[dict]
    last: int


def read_recorded(folder: Path, step: int, from_start: bool) -> Recorded:
    """Returns what the run has recorded of the steps up to `step`.

    Raises:
        ValueError: no step has that number, or no checkpoint is kept of a step before.
    """
    if step < 1:
        raise ValueError(f"--step={step}: steps count from 1")
    kept = checkpoint.kept_steps(folder / run_folder.CHECKPOINTS)
    earlier = [0] if from_start else [number for number in kept if number < step]
    if not earlier:
        can = f"those of {_listed(kept)} are: steps from {kept[0] + 1} on can be replayed" if kept else "none is at all"
        raise ValueError(
            f"--step={step}: no checkpoint of an earlier step is kept ({can}); --from_start trains the {step - 1} "
            "steps before it again, and a larger config.keep_checkpoints keeps more in the next run"
        )
    rows, recent, last = {}, deque(maxlen=health.WINDOW), kept[-1] if kept else 0
    for row in run_folder.iterate_rows(folder / run_folder.METRICS):
        last = max(last, row["step"])
        if row["step"] <= step and row["split"] == "train":
            recent.append(row)
        if earlier[0] < row["step"] <= step:
            rows[row["split"], row["step"]] = row
    return Recorded(kept, rows, list(recent), last)


def _listed(steps: list[int]) -> str:
    few = steps if len(steps) <= 10 else [*steps[:5], "...", *steps[-4:]]
    return ", ".join(map(str, few))


def check_step(config: ml_collections.ConfigDict, recorded: Recorded, step: int) -> None:
    """Raises ValueError for a step that the run has not come to; between two rows nothing tells how far it came."""
    if step >= recorded.last + config.log_every_steps:
        raise ValueError(f"--step={step}: the run has come to step {recorded.last} and not further")


def _record(folder: Path, step: int) -> dict[str, Any] | None:
    """Returns the JSON of a kept checkpoint, None where it is damaged or has gone."""
    try:
        return checkpoint.read_record(folder / run_folder.CHECKPOINTS, step)[0]
    except integrity.DamagedError as error:
        log.warning("the checkpoint of step %d is left out: %s", step, error)
        return None


def _config_in(record: dict[str, Any]) -> ml_collections.ConfigDict | None:
    # Runs of older versions stored none.
    if "config" not in record:
        return None
    return config_module.on_base(config_module.from_json(json.dumps(record["config"])))


def config_of(
    folder: Path, stored: ml_collections.ConfigDict, kept: list[int], step: int
) -> tuple[ml_collections.ConfigDict, bool]:
    """Returns the config that a step was trained with, and whether a checkpoint says so.

    A run can go on with another config from a checkpoint alone: so the next checkpoint has it. After the last of them
    it is the one of the run folder, which also says where data lie.

    Args:
        stored: the config of the run folder.
        kept: steps of the kept checkpoints.
    """
    config, said = stored.copy_and_resolve_references(), False
    for number in (number for number in kept if number >= step):
        record = _record(folder, number)
        if record and (found := _config_in(record)):
            config_module.take_resumable(found, stored)
            config, said = found, True
            break
    config_module.validate(config)
    return config, said


@contextmanager
def assembled(config: ml_collections.ConfigDict, folder: Path) -> Iterator[Run]:
    """Gives what the run is made of, its lists of checked pictures and its masks read from copies."""
    with tempfile.TemporaryDirectory(prefix="inpaint_jax_replay_") as place:
        for room in (run_folder.DATA, run_folder.MASKS):
            copies = Path(place) / room
            copies.mkdir()
            for path in (folder / room).glob("[!.]*"):
                # Not what a trainer is about to rename.
                if path.suffix in (".json", ".npz"):
                    shutil.copyfile(path, copies / path.name)
        config = config.copy_and_resolve_references()
        config.wandb.project = ""  # whose package need not be there
        yield assemble(config, "replay", Path(place), trains=False)


def begin(
    run: Run, folder: Path, kept: list[int], step: int, allow_changes: bool, config_said: bool
) -> tuple[int, TrainState, RegimeState]:
    """Returns step, state and regime of the newest sound checkpoint before `step`, as the trainer would go on from it.

    Args:
        config_said: of `config_of`; if not, the checkpoint's config must not differ from the run's.

    Raises:
        ValueError: none can be read, or config, data or masks differ and `allow_changes` is not set.
    """
    template = jax.eval_shape(lambda: create_state(run.config, run.system.optimizers))
    for number in sorted((number for number in kept if number < step), reverse=True):
        try:
            state, record = checkpoint.read_state(folder / run_folder.CHECKPOINTS, number, template)
        except integrity.DamagedError as error:
            log.warning("the checkpoint of step %d is left out: %s", number, error)
            continue
        except ValueError as error:
            raise ValueError(
                f"the state of step {number} cannot be read into these networks ({error}): use the code and the config "
                "that the run was trained with"
            ) from error
        checkpoint.check_fingerprints(record["fingerprints"], run.fingerprints, allow_changes, _MEND)
        if not config_said and (earlier := _config_in(record)):
            refusal = (
                f"the config of the run is not the one that its checkpoint of step {number} was trained with: restore "
                "it, or use --allow_config_changes to take it all the same"
            )
            check_same(earlier, run.config, allow_changes, refusal)
        regime = regimes.resume(
            run.config, RegimeState.from_json(record["regime"]), step=number, steps_per_epoch=run.steps_per_epoch,
            more_epochs=run.config.epochs > record["epochs"],
        )  # fmt: skip
        return number, state, regime
    raise ValueError(
        f"--step={step}: no checkpoint of an earlier step can be read: --from_start trains the {step - 1} steps before "
        "it again"
    )


def begin_from_start(
    run: Run, folder: Path, kept: list[int], allow_changes: bool
) -> tuple[int, TrainState, RegimeState]:
    """Returns 0, the state before the first step and its regime; the data are compared with a checkpoint's, if any."""
    if kept and (record := _record(folder, kept[-1])):
        checkpoint.check_fingerprints(record["fingerprints"], run.fingerprints, allow_changes, _MEND)
    return 0, *first_state(run)


def other_environment(folder: Path) -> list[str]:
    """Returns in words what differs between the machine that the run was started on last and this one."""
    path = folder / run_folder.ENVIRONMENT
    if not path.is_file():
        return []
    now = environment.describe_environment()
    try:
        then = json_files.read(path)
        packages = dict(then.get("packages", {}))
        pairs = {name: (then.get(name), now[name]) for name in ("python", "platform", "devices")}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error}): remove it, the replay does not need it") from error
    pairs |= {name: (packages.get(name), version) for name, version in now["packages"].items()}
    return [f"{name}: {earlier} -> {today}" for name, (earlier, today) in pairs.items() if earlier != today]
