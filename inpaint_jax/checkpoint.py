"""Checkpoints that survive a kill at any moment, with Orbax.

`last` holds the newest whole states and decides where a run goes on; `best` holds the generator that validated best.
They are two managers, because one with `best_fn` deletes the newest steps when scores fall.
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from inpaint_jax import full_disk, integrity
from inpaint_jax.state import RegimeState, TrainState

log = logging.getLogger("inpaint_jax")

LAST, BEST = "last", "best"
MARGIN = 1_000_000  # bytes of space beside the arrays of a checkpoint, for its other files
_NAMES = ocp.step.standard_name_format(step_prefix="step")
_NOTES = "_CHECKPOINT_METADATA"  # of Orbax
ASIDE = "set_aside"  # folder of checkpoints that are damaged, or newer than the state that a run goes on from


def _host_copy(tree: Any) -> Any:
    # A true copy: on CPUs np.asarray is a view of a buffer that the next step's donation overwrites while Orbax writes.
    return jax.tree.map(lambda x: np.array(x, copy=True), tree)


def _zeros(template: Any) -> Any:
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)


class Checkpoints:
    """The two checkpoint managers of a run folder.

    A checkpoint is restored exactly as it was saved, or not at all: hashes of every array lie beside it.

    On a full disk the last good checkpoint stays, a warning is logged, and the next save tries again. Whatever is left
    on the disk can be gone on from exactly: a state follows the best generator that it names, unless that is its own.

    Args:
        folder: `checkpoints/` of the run folder, made if missing.
        keep: so many of the newest states are kept.
    """

    def __init__(self, folder: Path, keep: int = 3):
        self._folder, self._aside, self._keep = folder, folder / ASIDE, keep
        full_disk.quiet_libraries()
        self._last, self._best = _open(folder / LAST, keep), _open(folder / BEST, keep)
        # The newest state that was to be saved: its step, and that of the best generator that it names.
        self._wanted: tuple[int, int] | None = None
        # The best generator and its step, until it is on the disk.
        self._best_waiting: tuple[int, Any] | None = None

    def latest_step(self) -> int | None:
        """Returns the step of the newest whole state, None without one."""
        return self._last.latest_step()

    def best_step(self) -> int | None:
        """Returns the step of the kept best generator, None without one."""
        return self._best.latest_step()

    def save(self, state: TrainState, run: dict[str, Any], rows_written: bool = True) -> None:
        """Saves an unreplicated state and the JSON beside it, if there is space; writing goes on in the background.

        An earlier best is safe before: from a state of a later step it could not be saved again.

        Args:
            rows_written: the rows up to this step are on the disk; else the state, which stands for them, is not saved.
        """
        step = int(state.step)
        self.wait()
        if self.missing():
            full_disk.remove_unfinished(self._folder / LAST)
            full_disk.remove_unfinished(self._folder / BEST)
        if step in self._last.all_steps():
            return
        self._wanted = step, _best_step(run)
        if not rows_written:
            log.warning(
                "the state of step %d is not saved: what was logged before it waits for space; %s",
                step, self._outlook(),
            )  # fmt: skip
            return
        if self._best_waiting and self._best_waiting[0] != _best_step(run):
            self._best_waiting = None  # there is a better one
        if self._best_waiting:
            self._write_best()
            self.wait()
        if not self._best_waiting and self._has_room("state", step, state):
            sealed = _sealed(step, _host_copy(state), run)
            self._last = self._surviving(self._last, lambda: self._last.save(step, args=sealed, force=True))

    def save_best(self, step: int, variables: Any) -> None:
        """Saves the generator's variables as the best, after the state of the same step is safe.

        In this order a kill between the two leaves the state, from which the best is saved again. Where that state
        could not be saved, the best waits in memory for the next.
        """
        self._best_waiting = step, _host_copy(variables)
        self.wait()
        if self._wanted is None or self._wanted[0] in self._last.all_steps():
            self._write_best()

    def _write_best(self) -> None:
        """Begins to write the best generator that waits, if there is space."""
        step, variables = self._best_waiting
        if self._has_room("best generator", step, variables):
            sealed = _sealed(step, variables, {})
            self._best = self._surviving(self._best, lambda: self._best.save(step, args=sealed, force=True))

    def _has_room(self, what: str, step: int, arrays: Any) -> bool:
        """Returns whether the disk has space for the arrays; else says so."""
        needed = round(1.1 * sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))) + MARGIN
        if (free := full_disk.free(self._folder)) >= needed:
            return True
        log.warning(
            "the disk of %s has %.1f MB free, and the %s of step %d needs %.1f MB: it is not saved; %s",
            self._folder, free / 1e6, what, step, needed / 1e6, self._outlook(),
        )  # fmt: skip
        return False

    def _outlook(self) -> str:
        latest = self.latest_step()
        last = "none has been saved yet" if latest is None else f"the last saved is the state of step {latest}"
        return f"{last}, and the next save tries again"

    def _surviving(self, manager: ocp.CheckpointManager, work: Callable[[], object]) -> ocp.CheckpointManager:
        """Does work of a manager and returns it, or, with a warning, a new one if the disk became full."""
        try:
            work()
        except Exception as error:
            if not full_disk.is_full(error):
                raise
        else:
            return manager
        try:
            # Raises once more: one that failed keeps errors for later calls, and is of no use any more.
            manager.close()
        except Exception as error:
            if not full_disk.is_full(error):
                raise
        full_disk.wait_for_writers()
        reopened = _open(Path(manager.directory), self._keep)
        log.warning(
            "the disk of %s became full while a checkpoint was written: its files are removed; %s", manager.directory,
            self._outlook(),
        )  # fmt: skip
        return reopened

    def restore(self, template: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Returns the newest state that is as it was saved, and its JSON; newer ones that are not are set aside.

        Args:
            template: a state of the same structure, arrays or shapes.

        Raises:
            ValueError: the checkpoint does not fit the networks, or none is as it was saved.
        """
        step, state, run = self._newest_good(self._last, template, "state")
        self._wanted = step, _best_step(run)
        # A kill while a newer state drives out the oldest leaves that one, or a part of it; after the end of a run no
        # save would remove it. Who kept more, when this state was saved, did not want them removed.
        kept = max(self._keep, run.get("config", {}).get("keep_checkpoints", 0))
        for old in sorted(self._last.all_steps())[:-kept]:
            self._last.delete(old)
        return state, run

    def _newest_good(self, manager: ocp.CheckpointManager, template: Any, what: str) -> tuple[int, Any, dict[str, Any]]:
        steps = sorted(manager.all_steps(), reverse=True)
        damaged: dict[int, str] = {}
        for step in steps:
            try:
                found = _read_twice(manager, step, template)
            except integrity.DamagedError as error:
                damaged[step] = str(error)
                continue
            except ValueError as error:
                raise ValueError(
                    f"the {what} of step {step} cannot be read into these networks ({error}): use the config it was "
                    "made with, or --restart"
                ) from error
            for bad, reason in damaged.items():
                self._set_aside(manager, bad, f"is damaged ({reason})")
            return step, *found
        reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
        raise ValueError(
            f"no checkpoint below {manager.directory} can be read ({reasons}): bring back a copy, or start over with "
            "--restart"
        )

    def _set_aside(self, manager: ocp.CheckpointManager, step: int, reason: str) -> None:
        """Moves a checkpoint to where it is neither used nor deleted."""
        folder = Path(manager.directory) / _NAMES.build_name(step)
        place = self._aside / f"{manager.directory.name}-{folder.name}"
        number = 1
        while place.exists():
            number += 1
            place = self._aside / f"{manager.directory.name}-{folder.name}-{number}"
        self._aside.mkdir(exist_ok=True)
        folder.rename(place)
        manager.reload()
        log.warning("the checkpoint of step %d %s and is set aside as %s", step, reason, place)

    def drop_best_after(self, step: int) -> None:
        """Sets a best generator aside that is of a later step than the state that the run goes on from."""
        for newer in [s for s in self._best.all_steps() if s > step]:
            self._set_aside(self._best, newer, f"is a best generator newer than the state of step {step}")

    def good_best_step(self, template: Any) -> int | None:
        """Returns the step of the best generator if it is as it was saved; else None, and it is set aside.

        Raises:
            ValueError: it does not fit the network.
        """
        damaged = {}
        for step in sorted(self._best.all_steps(), reverse=True):
            try:
                _read_twice(self._best, step, template)
                break  # an older one was about to go: a kill may have left a part of it, which is no damage
            except integrity.DamagedError as error:
                damaged[step] = str(error)
        for step, reason in damaged.items():
            self._set_aside(self._best, step, f"is damaged ({reason})")
        self.wait()
        return self.best_step()

    def restore_best(self, template: Any) -> tuple[int, Any]:
        """Returns the step and the variables of the best generator.

        Raises:
            ValueError: they are damaged, or do not fit the network.
        """
        return self._newest_good(self._best, template, "best generator")[:2]

    def wait(self) -> None:
        """Returns when everything is on the disk that fits; see `missing`."""
        self._last = self._surviving(self._last, self._last.wait_until_finished)
        self._best = self._surviving(self._best, self._best.wait_until_finished)
        bests = self._best.all_steps()
        if self._best_waiting and self._best_waiting[0] in bests:
            self._best_waiting = None
        # An older best goes when the state that names a newer one is safe, and that best too.
        if self._wanted and self._wanted[0] in self._last.all_steps() and self._wanted[1] in bests:
            for step in bests:
                if step < self._wanted[1]:
                    self._best.delete(step)

    def missing(self) -> str:
        """Returns what `wait` left unsaved for want of space, such as "the state of step 8", or ""."""
        if self._wanted and self._wanted[0] not in self._last.all_steps():
            return f"the state of step {self._wanted[0]}"
        return f"the best generator, of step {self._best_waiting[0]}," if self._best_waiting else ""

    def close(self) -> None:
        """Waits and closes both managers."""
        self.wait()
        self._last.close()
        self._best.close()


def _open(folder: Path, keep: int) -> ocp.CheckpointManager:
    """Returns a manager of the checkpoints below a folder, which is made."""
    full_disk.remove_unfinished(folder)
    _leave_out_damaged_times(folder)
    # Best generators are deleted by `Checkpoints.wait`.
    kept = keep if folder.name == LAST else None
    # Of several processes the first alone saves: states are the same in all of them.
    alone = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix=folder.name)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=kept, create=False, step_name_format=_NAMES, multiprocessing_options=alone
    )
    folder.mkdir(parents=True, exist_ok=True)  # Orbax does not make it for some of the processes
    return _Manager(folder.resolve(), options=options)


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        # The loop asks, once for each step. Orbax would ask again in a thread of its own, for a step that may lie
        # back, and the processes could agree on one that has passed.
        return False


def _leave_out_damaged_times(folder: Path) -> None:
    """Renames Orbax's notes on when a checkpoint was written where they are damaged, and says so.

    Orbax would open none of the checkpoints then, and what counts in the one concerned has hashes of its own.
    """
    for found in _NAMES.find_all(folder.resolve()) if folder.is_dir() else ():
        try:
            with _damage():
                str(found.commit_timestamp)
        except integrity.DamagedError as error:
            notes = Path(found.path) / _NOTES
            if not notes.exists():
                continue  # then Orbax takes the folder's own time
            notes.rename(notes.with_name(f"damaged{_NOTES}"))
            log.warning("%s is damaged (%s) and left out: it holds times alone", notes, error)


def _best_step(run: dict[str, Any]) -> int:
    """Returns the step of the best generator that the JSON beside a state names, 0 for none."""
    return run.get("regime", {}).get("best_step", 0)


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[ocp.CheckpointManager]:
    """Opens the states below `checkpoints/` without writing, removing or renaming: a run may be training there."""
    with _without_warnings():
        options = ocp.CheckpointManagerOptions(
            read_only=True, create=False, cleanup_tmp_directories=False, step_name_format=_NAMES
        )
        manager = ocp.CheckpointManager((folder / LAST).resolve(), options=options)
    with manager:
        yield manager


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keeps Orbax from warning that what is opened for reading will not be written."""
    orbax = logging.getLogger("absl")
    level = orbax.level
    orbax.setLevel(logging.ERROR)
    try:
        yield
    finally:
        orbax.setLevel(level)


def kept_steps(folder: Path) -> list[int]:
    """Returns the steps of the states that are kept below `checkpoints/`, ascending."""
    return sorted(found.step for found in _NAMES.find_all((folder / LAST).resolve()))


def read_state(folder: Path, step: int, template: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Returns a kept state and the JSON beside it, and leaves everything as it is.

    Raises:
        integrity.DamagedError: it is not as it was saved, or it went away while it was read.
        ValueError: it does not fit the networks.
    """
    with contextlib.ExitStack() as stack:
        with _damage():
            manager = stack.enter_context(_reading(folder))
        return _read(manager, step, template)


def read_record(folder: Path, step: int) -> tuple[dict[str, Any], str]:
    """Returns the JSON beside a kept state, and `integrity.tree_hash` of the state, which is not read itself.

    Raises:
        integrity.DamagedError: they are not as they were saved, or they went away.
    """
    with _damage(), _reading(folder) as manager:
        items = ocp.args.Composite(hashes=ocp.args.JsonRestore(), run=ocp.args.JsonRestore())
        found = manager.restore(step, args=items)
        integrity.check_seal(step, found["hashes"])
        integrity.check_record(found["hashes"], found["run"])
        return found["run"], integrity.sealed_hash(found["hashes"])


def _sealed(step: int, arrays: Any, record: dict[str, Any]) -> ocp.args.Composite:
    """Returns what is saved of arrays on the host, which must not change any more."""
    return ocp.args.Composite(
        state=ocp.args.StandardSave(arrays),
        run=ocp.args.JsonSave(record),
        hashes=ocp.args.JsonSave(integrity.seal(step, arrays, record)),
    )


def _read_twice(manager: ocp.CheckpointManager, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
    """Returns what `_read` does; damaged is only what fails twice though every file can be read to its end.

    Raises:
        ValueError: the disk does not let it be read: that may pass, and no training shall be lost for it.
    """
    try:
        return _read(manager, step, template)
    except integrity.DamagedError:
        folder = Path(manager.directory) / _NAMES.build_name(step)
        try:
            _read_files(folder)
        except OSError as error:
            raise ValueError(
                f"{folder} cannot be read ({error.strerror or error}): nothing was changed; mend that and run the same "
                "command again"
            ) from error
        return _read(manager, step, template)


def _read_files(folder: Path) -> None:
    """Reads every file below a folder; OSError where one cannot be read."""

    def refuse(error: OSError) -> None:
        raise error

    for root, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            with (Path(root) / name).open("rb") as file:
                while file.read(1 << 20):
                    pass


def _read(manager: ocp.CheckpointManager, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the arrays and the JSON of a checkpoint.

    Raises:
        integrity.DamagedError: it is not as it was saved.
        ValueError: it was saved of other networks.
    """
    with _damage():
        hashes = manager.restore(step, args=ocp.args.Composite(hashes=ocp.args.JsonRestore()))["hashes"]
        integrity.check_seal(step, hashes)
    integrity.check_fit(hashes, template)
    with _damage():
        items = ocp.args.Composite(state=ocp.args.StandardRestore(_zeros(template)), run=ocp.args.JsonRestore())
        restored = manager.restore(step, args=items)
        integrity.check_content(hashes, restored["state"], restored["run"])
    return restored["state"], restored["run"]


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Turns whatever the libraries raise on damaged files into DamagedError: they let dozens of kinds through."""
    try:
        yield
    except (integrity.DamagedError, MemoryError):
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise integrity.DamagedError(f"it cannot be read: {first[:200]}") from error


def run_record(
    regime: RegimeState, fingerprints: dict[str, str], epochs: int, config: dict[str, Any]
) -> dict[str, Any]:
    """Returns the JSON that a checkpoint holds beside the arrays: regime, what data and masks were, epochs wanted.

    Args:
        config: the whole config, plain values: of what the last steps up to the state were trained with.
    """
    return {"regime": regime.to_json(), "fingerprints": fingerprints, "epochs": epochs, "config": config}


def check_fingerprints(
    earlier: dict[str, str], now: dict[str, str], allow_changes: bool, mend: str = "restore them, use --restart"
) -> None:
    """Raises ValueError, or warns, if data or evaluation masks are not those that the run began with.

    Args:
        mend: what to do about it, beside --allow_config_changes.
    """
    changed = [name for name in now if earlier.get(name) != now[name]]
    if not changed:
        return
    message = (
        f"the {' and '.join(changed)} changed since this run began, so it cannot go on exactly "
        f"({json.dumps({n: [earlier.get(n), now[n]] for n in changed})})"
    )
    if not allow_changes:
        raise ValueError(f"{message}: {mend}, or --allow_config_changes to go on all the same")
    log.warning(message)
