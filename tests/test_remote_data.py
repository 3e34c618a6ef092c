"""Pictures on an object store: each file is fetched when it is first needed, and what is read is as from a folder."""

import os
import shutil
from pathlib import Path

import fake_store
import forked_commands
import numpy as np
import pytest
from test_tfds_source import flat, prepare

from configs import unet_photographs
from inpaint_jax import image_files, object_store
from inpaint_jax.data import load_mask_files, load_splits, pipeline

ROOT = Path(__file__).parents[1]
URL = "fake://bucket/data"
FILES = 5  # of each split
PICTURES = {"train": 20, "validation": 10, "test": 10}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set of several files for each split, and a tree of pictures."""
    folder = tmp_path_factory.mktemp("data")
    rows = {split: [{"image": flat(i, k)} for i in range(n)] for k, (split, n) in enumerate(PICTURES.items())}
    prepare(folder, "sharded", rows, shape=(40, 48, 3), files=FILES)
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    for number, pixels in enumerate(noise):
        image_files.write_png(folder / "photos" / f"{number % 2}/{number:02d}.png", pixels)
    return folder


@pytest.fixture
def store(data_dir, tmp_path, monkeypatch) -> Path:
    """The folder behind a store that has the same as `data_dir`; no machine has fetched anything yet."""
    fake_store.register()
    place = tmp_path / "store" / "bucket" / "data"
    shutil.copytree(data_dir, place)
    monkeypatch.setenv("FAKE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fake_store.FakeStore, "calls", [])
    monkeypatch.setattr(fake_store.FakeStore, "fault", None)
    monkeypatch.setattr(object_store, "WAITS", (0.0,))
    return place


@pytest.fixture
def config():
    c = unet_photographs.get_config("tiny").data
    c.source, c.name, c.path = "tfds", "sharded", URL
    return c


def new_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
    fake_store.FakeStore.calls.clear()


def fetched(suffix: str = "") -> set[str]:
    """Names of the files that this machine has."""
    cache = Path(os.environ["XDG_CACHE_HOME"])
    files = [path for path in cache.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.name for path in files if suffix in path.name}


def same(a, b) -> None:
    assert {split: source.fingerprint for split, source in a.items()} == {s: x.fingerprint for s, x in b.items()}
    for split, source in a.items():
        assert [source[i].tobytes() for i in range(len(source))] == [b[split][i].tobytes() for i in range(len(source))]


def shard(split: str, record: int) -> str:
    number = record // (PICTURES[split] // FILES)
    return f"sharded-{split}.array_record-{number:05d}-of-{FILES:05d}"


def test_a_file_of_records_is_fetched_when_one_of_its_records_is_read(store, data_dir, config):
    assert len(list(store.glob(f"sharded/*/*{FILES:05d}"))) == 3 * FILES
    splits = load_splits(config, 32)
    # The first and the last record of each split tell whether the set is the same.
    ends = {shard(split, place) for split, count in PICTURES.items() for place in (0, count - 1)}
    assert fetched("array_record") == ends
    splits["train"][9]
    assert fetched("array_record") == {*ends, shard("train", 9)}
    config.path = str(data_dir)
    same(load_splits(config, 32), splits)
    config.path = URL
    fake_store.FakeStore.calls.clear()
    load_splits(config, 32)["train"][13]
    assert fake_store.FakeStore.calls == ["list"]


def test_each_host_fetches_what_its_share_of_a_step_needs(store, config, tmp_path, monkeypatch):
    slots = {}
    for host in range(2):
        new_machine(tmp_path, monkeypatch, f"host{host}")
        source = load_splits(config, 32)["train"]
        options = {"seed": 3, "batch": 4, "threads": 1}
        (batch,) = pipeline.train_batches(source, start_step=0, stop_step=1, host=host, hosts=2, **options)
        slots[host] = batch["slot"].tolist()
        read = pipeline.pictures_of(source, seed=3, batch=4, slots=slots[host])
        own = {shard("train", record) for record in read}
        assert fetched("-train.array_record") == own | {shard("train", 0), shard("train", 19)}
    assert slots == {0: [0, 1], 1: [2, 3]}


def test_a_set_that_is_replaced_is_fetched_anew(store, data_dir, config, tmp_path):
    before = load_splits(config, 32)
    rows = {split: [{"image": flat(i + 1, 0)} for i in range(n)] for split, n in PICTURES.items()}
    shutil.rmtree(store / "sharded")
    prepare(tmp_path, "sharded", rows, shape=(40, 48, 3), files=FILES)
    shutil.copytree(tmp_path / "sharded", store / "sharded")
    after = load_splits(config, 32)
    assert before["train"].fingerprint != after["train"].fingerprint
    assert {int(after["train"][i][0, 0, 0]) for i in range(20)} == {5 * (i + 1) for i in range(20)}


def test_what_is_missing_or_cut_off_is_one_sentence(store, config, monkeypatch):
    splits = load_splits(config, 32)
    monkeypatch.setattr(fake_store.FakeStore, "fault", staticmethod(fake_store.fault_of("fail:any:1:1000")))
    with pytest.raises(ValueError, match=rf"{shard('train', 9)}: the connection is broken: mend the access to {URL}"):
        splits["train"][9]
    monkeypatch.setattr(fake_store.FakeStore, "fault", None)
    (path,) = store.rglob(shard("train", 9))
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(ValueError, match=rf"{URL}/.*{shard('train', 9)} was there when this command began: bring it"):
        splits["train"][9]
    with pytest.raises(ValueError, match=r"'sharded/1\.0\.0' is missing or damaged .*: copy it again"):
        load_splits(config, 32)["train"][9]
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=rf"has {len(whole) - 1} bytes, and had {len(whole)} when this command began"):
        splits["train"][9]
    path.write_bytes(whole)
    assert splits["train"][9].shape == (32, 32, 3)
    for config.path in ("fake://bucket/elsewhere", f"{URL}/photos"):
        with pytest.raises(ValueError, match=rf"there is nothing below {config.path}/sharded"):
            load_splits(config, 32)


@pytest.fixture
def photos(config):
    config.source, config.path, config.split_counts = "folder", f"{URL}/photos", (12, 4, 4)
    return config


def test_a_tree_of_pictures_is_as_on_a_disk(store, data_dir, photos, tmp_path):
    remote = load_splits(photos, 32, tmp_path)
    photos.path = str(data_dir / "photos")
    same(load_splits(photos, 32), remote)
    photos.split_counts, photos.split_folders = (0, 0, 0), ("0", "1", "0")
    with pytest.raises(ValueError, match="are the same picture, and would lie in two splits"):
        load_splits(photos, 32)
    photos.path = f"{URL}/photos"
    with pytest.raises(ValueError, match="are the same picture, and would lie in two splits"):
        load_splits(photos, 32)
    photos.split_folders = ("0", "1", "2")
    with pytest.raises(ValueError, match=f"no pictures below {URL}/photos/2"):
        load_splits(photos, 32)


def test_with_the_list_of_checked_pictures_only_those_that_are_read_are_fetched(store, photos, tmp_path, monkeypatch):
    remote = load_splits(photos, 32, tmp_path / "run")
    assert len(fetched(".png")) == 20
    new_machine(tmp_path, monkeypatch, "other")
    other = load_splits(photos, 32, tmp_path / "run")
    assert fetched() == set()
    np.testing.assert_array_equal(other["train"][3], remote["train"][3])
    assert fetched() == {Path(other["train"].names[3]).name}
    # One that changed is looked at again.
    image_files.write_png(store / "photos/0/00.png", np.zeros((32, 32, 3), np.uint8))
    new_machine(tmp_path, monkeypatch, "third")
    assert {s: x.fingerprint for s, x in load_splits(photos, 32, tmp_path / "run").items()} != {
        s: x.fingerprint for s, x in remote.items()
    }
    assert fetched() == {"00.png"}


def test_bad_pictures_are_named_by_where_they_lie(store, photos):
    (store / "photos/1/05.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=rf"1 of 20 files cannot be used.*\n.*{URL}/photos/1/05\.png"):
        load_splits(photos, 32)
    photos.skip_bad, photos.split_counts = 1, (11, 4, 4)
    assert sum(map(len, load_splits(photos, 32).values())) == 19


def test_masks_come_from_a_store_too(store, data_dir):
    for number in range(3):
        image_files.write_png(store / f"holes/{number}.png", np.full((32, 32, 3), 255 * (number % 2), np.uint8))
    source = load_mask_files(f"{URL}/holes", 32)
    assert [source[i].mean() for i in range(3)] == [0, 1, 0]


def test_an_option_that_takes_a_folder_refuses_a_url():
    ran = forked_commands.run("experiment", ROOT, "--root=gs://bucket/x", environment={**os.environ})
    assert ran.returncode == 2
    assert "error: --root=gs://bucket/x is a place on an object store: give a folder or file" in ran.stderr
    ran = forked_commands.run("replay", ROOT, "gs://bucket/x", "--step=1", environment={**os.environ})
    assert ran.returncode == 2
    assert "gs://bucket/x is only read here: give --out" in ran.stderr
