"""What a run writes while it trains: description, metrics rows, timing rows, and what `Monitor` shows of them."""

import collections
import contextlib
import logging
import math
import time
from collections.abc import Mapping

from inpaint_jax import config as config_module
from inpaint_jax import describe, environment, guard, health, image_files, run_folder
from inpaint_jax.monitor import Monitor
from inpaint_jax.run import Run

log = logging.getLogger("inpaint_jax")


def metrics_row(run: Run, step: int, split: str, phase: str, values: Mapping[str, float]) -> dict:
    """Returns a row of `metrics.jsonl`: the values of this very step; what is not finite becomes null."""
    written = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return {"step": step, "epoch": step / run.steps_per_epoch, "split": split, "phase": phase, **written}


class Records:
    """What a run writes while it trains: metrics rows, timing rows, TensorBoard and the progress bar.

    Rows of metrics hold what is a function of the run alone; times go to the timing rows.
    """

    def __init__(self, run: Run, step: int):
        self.wait = 0.0  # seconds spent waiting for data since the last timing row
        self._run = run
        self._rows = run_folder.RowFile(run.workdir / run_folder.METRICS)
        self._timing = run_folder.RowFile(run.workdir / run_folder.TIMING)
        self._mark, self._mark_step = time.perf_counter(), step
        # From the file, so that a verdict on the last rows does not depend on restarts.
        written = run_folder.iterate_rows(run.workdir / run_folder.METRICS)
        self._recent = collections.deque((row for row in written if row["split"] == "train"), health.WINDOW)
        # The verdict that was warned of, and the rows without one since.
        self._told, self._quiet = health.diagnose(self._recent), 0
        self._waits = False  # something waits for space
        # Where the divergence guard was looked at last.
        self._watched = self._recent[-1] if self._recent else {}
        # Last: what was wrong before has no progress bar to stop.
        self.monitor = Monitor(run.config, run.workdir, step, run.total_steps)

    def metrics(self, step: int, split: str, phase: str, values: dict[str, float]) -> None:
        """Writes one row and its scalars; a value that is not finite becomes null, which JSON has a word for."""
        row = metrics_row(self._run, step, split, phase, values)
        self._rows.write([row])
        self.monitor.scalars(step, split, values)
        if split == "train":
            self._recent.append(row)
            self._watch_health(step)

    def train(self, step: int, phase: str, values: dict[str, float], logs: bool) -> None:
        """Tells of updates that were left out since the last look, and writes a training row if one is due.

        A checkpoint is preceded by a look: what ends the run must not lie in the state that it goes on from.

        Raises:
            FloatingPointError: the divergence guard ends the run.
        """
        if logs:
            self.metrics(step, "train", phase, values)
        now = {"step": step, **values}
        words = guard.told(self._run.config, self._watched, now)
        self._watched = now
        if words:
            log.warning("%s", words)

    def _watch_health(self, step: int) -> None:
        """Warns when the discriminator has collapsed or won, and again only after ten rows without a verdict."""
        verdict = health.diagnose(self._recent)
        if verdict and verdict != self._told:
            log.warning("step %d: %s", step, health.advice(verdict, self._recent))
            self._told = verdict
        self._quiet = 0 if verdict else self._quiet + 1
        if self._quiet >= health.WINDOW:
            self._told = ""

    def first_step(self, step: int) -> None:
        """Says that the step is compiled, and begins to reckon the time left: compiling would count as slow steps."""
        log.info("compiled; the first step was done after %.0f s", time.perf_counter() - self._mark)
        self.monitor.reckon_from(step)

    def health_line(self) -> str:
        """Returns the state of both networks over the last rows, in one line."""
        return health.line(self._recent)

    def describe(self, step: int) -> None:
        """Writes config, environment and a picture of the networks, and shows them in TensorBoard when they are new."""
        run = self._run
        path, text = run.workdir / run_folder.CONFIG, config_module.to_json(run.config)
        changed = not path.exists() or path.read_text() != text
        # Only now: a config that the checkpoint or the data refuse must not replace the one of the run.
        run_folder.write_text(path, text)
        run_folder.write_json(run.workdir / run_folder.ENVIRONMENT, environment.describe_environment())
        # Of what an earlier start from step 0 showed, TensorBoard drops all.
        if step == 0 or changed:
            self.monitor.text(step, "config", text)
        if step == 0 or not (run.workdir / run_folder.NETWORKS).exists():
            for name, table in describe.parameter_tables(run.config).items():
                self.monitor.text(step, f"parameters/{name}", table)
            # Here: a run that goes on has its picture, and need not wait for matplotlib.
            from inpaint_jax import network_picture

            picture = network_picture.draw_networks(run.config)
            image_files.write_png(run.workdir / run_folder.NETWORKS, picture)
            self.monitor.picture(step, "networks", picture)

    def times(self, step: int) -> None:
        """Writes the pace since the last call."""
        config, seconds = self._run.config, time.perf_counter() - self._mark
        images = (step - self._mark_step) * config.batch_size * config.accumulate
        row = {"step": step, "seconds": seconds, "images": images, "data_wait_s": self.wait}
        self._timing.write([{**row, "images_per_s": images / seconds}])
        self.monitor.progress(step, self._run.epochs_done(step), config.epochs, images / seconds)
        self._mark, self._mark_step, self.wait = time.perf_counter(), step, 0.0
        self._watch_disk(step)

    def _watch_disk(self, step: int) -> None:
        """Warns when what is written begins to wait for space, and tells when it is in its files."""
        waits = bool(self._rows.waiting or self._timing.waiting or self.monitor.waiting)
        if waits and not self._waits:
            log.warning(
                "step %d: the disk of %s is full: rows and curves wait in memory until there is space",
                step, self._run.workdir,
            )  # fmt: skip
        elif self._waits and not waits:
            log.info("step %d: there is space again, and what waited is written", step)
        self._waits = waits

    def commit(self) -> bool:
        """Returns whether all rows are on the disk, and what TensorBoard shows in its files."""
        # Each of them, whatever another one says.
        return all([self._rows.commit(), self._timing.commit(), self.monitor.flush()])

    def close(self) -> None:
        """Commits and closes everything."""
        with contextlib.ExitStack() as stack:
            # All of them, even if the disk fails for one.
            for closable in (self.monitor, self._timing, self._rows):
                stack.callback(closable.close)
