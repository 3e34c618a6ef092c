"""An experiment: configs x variations x seeds, one run folder each, one after the other.

Every run is the training command itself in a process of its own, which goes on where it was stopped, refuses a changed
config and tests. Here is only what lies around it: which runs there are, which are finished, and what became of each.
"""

import logging
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from inpaint_jax import config as config_module
from inpaint_jax import json_files, results_file, run_folder
from inpaint_jax.experiment_plan import PlannedRun

log = logging.getLogger("inpaint_jax")

RECORD, OUTPUT = "experiment.json", "experiment.log"
WAITING, RUNNING, FINISHED, FAILED, INTERRUPTED = "waiting", "running", "finished", "failed", "interrupted"
# Exit codes of this command and of the training command.
DONE, ERROR, PREEMPTED, SECOND_INTERRUPT = 0, 1, 75, 130
ERROR_LINES = 12  # of a failed run's message


def read_results(folder: Path) -> dict[str, Any] | None:
    """Returns `test/results.json` of a run folder if it belongs to the folder's config; None for an unfinished run."""
    try:
        results = results_file.read(folder / run_folder.TEST / "results.json")
        asked = config_module.hashes(config_module.from_json((folder / run_folder.CONFIG).read_bytes()))["config"]
        # After more epochs were begun, the results of the fewer ones still lie there.
        return results if results.get("hashes", {}).get("config") == asked else None
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"the run folder {str(folder)!r} holds damaged JSON ({error}): restore or remove it"
        ) from error


def is_finished(run: PlannedRun) -> bool:
    """Returns whether the run's results are there and are those of exactly the config that is asked for.

    For any difference the answer is no, and the training command decides: it trains further, tests again, or refuses.
    """
    try:
        results = read_results(run.folder)
    except ValueError as error:
        log.warning("%s", error)
        return False
    return results is not None and results["hashes"]["config"] == config_module.hashes(run.config)["config"]


class Stop:
    """Passes Ctrl-C, SIGTERM and the closing of the terminal on to the running child, which then saves its state."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._child: subprocess.Popen | None = None
        self._pending: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores the closing of the terminal
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        passed_on = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
        if self._child is None:
            self._pending = passed_on
        else:
            self._child.send_signal(passed_on)

    def wait(self, child: subprocess.Popen) -> int:
        """Waits for a child and returns its exit code, minus the signal's number if one ended it."""
        self._child = child
        if self._pending is not None:  # it came while the child was being started
            child.send_signal(self._pending)
        try:
            return child.wait()
        finally:
            self._child = None

    def exit_code(self) -> int:
        """Returns 130 after a second Ctrl-C, else 75."""
        return SECOND_INTERRUPT if self.received.count(signal.SIGINT) > 1 else PREEMPTED


def run_command(run: PlannedRun, stop: Stop) -> tuple[str, str]:
    """Runs a training command to its end, its output in the run folder's experiment.log.

    Returns:
        The state, finished, interrupted or failed, and for a failed run the error that it ended with.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    path = run.folder / OUTPUT
    with path.open("ab") as output:
        begin = output.tell()
        # Outside the terminal's foreground group: Ctrl-C would reach the child twice, there and through us.
        child = subprocess.Popen(
            run.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, process_group=0
        )
        code = stop.wait(child)
    with path.open("rb") as output:
        output.seek(begin)
        text = output.read().decode(errors="replace")
    return state_of_exit(code, bool(stop.received)), error_of(text) if code else ""


def state_of_exit(code: int, stopping: bool) -> str:
    """Returns what a training command's exit code means; `stopping`: whether it had been told to stop."""
    if code == DONE:
        return FINISHED
    if code in (PREEMPTED, SECOND_INTERRUPT) or code < 0 or stopping:
        return INTERRUPTED
    return FAILED


def error_of(output: str) -> str:
    """Returns the last error of a command's output with the lines that belong to it, or else its last line."""
    lines = output.rstrip().splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    chosen = lines[starts[-1] :] if starts else lines[-1:]
    if len(chosen) > ERROR_LINES:
        chosen = [*chosen[:ERROR_LINES], f"  ... and {len(chosen) - ERROR_LINES} more lines"]
    return "\n".join(chosen)


def result_text(run: PlannedRun) -> str:
    """Returns the figure that the run watches, from its test, such as "angular_error_deg_hole 5.827".

    A loss that needs a discriminator is no figure of the test: then the first metric stands for it.
    """
    results, monitor = read_results(run.folder) or {}, run.config.regime.monitor
    tested = {**results.get("metrics", {}), **results.get("losses", {})}
    name = monitor if monitor in tested else next(iter(tested), "")
    return "" if tested.get(name) is None else f"{name} {tested[name]:.4g}"


class Record:
    """The state of every run, in `experiment.json`: written anew at each change, with the runs of earlier commands.

    Args:
        root: the experiment's folder.
        runs: those of this command.
    """

    def __init__(self, root: Path, runs: Sequence[PlannedRun]):
        self._path = root / RECORD
        try:
            self.rows: dict[str, dict] = json_files.read(self._path)["runs"] if self._path.exists() else {}
            for row in self.rows.values():
                if row["state"] == RUNNING:  # of a command that was killed
                    row["state"] = INTERRUPTED
                row["seconds"] = float(row["seconds"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{str(self._path)!r} is damaged ({error}): remove it, no run is lost") from error
        for run in runs:
            earlier = self.rows.get(run.name, {})
            row = {"state": WAITING, "command": shlex.join(run.command), "seconds": earlier.get("seconds", 0.0)}
            self.rows[run.name] = {**row, "result": "", "error": ""}
        self._write()

    def set(self, run: PlannedRun, state: str, seconds: float = 0.0, result: str = "", error: str = "") -> None:
        """Notes a run's state; `seconds` are added to those of earlier commands."""
        row = self.rows[run.name]
        row.update(state=state, seconds=round(row["seconds"] + seconds, 1), result=result, error=error)
        self._write()

    def _write(self) -> None:
        run_folder.write_json(self._path, {"runs": self.rows})


def run_all(runs: Sequence[PlannedRun], root: Path) -> int:
    """Runs what is not finished, one after the other, and returns the exit code.

    Returns:
        0 all finished; 1 a run failed; 75 a run was interrupted, or the experiment was stopped; 130 by a second Ctrl-C.

    Raises:
        ValueError: another experiment works in the root.
    """
    with lock(root), Stop() as stop:
        record = Record(root, runs)
        for number, run in enumerate(runs, 1):
            if stop.received:
                break
            label = f"{number} of {len(runs)}  {run.name}"
            if is_finished(run):
                record.set(run, FINISHED, result=result_text(run))
                log.info("%s: already finished, %s", label, record.rows[run.name]["result"])
                continue
            record.set(run, RUNNING)
            log.info("%s: running, output in %s", label, run.folder / OUTPUT)
            start = time.monotonic()
            state, error = run_command(run, stop)
            seconds = time.monotonic() - start
            result = result_text(run) if state == FINISHED else ""
            record.set(run, state, seconds, result, error if state == FAILED else "")
            log.info("%s: %s after %.0f s%s", label, state, seconds, f", {result}" if result else "")
            if state == FAILED:
                log.error("%s", error or f"nothing was written, see {run.folder / OUTPUT}")
        rows = {run.name: record.rows[run.name] for run in runs}
        print(table(rows))
    return exit_code([row["state"] for row in rows.values()], stop)


def lock(root: Path) -> run_folder.Lock:
    """Makes the experiment's folder and takes its lock, as a run does with its own folder.

    Raises:
        ValueError: another experiment works there, or the folder cannot be written.
    """
    try:
        return run_folder.lock(root)
    except ValueError as error:
        raise ValueError(str(error).replace("run folder", "folder").replace("--workdir", "--root")) from error


def exit_code(states: Sequence[str], stop: Stop) -> int:
    """Returns the experiment's exit code for the states of its runs."""
    if all(state == FINISHED for state in states):
        return DONE
    if stop.received:
        return stop.exit_code()
    return ERROR if FAILED in states else PREEMPTED


def table(rows: dict[str, dict]) -> str:
    """Returns the runs as lines of text: name, state, time and result, and the errors of failed ones below."""
    width = max(map(len, rows))
    lines = [f"{'run':<{width}}  {'state':<11}  {'seconds':>7}  result"]
    for name, row in rows.items():
        lines.append(f"{name:<{width}}  {row['state']:<11}  {row['seconds']:>7.0f}  {row['result']}".rstrip())
    for name, row in rows.items():
        if row["error"]:
            lines.append(f"\n{name} failed:\n{row['error']}")
    if any(row["state"] != FINISHED for row in rows.values()):
        count = sum(row["state"] == FINISHED for row in rows.values())
        lines.append(f"\n{count} of {len(rows)} runs are finished; the same command again takes up the others")
    return "\n".join(lines)
