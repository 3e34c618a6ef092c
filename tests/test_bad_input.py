"""What a user gets wrong, end to end through the commands: one clear message, exit 1 or 2, and nothing left behind."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fast_compilation
import forked_commands
import jax
import numpy as np
import pytest
from PIL import Image

from configs import unet_cosine
from inpaint_jax import run, run_folder, weights
from inpaint_jax.state import create_state

ROOT = Path(__file__).parents[1]
TINY = f"--config={ROOT / 'configs' / 'unet_cosine.py'}:tiny"
SIZE = 32  # pixels, of the tiny config


def command(
    name: str, cwd: Path, *options: str, flags: str = fast_compilation.ONE_DEVICE, forked: bool = True
) -> subprocess.CompletedProcess:
    environment = {**os.environ, "XLA_FLAGS": flags}
    if forked:
        ran = forked_commands.run(name, cwd, *options, environment=environment)
    else:
        program = [sys.executable, ROOT / "launch" / f"{name}.py", *options]
        ran = subprocess.run(program, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in ran.stderr
    return ran


def refused(name: str, cwd: Path, *options: str, code: int = 1, **more) -> str:
    """Runs a command that must fail with one error message, the last thing it says, and returns the message."""
    # Wrong usage is answered before JAX is imported: there a start costs little.
    ran = command(name, cwd, *options, forked=code != 2, **more)
    assert ran.returncode == code, ran.stderr
    assert not ran.stdout
    before, _, message = ran.stderr.partition("error: ")
    assert all("run folder" in line for line in before.splitlines()), ran.stderr
    assert message.strip()
    assert "error: " not in message
    return message.strip()


def picture(height: int = SIZE, width: int = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height + width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A folder with three pictures."""
    folder = tmp_path_factory.mktemp("good")
    for index in range(3):
        picture(40 + index).save(folder / f"{index}.png")
    return folder


# File below `bad` -> why it is refused; in the order of the list, in which sizes come last.
REASONS = {
    "16bit.png": "16bit.png has more than 8 bits per channel",
    "dangling.png": "dangling.png is a link to nothing",
    "empty.png": "empty.png is not an image",
    "loop.png": "loop.png cannot be read (Too many levels of symbolic links)",
    "text.jpg": "text.jpg is not an image",
    "truncated.png": "truncated.png cannot be read",
    "small.png": f"small.png is 20 pixels on its shorter side, and {{setting}}=crop needs {SIZE}",
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> Path:
    """A folder with every kind of bad file, three good pictures that look odd, and a folder named like a picture."""
    folder = tmp_path_factory.mktemp("bad")
    picture().save(folder / "good.png")
    picture().convert("CMYK").save(folder / "cmyk.jpg")
    picture().save(folder / "animated.webp", save_all=True, append_images=[picture(SIZE, SIZE)])
    (folder / "folder.png").mkdir()
    Image.fromarray(np.full((SIZE, SIZE), 40000, np.uint16)).save(folder / "16bit.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "empty.png").touch()
    (folder / "loop.png").symlink_to("loop.png")
    picture(20).save(folder / "small.png")
    (folder / "text.jpg").write_text("not a picture")
    (folder / "truncated.png").write_bytes((folder / "good.png").read_bytes()[:1000])
    return folder


def generator(folder: Path) -> Path:
    """A finished run folder as far as its generator, with weights of one."""
    config = unet_cosine.get_config("tiny")
    shapes = jax.eval_shape(lambda: create_state(config, {}))
    ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), run.generator_variables(shapes))
    weights.save_generator(folder / "generator", ones, config)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return generator(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def desk(tmp_path_factory, model) -> Path:
    """A folder with what inpaint.py is given: a picture, a mask, and things that are neither."""
    folder = tmp_path_factory.mktemp("desk")
    picture().save(folder / "a.png")
    hole = np.zeros((SIZE, SIZE), np.uint8)
    hole[8:16, 8:16] = 255
    for name, pixels in {"m": hole, "black": 0 * hole, "white": 0 * hole + 255}.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "folder.png").mkdir()
    (folder / "model").symlink_to(model, target_is_directory=True)
    weightless = shutil.copytree(model, folder / "weightless")
    (weightless / "generator" / weights.WEIGHTS).unlink()
    for name in (weights.WEIGHTS, weights.CONFIG):
        damaged = shutil.copytree(model, folder / f"damaged_{name}") / "generator" / name
        damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    return folder


# Folders of pictures.


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("empty", "no pictures below 'empty'"),
        ("file.png", "there is no folder 'file.png': set config.data.path"),
    ],
)
def test_training_needs_a_folder_of_pictures(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.png").touch()
    options = ("--config.data.source=folder", f"--config.data.path={path}", "--workdir=new/run")
    assert message in refused("main", tmp_path, TINY, *options)
    assert {entry.name for entry in tmp_path.iterdir()} == {"empty", "file.png"}


def test_training_lists_every_bad_picture_with_its_reason(tmp_path, bad):
    folder = shutil.copytree(bad, tmp_path / "pictures ü", symlinks=True)
    options = ("--config.data.source=folder", f"--config.data.path={folder}", "--config.data.fit=crop", "--workdir=run")
    message = refused("main", tmp_path, TINY, *options)
    assert message.startswith("7 of 10 files cannot be used; mend or remove them, or allow for them with config.data")
    lines = message.splitlines()[1:]
    assert len(lines) == len(REASONS)
    for line, reason in zip(lines, REASONS.values(), strict=True):
        assert reason.format(setting="config.data.fit") in line
    assert not (tmp_path / "run" / "config.json").exists()


def test_ten_bad_pictures_are_listed_and_the_rest_counted(tmp_path, model):
    for index in range(13):
        (tmp_path / f"{index:02d}.png").touch()
    message = refused("evaluate", tmp_path, f"--model={model}", "--images=.", "--out=out")
    lines = message.splitlines()
    assert lines[0] == "13 of 13 files cannot be used; mend or remove them:"
    assert ["09.png" in line for line in lines].index(True) == 10
    assert lines[11:] == ["  and 3 more"]


@pytest.mark.parametrize(
    ("path", "message"),
    [("absent", "there is no folder 'absent': set --images"), (".", "no pictures below '.'")],
)
def test_testing_needs_a_folder_of_pictures(tmp_path, model, path, message):
    said = refused("evaluate", tmp_path, f"--model={model}", f"--images={path}", "--out=out")
    assert message in said
    assert "config." not in said
    assert not list(tmp_path.iterdir())


def test_testing_speaks_of_its_own_options(tmp_path, model, bad):
    said = refused("evaluate", tmp_path, f"--model={model}", f"--images={bad}", "--out=out")
    assert REASONS["small.png"].format(setting="--fit") in said
    assert "config." not in said
    assert not list(tmp_path.iterdir())


def test_testing_needs_a_folder_to_write_into(tmp_path, model, good):
    (tmp_path / "file").touch()
    said = refused("evaluate", tmp_path, f"--model={model}", f"--images={good}", "--out=file/out")
    assert said == "--out=file/out is no folder that can be written (Not a directory): choose another"


def test_bad_masks_are_listed(tmp_path, desk):
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in ("m", "black", "white"):
        shutil.copy(desk / f"{name}.png", masks)
    (masks / "text.png").write_text("not a picture")
    message = refused("main", tmp_path, TINY, "--config.mask.name=files", "--config.mask.path=masks", "--workdir=run")
    assert message.startswith("3 of 4 files below config.mask.path cannot be used as masks")
    reasons = ("black.png has no hole", "text.png is not an image", "white.png is all hole")
    for line, reason in zip(message.splitlines()[1:], reasons, strict=True):
        assert reason in line
    assert [entry.name for entry in tmp_path.iterdir()] == ["masks"]


# Filling one picture.

FILL = {"model": "model", "image": "a.png", "mask": "m.png", "out": "o.png"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image": "absent.png"}, "no file absent.png"),
        ({"image": "folder.png"}, "--image=folder.png has no pictures"),
        ({"image": "{bad}/truncated.png"}, "truncated.png cannot be read"),
        ({"image": "{bad}/16bit.png"}, "the picture is grey, and the model fills normal maps"),
        ({"mask": "{bad}/text.jpg"}, "text.jpg is not an image"),
        (
            {"mask": "{bad}/small.png"},
            "small.png has 32x20 pixels and the picture a.png 32x32: give one of the same size",
        ),
        ({"mask": "white.png"}, "white.png is all hole (white): leave what is to be kept black"),
        ({"out": "folder.png"}, "--out=folder.png is a folder: give the name of a file"),
        ({"out": "a.png/o.png"}, "--out=a.png/o.png cannot be written"),
        ({"model": "absent"}, "'absent' has no generator.safetensors: give a finished run folder"),
        ({"model": "weightless"}, "'weightless' has no generator.safetensors: give a finished run folder"),
        ({"model": f"damaged_{weights.WEIGHTS}"}, "is damaged"),
        ({"model": f"damaged_{weights.CONFIG}"}, "is damaged"),
    ],
    ids=lambda value: "=".join(*value.items()) if isinstance(value, dict) else "",
)
def test_what_cannot_be_filled_is_said(desk, bad, wrong, message):
    given = {**FILL, **wrong}
    before = sorted(desk.rglob("*"))
    said = refused("inpaint", desk, *(f"--{name}={value.format(bad=bad)}" for name, value in given.items()))
    assert message in said
    assert len(said.splitlines()) == 1
    assert sorted(desk.rglob("*")) == before


def test_a_mask_without_a_hole_gives_the_picture_back_and_says_so(tmp_path, desk):
    out = tmp_path / "with space" / "ü.png"
    given = {**FILL, "mask": "black.png", "out": str(out)}
    ran = command("inpaint", desk, *(f"--{name}={value}" for name, value in given.items()))
    assert ran.returncode == 0, ran.stderr
    assert "as it was: the mask black.png has no hole" in ran.stderr
    np.testing.assert_array_equal(Image.open(out), Image.open(desk / "a.png"))


# Configs.


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--config.batch_size=many", "--config.batch_size=many: give a whole number"),
        ("--config.data.augment=perhaps", "--config.data.augment=perhaps: give True or False"),
        ("--config.data=5", "--config.data=5: this is a group of fields"),
        ("--config.mask.ratio=(0.1,0.2", "--config.mask.ratio=(0.1,0.2: give a tuple"),
        ("--config.optimizer.learning=1", "no field 'learning': Did you mean \"learning_rate\""),
        ("--config.mask.colour=1", "no field 'colour': all fields stand in configs/common.py"),
    ],
)
def test_wrong_fields_and_types_come_with_a_suggestion(tmp_path, option, message):
    assert message in refused("main", tmp_path, TINY, option, "--workdir=run", code=2)
    assert not list(tmp_path.iterdir())


MISSPELT = """
from configs import unet_cosine

def get_config():
    config = unet_cosine.get_config("tiny")
    config.batchsize = 8
    return config
"""


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (MISSPELT, 1, "config.batchsize is no field of a config: did you mean config.batch_size?"),
        ("def get_config(:", 2, "invalid syntax"),
        ("import nonesuch", 2, "No module named 'nonesuch'"),
        ("x = 1", 2, "get_config"),
        ("def get_config(): return {}", 2, "--config: get_config gives a dict"),
    ],
    ids=["misspelt", "syntax", "import", "nothing", "dict"],
)
def test_mistakes_in_a_config_file_are_named(tmp_path, monkeypatch, content, code, message):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "mine.py").write_text(content)
    assert message in refused("main", tmp_path, "--config=mine.py", code=code)
    assert {entry.name for entry in tmp_path.iterdir()} <= {"mine.py", "__pycache__"}


def test_an_unknown_mask_names_the_known_ones_and_leaves_nothing(tmp_path):
    message = refused("main", tmp_path, TINY, "--config.mask.name=circle", "--workdir=run")
    assert message.startswith("config.mask.name = 'circle'; known: ")
    assert all(name in message for name in ("freeform", "lines", "mixture", "squares", "files"))
    assert not list(tmp_path.iterdir())


def test_a_batch_that_the_devices_cannot_share_is_refused(tmp_path):
    three = "--xla_force_host_platform_device_count=3"
    message = refused("main", tmp_path, TINY, "--workdir=run", flags=three)
    assert message.startswith("config.batch_size = 4 cannot be spread over 3 devices: use a multiple of 3, or show")
    assert not list(tmp_path.iterdir())


# The run folder.


@pytest.mark.parametrize("workdir", ["file", "file/run", "run" * 100])
def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path, workdir):
    (tmp_path / "file").touch()
    message = refused("main", tmp_path, TINY, f"--workdir={workdir}")
    assert message.startswith(f"the run folder '{workdir}' cannot be written (")
    assert message.endswith("): choose another --workdir")


def test_a_read_only_run_folder_is_refused(tmp_path, mounted):
    with mounted(tmp_path / "disk", "size=1m,ro"):
        message = refused("main", tmp_path, TINY, "--workdir=disk/run")
        assert (
            message == "the run folder 'disk/run' cannot be written (Read-only file system): choose another --workdir"
        )


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, mounted):
    with mounted(tmp_path / "disk", "size=1m"):
        message = refused("main", tmp_path, TINY, "--workdir=disk/runs/a")
        numbers = re.fullmatch(
            r"the disk of the run folder 'disk/runs/a' has ([\d.]+) MB free, and the run needs ([\d.]+) MB: free some "
            r"space, or choose a --workdir on another disk",
            message,
        )
        assert numbers, message
        assert 0.5 < float(numbers[1]) <= 1.1
        assert float(numbers[2]) > 20
        assert not list((tmp_path / "disk").iterdir())


def test_what_a_run_holds_already_counts_as_free(tmp_path, mounted):
    free = shutil.disk_usage(tmp_path).free
    run_folder.check_space(tmp_path, free // 2)
    with pytest.raises(ValueError, match="MB free, and the run needs"):
        run_folder.check_space(tmp_path, 2 * free)
    with mounted(tmp_path / "disk", "size=1m"):
        run_folder.write_text(tmp_path / "disk" / run_folder.CHECKPOINTS / "state", "x" * 600_000)
        run_folder.check_space(tmp_path / "disk", 900_000)
        with pytest.raises(ValueError, match=r"beside the 0\.6 MB that it holds already"):
            run_folder.check_space(tmp_path / "disk", 1_500_000)


def test_a_second_trainer_is_refused_and_the_first_goes_on(tmp_path):
    options = (TINY, "--workdir=run", "--config.epochs=10000")
    program = [sys.executable, ROOT / "launch" / "main.py", *options]
    environment = {**os.environ, "XLA_FLAGS": fast_compilation.ONE_DEVICE}
    with subprocess.Popen(program, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as first:
        try:
            while first.poll() is None and not (tmp_path / "run" / ".lock").exists():
                time.sleep(0.05)
            message = refused("main", tmp_path, *options)
            assert message == "another process works in the run folder 'run': wait for it, or choose another --workdir"
            assert first.poll() is None
            assert (tmp_path / "run" / ".lock").exists()
        finally:
            first.kill()


def test_a_damaged_config_ends_the_command_and_keeps_the_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{")
    assert "'run/config.json' is damaged" in refused("main", tmp_path, TINY, "--workdir=run")
    assert (tmp_path / "run" / "config.json").read_text() == "{"
