"""The run folder: names, the lock, atomic writes, and rows that survive a kill."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from inpaint_jax import run_folder

HOLD_LOCK = """
import sys, time
from pathlib import Path
from inpaint_jax import run_folder
lock = run_folder.lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("configs/unet_cosine.py", "unet_cosine"),
        ("configs/unet_cosine.py:quick", "unet_cosine-quick"),
        ("/elsewhere/my.config.py:tiny", "my.config-tiny"),
    ],
)
def test_default_name_comes_from_the_config_and_its_argument(given, name):
    assert run_folder.default_workdir(given) == Path("runs") / name


def test_a_second_opener_is_refused_until_the_first_closes(tmp_path):
    folder = tmp_path / "deep" / "run"
    with run_folder.lock(folder), pytest.raises(ValueError, match=r"another process.*deep/run.*--workdir"):
        run_folder.lock(folder)
    run_folder.lock(folder).close()


def test_a_killed_process_frees_the_lock(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD_LOCK, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(ValueError, match="another process"):
                run_folder.lock(tmp_path)
        finally:
            holder.kill()
    run_folder.lock(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/run' cannot be written.*--workdir"):
        run_folder.lock(tmp_path / "file" / "run")


def test_restart_removes_its_own_files_and_nothing_else(tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    for name in ("checkpoints/last/step_3/x", "samples/s.png", "metrics.jsonl", "config.json", "notes.md", "test.txt"):
        run_folder.write_text(run / name, name)
    run_folder.write_text(outside / "kept", "kept")
    (run / run_folder.GENERATOR).symlink_to(outside, target_is_directory=True)
    run_folder.lock(run).close()
    assert (run / "metrics.jsonl").exists()
    run_folder.remove_run(run)
    assert {path.name for path in run.iterdir() if not path.name.startswith(".")} == {"notes.md", "test.txt"}
    assert (outside / "kept").read_text() == "kept"


def test_a_reader_sees_the_old_text_or_the_new_and_never_a_part(tmp_path):
    path, texts = tmp_path / "deep" / "x.json", ("a" * 200_000, "b" * 300_000)
    run_folder.write_text(path, texts[0])
    done, seen = threading.Event(), set()

    def read():
        while not done.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(30):
        run_folder.write_text(path, texts[i % 2])
    done.set()
    reader.join()
    assert seen <= set(texts)
    with pytest.raises(UnicodeEncodeError):
        run_folder.write_text(path, "c" * 100_000 + "\ud800")
    assert path.read_text() == texts[1]


def write_rows(path: Path, steps: range, tail: str = "") -> list[dict]:
    rows = [{"step": step, "split": "train", "loss": step / 3} for step in steps]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return rows


@pytest.mark.parametrize("tail", ["", '{"step": 6, "los', "\0\0\0"])
def test_truncation_drops_later_rows_and_a_cut_last_line(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    rows = write_rows(path, range(1, 6), tail)
    assert run_folder.read_rows(path) == rows
    assert run_folder.truncate_rows(path, 3) == {"train": rows[2]}
    assert path.read_text() == "".join(json.dumps(row) + "\n" for row in rows[:3])
    assert run_folder.truncate_rows(path, -1) == {}
    assert run_folder.read_rows(path) == []
    assert list(tmp_path.iterdir()) == [path]


def test_rows_of_no_file_are_none(tmp_path):
    assert run_folder.read_rows(tmp_path / "absent.jsonl") == []
    assert run_folder.truncate_rows(tmp_path / "absent.jsonl", 3) == {}


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_rows(path, range(1, 3), '{"step": 3, "lo\n{"step": 4}\n')
    with pytest.raises(ValueError, match=r"line 3 of .*metrics\.jsonl is damaged"):
        run_folder.read_rows(path)


@pytest.mark.parametrize(
    ("name", "tail", "message"),
    [
        ("metrics.jsonl", '{"step": 3, "lo\n', r"line 3 .*Invalid control character"),
        ("metrics.jsonl", '{"step": 2, "split": "train"}\n', r"line 3 .*\(its step is 2, after 2\)"),
        ("metrics.jsonl", '{"step": 1, "split": "val"}\n', r"line 3 .*\(its step is 1, after 2\)"),
        ("metrics.jsonl", '{"step": "3", "split": "train"}\n', r"line 3 .*\(its step is \"3\"\)"),
        ("metrics.jsonl", '{"step": true, "split": "train"}\n', r"line 3 .*\(its step is true\)"),
        ("metrics.jsonl", '{"step": 3}\n', r"line 3 .*\(its split is null\)"),
        ("metrics.jsonl", '{"step": 3, "split": "val", "epoch": NaN}\n', r"line 3 .*\(its epoch is NaN\)"),
        ("metrics.jsonl", '{"step": 3, "split": "val", "split": "train"}\n', r"line 3 .*a name stands twice"),
        ("metrics.jsonl", "[" * 99_999 + "\n", r"line 3 .*nested too deep"),
        ("timing.jsonl", '{"step": 3, "seconds": 1, "images": 4}\n', r"line 1 .*\(its seconds is null\)"),
    ],
    ids=str,
)
def test_a_damaged_line_that_no_kill_leaves_is_named(tmp_path, name, tail, message):
    write_rows(tmp_path / name, range(1, 3), tail)
    with pytest.raises(ValueError, match=message) as error:
        run_folder.read_rows(tmp_path / name)
    assert name in str(error.value)


def test_a_last_line_of_zeros_is_left_out(tmp_path):
    """As after a loss of power."""
    rows = write_rows(tmp_path / "metrics.jsonl", range(1, 3), "\0" * 50 + "\n")
    assert run_folder.read_rows(tmp_path / "metrics.jsonl") == rows


@pytest.mark.parametrize("tail", ["", '{"step": 3, "los', '{"step": 3}'])
def test_rows_go_on_after_a_kill_in_the_middle_of_one(tmp_path, tail):
    path = tmp_path / "rows.jsonl"
    rows = write_rows(path, range(1, 3), tail) + ([{"step": 3}] if tail.endswith("}") else [])
    file = run_folder.RowFile(path)
    file.write([{"step": 7}, {"step": 8}])
    file.commit()
    assert run_folder.read_rows(path) == [*rows, {"step": 7}, {"step": 8}]
    file.close()


def test_parts_of_files_that_a_kill_left_are_removed_and_nothing_else(tmp_path):
    for name in ("samples/.a.png.1-2.tmp", "test/images/.b.png.1-2.tmp", "masks/.c.npz.1.tmp", ".networks.png.1-2.tmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"part")
    # The last is what another command may be writing at this moment.
    kept = ["samples/a.png", "samples/mine.tmp", "replay/.step_1.7.tmp"]
    for name in kept:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"whole")
    run_folder.remove_unfinished(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
