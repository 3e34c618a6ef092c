"""The TFDS source on small real data sets, prepared in the test without TensorFlow and read without their code."""

import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs import unet_photographs
from inpaint_jax.data import load_splits

SPLITS = ("train", "val", "test")


def prepare(
    folder: Path, set_name: str, examples: dict[str, list[dict]], shape=(None, None, 3), dtype=np.uint8, files=None
) -> None:
    """Prepares a set of pictures {split: [{"image": PIL picture or bytes, "picture": text or missing}]}.

    Args:
        files: so many for each split; None = as TFDS likes.
    """
    has_picture = any("picture" in example for rows in examples.values() for example in rows)

    # Not registered: TFDS cannot find the code, as in another process.
    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = set_name
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = folder

        def _info(self):
            features = {"image": tfds.features.Image(shape=shape, dtype=dtype), "label": np.int64}
            if has_picture:
                features["picture"] = tfds.features.Text()
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(rows) for split, rows in examples.items()}

        def _generate_examples(self, rows):
            for i, row in enumerate(rows):
                file = row["image"]
                if isinstance(file, Image.Image):  # an encoded file: TFDS needs TensorFlow to encode arrays
                    file = io.BytesIO()
                    row["image"].save(file, "PNG")
                    file = file.getvalue()
                yield i, {**row, "image": io.BytesIO(file), "label": i}

    Pictures(data_dir=str(folder), file_format="array_record").download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=files)
    )


def flat(i: int, split: int, width: int = 48, height: int = 40) -> Image.Image:
    """A picture of one colour: its number in red, its split in green."""
    return Image.new("RGB", (width, height), (i * 5, split * 50, 7))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    two = {"train": 20, "test": 10}
    three = {"train": 12, "validation": 5, "test": 6}
    for name, counts in {"two": two, "three": three}.items():
        rows = {s: [{"image": flat(i, k)} for i in range(n)] for k, (s, n) in enumerate(counts.items())}
        prepare(folder, name, rows, shape=(40, 48, 3))
    crops = {
        split: [{"image": flat(8 * k + i // 4, i % 4), "picture": f"{split}_{i // 4}.png"} for i in range(32)]
        for k, split in enumerate(("train", "test"))
    }
    prepare(folder, "crops", crops)
    sizes = {s: [{"image": flat(i, 0, 40 + i, 33 + i)} for i in range(8)] for s in ("train", "val", "test")}
    prepare(folder, "sizes", sizes)
    return folder


@pytest.fixture
def config(data_dir: Path):
    c = unet_photographs.get_config("tiny").data
    c.source, c.name, c.path = "tfds", "two", str(data_dir)
    return c


def colours(source) -> list[tuple[int, int]]:
    return [tuple(source[i][16, 16, :2].tolist()) for i in range(len(source))]


def sizes_of(splits) -> list[int]:
    return [len(splits[split]) for split in SPLITS]


def test_exact_counts_pool_every_picture_into_one_split(config):
    config.split_counts = (20, 5, 5)
    result = load_splits(config, 32)
    assert sizes_of(result) == [20, 5, 5]
    seen = [colour for split in result.values() for colour in colours(split)]
    assert sorted(seen) == sorted([(i * 5, 0) for i in range(20)] + [(i * 5, 50) for i in range(10)])
    assert result["val"][0].shape == (32, 32, 3)
    again = load_splits(config, 32)
    assert {k: v.fingerprint for k, v in again.items()} == {k: v.fingerprint for k, v in result.items()}
    assert colours(again["train"]) == colours(result["train"])


def test_a_set_with_three_splits_keeps_them_unless_counts_are_given(config):
    config.name = "three"
    result = load_splits(config, 32)
    assert sizes_of(result) == [12, 5, 6]
    assert [{green for _, green in colours(result[split])} for split in SPLITS] == [{0}, {50}, {100}]
    config.split_counts = (9, 7, 7)
    pooled = load_splits(config, 32)
    assert sizes_of(pooled) == [9, 7, 7]
    assert len({colour for split in pooled.values() for colour in colours(split)}) == 23


def test_a_set_without_validation_is_pooled_by_fractions(config):
    config.split_fractions = (0.5, 0.25, 0.25)
    result = load_splits(config, 32)
    assert sum(sizes_of(result)) == 30
    assert all({green for _, green in colours(result[split])} == {0, 50} for split in SPLITS)


def test_named_splits_are_taken(config):
    config.name, config.split_folders = "three", ("validation", "test", "train")
    result = load_splits(config, 32)
    assert [{green for _, green in colours(result[split])} for split in SPLITS] == [{50}, {100}, {0}]


@pytest.mark.parametrize("names", [("train", "test", ""), ("train", "train", "test"), ("train", "valid", "test")])
def test_named_splits_must_be_three_that_exist(config, names):
    config.name, config.split_folders = "three", names
    with pytest.raises(ValueError, match=r"config\.data\.split_folders.*three/1\.0\.0.*test, train, validation"):
        load_splits(config, 32)


def test_crops_of_one_picture_stay_in_one_split(config):
    config.name, config.split_fractions = "crops", (0.5, 0.25, 0.25)
    result = load_splits(config, 32)
    assert sum(sizes_of(result)) == 64
    pictures = [{red for red, _ in colours(result[split])} for split in SPLITS]
    assert sum(map(len, pictures)) == len(set.union(*pictures)) == 16
    config.split_counts = (33, 16, 15)
    with pytest.raises(ValueError, match=r"would cut the group '(train|test)_\d\.png' in two"):
        load_splits(config, 32)


def test_limit_takes_fewer_training_pictures_and_leaves_the_other_splits(config):
    config.name = "three"
    full = load_splits(config, 32)
    limited = []
    for config.limit in (3, 7):
        limited.append(load_splits(config, 32))
    assert [len(splits["train"]) for splits in limited] == [3, 7]
    assert set(limited[0]["train"].names) < set(limited[1]["train"].names) < set(full["train"].names)
    # By hash, since a set may have been written in some order.
    assert list(limited[1]["train"].names) != list(full["train"].names)[:7]
    assert all(splits[s].names == full[s].names for splits in limited for s in ("val", "test"))


def test_crops_keep_training_pictures_whole_and_small_ones_are_refused(config, tmp_path):
    config.name, config.fit = "sizes", "crop"
    result = load_splits(config, 32, tmp_path)
    whole = sorted(result["train"][i].shape for i in range(8))
    assert whole == [(33 + i, 40 + i, 3) for i in range(8)]
    assert {result["val"][i].shape for i in range(8)} == {(32, 32, 3)}
    with pytest.raises(ValueError, match=r"8 of 8 pictures.*'sizes/1\.0\.0' are too small.*fit = 'resize'"):
        load_splits(config, 64, tmp_path)
    (manifest,) = tmp_path.iterdir()
    kept = manifest.read_bytes()
    manifest.write_text('{"version": 1, "ident')
    assert load_splits(config, 32, tmp_path)["train"].fingerprint == result["train"].fingerprint
    assert manifest.read_bytes() == kept
    config.name = "two"
    config.split_counts = (20, 5, 5)
    with pytest.raises(ValueError, match=r"20 of 20 pictures.*the first is \w+/\d{8} with 40 pixels"):
        load_splits(config, 64)


@pytest.mark.parametrize(("size", "megabytes", "calls"), [(32, 1, 1), (256, 1, 3), (32, 0, 3)])
def test_small_sets_are_decoded_once_and_large_ones_each_time(config, size, megabytes, calls):
    config.cache_megabytes = megabytes
    config.split_counts = (20, 5, 5)
    source = load_splits(config, size)["train"]
    load, asked = source.load, []

    def counted(index: int) -> np.ndarray:
        asked.append(index)
        return load(index)

    source.load = counted
    epochs = [[source[i] for i in range(20)] for _ in range(3)]
    assert sorted(asked) == sorted([*range(20)] * calls)
    np.testing.assert_array_equal(epochs[0], epochs[2])
    assert epochs[0][0].dtype == np.uint8


def test_threads_read_the_same_pictures(data_dir, config):
    random = np.random.default_rng(0)
    rows = {
        split: [{"image": Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8))} for _ in range(40)]
        for split in ("train", "validation", "test")
    }
    prepare(data_dir, "noise", rows)
    config.name, config.cache_megabytes = "noise", 0
    alone = load_splits(config, 64)["train"]
    expected = [alone[i] for i in range(40)]
    assert {image.tobytes() for image in expected} == {np.asarray(row["image"]).tobytes() for row in rows["train"]}
    # A source that no thread has read from yet: opening its files is part of what is tested.
    fresh = load_splits(config, 64)["train"]
    order = random.permutation(np.repeat(np.arange(40), 10))
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(fresh.__getitem__, order))
    assert all(np.array_equal(image, expected[i]) for i, image in zip(order, together, strict=True))


def test_grey_becomes_rgb_and_alpha_is_dropped(data_dir, config):
    for name, mode, colour, shape in (("grey", "L", 90, 1), ("alpha", "RGBA", (10, 20, 30, 0), 4)):
        picture = Image.new(mode, (40, 40), colour)
        rows = {s: [{"image": picture}] for s in ("train", "validation", "test")}
        prepare(data_dir, name, rows, shape=(None, None, shape))
        config.name = name
        expected = (90, 90, 90) if mode == "L" else (10, 20, 30)
        np.testing.assert_array_equal(load_splits(config, 32)["train"][0], np.broadcast_to(expected, (32, 32, 3)))


def test_a_set_prepared_anew_from_other_pictures_has_another_fingerprint(tmp_path, config):
    found = set()
    for shift in (0, 1):
        folder = tmp_path / str(shift)
        folder.mkdir()
        rows = {s: [{"image": flat(i + shift, 0)} for i in range(3)] for s in ("train", "validation", "test")}
        prepare(folder, "again", rows)
        config.name, config.path = "again", str(folder)
        found.add(load_splits(config, 32)["train"].fingerprint)
    assert len(found) == 2


def test_a_damaged_set_is_one_clear_sentence(data_dir, config, tmp_path):
    config.name, config.path = "three", str(tmp_path)
    shutil.copytree(data_dir / "three", tmp_path / "three")
    (records,) = (tmp_path / "three").glob("*/*train*")
    whole = records.read_bytes()
    records.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ValueError, match=r"'three/1\.0\.0' is missing or damaged .*: copy it again"):
        load_splits(config, 32)
    records.unlink()
    with pytest.raises(ValueError, match=r"'three/1\.0\.0' is missing or damaged .*three-train.*: copy it again"):
        load_splits(config, 32)
    records.write_bytes(whole)
    for name in ("dataset_info.json", "features.json"):
        (description,) = (tmp_path / "three").glob(f"*/{name}")
        description.write_text("{")
        with pytest.raises(ValueError, match=r"'three' cannot be read from .* prepare it"):
            load_splits(config, 32)


def test_a_set_cannot_have_a_module_imported(data_dir, config, tmp_path, monkeypatch):
    """TFDS alone would import what features.json names, and so run it."""
    config.name, config.path = "three", str(tmp_path)
    shutil.copytree(data_dir / "three", tmp_path / "three")
    (description,) = (tmp_path / "three").glob("*/features.json")
    (tmp_path / "hostile.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = description.read_text()
    own = "tensorflow_datasets.core.features.image_feature.Image"
    assert own in text
    for key in ("pythonClassName", "python_class_name"):
        description.write_text(text.replace(own, "hostile.Image").replace("pythonClassName", key))
        with pytest.raises(ValueError, match=r"'three' cannot be .*features\.json names the class hostile\.Image"):
            load_splits(config, 32)
    assert not (tmp_path / "ran").exists()


def test_what_cannot_be_read_is_one_clear_sentence(data_dir, config, tmp_path):
    for config.name in ("no_such_set", "two:9.9.9"):
        with pytest.raises(ValueError, match=rf"{config.name}.*prepare it with file_format"):
            load_splits(config, 32)
    config.name = ""
    with pytest.raises(ValueError, match=r"set config\.data\.name"):
        load_splits(config, 32)
    rows = {s: [{"image": Image.new("I;16", (40, 40))}] for s in ("train", "validation", "test")}
    prepare(tmp_path, "deep", rows, shape=(None, None, 1), dtype=np.uint16)
    config.name, config.path = "deep", str(tmp_path)
    with pytest.raises(ValueError, match=r"'deep' has no feature 'image' of 8-bit pictures"):
        load_splits(config, 32)
    rows = {s: [{"image": b"no picture"}] for s in ("train", "validation", "test")}
    prepare(tmp_path, "broken", rows)
    config.name = "broken"
    with pytest.raises(ValueError, match=r"train/00000000 of .*'broken/1\.0\.0' holds no picture"):
        load_splits(config, 32)["train"][0]
    config.fit = "crop"
    with pytest.raises(ValueError, match=r"00000000 of .*'broken/1\.0\.0' holds no picture"):
        load_splits(config, 32)
