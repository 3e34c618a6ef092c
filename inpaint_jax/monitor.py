"""What a person sees of a run: progress bar, TensorBoard, Weights & Biases, sample grids, log lines."""

import logging
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from inpaint_jax import command_line, full_disk, image_files, run_folder
from inpaint_jax.wandb_writer import WandbWriter

log = logging.getLogger("inpaint_jax")
# It warns of every value that is not finite; TensorBoard shows those, and the divergence guard tells of them.
logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)

SAMPLE_COLUMNS = ("masked", "output", "completed", "truth")


class EventFile:
    """A file of TensorBoard events, written at once: tensorboardX's own writer would lose a queue at a kill.

    Args:
        folder: the log folder, made if missing.
        first_step: the step the run goes on from; TensorBoard drops what earlier files hold beyond it.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        # Files are named by the second they were begun in; the suffix keeps two of one second apart.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{first_step:09d}"
        self._file = full_disk.Appender(folder / name, anew=True)
        self._file.append(_event_record(file_version="brain.Event:2"))
        # Texts and pictures of the beginning have step 0.
        begin = {"step": first_step + 1 if first_step else 0, "session_log": SessionLog(status=SessionLog.START)}
        self._file.append(_event_record(**begin))

    def write(self, step: int, *contents: Summary, waits: bool = True) -> None:
        """Appends an event of each content; where the disk is full they wait for space, or are left out."""
        self._file.append(b"".join(_event_record(step=step, summary=content) for content in contents), waits)

    @property
    def waiting(self) -> int:
        """How many writes wait for space."""
        return self._file.waiting

    def flush(self) -> bool:
        """Returns whether the disk holds everything that was written."""
        return self._file.commit()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()


def _event_record(**fields: Any) -> bytes:
    """Returns an event in the frame of a TFRecord: its length and its bytes, each with a checksum."""
    event = Event(wall_time=time.time(), **fields).SerializeToString()
    length = struct.pack("<Q", len(event))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), event, struct.pack("<I", masked_crc32c(event))))


class Monitor:
    """Progress bar on a terminal, log lines elsewhere, TensorBoard files, and Weights & Biases if the config asks.

    Args:
        config: the whole config.
        workdir: the run folder.
        first_step: the step the run goes on from; TensorBoard drops what an earlier run wrote beyond it.
        total_steps: optimiser steps of the whole run.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path, first_step: int, total_steps: int):
        self._workdir = workdir
        # First: it may refuse, and nothing must be half open then.
        self._wandb = WandbWriter(config, workdir) if config.wandb.project else None
        self._events = EventFile(workdir / run_folder.TENSORBOARD, first_step)
        columns: list[ProgressColumn] = [
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[pace]:.1f} images/s"),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]
        self._bar = Progress(*columns, console=command_line.console(), disable=not sys.stderr.isatty())
        self._bar.start()
        self._task = self._bar.add_task("train", total=total_steps, completed=first_step, epoch=0, pace=0.0)
        self._started, self._first, self._total = time.monotonic(), first_step, total_steps

    def progress(self, step: int, epoch: int, epochs: int, images_per_second: float) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=step, epoch=f"{epoch}/{epochs}", pace=images_per_second)

    def reckon_from(self, step: int) -> None:
        """Reckons the time left by the pace from this step on."""
        self._started, self._first = time.monotonic(), step

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes scalars under `<split>/<name>`."""
        named = {f"{split}/{name}": value for name, value in values.items()}
        self._events.write(step, *(summary.scalar(name, value) for name, value in named.items()))
        if self._wandb:
            self._wandb.scalars(step, named)

    def text(self, step: int, name: str, text: str) -> None:
        """Writes a text, shown as it is, in a fixed-width font."""
        self._events.write(step, summary.text(name, "".join(f"    {line}\n" for line in text.splitlines())))

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes a picture, uint8 (H, W, 3)."""
        # A picture is large, and does not wait for space: memory could become short in its turn.
        self._events.write(step, summary.image(name, picture, dataformats="HWC"), waits=False)
        if self._wandb:
            self._wandb.picture(step, name, picture)

    def samples(self, step: int, rows: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Writes a labelled grid of masked | output | completed | truth, as a file and to TensorBoard.

        Args:
            rows: one mapping of the four columns to uint8 (H, W, 3) for each fixed validation picture.
        """
        grid = image_files.picture_grid([[row[c] for c in SAMPLE_COLUMNS] for row in rows], SAMPLE_COLUMNS)
        path = self._workdir / run_folder.SAMPLES / f"step_{step:08d}.png"
        with full_disk.skipping(path):
            image_files.write_png(path, grid)
        self.picture(step, "samples", grid)

    def epoch_line(self, step: int, epoch: float, epochs: int, values: Mapping[str, float], health: str) -> None:
        """Logs one line of validation numbers inside the hole, with the time left and the health of both networks."""
        elapsed = time.monotonic() - self._started
        left = elapsed / max(1, step - self._first) * (self._total - step)
        inside = {name: value for name, value in values.items() if name.endswith("_hole")}
        numbers = "  ".join(f"{name.split('_')[0]} {value:.4g}" for name, value in inside.items())
        log.info("epoch %g/%d  step %d/%d  hole: %s  %.0f s left", epoch, epochs, step, self._total, numbers, left)
        if health:
            log.info("  %s", health)

    @property
    def waiting(self) -> int:
        """How many writes to TensorBoard's files wait for space."""
        return self._events.waiting

    def flush(self) -> bool:
        """Returns whether TensorBoard's files hold everything: a kill later must not lose what a checkpoint covers."""
        return self._events.flush()

    def close(self) -> None:
        """Stops the bar and flushes TensorBoard."""
        self._bar.stop()
        self._events.close()
        if self._wandb:
            self._wandb.close()
