"""Run folders on an object store: what lies there is one whole snapshot, whatever happens while it is put."""

import json
import logging
import os
import random
import shutil
import sys
from pathlib import Path

import fake_store
import pytest

from inpaint_jax import object_store, remote_folder, snapshots

URL = "fake://bucket/runs/one"


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    """The folder behind a store; fsspec knows it as fake://."""
    fake_store.register()
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("FAKE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(fake_store.FakeStore, "calls", [])
    monkeypatch.setattr(fake_store.FakeStore, "fault", None)
    monkeypatch.setattr(object_store, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(logging.getLogger("inpaint_jax"), "propagate", True)
    return tmp_path / "store" / "bucket" / "runs" / "one"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def content(folder: Path) -> dict[str, str]:
    own = (".lock", snapshots.MEMORY, snapshots.WRITER)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in own]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def fetched(folder: Path) -> dict[str, str]:
    """What a machine that was never used finds."""
    shutil.rmtree(folder, ignore_errors=True)
    snapshots.fetch(URL, folder)
    return content(folder)


class DeathError(BaseException):
    """Ends what is done where it stands."""


def fault(monkeypatch: pytest.MonkeyPatch, what) -> None:
    monkeypatch.setattr(fake_store.FakeStore, "calls", [])
    monkeypatch.setattr(fake_store.FakeStore, "fault", what and staticmethod(what))


FIRST = {"config.json": "{}", "metrics.jsonl": "1\n", "checkpoints/last/step_1/a": "A", "log.txt": "x"}
SECOND = {"config.json": "{}", "metrics.jsonl": "1\n2\n", "checkpoints/last/step_2/a": "B", "log.txt": "x"}


def change(folder: Path) -> None:
    write(folder, {"metrics.jsonl": "1\n2\n", "checkpoints/last/step_2/a": "B"})
    shutil.rmtree(folder / "checkpoints/last/step_1")


def test_what_is_put_is_fetched_and_only_what_is_new_is_sent(store, tmp_path):
    run = tmp_path / "run"
    write(run, FIRST)
    write(run, {".metrics.jsonl.tmp": "half", "checkpoints/last/step_9.orbax-checkpoint-tmp/a": "half", ".lock": ""})
    snapshots.publish(run, URL)
    assert fetched(tmp_path / "other") == FIRST
    change(run)
    fake_store.FakeStore.calls.clear()
    snapshots.publish(run, URL)
    calls = fake_store.FakeStore.calls
    assert calls.count("put") == 3  # rows, checkpoint, index
    assert fetched(tmp_path / "other") == SECOND
    # Nothing of the first snapshot is left, and every object is named.
    assert len([path for path in store.rglob("*") if path.is_file()]) == len(SECOND) + 1


def test_a_folder_becomes_exactly_the_snapshot(store, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    write(run, FIRST)
    snapshots.publish(run, URL)
    write(
        other,
        {"log.txt": "y", "test/results.json": "{}", "checkpoints/last/step_7/a": "?", "metrics.jsonl": "1\n"},
    )
    (other / "empty").mkdir()
    (tmp_path / "precious").mkdir()
    write(tmp_path / "precious", {"kept": "kept"})
    (other / "samples").symlink_to(tmp_path / "precious")
    assert snapshots.fetch(URL, other)
    assert content(other) == FIRST
    assert not (other / "empty").exists()
    assert content(tmp_path / "precious") == {"kept": "kept"}


@pytest.mark.parametrize("after", [False, True])
def test_a_death_at_any_operation_leaves_one_of_two_snapshots(store, tmp_path, monkeypatch, after):
    seen = []
    for number in range(1, 100):
        run = tmp_path / f"run{number}"
        shutil.rmtree(store, ignore_errors=True)
        write(run, FIRST)
        snapshots.publish(run, URL)
        change(run)

        def die(call, name, done, number=number):
            if call >= number and done == after:
                raise DeathError

        fault(monkeypatch, die)
        try:
            snapshots.publish(run, URL)
        except DeathError:
            pass
        else:
            break
        finally:
            fault(monkeypatch, None)
        found = fetched(tmp_path / "other")
        assert found in (FIRST, SECOND)
        seen.append(found == SECOND)
        # A new machine goes on from there, and in the end nothing is left over.
        remote_folder.take_up(URL, tmp_path / "other")
        change(tmp_path / "other") if found == FIRST else None
        snapshots.publish(tmp_path / "other", URL)
        assert fetched(tmp_path / "third") == SECOND
        assert len([path for path in store.rglob("*") if path.is_file()]) == len(SECOND) + 1
    assert seen == sorted(seen)
    assert {False, True} == set(seen)
    assert number > 8


def test_the_same_machine_goes_on_without_a_download_and_another_takes_the_snapshot(store, tmp_path, caplog):
    run, other = tmp_path / "run", tmp_path / "other"
    remote_folder.take_up(URL, run)
    write(run, FIRST)
    snapshots.publish(run, URL)
    change(run)  # and killed before it is put
    fake_store.FakeStore.calls.clear()
    remote_folder.take_up(URL, run)
    assert content(run) == SECOND
    assert fake_store.FakeStore.calls == ["list", "get"]
    remote_folder.take_up(URL, other)
    assert content(other) == FIRST
    write(other, {"log.txt": "of the other"})
    snapshots.publish(other, URL)
    remote_folder.take_up(URL, run)
    assert content(run) == FIRST | {"log.txt": "of the other"}
    assert "was gone on with elsewhere, to snapshot 3: what this machine had since snapshot 2 goes" in caplog.text


def test_a_folder_that_was_emptied_is_fetched_anew(store, tmp_path):
    run = tmp_path / "run"
    write(run, FIRST)
    snapshots.publish(run, URL)
    shutil.rmtree(run)
    remote_folder.take_up(URL, run)
    assert content(run) == FIRST


def test_of_two_runs_in_one_place_the_second_ends_and_overwrites_nothing(store, tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    remote_folder.take_up(URL, one)
    remote_folder.take_up(URL, two)
    write(one, {"log.txt": "one"})
    write(two, {"log.txt": "two"})
    snapshots.publish(one, URL)
    with pytest.raises(
        ValueError, match=r"another run has put snapshot 2 to fake://bucket/runs/one.* nothing of it was"
    ):
        snapshots.publish(two, URL)
    assert fetched(tmp_path / "other") == {"log.txt": "one"}
    # At the very same moment: both have looked, and neither has put its index.
    remote_folder.take_up(URL, two)

    def meanwhile(call, name, done):
        if name == "put" and not done:
            fault(monkeypatch, None)
            write(one, {"log.txt": "one again"})
            snapshots.publish(one, URL)

    write(two, {"log.txt": "two again"})
    fault(monkeypatch, meanwhile)
    with pytest.raises(ValueError, match="another run has put snapshot 3"):
        snapshots.publish(two, URL)
    assert fetched(tmp_path / "other") == {"log.txt": "one again"}


def test_a_run_that_was_deleted_from_the_store_does_not_come_back_by_itself(store, tmp_path):
    run = tmp_path / "run"
    write(run, {"log.txt": "x"})
    snapshots.publish(run, URL)
    shutil.rmtree(store)
    with pytest.raises(ValueError, match=r"is gone from there.*run, is left as it is: start over with --restart"):
        remote_folder.take_up(URL, run)
    assert content(run) == {"log.txt": "x"}
    remote_folder.take_up(URL, run, restart=True)
    assert fetched(tmp_path / "other") == {"log.txt": "x"}


def test_a_network_that_fails_is_tried_again_and_then_warned_of(store, tmp_path, monkeypatch, caplog):
    run = tmp_path / "run"
    write(run, {"log.txt": "x", "metrics.jsonl": "1\n"})
    for first, last, kept in ((2, 2, True), (3, 3, True), (1, 1000, False)):
        write(run, {"log.txt": f"{last}"})
        before = fetched(tmp_path / "other")
        fault(monkeypatch, fake_store.fault_of(f"fail:any:{first}:{last}"))
        assert remote_folder.keep_up(run, URL) is kept
        fault(monkeypatch, None)
        assert fetched(tmp_path / "other") == (content(run) if kept else before)
    assert "the connection is broken: trying again in" in caplog.text
    assert f"{URL} has an older snapshot; it is tried again at the next checkpoint" in caplog.text
    fault(monkeypatch, fake_store.fault_of("fail:any:1:1000"))
    with pytest.raises(ValueError, match=r"run alone, and fake://.* has an older snapshot: mend the access"):
        remote_folder.keep_last(run, URL)
    fault(monkeypatch, None)
    remote_folder.keep_last(run, URL)
    assert fetched(tmp_path / "other") == content(run)


def test_an_answer_that_is_lost_is_no_conflict(store, tmp_path, monkeypatch):
    """The index is put, and the store's answer does not come back."""
    run = tmp_path / "run"
    write(run, {"log.txt": "x"})

    def lost(call, name, done):
        if done and call == 3:
            raise ConnectionResetError("no answer")

    fault(monkeypatch, lost)
    snapshots.publish(run, URL)
    assert fake_store.FakeStore.calls[:3] == ["list", "put", "put"]
    fault(monkeypatch, None)
    write(run, {"log.txt": "y"})
    snapshots.publish(run, URL)
    assert fetched(tmp_path / "other") == {"log.txt": "y"}


def test_a_flipped_byte_is_named(store, tmp_path, caplog):
    run = tmp_path / "run"
    write(run, FIRST)
    snapshots.publish(run, URL)
    for name in ("metrics", "a"):
        (path,) = store.rglob(f"{name}.1-*")
        whole = path.read_bytes()
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        if name == "metrics":
            with pytest.raises(
                ValueError, match=r"fake://.*/files/metrics\.1-[0-9a-f]{16}\.jsonl is damaged or missing"
            ):
                snapshots.fetch(URL, tmp_path / "other")
            # The run is refused, and a later start does not take the part that was fetched for a run.
            with pytest.raises(ValueError, match="is damaged or missing"):
                remote_folder.take_up(URL, tmp_path / "other")
            path.write_bytes(whole)
    # Checkpoints have hashes of their own, and an older one is used then.
    shutil.rmtree(tmp_path / "other")
    remote_folder.take_up(URL, tmp_path / "other")
    assert "files/checkpoints/last/step_1/a.1-" in caplog.text
    assert "the checkpoint that it belongs to is not used" in caplog.text
    snapshots.publish(tmp_path / "other", URL)
    assert fetched(tmp_path / "third") == FIRST | {"checkpoints/last/step_1/a": "@"}


def test_a_damaged_index_is_named(store, tmp_path):
    run = tmp_path / "run"
    write(run, {"log.txt": "x"})
    snapshots.publish(run, URL)
    (path,) = (store / "index").iterdir()
    whole, moments = path.read_bytes(), random.Random(3)
    for _ in range(30):
        damaged = bytearray(whole)
        damaged[moments.randrange(len(whole))] ^= 1 << moments.randrange(7)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"fake://.*/index/00000001\.json is damaged"):
            snapshots.fetch(URL, tmp_path / "other")
    assert content(tmp_path / "other") == {} if (tmp_path / "other").exists() else True


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "a//b", "./a", "", ".lock", "a\0b"])
def test_names_that_leave_the_folder_are_refused(store, tmp_path, name):
    write(tmp_path / "run", {"log.txt": "x"})
    snapshots.publish(tmp_path / "run", URL)
    (path,) = (store / "index").iterdir()
    index = json.loads(path.read_text())
    hostile = snapshots._sealed(1, index["writer"], {name: index["files"]["log.txt"]})
    path.write_text(json.dumps(hostile))
    with pytest.raises(ValueError, match="which is no place inside a run folder"):
        snapshots.fetch(URL, tmp_path / "inside" / "folder")
    assert not (tmp_path / "inside").exists()


def test_a_slow_end_of_one_run_takes_nothing_from_a_later_one(store, tmp_path, monkeypatch):
    """What another machine is putting, from this snapshot on, is not named by any index yet."""
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, {"log.txt": "one"})

    def meanwhile(call, name, done):
        if name == "list" and call == 4 and not done:  # the index is put, and what is old is about to be looked for
            fault(monkeypatch, die)
            snapshots.fetch(URL, two)
            write(two, {"log.txt": "two"})
            with pytest.raises(DeathError):
                snapshots.publish(two, URL)
            fault(monkeypatch, None)

    def die(call, name, done):
        if name == "put" and call == 7:  # its index
            raise DeathError

    fault(monkeypatch, meanwhile)
    snapshots.publish(one, URL)
    assert len(list((store / "files").iterdir())) == 2
    # It is taken away in the end, since no index came to name it.
    for text in "ab":
        write(one, {"log.txt": text})
        snapshots.publish(one, URL)
    assert len(list((store / "files").iterdir())) == 1


def test_what_others_keep_below_the_url_stays(store, tmp_path):
    write(store, {"notes.txt": "mine", "files/notes.txt": "mine", "index/notes.json": "mine"})
    run = tmp_path / "run"
    for text in "xy":
        write(run, {"log.txt": text})
        snapshots.publish(run, URL)
    others = {name: text for name, text in content(store).items() if text == "mine"}
    assert set(others) == {"notes.txt", "files/notes.txt", "index/notes.json"}


def test_large_files_and_a_log_that_grows_meanwhile(store, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(snapshots, "_READ_WHOLE", 8)
    write(run, {"weights": "w" * 100, "log.txt": "long " * 10})
    grown = []

    def grow(call, name, done):
        if name == "put" and done and len(grown) < 2:
            grown.append(call)
            with (run / "log.txt").open("a") as file:
                file.write("more")

    fault(monkeypatch, grow)
    snapshots.publish(run, URL)
    fault(monkeypatch, None)
    assert fetched(tmp_path / "other") == content(run)

    def grow_always(call, name, done):
        if name == "put" and done:
            with (run / "log.txt").open("a") as file:
                file.write("more")

    fault(monkeypatch, grow_always)
    snapshots.publish(run, URL)
    fault(monkeypatch, None)
    assert content(run)["log.txt"].startswith(fetched(tmp_path / "other")["log.txt"])


def test_a_run_that_was_removed_meanwhile_is_not_put_again(store, tmp_path):
    run = tmp_path / "run"
    write(run, {"log.txt": "x"})
    snapshots.publish(run, URL)
    shutil.rmtree(store)
    with pytest.raises(ValueError, match=r"the run at fake://bucket/runs/one has gone from there"):
        snapshots.publish(run, URL)


def test_others_read_a_copy_of_what_they_need(store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = tmp_path / "run"
    write(run, FIRST | {"generator/config.json": "{}"})
    snapshots.publish(run, URL)
    whole = remote_folder.local(URL)
    assert content(whole) == content(run)
    copy = remote_folder.local(f"{URL}/", without=("checkpoints",))
    assert set(content(copy)) == set(content(run)) - {"checkpoints/last/step_1/a"}
    inner = remote_folder.local(f"{URL}/generator", without=("checkpoints",))
    assert content(inner) == {"config.json": "{}"}
    for url in ("fake://bucket/runs/two", "fake://bucket/two", "fake://bucket"):
        with pytest.raises(ValueError, match=rf"there is no run at {url}"):
            remote_folder.local(url)
    assert remote_folder.local(str(run)) == run

    def meanwhile(call, name, done):  # the snapshot that is read is replaced
        if name == "get" and done:
            fault(monkeypatch, None)
            change(run)
            snapshots.publish(run, URL)

    fault(monkeypatch, meanwhile)
    shutil.rmtree(tmp_path / "cache")
    assert content(remote_folder.local(URL)) == SECOND | {"generator/config.json": "{}"}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gs://bucket/run", "gs:// needs the package gcsfs: pip install gcsfs"),
        ("s3://bucket/run", "s3:// needs the package s3fs: pip install s3fs"),
        ("nowhere://bucket/run", "no store is known by nowhere://"),
        ("simplecache::s3://bucket/run", "give one place on a store"),
        ("gs://", "give one place on a store"),
    ],
)
def test_a_place_that_cannot_be_reached_is_one_sentence(url, words, monkeypatch):
    # Where the packages are installed too.
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match=words):
        remote_folder.working_folder(url)


def test_each_url_has_its_folder_below_the_cache(monkeypatch, tmp_path):
    fake_store.register()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    places = [remote_folder.working_folder(url) for url in (URL, f"{URL}/", "fake://bucket/runs-one")]
    assert places[0] == places[1] != places[2]
    assert places[0][0].parent == tmp_path / "inpaint_jax/runs"
    assert places[0][1] == URL
    assert remote_folder.working_folder("runs/one") == (Path("runs/one"), "")
    assert os.listdir(tmp_path) == []


def test_an_answer_that_is_lost_in_an_outage_is_no_conflict_later(store, tmp_path, monkeypatch):
    """The index is put, its answer is lost, and the store is away until the command gives up."""
    run = tmp_path / "run"
    write(run, {"log.txt": "x"})
    snapshots.publish(run, URL)
    write(run, {"log.txt": "y"})
    monkeypatch.setattr(object_store, "WAITS", (0.0, 0.0))
    fake_store.FakeStore.calls.clear()

    def lost(call, name, done):
        if (done and call == 3) or call > 3:
            raise ConnectionResetError("no answer")

    fault(monkeypatch, lost)
    assert not remote_folder.keep_up(run, URL)
    fault(monkeypatch, None)
    write(run, {"log.txt": "z"})
    remote_folder.take_up(URL, run)
    assert (run / "log.txt").read_text() == "z", "this machine's own snapshot is no one else's"
    assert remote_folder.keep_up(run, URL)
    assert fetched(tmp_path / "other") == {"log.txt": "z"}


def test_starting_over_takes_nothing_before_the_new_run_is_good(store, tmp_path):
    """Between the start of a command with --restart and its own first state, the old run stays."""
    run = tmp_path / "run"
    write(run, FIRST)
    snapshots.publish(run, URL)
    other = tmp_path / "other_machine"
    old = remote_folder.take_up(URL, other, restart=True)  # and then the data are refused
    remote_folder.take_up(URL, other)
    assert {path.name for path in other.rglob("*") if path.is_file()} >= {Path(name).name for name in FIRST}
    write(other, {"new.txt": "n"})
    for name in FIRST:
        (other / name).unlink()
    remote_folder.replace(URL, other, old)
    assert fetched(tmp_path / "third") == {"new.txt": "n"}
