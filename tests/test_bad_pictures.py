"""Pictures of every kind against pixels written down here, and what a run does about bad ones, before it and in it."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import unet_cosine
from inpaint_jax import checkpoint, data, image_files, train
from inpaint_jax.data import pipeline

GREY = [(0, 0, 0), (1, 1, 1), (128, 128, 128), (255, 255, 255)]
COLOURS = [(10, 20, 30), (200, 100, 50), (0, 255, 1), (200, 100, 50)]


def row(mode: str, values: list) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


def palette(colours: list[tuple], places: list[int]) -> Image.Image:
    image = row("P", places)
    image.putpalette([value for colour in colours for value in colour])
    return image


# Name -> picture, options of saving it, and the RGB pixels that it must give.
GOLDEN = {
    "rgb.png": (row("RGB", COLOURS), {}, COLOURS),
    "rgb.bmp": (row("RGB", COLOURS), {}, COLOURS),
    "grey.png": (row("L", [0, 1, 128, 255]), {}, GREY),
    "grey.tif": (row("L", [0, 1, 128, 255]), {}, GREY),
    "grey_alpha.png": (row("LA", [(0, 0), (1, 255), (128, 127), (255, 1)]), {}, GREY),
    "alpha.png": (row("RGBA", [(*c, a) for c, a in zip(COLOURS, (0, 1, 127, 255), strict=True)]), {}, COLOURS),
    "alpha.tga": (row("RGBA", [(*c, a) for c, a in zip(COLOURS, (0, 1, 127, 255), strict=True)]), {}, COLOURS),
    "bilevel.png": (row("1", [0, 255, 255, 0]), {}, [(0, 0, 0), (255, 255, 255), (255, 255, 255), (0, 0, 0)]),
    "palette.png": (palette(COLOURS[:3], [0, 1, 2, 1]), {}, COLOURS),
    "palette_2_bits.png": (palette(COLOURS[:3], [0, 1, 2, 1]), {"bits": 2}, COLOURS),
    "palette.bmp": (palette(COLOURS[:3], [0, 1, 2, 1]), {}, COLOURS),
    "palette_transparent.png": (palette(COLOURS[:3], [0, 1, 2, 1]), {"transparency": 1}, COLOURS),
    # 255 - min(255, ink + black), rounded: no profile is looked at.
    "cmyk.tif": (
        row("CMYK", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 128, 0, 64), (0, 0, 0, 255)]), {},
        [(255, 255, 255), (0, 255, 255), (191, 95, 191), (0, 0, 0)],
    ),
    # One colour, which JPEG keeps; in print files inks are stored inverted.
    "cmyk.jpg": (Image.new("CMYK", (8, 1), (0, 128, 0, 64)), {"quality": 100}, [(191, 95, 191)] * 8),
    "grey.jpg": (Image.new("L", (8, 1), 128), {"quality": 100}, [(128, 128, 128)] * 8),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_pixels(tmp_path, name):
    picture, options, expected = GOLDEN[name]
    picture.save(tmp_path / name, **options)
    assert [tuple(pixel) for pixel in image_files.read_rgb(tmp_path / name)[0].tolist()] == expected


# A picture of 2 rows and 3 columns as it is shown, for each EXIF orientation of the file that stores 0 1 2 / 3 4 5.
ORIENTATIONS = {
    1: [[0, 1, 2], [3, 4, 5]],
    2: [[2, 1, 0], [5, 4, 3]],
    3: [[5, 4, 3], [2, 1, 0]],
    4: [[3, 4, 5], [0, 1, 2]],
    5: [[0, 3], [1, 4], [2, 5]],
    6: [[3, 0], [4, 1], [5, 2]],
    7: [[5, 2], [4, 1], [3, 0]],
    8: [[2, 5], [1, 4], [0, 3]],
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_golden_orientations(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(np.stack([stored, stored + 100, stored + 200], axis=-1)).save(tmp_path / "turned.png", exif=exif)
    red, green, blue = np.moveaxis(image_files.read_rgb(tmp_path / "turned.png"), -1, 0)
    assert red.tolist() == ORIENTATIONS[orientation]
    assert (green - 100).tolist() == (blue - 200).tolist() == red.tolist()


def test_sixteen_bits_keep_every_bit_where_they_are_read(tmp_path):
    """For filling; training refuses them."""
    deep = np.array([[0, 1, 256, 40000, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert image_files.read_picture(tmp_path / "deep.png")[..., 0].tolist() == [[0, 1, 256, 40000, 65535]]
    with pytest.raises(image_files.ImageFileError, match=r"deep\.png has more than 8 bits"):
        image_files.read_rgb(tmp_path / "deep.png")


# Before the first step.


def write(root: Path, names: list[str]) -> Path:
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(96, 160, (32, 32, 3), np.uint8)
        image_files.write_png(root / name, pixels)
    return root


def folder_config(root: Path, **changes):
    config = unet_cosine.get_config("tiny").data
    config.update({"source": "folder", "path": str(root), "split_counts": (0, 0, 0), **changes})
    return config


def test_bad_files_of_all_explicit_folders_are_listed_at_once_and_counted_together(tmp_path):
    splits = ("one", "two", "three")
    write(tmp_path, [f"{folder}/{number}.png" for folder in splits for number in range(3)])
    for folder in splits:
        (tmp_path / folder / "bad.png").write_text("not a picture")
    config = folder_config(tmp_path, split_folders=splits, skip_bad=2)
    with pytest.raises(ValueError, match=r"^3 of 12 files cannot be used.*config\.data\.skip_bad = 3") as error:
        data.load_splits(config, 32)
    assert all(f"{folder}/bad.png" in str(error.value) for folder in splits)
    config.skip_bad = 3
    assert [len(source) for source in data.load_splits(config, 32).values()] == [3, 3, 3]


def test_every_one_of_many_bad_files_is_listed_in_a_file(tmp_path):
    write(tmp_path / "maps", [f"{number}.png" for number in range(8)])
    names = [f"bad_{number:02d}.png" for number in range(25)]
    for name in names:
        (tmp_path / "maps" / name).touch()
    config, cache = folder_config(tmp_path / "maps"), tmp_path / "run/data"
    with pytest.raises(
        ValueError, match=r"^25 of 33 files(.|\n)*and 15 more; all of them stand in '.*bad_files\.txt'$"
    ):
        data.load_splits(config, 32, cache)
    lines = (cache / "bad_files.txt").read_text().splitlines()
    assert [name for name, line in zip(names, lines, strict=True) if name in line] == names
    for name in names:
        (tmp_path / "maps" / name).unlink()
    config.split_fractions = (0.4, 0.3, 0.3)
    with contextlib.suppress(ValueError):  # an empty split, by chance of the hashes
        data.load_splits(config, 32, cache)
    assert not (cache / "bad_files.txt").exists()


def test_copies_in_groups_of_two_splits_are_refused(tmp_path):
    """By file names alone they would be trained on and tested on."""
    write(tmp_path, [f"g{number}_a.png" for number in range(12)])
    for number in range(12):
        (tmp_path / f"h{number}_copy.png").write_bytes((tmp_path / f"g{number}_a.png").read_bytes())
    config = folder_config(tmp_path, group_pattern=r"^([gh]\d+)_", split_fractions=(0.4, 0.3, 0.3))
    with pytest.raises(
        ValueError, match=r"config\.data\.group_pattern: '\w+\.png' and '\w+\.png' are the same picture"
    ):
        data.load_splits(config, 32)
    config.group_pattern = r"^[gh](\d+)_"
    splits = data.load_splits(config, 32)
    assert sum(len(source) for source in splits.values()) == 24


def test_a_loop_of_folders_ends(tmp_path):
    write(tmp_path, ["deep/a.png", "b.png"])
    (tmp_path / "deep/back").symlink_to(tmp_path, target_is_directory=True)
    assert data.folder.find_images(tmp_path) == ["b.png", "deep/a.png"]


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Works without the rights of the superuser, who may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_unreadable_files_are_listed_and_unreadable_folders_refused():
    with tempfile.TemporaryDirectory() as folder:
        root = write(Path(folder) / "maps", ["a.png", "b.png", "c.png", "inner/d.png"])
        os.chmod(folder, 0o755)  # or nobody would come so far
        (root / "b.png").chmod(0)
        with (
            nobody(),
            pytest.raises(ValueError, match=r"1 of 4 files(.|\n)*b\.png cannot be read \(Permission denied\)"),
        ):
            data.load_splits(folder_config(root), 32)
        (root / "inner").chmod(0)
        with nobody(), pytest.raises(ValueError, match=r"the folder '.*inner' cannot be read \(Permission denied\)"):
            data.load_splits(folder_config(root), 32)
        (root / "inner").chmod(0o755)


# While it trains.


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("comes_back", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_file_that_vanishes_ends_the_run_by_its_name(finished_run, tmp_path, monkeypatch, comes_back):
    """No other picture takes its place: the run ends, and goes on from its last state when the file is there again."""
    config, whole = finished_run[0].copy_and_resolve_references(), rows(finished_run[1])
    root = Path(shutil.copytree(config.data.path, tmp_path / "maps"))
    config.data.path = str(root)
    batches, gone = pipeline.train_batches, []

    def vanishing(source, **options):
        for step, batch in enumerate(batches(source, **options), options["start_step"] + 1):
            if step == 4:  # the end of the first epoch: every picture comes again
                for name in source.names[:9]:
                    (root / name).rename(tmp_path / name)
                    gone.append(name)
            yield batch

    monkeypatch.setattr(pipeline, "train_batches", vanishing)
    with pytest.raises(ValueError, match=r"no file .*\.png: .*bring it back") as error:
        train.run_training(config, "unet_cosine.py:tiny", tmp_path / "run", False, False)
    assert any(str(root / name) in str(error.value) for name in gone)
    written = rows(tmp_path / "run")
    assert 4 <= len(written) < len(whole)
    assert written == whole[: len(written)]
    assert checkpoint.kept_steps(tmp_path / "run/checkpoints")
    monkeypatch.setattr(pipeline, "train_batches", batches)
    with pytest.raises(ValueError, match="asks for more than the 21 pictures"):
        train.run_training(config, "unet_cosine.py:tiny", tmp_path / "run", False, False)
    if comes_back:
        for name in gone:
            (tmp_path / name).rename(root / name)
        assert train.run_training(config, "unet_cosine.py:tiny", tmp_path / "run", False, False) == 0
        assert rows(tmp_path / "run") == whole
