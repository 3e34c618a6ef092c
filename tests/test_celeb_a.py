"""Preparing CelebA from stand-ins for its files, by the command and for real, and reading what it wrote."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorflow_datasets.core import shuffle

from configs import unet_photographs
from inpaint_jax.data import celeb_a, load_splits

ROOT = Path(__file__).parents[1]
COUNTS = {"train": 1000, "validation": 16, "test": 20}
LANDMARKS = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
ATTRIBUTES = """5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair
Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones
Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks
Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace
Wearing_Necktie Young"""


def jpeg(colour: tuple[int, int, int], size: tuple[int, int] = (178, 218)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_files(folder: Path, counts: dict[str, int], size: tuple[int, int] = (178, 218)) -> Path:
    """Writes stand-ins in the real formats: a picture's split is its red, its place in the split its green."""
    folder.mkdir()
    places = [(split, i) for split in range(3) for i in range(list(counts.values())[split])]
    names = [f"{number:06d}.jpg" for number in range(1, len(places) + 1)]
    pictures = {
        place: jpeg((place[0] * 100, place[1] % 32 * 8, 60), size) for place in {(s, i % 32) for s, i in places}
    }
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        archive.mkdir("img_align_celeba")
        for name, (split, i) in zip(names, places, strict=True):
            archive.writestr(f"img_align_celeba/{name}", pictures[split, i % 32])
            archive.writestr(f"__MACOSX/img_align_celeba/._{name}", b"not a picture")

    def rows(values) -> str:
        return "".join(f"{name}  {value}\n" for name, value in zip(names, values, strict=True))

    (folder / "list_eval_partition.txt").write_text(rows(split for split, _ in places))
    (folder / "identity_CelebA.txt").write_text(rows(range(1, len(names) + 1)))
    attributes, landmarks = " ".join(["-1", " 1"] * 20), " ".join(str(60 + i) for i in range(10))
    heads = (f"{len(names)}\n{' '.join(ATTRIBUTES.split())} \n", f"{len(names)}\n{LANDMARKS} \n")
    (folder / "list_attr_celeba.txt").write_text(heads[0] + rows([attributes] * len(names)))
    (folder / "list_landmarks_align_celeba.txt").write_text(heads[1] + rows([landmarks] * len(names)))
    return folder


def command(*options: str | Path) -> subprocess.CompletedProcess:
    arguments = [sys.executable, ROOT / "launch" / "prepare_celeb_a.py", *options]
    ran = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in ran.stderr
    return ran


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("celeb_a")
    files = write_files(folder / "files", COUNTS)
    ran = command("--files", files, "--out", folder / "out")
    assert ran.returncode == 0, ran.stderr
    assert "is ready: train 1000, validation 16, test 20 pictures" in ran.stdout
    assert f"--config.data.name=celeb_a --config.data.path={folder / 'out'}" in ran.stdout
    return folder


@pytest.fixture
def config(prepared):
    c = unet_photographs.get_config().data
    c.source, c.name, c.path = "tfds", "celeb_a", str(prepared / "out")
    return c


def test_its_own_splits_are_those_of_the_partition_file(config):
    splits = load_splits(config, 64)
    assert [len(source) for source in splits.values()] == list(COUNTS.values())
    for order, source in enumerate(splits.values()):
        pictures = np.stack([source[i] for i in range(len(source))])
        assert pictures.shape[1:] == (64, 64, 3)
        red, green, _ = np.moveaxis(pictures[:, 32, 32].astype(int), -1, 0)
        assert np.abs(red - order * 100).max() <= 3
        # Every picture is there as often as it was made.
        made = np.arange(len(source)) % 32 * 8
        assert np.abs(np.sort(green) - np.sort(made)).max() <= 3


def test_exact_counts_are_drawn_from_all_splits(config):
    config.split_counts = (819, 102, 103)
    splits = load_splits(config, 32)
    assert [len(source) for source in splits.values()] == [819, 102, 103]
    names = [name for source in splits.values() for name in source.names]
    assert len(set(names)) == 1024
    assert {name.split("/")[0] for name in names} == set(COUNTS)


def test_crops_at_native_size_need_pictures_that_large(config):
    config.fit = "crop"
    assert load_splits(config, 128)["train"][0].shape == (218, 178, 3)
    with pytest.raises(ValueError, match=r"celeb_a/2\.\d\.\d' are too small.*image_size = 256.*178 pixels"):
        load_splits(config, 256)


def test_a_second_call_says_that_it_is_there_and_changes_nothing(prepared):
    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (prepared / "out").rglob("*")}

    before = written()
    ran = command("--files", prepared / "files", "--out", prepared / "out")
    assert ran.returncode == 0
    assert "is already there: train 1000, validation 16, test 20" in ran.stdout
    assert written() == before


def test_a_damaged_picture_leaves_no_set_and_a_mended_one_makes_it(tmp_path):
    few = {"train": 3, "validation": 2, "test": 2}
    wrong = write_files(tmp_path / "wrong", few, size=(178, 178))
    ran = command("--files", wrong, "--out", tmp_path / "out")
    assert ran.returncode == 1
    assert "error: img_align_celeba/000001.jpg in img_align_celeba.zip has 178x178 pixels, not 178x218" in ran.stderr
    config = unet_photographs.get_config().data
    config.source, config.name, config.path = "tfds", "celeb_a", str(tmp_path / "out")
    with pytest.raises(ValueError, match="celeb_a"):
        load_splits(config, 64)
    celeb_a.prepare(write_files(tmp_path / "right", few), tmp_path / "out")
    assert [len(source) for source in load_splits(config, 64).values()] == [3, 2, 2]


def test_examples_are_sorted_in_memory_since_on_the_disk_needs_tensorflow(tmp_path, monkeypatch):
    # CelebA's training split exceeds TFDS's own limit of a gigabyte, these few pictures this one.
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)
    few = {"train": 3, "validation": 2, "test": 2}
    assert celeb_a.prepare(write_files(tmp_path / "files", few), tmp_path / "out")[1] == few


def test_a_damaged_compressed_picture_is_named(tmp_path):
    path = write_files(tmp_path / "files", {"train": 3, "validation": 2, "test": 2}) / "img_align_celeba.zip"
    with zipfile.ZipFile(path) as archive:
        pictures = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in pictures.items():
            archive.writestr(name, content)
    # The first compressed bytes follow the name in the entry's own header.
    before, name, after = path.read_bytes().partition(b"img_align_celeba/000001.jpg")
    path.write_bytes(before + name + b"\xff" * 8 + after[8:])
    with pytest.raises(ValueError, match=r"000001\.jpg in img_align_celeba\.zip is damaged"):
        celeb_a.prepare(path.parent, tmp_path / "out")


def test_missing_files_are_said_before_a_folder_is_made(tmp_path):
    ran = command("--files", tmp_path / "absent", "--out", tmp_path / "out")
    assert ran.returncode == 1
    assert "lacks img_align_celeba.zip, list_eval_partition.txt, list_attr_celeba.txt" in ran.stderr
    assert not list(tmp_path.iterdir())


def replace(name: str, old: str, new: str):
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "identity_CelebA.txt").unlink(), r"lacks identity_CelebA\.txt: fetch them by hand"),
        (lambda folder: (folder / "img_align_celeba.zip").write_bytes(b"PK"), r"img_align_celeba\.zip is no complete"),
        (replace("list_eval_partition.txt", "000002.jpg  0", "000002.jpg"), r"line 2 of .*partition\.txt has 0 values"),
        (replace("list_eval_partition.txt", "000002.jpg  0", "000002.jpg  7"), r"puts 000002\.jpg into split '7'"),
        (replace("list_eval_partition.txt", "  2\n", "  1\n"), r"leaves a split empty"),
        (replace("list_eval_partition.txt", "000002.jpg", "900000.jpg"), r"lacks 1 of the 7 pictures.*900000\.jpg"),
        (replace("list_attr_celeba.txt", "000005.jpg  -1", "000005.jpg"), r"line 7 of .*39 values"),
        (replace("list_landmarks_align_celeba.txt", "69\n000003.jpg", "69 000003.jpg"), r"line 4 of .*landmarks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_files_are_refused_before_any_work(tmp_path, damage, message):
    folder = write_files(tmp_path / "files", {"train": 3, "validation": 2, "test": 2})
    assert celeb_a.check_files(folder) == {"train": 3, "validation": 2, "test": 2}
    damage(folder)
    with pytest.raises(ValueError, match=message):
        celeb_a.check_files(folder)
