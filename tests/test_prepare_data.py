"""Data sets of crops: places, splits, checks, the same result however it was made, and nothing half-written."""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from configs import unet_cosine, unet_photographs
from inpaint_jax.data import crop_files, load_splits, prepare
from inpaint_jax.data.crops import CropSettings, choose, detail, windows

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, str(ROOT / "launch" / "prepare_data.py")]
SETTINGS = CropSettings(size=24)


def command(*options: object, **more) -> subprocess.CompletedProcess:
    ran = subprocess.run([*COMMAND, *map(str, options)], capture_output=True, text=True, timeout=120, **more)
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Twenty pictures in two folders, PNG and JPEG; one grey, one a copy, one too small, two of one stem."""
    root = tmp_path_factory.mktemp("photos")
    (root / "b").mkdir()
    for i in range(16):
        name = f"b/{i:02d}.png" if i % 2 else f"{i:02d}.jpg"
        Image.fromarray(noise(50 + i, 80, i)).save(root / name)
    Image.fromarray(np.full((60, 60, 3), 9, np.uint8)).save(root / "flat.png")
    Image.fromarray(noise(23, 90, 17)).save(root / "small.png")
    Image.fromarray(noise(30, 30, 18)).save(root / "00.png")
    shutil.copy(root / "b" / "01.png", root / "copy_of_b_01.png")
    return root


def pixels_of(folder: Path) -> dict[str, np.ndarray]:
    paths = sorted(folder.glob("*/*.png"))
    return {path.relative_to(folder).as_posix(): np.asarray(Image.open(path)) for path in paths}


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.integers(1, 20),
    stride=st.integers(0, 30),
    wanted=st.integers(1, 60),
)
def test_windows_lie_inside_are_as_many_as_fit_and_differ(height, width, size, stride, wanted):
    grid = windows(height, width, CropSettings(size=size, stride=stride))
    step = stride or size
    rows, columns = (max(0, (side - size) // step + 1) for side in (height, width))
    assert grid == [(step * i, step * j) for i in range(rows) for j in range(columns)]
    drawn = windows(height, width, CropSettings(size=size, how="random", per_picture=wanted), "abc")
    assert len(drawn) == min(wanted, max(0, height - size + 1) * max(0, width - size + 1))
    assert drawn == sorted(set(drawn))
    for top, left in grid + drawn:
        assert 0 <= top <= height - size
        assert 0 <= left <= width - size


def test_random_places_depend_on_seed_and_content_alone_and_spread_evenly():
    def places(seed: int, content: str, count: int = 4) -> list[tuple[int, int]]:
        return windows(300, 300, CropSettings(size=100, how="random", per_picture=count, seed=seed), content)

    assert places(0, "a") == places(0, "a") != places(1, "a")
    assert places(0, "a") != places(0, "b")
    assert np.allclose(np.mean(places(0, "a", 2000), axis=0), 100, atol=5)  # five standard errors
    assert len(places(0, "a", 10**6)) == 201**2


def test_detail_is_the_mean_difference_of_neighbours_and_picks_the_crops():
    y, x = np.mgrid[:20, :20]
    ramp = np.repeat((3 * x + 5 * y)[..., None], 3, axis=-1).astype(np.uint8)
    assert detail(ramp) == 4.0
    assert detail(ramp[:1]) == 3.0
    assert detail(ramp[:1, :1]) == 0.0
    assert detail(ramp[::-1]) == 4.0  # no wrap around of small whole numbers
    picture = np.full((30, 90, 3), 100, np.uint8)
    picture[:, 30:60] = noise(30, 30, 0)
    picture[:, 60:] = noise(30, 30, 1) // 8
    assert choose(picture, CropSettings(size=30, min_detail=0.5), "") == [(0, 30), (0, 60)]
    assert choose(picture, CropSettings(size=30, per_picture=1), "") == [(0, 30)]
    assert choose(picture, CropSettings(size=30, per_picture=2), "") == [(0, 30), (0, 60)]


def test_settings_that_make_no_crops_are_refused():
    for name, value in {"size": 0, "how": "spiral", "stride": -1, "min_detail": -1.0, "scale": 0.0}.items():
        with pytest.raises(ValueError, match=name):
            CropSettings(**{name: value})


@pytest.fixture(scope="module")
def pngs(photos, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("pngs")
    summary = prepare.prepare(photos, out, "few", CropSettings(size=24, min_detail=1), output="png", processes=1)
    return out / "few", summary


def test_crops_are_the_grid_of_each_picture_with_its_own_pixels_in_one_split(photos, pngs):
    folder, summary = pngs
    pixels = pixels_of(folder)
    assert {split: sum(key.startswith(f"{split}/") for key in pixels) for split in prepare.SPLITS} == summary["counts"]
    lines, wanted_files = [], set()
    for path in sorted(photos.rglob("*.*")):
        name = path.relative_to(photos).as_posix()
        if name in summary["left_out"]:
            continue
        whole = np.asarray(Image.open(path))
        stem = name[:-4].replace("/", "__")
        stem += f"_{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}" if stem == "00" else ""
        (split,) = {key.split("/")[0] for key in pixels if key.split("/")[1].startswith(f"{stem}_")}
        for top in range(0, whole.shape[0] - 23, 24):
            for left in range(0, whole.shape[1] - 23, 24):
                crop = whole[top : top + 24, left : left + 24]
                wanted_files.add(f"{split}/{stem}_{top}_{left}.png")
                np.testing.assert_array_equal(pixels[f"{split}/{stem}_{top}_{left}.png"], crop)
                lines.append(f"{split}/{name} {top} {left} {hashlib.sha256(crop.tobytes()).hexdigest()}")
    assert set(pixels) == wanted_files
    assert summary["fingerprint"] == hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
    reasons = summary["left_out"]
    assert set(reasons) == {"flat.png", "small.png", "copy_of_b_01.png"}
    assert "detail of 1" in reasons["flat.png"]
    assert "23 pixels on its shorter side" in reasons["small.png"]
    assert reasons["copy_of_b_01.png"] == "is a copy of b/01.png."
    stored = json.loads((folder / "dataset.json").read_text())
    assert stored == {key: summary[key] for key in stored}


def test_pngs_can_be_trained_on_with_their_own_splits(pngs):
    folder, summary = pngs
    config = unet_cosine.get_config("tiny").data
    config.source, config.path, config.split_folders = "folder", str(folder), prepare.SPLITS
    loaded = load_splits(config, 24)
    assert [len(loaded[split]) for split in ("train", "val", "test")] == list(summary["counts"].values())


READ = """
import sys, json, hashlib
import tensorflow_datasets as tfds
builder = tfds.builder("few", data_dir=sys.argv[1])
lines, counts = [], {}
for split in builder.info.splits:
    source = builder.as_data_source(split)
    counts[split] = len(source)
    for example in source:
        assert example["image"].shape == (24, 24, 3) and example["image"].dtype == "uint8"
        lines.append([split, example["picture"].decode(), hashlib.sha256(example["image"].tobytes()).hexdigest()])
info = builder.info
texts = [info.description, info.homepage, info.redistribution_info.license, info.citation, str(info.version)]
print(json.dumps({"counts": counts, "lines": lines, "texts": texts, "tensorflow": "tensorflow" in sys.modules}))
"""


def test_another_process_reads_the_array_record_that_two_processes_made(photos, pngs, tmp_path):
    texts = ("--description", "Noise.", "--homepage", "https://a.b/", "--licence", "CC0 1.0", "--citation", "@misc{n}")
    options = ("--source", photos, "--out", tmp_path, "--name", "few", "--size", 24, "--min_detail", 1)
    ran = command(*options, *texts, "--processes", 2)
    assert ran.returncode == 0
    _, summary = pngs
    assert f"fingerprint {summary['fingerprint']}" in ran.stdout
    read = subprocess.run([sys.executable, "-c", READ, tmp_path], capture_output=True, text=True, check=True)
    result = json.loads(read.stdout)
    assert result["counts"] == summary["counts"]
    assert not result["tensorflow"]
    assert result["texts"] == ["Noise.", "https://a.b/", "CC0 1.0", "@misc{n}", "1.0.0"]
    made = [(name.split("/")[0], hashlib.sha256(p.tobytes()).hexdigest()) for name, p in pixels_of(pngs[0]).items()]
    assert sorted((split, pixels) for split, _, pixels in result["lines"]) == sorted(made)
    splits_of = {}
    for split, picture, _ in result["lines"]:
        splits_of.setdefault(picture, set()).add(split)
    assert {len(found) for found in splits_of.values()} == {1}
    assert len(splits_of) == 17
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few"]

    again = command(*options, *texts)
    assert again.returncode == 0
    assert "already there" in again.stderr
    other = command(*options, *texts, "--stride", 12)
    assert other.returncode == 1
    assert "--overwrite" in other.stderr
    replaced = command(*options, *texts, "--stride", 12, "--overwrite")
    assert replaced.returncode == 0
    made = json.loads((tmp_path / "few" / "dataset.json").read_text())
    assert made["request"]["crops"]["stride"] == 12
    assert sum(made["counts"].values()) > 2 * sum(summary["counts"].values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few"]


def test_many_files_of_records_hold_what_one_would(photos, pngs, tmp_path, monkeypatch):
    monkeypatch.setattr(crop_files, "_SHARD_BYTES", 20_000)
    monkeypatch.setattr(crop_files, "_MOST_SHARDS", 5)
    summary = prepare.prepare(photos, tmp_path, "few", CropSettings(size=24, min_detail=1), processes=1)
    info = tfds.builder("few", data_dir=tmp_path).info
    shards = {split: info.splits[split].num_shards for split in prepare.SPLITS}
    assert shards["train"] == 5
    assert len(list(tmp_path.glob("few/1.0.0/*.array_record-*"))) == sum(shards.values()) > 7
    config = unet_photographs.get_config("tiny").data
    config.source, config.name, config.path = "tfds", "few", str(tmp_path)
    loaded = load_splits(config, 24)
    for split, source in zip(prepare.SPLITS, loaded.values(), strict=True):
        assert len(source) == summary["counts"][split]
        made = [pixels.tobytes() for name, pixels in pixels_of(pngs[0]).items() if name.startswith(f"{split}/")]
        assert sorted(source[i].tobytes() for i in range(len(source))) == sorted(made)


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("many")
    for i in range(24):
        Image.fromarray(noise(400, 400, i)).save(root / f"{i:02d}.png", compress_level=1)
    return root


@pytest.fixture
def interruptible():
    """Processes started here take Ctrl-C, even where the tests run in the background and have it ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def test_a_killed_run_leaves_nothing_under_the_name_and_goes_on_to_the_same_data_set(many, tmp_path, interruptible):
    settings = CropSettings(size=40, stride=20)
    whole = prepare.prepare(many, tmp_path / "whole", "noise", settings, processes=1)
    out = tmp_path / "killed"
    options = ("--source", many, "--out", out, "--name", "noise", "--size", "40", "--stride", "20", "--processes", "2")
    log = tmp_path / "log.txt"

    def kill_when(condition, number: int) -> int:
        with log.open("w") as file:
            process = subprocess.Popen([*COMMAND, *map(str, options)], stderr=file, start_new_session=True)
            while not condition() and process.poll() is None:
                time.sleep(0.002)
            # Ctrl-C reaches the cutting processes too.
            os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
            return process.wait(timeout=60)

    def parts() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in out.glob(".noise.partial/crops_*/*.zip")}

    assert kill_when(lambda: len(parts()) >= 3, signal.SIGKILL) == -signal.SIGKILL
    assert not (out / "noise").exists()
    first = parts()
    assert kill_when(lambda: len(parts()) >= len(first) + 3, signal.SIGINT) == 130
    assert "error: interrupted" in log.read_text()
    assert "pictures were cut by an earlier run" in log.read_text()
    assert not (out / "noise").exists()
    assert first.items() <= parts().items()
    assert kill_when(lambda: (out / ".noise.partial/result").exists(), signal.SIGKILL) == -signal.SIGKILL
    assert not (out / "noise").exists()
    assert len(parts()) == 24
    ended = command(*options)
    assert "24 of 24 pictures were cut by an earlier run" in ended.stderr
    assert f"fingerprint {whole['fingerprint']}" in ended.stdout
    assert sorted(path.name for path in out.iterdir()) == ["noise"]
    # As a kill between the renaming and the tidying up leaves it.
    crop_files.parts_folder(out / ".noise.partial", settings).mkdir(parents=True)
    assert prepare.prepare(many, out, "noise", settings)["already_there"]
    assert sorted(path.name for path in out.iterdir()) == ["noise"]


def test_a_full_disk_is_one_sentence_and_what_was_replaced_stays(many, tmp_path):
    options = ("--source", many, "--out", tmp_path, "--name", "noise", "--processes", "1", "--per_picture", "1")
    assert command(*options, "--size", "32").returncode == 0
    before = (tmp_path / "noise" / "dataset.json").read_bytes()

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    # Of 400 KB each picture's crop can be written, all of them together cannot.
    full = command(*options, "--size", "360", "--overwrite", preexec_fn=small_files)
    assert full.returncode == 1
    assert "error: the data set cannot be written below" in full.stderr
    assert "make room or choose another --out" in full.stderr
    assert (tmp_path / "noise" / "dataset.json").read_bytes() == before
    assert command(*options, "--size", "360", "--overwrite").returncode == 0


def test_damaged_crops_of_an_earlier_run_are_named(photos, tmp_path):
    partial = tmp_path / ".x.partial"
    partial.mkdir()
    parts = crop_files.cut(photos, partial, prepare.check(photos, SETTINGS).hashes, SETTINGS, 1)
    part = max(parts.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(part.read_bytes())
    content[500] ^= 255
    part.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{part.name}' is damaged .*: remove it and run again"):
        prepare.prepare(photos, tmp_path, "x", SETTINGS, output="png", processes=1)
    part.unlink()
    assert not prepare.prepare(photos, tmp_path, "x", SETTINGS, output="png", processes=1)["already_there"]


@pytest.fixture
def bad(photos, tmp_path) -> Path:
    root = tmp_path / "bad"
    shutil.copytree(photos, root)
    (root / "text.png").write_text("not a picture")
    (root / "cut.jpg").write_bytes((photos / "00.jpg").read_bytes()[:1500])
    Image.fromarray(np.full((64, 64), 40_000, np.uint16)).save(root / "deep.png")
    (root / "empty.webp").write_bytes(b"")
    return root


def test_check_lists_every_bad_file_and_writes_nothing(bad, photos, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    ran = command("--source", bad, "--size", 24, "--check", cwd=tmp_path)
    assert ran.returncode == 1
    table = dict(line.split(maxsplit=1) for line in ran.stdout.splitlines()[1:-1])
    assert set(table) == {"cut.jpg", "deep.png", "empty.webp", "small.png", "text.png"}
    assert "not an image of a known kind" in table["text.png"]
    assert "cannot be read" in table["cut.jpg"]
    assert "more than 8 bits" in table["deep.png"]
    assert "23 pixels" in table["small.png"]
    assert ran.stdout.splitlines()[-1] == "18 good, 4 bad, 1 too small for a crop, 1 copies of others"
    assert str(bad) not in ran.stdout
    assert sorted(tmp_path.rglob("*")) == before
    good = command("--source", photos, "--size", 24, "--check")
    assert good.returncode == 0
    assert "0 bad" in good.stdout


def test_bad_files_are_an_error_unless_allowed_for(bad, pngs, tmp_path):
    settings = CropSettings(size=24, min_detail=1)
    with pytest.raises(ValueError, match=r"4 files cannot be used.*--skip_bad 4:\n  cut.jpg cannot be read"):
        prepare.prepare(bad, tmp_path, "x", settings, output="png", skip_bad=3, processes=1)
    assert not (tmp_path / "x").exists()
    summary = prepare.prepare(bad, tmp_path, "x", settings, output="png", skip_bad=4, processes=1)
    assert summary["fingerprint"] == pngs[1]["fingerprint"]


def test_pictures_of_a_group_share_a_split(tmp_path):
    source = tmp_path / "walls"
    source.mkdir()
    for i in range(36):
        Image.fromarray(noise(24, 24, i)).save(source / f"wall{i // 3}_{i % 3}.png")
    options = {"output": "png", "processes": 1, "split_fractions": (0.4, 0.3, 0.3)}
    prepare.prepare(source, tmp_path, "walls_24", SETTINGS, group_pattern=r"(wall\d+)_", **options)
    splits_of = {}
    for name in pixels_of(tmp_path / "walls_24"):
        split, file = name.split("/")
        splits_of.setdefault(file.split("_")[0], []).append(split)
    assert len(splits_of) == 12
    assert all(len(found) == 3 and len(set(found)) == 1 for found in splits_of.values())
    with pytest.raises(ValueError, match="--group_pattern = 'door' finds no group"):
        prepare.prepare(source, tmp_path, "other", SETTINGS, group_pattern="door", **options)


def test_equal_crops_of_different_pictures_do_not_reach_two_splits(tmp_path):
    source = tmp_path / "framed"
    source.mkdir()
    for i in range(40):
        picture = np.zeros((24, 48, 3), np.uint8)
        picture[:, 24:] = noise(24, 24, i)
        Image.fromarray(picture).save(source / f"{i}.png")
    summary = prepare.prepare(source, tmp_path, "framed_24", SETTINGS, output="png", processes=1)
    black = {name.split("/")[0] for name, pixels in pixels_of(tmp_path / "framed_24").items() if not pixels.any()}
    assert black == {"test"}
    assert summary["counts"]["train"] == summary["pictures"]["train"]


def test_random_crops_of_scaled_pictures_do_not_depend_on_the_other_pictures(photos, tmp_path):
    settings = CropSettings(size=16, how="random", per_picture=3, scale=0.5, seed=4)
    summary = prepare.prepare(photos, tmp_path, "all", settings, output="png", processes=2)
    assert sum(summary["counts"].values()) == 3 * sum(summary["pictures"].values())
    fewer = tmp_path / "fewer_photos"
    shutil.copytree(photos, fewer)
    (fewer / "b" / "03.png").unlink()
    prepare.prepare(fewer, tmp_path, "fewer", settings, output="png", processes=1)
    everything, part = pixels_of(tmp_path / "all"), pixels_of(tmp_path / "fewer")
    assert set(everything) - set(part) == {name for name in everything if "/b__03_" in name}
    assert all((part[name] == everything[name]).all() for name in part)
    half = np.asarray(Image.open(photos / "02.jpg")).reshape(26, 2, 40, 2, 3).mean(axis=(1, 3))
    found = [name for name in everything if "/02_" in name]
    assert len(found) == 3
    for name in found:
        top, left = map(int, name.removesuffix(".png").split("_")[-2:])
        assert np.abs(everything[name] - half[top : top + 16, left : left + 16]).max() <= 0.5


def test_mistakes_are_one_sentence_with_the_mend(photos, pngs, tmp_path):
    def fails(match: str, source: Path = photos, out: Path = tmp_path, name: str = "x", **options) -> None:
        with pytest.raises(ValueError, match=match):
            prepare.prepare(source, out, name, SETTINGS, **({"output": "png", "processes": 1} | options))

    fails("there is no folder .*set --source", source=tmp_path / "absent")
    fails("--split_fractions = .*sum to 1", split_fractions=(1.0, 0.5, 0.0))
    fails("--split_fractions = .*give three", split_fractions=(0.5, 0.5))
    assert not list(tmp_path.iterdir())
    fails("begin with a small letter", name="My Photos")
    fails("'celeb_a' is a data set of TFDS itself", name="celeb_a", output="array_record")
    fails("overlap: choose another --out", out=photos)
    fails("split is empty .*change --split_fractions", split_fractions=(1.0, 0.0, 0.0))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    fails("no data set of this command", name="mine", overwrite=True)
    assert (tmp_path / "mine" / "letter.txt").exists()
    with prepare._lock(tmp_path / ".busy.partial"):
        fails("another process works in", name="busy")
    (tmp_path / "file").write_text("")
    fails("cannot be written below", out=tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["file", "mine"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--source is required"),
        (("--source", "."), "--out is required"),
        (("--source", ".", "--out", "."), "--name is required"),
        (("--source", ".", "--how", "spiral"), "--how=spiral"),
        (("--source", ".", "--how", "random"), "set per_picture to 1 or more"),
        (("--source", ".", "--scale", "0"), "scale = 0.0"),
        (("--source", ".", "--split_fractions", "0.8,much"), "much"),
    ],
)
def test_wrong_usage_ends_with_2(tmp_path, options, message):
    ran = command(*options, cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ")
    assert message in ran.stderr
    assert not list(tmp_path.iterdir())
