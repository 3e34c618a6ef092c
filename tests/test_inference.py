"""Filling pictures of any size: known pixels stay, holes do not depend on what lay under them."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import unet_cosine
from configs.faces import attention_cosine
from inpaint_jax import fills, inference, models, task, weights

COMMAND = Path(__file__).parents[1] / "launch" / "inpaint.py"
CONFIG = unet_cosine.get_config("tiny")


WINDOWED = attention_cosine.get_config("tiny")  # pictures of 32x32, windows of 16x16


def random_variables(config) -> dict:
    random = np.random.default_rng(0)
    image = jax.ShapeDtypeStruct((1, *task.input_shapes(config)["generator"]), jnp.float32)
    generator = models.build_generator(config)
    shapes = jax.eval_shape(lambda key, x: generator.init(key, x, train=False), jax.random.key(0), image)
    return {
        "params": jax.tree.map(lambda x: random.uniform(-0.2, 0.2, x.shape).astype(np.float32), shapes["params"]),
        "batch_stats": jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes.get("batch_stats", {})),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder with a generator of random weights."""
    path = tmp_path_factory.mktemp("run")
    weights.save_generator(path / "generator", random_variables(CONFIG), CONFIG)
    return path


@pytest.fixture(scope="module")
def windowed():
    return inference.Inpainter(WINDOWED, random_variables(WINDOWED))


@pytest.fixture(scope="module")
def inpainter(folder):
    return inference.Inpainter.load(folder)


def example(height: int, width: int, share: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(height * 1000 + width)
    image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, (random.random((height, width)) < share).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "share"),
    [(1, 1, 1.0), (1, 90, 0.3), (37, 103, 0.3), (200, 64, 0.3), (32, 32, 0.3), (33, 40, 1.0)],
    ids=str,
)
def test_any_size_is_filled_and_known_pixels_stay(inpainter, height, width, share):
    image, mask = example(height, width, share)
    before = image.copy()
    filled = inpainter(image, mask)
    assert (filled.shape, filled.dtype) == (image.shape, np.uint8)
    np.testing.assert_array_equal(filled[mask == 0], image[mask == 0])
    np.testing.assert_array_equal(image, before)
    # Of a normal map: the filled pixels are unit vectors, up to the rounding to 8 bits.
    vectors = filled[mask == 1] * (2 / 255) - 1
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=0.01)
    # What lay under the hole, the type of the mask and a second call change nothing.
    hidden = np.where(mask[..., None] == 1, 255 - image, image)
    np.testing.assert_array_equal(inpainter(hidden, mask.astype(bool)), filled)


def test_a_picture_without_a_hole_comes_back_as_it_was(inpainter):
    image, _ = example(50, 20)
    np.testing.assert_array_equal(inpainter(image, np.zeros((50, 20), bool)), image)


def test_native_size_is_the_generators_own_output(folder, inpainter):
    image, mask = example(32, 32)
    hole = mask[None, ..., None].astype(np.float32)
    masked = fills.harmonic((image / 127.5 - 1).astype(np.float32)[None], hole)
    seen = np.concatenate([masked, hole], axis=-1)
    _, variables = weights.load_generator(folder)
    output = jax.jit(lambda v, x: models.build_generator(CONFIG).apply(v, x, train=False))(variables, seen)[0]
    difference = inpainter(image, mask).astype(float) - np.where(mask[..., None] == 1, (output + 1) * 127.5, image)
    # Half a level of rounding, and a little for the other order of the sums.
    assert np.abs(difference).max() < 0.51


@pytest.mark.parametrize("corner", [(10, 7), (0, 24), (24, 24)], ids=str)
def test_a_model_of_windows_fills_as_in_its_test(windowed, corner):
    image, _ = example(32, 32)
    mask = np.zeros((32, 32), np.uint8)
    mask[corner[0] : corner[0] + 8, corner[1] : corner[1] + 8] = 1
    tested = task.evaluation_example(WINDOWED, {"image": image[None], "mask": mask[None, ..., None]})
    seen = task.generator_input(WINDOWED, **tested)
    answer = models.build_generator(WINDOWED).apply(random_variables(WINDOWED), seen, train=False)
    completed = task.complete(**tested, output=task.generator_output(WINDOWED, **tested, answer=answer))
    difference = windowed(image, mask).astype(int) - np.asarray(task.to_uint8(completed, (-1.0, 1.0)))[0]
    assert np.abs(difference).max() <= 1, "the other order of the sums"
    assert (difference != 0).mean() < 0.01


def test_a_model_of_windows_fills_each_hole_by_itself(windowed):
    image, _ = example(60, 90)
    one, other = np.zeros((2, 60, 90), np.uint8)
    one[3:15, 5:12], other[44:60, 80:90] = 1, 1
    filled = windowed(image, one | other)
    expected = np.where(one[..., None] == 1, windowed(image, one), windowed(image, other))
    np.testing.assert_array_equal(filled, expected)
    with pytest.raises(ValueError, match="a hole is 17x4 pixels, and this model fills holes within 16x16"):
        windowed(image, np.pad(np.ones((4, 17), np.uint8), ((0, 56), (0, 73))))


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), np.zeros((8, 8)), "image must be uint8.*float32"),
        (np.zeros((8, 8), np.uint8), np.zeros((8, 8)), "image must be uint8"),
        (np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8)), "image must be uint8"),
        (np.zeros((8, 9, 3), np.uint8), np.zeros((9, 8)), "make them equal"),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 1)), "make them equal"),
    ],
    ids=lambda value: "" if isinstance(value, np.ndarray) else value,
)
def test_other_arrays_are_refused(inpainter, image, mask, message):
    with pytest.raises(ValueError, match=message):
        inpainter(image, mask)


@given(size=st.integers(1, 64), extra=st.integers(0, 500))
@settings(deadline=None)
def test_tiles_cover_the_length_with_half_overlap(size, extra):
    starts = inference.tile_starts(size + extra, size)
    assert (starts[0], starts[-1]) == (0, extra)
    steps = np.diff(starts)
    assert np.all(steps > 0)
    assert np.all(steps <= max(1, -(-size // 2)))


def fill(cwd: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, COMMAND, *options]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_command_fills_a_picture_and_keeps_its_alpha(folder, inpainter, tmp_path):
    image, mask = example(40, 50)
    alpha = np.random.default_rng(1).integers(0, 256, (40, 50, 1), dtype=np.uint8)
    Image.fromarray(np.concatenate([image, alpha], axis=-1)).save(tmp_path / "a.png")
    Image.fromarray(mask * 255).save(tmp_path / "m.png")
    ran = fill(tmp_path, "--model", str(folder), "--image", "a.png", "--mask", "m.png", "--out", "deep/o.png")
    assert ran.returncode == 0, ran.stderr
    written = np.asarray(Image.open(tmp_path / "deep" / "o.png"))
    np.testing.assert_array_equal(written[..., 3:], alpha)
    np.testing.assert_array_equal(written[..., :3], inpainter(image, mask))


def test_command_refuses_a_mask_of_another_size(folder, tmp_path):
    image, mask = example(40, 50)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(mask.T * 255).save(tmp_path / "m.png")
    ran = fill(tmp_path, "--model", str(folder), "--image", "a.png", "--mask", "m.png", "--out", "o.png")
    assert (ran.returncode, len(ran.stderr.splitlines())) == (1, 1), ran.stderr
    assert ran.stderr.startswith("error: the mask m.png has (40, 50) pixels and the image (50, 40)")
    assert not (tmp_path / "o.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "run", "--image", "a.png", "--mask", "m.png"), "--out is required"),
        (("--model", "run", "--image", "a.png", "--mask", "m.png", "--out", "o.jpg"), "must end in .png"),
        ((), "--model is required"),
    ],
)
def test_command_explains_wrong_usage(tmp_path, options, message):
    ran = fill(tmp_path, *options)
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1), ran.stderr
    assert message in ran.stderr


def test_the_width_of_a_hole_is_that_of_its_widest_place():
    hole = np.zeros((80, 120), np.uint8)
    hole[5:8, :] = 255  # a long thin line
    assert inference.widest(hole) in (3, 4)
    hole[20:60, 30:80] = 255  # 40 x 50
    assert abs(inference.widest(hole) - 40) <= 2
    assert inference.widest(np.zeros((9, 9), bool)) == 0
