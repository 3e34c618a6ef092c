"""What a run leaves beside its checkpoints: rows, warnings of its health, TensorBoard and Weights & Biases."""

import json
import logging
import struct
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from wandb.proto import wandb_internal_pb2

from inpaint_jax import health, run_folder
from inpaint_jax.records import Records

GUARD = {"guard/skipped": 0.0, "guard/surges": 0.0}
LOGITS = ("discriminator/logit_real", "discriminator/logit_fake", "discriminator/accuracy")


def run_of(config, workdir):
    """What records need of a run, without its data and compiled steps."""
    return SimpleNamespace(
        config=config, workdir=workdir, total_steps=1000, steps_per_epoch=10, epochs_done=lambda step: step // 10
    )


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.fixture
def log_lines(caplog, monkeypatch):
    """The project's log lines; a command that ran in this process may have stopped them from reaching the root."""
    logger = logging.getLogger("inpaint_jax")
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_a_discriminator_that_has_won_is_told_once_and_again_after_it_recovered(tiny_config, tmp_path, log_lines):
    def write(records, steps, real, fake, accuracy):
        for step in steps:
            values = dict(zip(LOGITS, (real, fake, accuracy), strict=True))
            records.metrics(25 * step, "train", "joint", {"loss/generator": 1.0, **GUARD, **values})

    records, start, window = Records(run_of(tiny_config, tmp_path), 0), health.EARLY // 25, health.WINDOW
    write(records, range(start, start + 3 * window), 7.0, -7.0, 1.0)
    (told,) = warnings(log_lines)
    assert told.startswith(
        f"step {25 * (start + window - 1)}: the discriminator has won: it tells real from generated in 100%"
    )
    records.close()
    # A restart knows what was said before it.
    records = Records(run_of(tiny_config, tmp_path), start + 3 * window)
    write(records, range(start + 3 * window, start + 4 * window), 7.0, -7.0, 1.0)
    assert len(warnings(log_lines)) == 1
    write(records, range(start + 4 * window, start + 5 * window), 0.2, 0.0, 0.6)
    assert records.health_line() == "D: real +0.20  fake +0.00  right 60%"
    write(records, range(start + 5 * window, start + 6 * window), 0.1, 0.1, 0.5)
    records.close()
    assert len(warnings(log_lines)) == 2
    assert "collapsed" in warnings(log_lines)[-1]


def test_a_surge_ends_the_run_before_a_checkpoint_between_two_rows(tiny_config, tmp_path):
    tiny_config.guard.action = "halt"
    records = Records(run_of(tiny_config, tmp_path), 0)
    others = {"guard/skipped_in_a_row": 1.0, "guard/last_skipped": 2.0, "guard/level": 1.0}
    records.train(1, "joint", {**others, **GUARD}, logs=True)
    with pytest.raises(FloatingPointError, match="steps 2 to 3: updates left out: 1, the last at step 2"):
        records.train(3, "joint", {**others, "guard/skipped": 1.0, "guard/surges": 1.0}, logs=False)
    records.close()
    assert [row["step"] for row in run_folder.read_rows(tmp_path / run_folder.METRICS)] == [1]


def test_tensorboard_shows_config_parameters_networks_and_scalars(tiny_config, tmp_path):
    records = Records(run_of(tiny_config, tmp_path), 0)
    records.describe(0)
    records.metrics(1, "train", "joint", {"loss/generator": 2.5, **GUARD})
    records.metrics(1, "val", "joint", {"l1_hole": 0.25})
    records.commit()
    records.close()
    events = EventAccumulator(str(tmp_path / run_folder.TENSORBOARD), size_guidance={"images": 0}).Reload()
    assert [event.value for event in events.Scalars("train/loss/generator")] == [2.5]
    assert [event.value for event in events.Scalars("val/l1_hole")] == [0.25]
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    assert '"learning_rate": 0.001' in texts["config/text_summary"]
    assert "down0" in texts["parameters/generator/text_summary"]
    assert "conv0" in texts["parameters/discriminator/text_summary"]
    stored = Image.open(tmp_path / run_folder.NETWORKS)
    (shown,) = events.Images("networks")
    assert (shown.width, shown.height) == stored.size
    environment = json.loads((tmp_path / run_folder.ENVIRONMENT).read_text())
    assert environment["packages"]["jax"]
    assert environment["devices"] == ["cpu"] * 4
    rows = run_folder.read_rows(tmp_path / run_folder.METRICS)
    assert rows[0] == {"step": 1, "epoch": 0.1, "split": "train", "phase": "joint", "loss/generator": 2.5, **GUARD}


def test_a_run_that_goes_on_does_not_repeat_its_texts(tiny_config, tmp_path):
    for step in (0, 0, 20):  # TensorBoard drops the first: it was killed before a checkpoint
        records = Records(run_of(tiny_config, tmp_path), step)
        records.describe(step)
        records.close()
    tiny_config.epochs += 1
    records = Records(run_of(tiny_config, tmp_path), 30)
    records.describe(30)
    records.close()
    shown = []
    for path in sorted((tmp_path / run_folder.TENSORBOARD).iterdir()):
        for event in EventFileLoader(str(path)).Load():
            if event.HasField("session_log"):  # what earlier files hold from its step on is dropped
                shown = [(step, name) for step, name in shown if step < event.step]
            shown += [(event.step, value.tag.partition("/")[0]) for value in event.summary.value]
    assert shown == [(0, "config"), (0, "parameters"), (0, "parameters"), (0, "networks"), (30, "config")]


def test_weights_and_biases_gets_scalars_and_pictures_without_a_network(tiny_config, tmp_path):
    tiny_config.wandb.project, tiny_config.wandb.mode = "holes", "offline"
    records = Records(run_of(tiny_config, tmp_path), 0)
    records.metrics(1, "train", "joint", {"loss/generator": 2.5, **GUARD})
    records.metrics(2, "train", "joint", {"loss/generator": 1.25, **GUARD})
    records.monitor.picture(2, "samples", np.full((8, 8, 3), 200, np.uint8))
    records.close()
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(600):  # the library's own process writes it, a moment after `finish` has returned
        if path.stat().st_size > 100:
            break
        time.sleep(0.05)
    assert logged(path) == [(1, 2.5), (2, 1.25)]
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/samples_*.png"))
    identity = (tmp_path / run_folder.WANDB_ID).read_text()
    again = Records(run_of(tiny_config, tmp_path), 2)
    again.close()
    assert (tmp_path / run_folder.WANDB_ID).read_text() == identity
    runs = list(tmp_path.glob("wandb/offline-run-*"))
    assert len(runs) == 2
    assert all(f"-{identity}" in path.name for path in runs)


def logged(path) -> list[tuple[int, float]]:
    """Reads an offline run back: (step, generator loss) of every row."""
    rows = []
    for data in log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        values = {item.nested_key[0] if item.nested_key else item.key: item.value_json for item in record.history.item}
        if "train/loss/generator" in values:
            rows.append((int(values["step"]), float(values["train/loss/generator"])))
    return rows


def log_records(content: bytes):
    """Yields the records of a LevelDB log: blocks of 32 KiB; checksum, length and kind before each part of a record."""
    position, parts = 7, b""  # the file begins with a mark of seven bytes
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
