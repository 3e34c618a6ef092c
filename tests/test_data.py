"""Sources of pictures: folder trees, cached manifests, bad files, embedded maps and mask files."""

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import unet_cosine
from inpaint_jax import data, image_files
from inpaint_jax.data import folder
from inpaint_jax.data.source import ImageSource

# Sorted as POSIX paths, which is neither the order of the folders nor that of lower-cased names.
TREE = ["C/c.JPG", "a.png", "b.webp", "b/c.jpeg", "d/e-f.TIF", "d/e/f.tga", "z.BMP"]
REAL = Path(os.environ.get("INPAINT_DATA_DIR", "")) / "normal_maps"


def picture(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(root: Path, names: list[str], **size) -> Path:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed, **size)).save(root / name)
    return root


def folder_config(root: Path | str = "", **changes):
    """`config.data` of the tiny flagship, for a folder."""
    config = unet_cosine.get_config("tiny").data
    config.update({"source": "folder", "path": str(root), "split_counts": (0, 0, 0), **changes})
    return config


def names_of(splits) -> dict[str, list[str]]:
    return {split: list(source.names) for split, source in splits.items()}


def every_name(splits) -> list[str]:
    return sorted(name for source in splits.values() for name in source.names)


def test_folder_tree_is_found_sorted_and_fitted(tmp_path):
    write(tmp_path, [*TREE, ".hidden.png", ".cache/x.png", "__unused.png"])
    (tmp_path / "__unused.png").rename(tmp_path / "notes.txt")
    splits = data.load_splits(folder_config(tmp_path, split_counts=(5, 1, 1)), 32)
    names = names_of(splits)
    assert [len(source) for source in splits.values()] == [5, 1, 1]
    assert every_name(splits) == TREE
    assert names["train"] == sorted(names["train"])
    for source in splits.values():
        for index, name in enumerate(source.names):
            expected = image_files.fit_square(image_files.read_rgb(tmp_path / name), 32, "resize")
            np.testing.assert_array_equal(source[index], expected)
            assert (source[index].shape, source[index].dtype) == ((32, 32, 3), np.uint8)


def test_crop_leaves_training_pictures_whole_and_cuts_the_centre_elsewhere(tmp_path):
    write(tmp_path, TREE[1:3])
    write(tmp_path, ["large.png"], height=64, width=64)
    splits = data.load_splits(folder_config(tmp_path, fit="crop", split_counts=(1, 1, 1)), 32)
    for split, source in splits.items():
        whole = image_files.read_rgb(tmp_path / source.names[0])
        expected = whole if split == "train" else image_files.fit_square(whole, 32, "crop")
        np.testing.assert_array_equal(source[0], expected)
    with pytest.raises(ValueError, match=r"2 of 3 files(.|\n)*b.webp is 40 pixels.*crop"):
        data.load_splits(folder_config(tmp_path, fit="crop", split_counts=(1, 1, 1)), 64)


def overwrite(path: Path, content: bytes, seconds_later: float = 0) -> None:
    """Changes a file's content, its modification time staying as it was or growing."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + int(seconds_later * 1e9)))


def test_manifest_decodes_again_only_what_changed(tmp_path):
    root, cache = write(tmp_path / "maps", TREE), tmp_path / "cache"
    config = folder_config(root, split_counts=(5, 1, 1))
    before = names_of(data.load_splits(config, 32, cache))
    victim = root / "b.webp"
    content = victim.read_bytes()
    overwrite(victim, bytes(len(content)))
    assert names_of(data.load_splits(config, 32, cache)) == before
    with pytest.raises(ValueError, match=r"b\.webp"):
        data.load_splits(config, 32, None)
    overwrite(victim, bytes(len(content)), seconds_later=1)
    with pytest.raises(ValueError, match=r"b\.webp"):
        data.load_splits(config, 32, cache)
    # A mended file counts at once, even where size and time say nothing.
    overwrite(victim, content)
    assert names_of(data.load_splits(config, 32, cache)) == before


def test_a_manifest_that_was_changed_is_made_anew(tmp_path):
    """Its hashes decide the splits, and its verdicts which files are not looked at again."""
    root, cache = write(tmp_path / "maps", TREE), tmp_path / "cache"
    config = folder_config(root, split_counts=(5, 1, 1))
    before = names_of(data.load_splits(config, 32, cache))
    path = cache / "manifest.json"
    hashes = [entry["hash"] for entry in json.loads(path.read_text())["files"].values()]
    path.write_text(path.read_text().replace(hashes[0], "0" * 64).replace(hashes[1], "f" * 64))
    assert names_of(data.load_splits(config, 32, cache)) == before
    assert [entry["hash"] for entry in json.loads(path.read_text())["files"].values()] == hashes


def test_damaged_manifest_is_made_anew(tmp_path):
    root, cache = write(tmp_path / "maps", TREE), tmp_path / "cache"
    config = folder_config(root, split_counts=(5, 1, 1))
    before = names_of(data.load_splits(config, 32, cache))
    for file in cache.iterdir():
        file.write_text('{"version": 1, "fi')
    assert names_of(data.load_splits(config, 32, cache)) == before


def test_fingerprint_follows_the_pictures_and_not_their_place(tmp_path):
    first = write(tmp_path / "first", TREE)
    second = Path(shutil.copytree(first, tmp_path / "second"))

    def fingerprint(root, **changes):
        return data.load_splits(folder_config(root, split_counts=(5, 1, 1), **changes), 32)["train"].fingerprint

    assert fingerprint(first) == fingerprint(second)
    assert fingerprint(first) != fingerprint(first, limit=2)
    for name in TREE:
        Image.fromarray(255 - image_files.read_rgb(second / name)).save(second / name)
    assert fingerprint(first) != fingerprint(second)


def test_bad_files_are_listed_with_reasons_and_allowed_up_to_a_number(tmp_path):
    root = write(tmp_path, TREE)
    (root / "text.png").write_text("not a picture")
    (root / "cut.png").write_bytes((root / "a.png").read_bytes()[:500])
    (root / "dangling.png").symlink_to(root / "nowhere.png")
    bad = {"text.png", "cut.png", "dangling.png"}
    with pytest.raises(ValueError, match=r"3 of 10 files.*config\.data\.skip_bad = 3") as error:
        data.load_splits(folder_config(root, split_counts=(5, 1, 1), skip_bad=2), 32)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 3
    assert all(any(name in line for line in lines) for name in bad)
    splits = data.load_splits(folder_config(root, split_counts=(5, 1, 1), skip_bad=3), 32)
    assert every_name(splits) == TREE


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        ([], {"path": "{root}/absent"}, r"absent'.*config\.data\.path"),
        ([], {}, "no pictures below"),
        (["a.png"], {"split_fractions": (1.0, 0.0, 0.0)}, "the val split of .* is empty"),
        (["a.png"], {"split_counts": (5, 1, 1)}, "split_counts.*more than the 1 pictures"),
        (["a.png"], {"split_folders": ("one", "two", "")}, r"split_folders.*all three"),
        (["one/a.png", "two/b.png"], {"split_folders": ("one", "two", "three")}, "three'"),
        (["a.png"], {"source": "cloud"}, "'cloud'.*folder, procedural_normals"),
        (["a.png"], {"path": ""}, "INPAINT_DATA_DIR"),
        (["a.png"], {"path": "", "name": "maps"}, "INPAINT_DATA_DIR"),
    ],
    ids=str,
)
def test_what_is_missing_is_said(tmp_path, monkeypatch, make, changes, message):
    monkeypatch.delenv("INPAINT_DATA_DIR", raising=False)
    write(tmp_path, make)
    config = folder_config(tmp_path, **changes)
    config.path = config.path.format(root=tmp_path)
    with pytest.raises(ValueError, match=message):
        data.load_splits(config, 32)


def test_a_folder_that_cannot_be_read_is_named_and_not_left_out(tmp_path):
    write(tmp_path, ["a.png"])
    # A path too long for the system: the one unreadable thing for the superuser too.
    inner = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=inner)
        outer, inner = inner, os.open("d" * 250, os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    os.close(inner)
    with pytest.raises(ValueError, match=r"the folder .*ddd.* cannot be read \(File name too long\)"):
        data.load_splits(folder_config(tmp_path), 32)


def test_explicit_folders_are_the_splits(tmp_path):
    write(tmp_path, ["one/a.png", "one/deep/b.png", "two/c.png", "three/d.png", "unused/e.png"])
    splits = data.load_splits(folder_config(tmp_path, split_folders=("one", "two", "three")), 32, tmp_path / "cache")
    assert names_of(splits) == {"train": ["one/a.png", "one/deep/b.png"], "val": ["two/c.png"], "test": ["three/d.png"]}


def test_the_same_picture_in_two_explicit_folders_is_refused(tmp_path):
    write(tmp_path, ["one/a.png", "two/c.png", "three/d.png"])
    (tmp_path / "three/copy.png").write_bytes((tmp_path / "one/a.png").read_bytes())
    with pytest.raises(ValueError, match=r"'one/a\.png' and 'three/copy\.png' are the same picture"):
        data.load_splits(folder_config(tmp_path, split_folders=("one", "two", "three")), 32)


def test_a_choice_of_evaluation_pictures_grows_with_its_limit():
    source = ImageSource([f"{i:03d}" for i in range(40)], lambda i: np.full((2, 2, 3), i, np.uint8), "x")
    small, large = source.chosen(5), source.chosen(20)
    assert (len(small), len(large), source.chosen(0), source.chosen(40)) == (5, 20, source, source)
    assert set(small.names) < set(large.names)
    assert max(map(int, large.names)) >= 20
    assert [int(small[i][0, 0, 0]) for i in range(5)] == [int(name) for name in small.names]
    assert small.fingerprint != source.fingerprint


def test_limit_takes_fewer_training_pictures_and_leaves_the_other_splits(tmp_path):
    write(tmp_path, TREE)
    limited = [names_of(data.load_splits(folder_config(tmp_path, split_counts=(5, 1, 1), limit=n), 32)) for n in (2, 4)]
    full = names_of(data.load_splits(folder_config(tmp_path, split_counts=(5, 1, 1)), 32))
    assert [len(names["train"]) for names in limited] == [2, 4]
    assert set(limited[0]["train"]) < set(limited[1]["train"]) < set(full["train"])
    assert all(names[split] == full[split] for names in limited for split in ("val", "test"))


def test_a_name_is_found_below_the_data_folder_of_the_environment(tmp_path, monkeypatch):
    write(tmp_path / "maps", TREE)
    monkeypatch.setenv("INPAINT_DATA_DIR", str(tmp_path))
    splits = data.load_splits(folder_config(name="maps", split_counts=(5, 1, 1)), 32)
    assert every_name(splits) == TREE


def test_copies_of_a_picture_lie_in_one_split(tmp_path):
    # BMP: its bytes, and so the hashes, are the same with every version of the encoder.
    write(tmp_path, [f"{i}.bmp" for i in range(24)], height=4, width=4)
    for i in range(24):
        shutil.copy(tmp_path / f"{i}.bmp", tmp_path / f"copy_{i}.bmp")
    splits = data.load_splits(folder_config(tmp_path, split_fractions=(0.5, 0.25, 0.25)), 4)
    seen = [{source[i].tobytes() for i in range(len(source))} for source in splits.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 24
    assert sum(len(source) for source in splits.values()) == 48


def test_embedded_maps_have_disjoint_splits_that_do_not_move():
    config = unet_cosine.get_config("tiny").data
    splits = data.load_splits(config, 32)
    assert [len(source) for source in splits.values()] == [18, 6, 6]
    pictures = {split: [source[i] for i in range(len(source))] for split, source in splits.items()}
    assert len({one.tobytes() for group in pictures.values() for one in group}) == 30
    config.split_counts = (24, 7, 6)
    grown = data.load_splits(config, 32)
    for split, group in pictures.items():
        np.testing.assert_array_equal([grown[split][i] for i in range(len(group))], group)
    fingerprints = [{split: source.fingerprint for split, source in one.items()} for one in (splits, grown)]
    assert {split for split in splits if fingerprints[0][split] != fingerprints[1][split]} == {"train", "val"}
    config.limit = 5
    limited = data.load_splits(config, 32)
    assert [len(source) for source in limited.values()] == [5, 7, 6]


@pytest.mark.parametrize(
    "changes", [{"split_counts": (5, 0, 1)}, {"embedded_counts": (5, 0, 1)}, {"kind": "photographs"}], ids=str
)
def test_embedded_maps_refuse_what_they_cannot_be(changes):
    config = unet_cosine.get_config("tiny").data
    config.update(changes)
    with pytest.raises(ValueError, match=rf"config\.data\.{next(iter(changes))}"):
        data.load_splits(config, 32)


def test_mask_files_are_zeros_and_ones_with_white_as_hole(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :16] = 255
    (tmp_path / "deep").mkdir()
    Image.fromarray(mask).save(tmp_path / "deep" / "left.PNG")
    Image.fromarray(mask.T.copy()).save(tmp_path / "top.png")
    source = data.load_mask_files(str(tmp_path), 32)
    assert list(source.names) == ["deep/left.PNG", "top.png"]
    expected = np.zeros((32, 32, 1), np.uint8)
    expected[:, :8] = 1
    np.testing.assert_array_equal(source[0], expected)
    np.testing.assert_array_equal(source[1], expected.transpose(1, 0, 2))


@pytest.mark.parametrize("path", ["", "{root}/absent"])
def test_mask_files_need_a_folder(tmp_path, path):
    with pytest.raises(ValueError, match=r"config\.mask\.path"):
        data.load_mask_files(path.format(root=tmp_path), 32)


@pytest.mark.skipif(not REAL.is_dir(), reason="INPAINT_DATA_DIR has no normal_maps")
def test_real_normal_maps_split_by_source_picture():
    config = folder_config(name="normal_maps", group_pattern=r"^\d+_(.*)_\d+_\d+\.png$")
    splits = data.load_splits(config, 32)
    assert sum(len(source) for source in splits.values()) == 640
    groups = [{name.split("_", 1)[1].rsplit("_", 2)[0] for name in source.names} for source in splits.values()]
    assert all(groups)
    assert sum(map(len, groups)) == len(set.union(*groups)) > 500
    assert splits["val"][0].shape == (32, 32, 3)


def test_memory_of_decoded_pictures_is_bounded_whatever_their_sizes():
    sides = [8, 64, 8, 64]
    source = ImageSource(list("abcd"), lambda i: np.zeros((sides[i], sides[i], 3), np.uint8), "x", cache_bytes=5000)
    for _ in range(2):
        assert [len(image) for image in source] == sides
    # The small ones would fit four times over, the large ones not even once.
    assert sum(image.nbytes for image in source._kept.values()) == 2 * 8 * 8 * 3
    with pytest.raises(IndexError, match="picture 4 of a source of 4"):
        source[4]


def test_photographs_in_place_of_normal_maps_are_told(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("inpaint_jax"), "propagate", True)
    random = np.random.default_rng(0)
    for i in range(30):
        image_files.write_png(tmp_path / f"{i}.png", random.integers(0, 255, (40, 40, 3), np.uint8))
    config = unet_cosine.get_config("tiny").data
    config.source, config.path, config.split_fractions = "folder", str(tmp_path), (0.5, 0.3, 0.2)
    data.load_splits(config, 32)
    assert "are no tangent-space normal maps" in caplog.text
    caplog.clear()
    config.kind = "photographs"
    data.load_splits(config, 32)
    for i in range(30):
        image_files.write_png(tmp_path / f"{i}.png", np.full((40, 40, 3), (128 + i, 128, 250), np.uint8))
    config.kind = "normal_maps"
    data.load_splits(config, 32)
    assert not caplog.text


def test_pictures_of_a_runs_folder_are_known_again_by_their_content(tmp_path):
    for i in range(40):
        image_files.write_png(tmp_path / "maps" / f"{i}.png", np.full((32, 32, 3), (128 + i, 128, 250), np.uint8))
    config = unet_cosine.get_config("tiny").data
    config.source, config.path, config.split_fractions = "folder", str(tmp_path / "maps"), (0.4, 0.3, 0.3)
    data.load_splits(config, 32, tmp_path / "run/data")
    shutil.copytree(tmp_path / "maps", tmp_path / "others")
    (tmp_path / "others/0.png").rename(tmp_path / "others/renamed.png")
    for i in (1, 2, 3):
        image_files.write_png(tmp_path / "others" / f"{i}.png", np.full((32, 32, 3), (128, 128, 200 + i), np.uint8))
    source, contents = folder.load_folder(tmp_path / "others", 32, "crop")
    assert len(source) == 40
    assert folder.count_known(contents, tmp_path / "run/data") == 37
    assert folder.count_known(contents, tmp_path / "another run/data") == 0
