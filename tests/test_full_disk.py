"""A disk that becomes full in the middle of a run: what was good stays, the run goes on, and nothing is lost."""

import contextlib
import json
import logging
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboardX import summary

from inpaint_jax import checkpoint, command_line, full_disk, image_files, monitor, run_folder, train
from inpaint_jax.data import pipeline
from inpaint_jax.state import RegimeState, TrainState

BALLAST = "ballast"


def fill(disk: Path, spare: int = 0) -> None:
    """Takes all space of a disk but `spare` bytes, with a file that is no part of a run."""
    release(disk)
    with (disk / BALLAST).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, full_disk.free(disk) - spare)
    assert full_disk.free(disk) <= spare


def release(disk: Path) -> None:
    (disk / BALLAST).unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path, mounted):
    with mounted(tmp_path / "disk", "size=6m"):
        yield tmp_path / "disk"


@pytest.fixture
def roomy_disk(tmp_path, mounted):
    """One on which a tiny run fits several times."""
    with mounted(tmp_path / "disk", "size=50m"):
        yield tmp_path / "disk"


@pytest.fixture
def said(caplog, monkeypatch):
    """The project's log lines; the log file of a run is closed at the end, so that its disk can be unmounted."""
    logger = logging.getLogger("inpaint_jax")
    before = list(logger.handlers)
    monkeypatch.setattr(logger, "propagate", False)
    logger.setLevel(logging.DEBUG)
    logger.addHandler(caplog.handler)
    yield caplog
    for handler in set(logger.handlers) - set(before):
        logger.removeHandler(handler)
        handler.close()


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# Files.


def test_rows_wait_for_space_and_are_written_once_each_in_order(disk):
    rows = [{"step": step, "split": "train", "text": "x" * 980} for step in range(20)]
    file = run_folder.RowFile(disk / "metrics.jsonl")
    file.write(rows[:2])
    fill(disk)
    for row in rows[2:12]:
        file.write([row])
        text = (disk / "metrics.jsonl").read_text()
        assert text == "".join(json.dumps(each) + "\n" for each in rows[: row["step"] + 1 - file.waiting])
    # The last block of the file has space for a line or two, and half a line more.
    assert 0 < file.waiting < 10
    assert not file.commit()
    release(disk)
    file.write(rows[12:15])
    assert (file.waiting, file.commit()) == (0, True)
    fill(disk)
    file.write(rows[15:])
    release(disk)
    assert file.close()
    assert run_folder.read_rows(disk / "metrics.jsonl") == rows


def test_rows_that_no_space_came_for_leave_a_whole_file(disk):
    fill(disk)
    file = run_folder.RowFile(disk / "timing.jsonl")
    file.write([{"step": 1}])
    assert not file.close()
    assert (disk / "timing.jsonl").read_bytes() == b""


@contextlib.contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Lets no file of this process become larger, in bytes: an error of writing that is not of a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_error_that_is_not_of_a_full_disk_stays_one(disk):
    file = full_disk.Appender(disk / "x")
    with files_limited_to(1000), pytest.raises(OSError, match="File too large") as raised:
        file.append(bytes(1001))
    assert (disk / "x").read_bytes() == b""
    assert not full_disk.is_full(raised.value)
    file.append(b"x")
    assert file.close()
    assert (disk / "x").read_bytes() == bytes(1001) + b"x"
    assert not full_disk.is_full(OSError("No space left on device, somebody says"))


def test_log_lines_wait_for_space(disk, said):
    command_line.log_to_file(disk / "log.txt")
    logger = logging.getLogger("inpaint_jax")
    logger.info("before")
    fill(disk)
    for number in range(10):
        logger.info("%d %s", number, "x" * 1000)
    assert (disk / "log.txt").read_text().endswith("x\n")
    release(disk)
    logger.info("after")
    lines = (disk / "log.txt").read_text().splitlines()
    assert [line.split()[3] for line in lines] == ["before", *map(str, range(10)), "after"]


def test_tensorboard_lacks_a_picture_that_did_not_fit_and_nothing_else(disk):
    events = monitor.EventFile(disk / "tensorboard", 0)
    picture = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    for step in range(30):
        if step == 10:
            fill(disk)
        if step == 20:
            release(disk)
        events.write(step, *(summary.scalar(f"s{i}", step) for i in range(20)))
        if step % 4 == 0:
            events.write(step, summary.image("picture", picture, dataformats="HWC"), waits=False)
        assert events.flush() == (not 10 <= step < 20 or events.waiting == 0)
    events.close()
    (path,) = (disk / "tensorboard").iterdir()
    shown = [(v.tag, event.step) for event in EventFileLoader(str(path)).Load() for v in event.summary.value]
    assert [step for tag, step in shown if tag == "s7"] == list(range(30))
    assert [step for tag, step in shown if tag == "picture"] == [0, 4, 8, 20, 24, 28]


def test_a_file_that_does_not_fit_leaves_no_part_of_it(disk, said):
    run_folder.write_text(disk / "a.json", "old")
    fill(disk)
    with pytest.raises(OSError, match="No space left"):
        run_folder.write_text(disk / "a.json", "new" * 9000)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with full_disk.skipping(disk / "samples" / "b.png"):
        image_files.write_png(disk / "samples" / "b.png", picture)
    assert warnings(said) == [f"the disk of {disk / 'samples'} is full: b.png is not written"]
    assert {path.name for path in disk.rglob("*")} == {"a.json", "samples", BALLAST}
    assert (disk / "a.json").read_text() == "old"
    with pytest.raises(FileExistsError), full_disk.skipping(disk / "a.json" / "c.png"):
        image_files.write_png(disk / "a.json" / "c.png", picture)


# Checkpoints.

WIDTH = 50_000  # numbers of one array: random, because zeros would be compressed


def state_of(step: int) -> TrainState:
    kernel = np.random.default_rng(step).random(WIDTH).astype(np.float32)
    return TrainState(
        step=np.int32(step), params={"generator": {"kernel": kernel}}, stats={}, opt={}, ema_params={"kernel": -kernel},
        ema_stats={}, lr_scale={}, guard={},
    )  # fmt: skip


@pytest.fixture
def checkpoints(disk):
    opened = checkpoint.Checkpoints(disk / "checkpoints")
    yield opened
    opened.close()


def save(checkpoints: checkpoint.Checkpoints, step: int, best_step: int) -> None:
    """Saves as training does: the state, and the generator where it is the best."""
    record = checkpoint.run_record(RegimeState("joint", best_step=best_step), {}, 9, {})
    checkpoints.save(state_of(step), record)
    if best_step == step:
        checkpoints.save_best(step, state_of(step).ema_params)


def found(disk: Path) -> tuple[int, int]:
    """Returns the steps of the state and of the best generator that a start after a kill would go on with."""
    copy = disk.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(disk / "checkpoints", copy)
    opened = checkpoint.Checkpoints(copy)
    state, record = opened.restore(state_of(0))
    jax.tree.map(np.testing.assert_array_equal, state, state_of(int(state.step)))
    opened.drop_best_after(int(state.step))
    best_step, best = opened.restore_best(state_of(0).ema_params)
    np.testing.assert_array_equal(best["kernel"], state_of(best_step).ema_params["kernel"])
    opened.close()
    assert best_step == record["regime"]["best_step"]
    return int(state.step), best_step


def test_without_space_no_save_is_begun_and_the_next_one_tries_again(checkpoints, disk, said):
    save(checkpoints, 1, best_step=1)
    checkpoints.wait()
    fill(disk, spare=200_000)
    before = sorted((disk / "checkpoints").rglob("*"))
    save(checkpoints, 2, best_step=2)
    assert checkpoints.missing() == "the state of step 2"
    assert warnings(said) == [
        f"the disk of {disk / 'checkpoints'} has 0.2 MB free, and the state of step 2 needs 1.4 MB: it is not saved; "
        "the last saved is the state of step 1, and the next save tries again"
    ]
    assert sorted((disk / "checkpoints").rglob("*")) == before
    release(disk)
    # The best of step 2 waited, and goes before the state that names it.
    save(checkpoints, 3, best_step=2)
    checkpoints.wait()
    assert (checkpoints.missing(), found(disk)) == ("", (3, 2))
    assert [path.name for path in (disk / "checkpoints/best").iterdir()] == ["step_2"]


def test_a_best_without_the_state_that_names_it_costs_no_earlier_best(checkpoints, disk):
    save(checkpoints, 1, best_step=1)
    checkpoints.wait()
    fill(disk, spare=200_000)
    save(checkpoints, 2, best_step=2)
    fill(disk, spare=1_350_000)  # enough for the generator, and not for the state after it
    save(checkpoints, 3, best_step=2)
    assert (checkpoints.best_step(), checkpoints.missing()) == (2, "the state of step 3")
    assert found(disk) == (1, 1)
    save(checkpoints, 4, best_step=4)
    assert found(disk) == (1, 1)
    release(disk)
    save(checkpoints, 5, best_step=4)
    checkpoints.wait()
    assert found(disk) == (5, 4)


@pytest.mark.parametrize("spare", [0, 120_000])
@pytest.mark.parametrize("best", [False, True], ids=["state", "best"])
def test_a_disk_that_fills_while_a_checkpoint_is_written_leaves_the_last_one(
    checkpoints, disk, said, monkeypatch, capfd, spare, best
):
    for step in (1, 2, 3):
        save(checkpoints, step, best_step=1)
    checkpoints.wait()
    sealed = checkpoint._sealed

    def filling(step, arrays, record):
        if (best and record == {}) or not best:
            fill(disk, spare)
        return sealed(step, arrays, record)

    # Between the look at the space and the writing, as another program may.
    monkeypatch.setattr(checkpoint, "_sealed", filling)
    save(checkpoints, 4, best_step=4)
    checkpoints.wait()
    monkeypatch.setattr(checkpoint, "_sealed", sealed)
    assert checkpoints.missing() == ("the best generator, of step 4," if best else "the state of step 4")
    assert any("became full while a checkpoint was written" in words for words in warnings(said))
    assert len(list((disk / "checkpoints/last").iterdir())) == 3
    if not best:
        assert found(disk) == (3, 1)
    release(disk)
    save(checkpoints, 5, best_step=4)
    checkpoints.wait()
    assert (checkpoints.missing(), found(disk)) == ("", (5, 4))
    assert not [path for path in (disk / "checkpoints").rglob("*") if "tmp" in path.name]
    assert "ERROR:absl" not in capfd.readouterr().err


def test_another_error_of_a_save_is_raised(checkpoints, disk):
    save(checkpoints, 1, best_step=1)
    checkpoints.wait()
    with files_limited_to(100_000), pytest.raises(ValueError, match="File too large"):
        save(checkpoints, 2, best_step=2)  # the best waits for the state


def test_a_disk_that_has_space_and_takes_no_more_files_is_full(tmp_path, mounted, said):
    disk = tmp_path / "disk"
    with mounted(disk, "size=6m,nr_inodes=600"):
        opened = checkpoint.Checkpoints(disk / "checkpoints")
        save(opened, 1, best_step=0)
        opened.wait()
        for number in range(os.statvfs(disk).f_favail):
            (disk / str(number)).touch()
        save(opened, 2, best_step=0)
        assert opened.missing() == "the state of step 2"
        for number in range(500):
            (disk / str(number)).unlink()
        save(opened, 3, best_step=0)
        opened.close()
        assert (opened.missing(), opened.latest_step()) == ("", 3)
        assert ["has 0.0 MB free" in words for words in warnings(said)] == [True]


def test_a_signal_on_a_full_disk_names_the_step_to_go_on_from(checkpoints, disk, said):
    fill(disk)
    save(checkpoints, 1, best_step=0)
    with pytest.raises(ValueError, match=r"SIGTERM: the disk is full and the state of step 1 .* from the beginning"):
        train.say_where_to_go_on(checkpoints, 1, "SIGTERM")
    release(disk)
    save(checkpoints, 2, best_step=0)
    train.say_where_to_go_on(checkpoints, 2, "SIGTERM")
    fill(disk)
    save(checkpoints, 3, best_step=0)
    train.say_where_to_go_on(checkpoints, 3, "SIGTERM")
    assert warnings(said)[-3] == "SIGTERM: state of step 2 saved; run the same command again"
    assert warnings(said)[-1].endswith("make space, and run the same command again, which goes on from step 2")


# Whole runs: three epochs of four steps, saved after steps 3, 4, 6, 8, 9 and 12, validated at 4, 8 and 12.


@pytest.fixture
def train_on(monkeypatch, said):
    """A function (config, workdir, events) -> exit code of a run; events are called before their steps."""
    batches, save = pipeline.train_batches, train.save

    def save_at_once(run, checkpoints, *arguments):
        # How far the writing in the background has come must not decide what an event meets.
        save(run, checkpoints, *arguments)
        checkpoints.wait()

    monkeypatch.setattr(train, "save", save_at_once)

    def run(config, workdir: Path, events: dict | None = None) -> int:
        jax.clear_caches()  # as in a new process

        def eventful(*arguments, **options):
            for step, batch in enumerate(batches(*arguments, **options), options["start_step"] + 1):
                (events or {}).get(step, lambda: None)()
                yield batch

        monkeypatch.setattr(pipeline, "train_batches", eventful)
        return train.run_training(config.copy_and_resolve_references(), "full", workdir, False, False)

    return run


def hashes(workdir: Path) -> dict[str, dict]:
    """Returns the SHA-256 of every array of the newest state, and of the best generator, as they are on the disk."""
    opened = checkpoint.Checkpoints(workdir / "checkpoints")
    steps = opened.latest_step(), opened.best_step()
    opened.close()
    names = f"last/step_{steps[0]}", f"best/step_{steps[1]}"
    files = [workdir / "checkpoints" / name / "hashes" / "metadata" for name in names]
    return {name: json.loads(file.read_text())["arrays"] for name, file in zip(names, files, strict=True)}


def same_as(whole: Path, workdir: Path, but: set[str] = frozenset()) -> None:
    """Asserts that two runs ended the same: states, best generator, rows, curves, results and samples `but` those."""
    assert hashes(workdir) == hashes(whole)
    assert (workdir / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    name = "generator/generator.safetensors"
    assert (workdir / name).read_bytes() == (whole / name).read_bytes()
    results = [json.loads((folder / "test/results.json").read_text()) for folder in (whole, workdir)]
    assert results[0]["metrics"] == results[1]["metrics"]
    samples = [{path.name for path in (folder / "samples").iterdir()} for folder in (whole, workdir)]
    assert samples[0] - samples[1] == but
    assert steps_shown(workdir, "train/loss/generator") == list(range(1, 13))
    assert not [path for path in workdir.rglob("*") if path.name.endswith("tmp")]
    steps = [row["step"] for row in run_folder.read_rows(workdir / "timing.jsonl")]
    assert set(range(1, 13)) <= set(steps)


def steps_shown(workdir: Path, tag: str) -> list[int]:
    """Returns the steps that TensorBoard shows: a file's START event drops what earlier files hold from its step on."""
    steps = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        for event in EventFileLoader(str(path)).Load():
            if event.HasField("session_log"):
                steps = [step for step in steps if step < event.step]
            steps += [event.step for value in event.summary.value if value.tag == tag]
    return steps


@pytest.mark.slow  # five runs
def test_a_run_whose_disk_fills_up_again_and_again_ends_as_if_it_had_not(
    tiny_config, tmp_path, roomy_disk, train_on, said, monkeypatch
):
    whole, disk, run = tmp_path / "whole", roomy_disk, roomy_disk / "run"
    assert train_on(tiny_config, whole) == 0
    # Nothing fits from step 2 to 6; from step 10 on rows do and states do not. Then a signal comes.
    signals = {11: lambda: os.kill(os.getpid(), signal.SIGTERM)}
    fills = {2: lambda: fill(disk), 7: lambda: release(disk), 10: lambda: fill(disk, 200_000)}
    assert train_on(tiny_config, run, {**fills, **signals}) == train.PREEMPTED
    told = warnings(said)
    assert sum("is full: rows and curves wait in memory until there is space" in words for words in told) == 1
    assert sum("what was logged before it waits for space; none has been saved yet" in words for words in told) == 3
    assert any("step_00000004.png is not written" in words for words in told)
    assert any("the state of step 11 needs" in words for words in told)
    assert told[-1] == (
        "SIGTERM: the disk is full and the state of step 11 could not be saved: make space, and run the same command "
        "again, which goes on from step 9"
    )
    assert "step 7: there is space again" in (run / "log.txt").read_text()
    assert len(run_folder.read_rows(run / "metrics.jsonl")) == 11 + 2
    # To the end, where the last state does not fit.
    release(disk)
    with pytest.raises(
        ValueError, match=r"ended at step 12, and the state of step 12 could not .* goes on from step 9$"
    ):
        train_on(tiny_config, run, {11: lambda: fill(disk, 200_000)})
    # To the end, where the results of the test do not fit.
    release(disk)
    finish = train.finish
    monkeypatch.setattr(train, "finish", lambda *arguments: (fill(disk), finish(*arguments)))
    with pytest.raises(ValueError, match=r"the disk is full .* results of the test could not be written: make space"):
        train_on(tiny_config, run)
    monkeypatch.setattr(train, "finish", finish)
    release(disk)
    assert train_on(tiny_config, run) == 0
    same_as(whole, run, but={"step_00000004.png"})
