"""Filling pictures of any size: known pixels stay, holes do not depend on what lay under them."""

import os
import subprocess
import sys
from pathlib import Path

import forked_commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import unet_cosine, unet_photographs
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
    [(1, 2, 0.5), (1, 90, 0.3), (37, 103, 0.3), (200, 64, 0.3), (32, 32, 0.3), (33, 40, 0.95)],
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


def test_sixteen_bits_are_filled_alike_and_kept(inpainter):
    image, mask = example(50, 70)
    fine = image * np.uint16(257) ^ np.uint16(1)  # a bit that 8 bits do not have
    filled = inpainter(fine, mask)
    assert filled.dtype == np.uint16
    np.testing.assert_array_equal(filled[mask == 0], fine[mask == 0])
    # Half a level of 8 bits, and the bit that was changed.
    assert np.abs(filled[mask == 1] / 257 - inpainter(image, mask)[mask == 1]).max() < 0.6


@pytest.fixture(scope="module")
def colours():
    config = unet_photographs.get_config("tiny")
    return inference.Inpainter(config, random_variables(config))


@pytest.fixture(scope="module")
def smooth():
    """A model whose network answers nothing, so that the smooth fill of its input is what comes out."""
    config = unet_photographs.get_config("tiny")
    variables = random_variables(config)
    return inference.Inpainter(config, {**variables, "params": jax.tree.map(np.zeros_like, variables["params"])})


def slope(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x / width, y / height, (x + y) / (width + height)], axis=-1) * 200 + 20


def test_a_hole_larger_than_tiles_is_filled_from_coarse_to_fine(smooth):
    image = slope(170, 230).round().astype(np.uint8)
    mask = np.zeros((170, 230), np.uint8)
    mask[20:150, 30:200] = 1
    difference = np.abs(smooth(image, mask).astype(float) - slope(170, 230))
    assert smooth.size == 32
    assert difference.max() < 12, "far from known pixels too"
    assert difference[20:24, 40:190].max() < 3, "and near them as at one scale"


def test_a_tileable_texture_is_filled_alike_wherever_its_edges_lie(inpainter):
    image, _ = example(128, 192)
    mask = np.zeros((128, 192), np.uint8)
    mask[110:], mask[:9], mask[60:70, 170:], mask[60:70, :9] = 1, 1, 1, 1
    # Wider than a quarter of a tile, so that two coarser scales take part; at a third the tiles would lie otherwise.
    mask[:, 80:98] = 1
    filled = inpainter(image, mask, wrap=True)
    rolled = inpainter(np.roll(image, (64, 128), (0, 1)), np.roll(mask, (64, 128), (0, 1)), wrap=True)
    difference = np.abs(rolled.astype(int) - np.roll(filled, (64, 128), (0, 1)))
    assert difference.max() <= 1, "the other order of the sums"
    assert (difference != 0).mean() < 0.001
    assert np.any(filled != inpainter(image, mask)), "the edges do not meet without wrap"


def test_opposite_edges_meet_in_a_picture_smaller_than_a_tile(smooth):
    x = np.arange(20) / 20 * 2 * np.pi
    image = np.repeat((127 + 80 * np.sin(x))[None, :, None], 24, axis=0).repeat(3, axis=2).round().astype(np.uint8)
    mask = np.zeros((24, 20), np.uint8)
    mask[:, :3], mask[:, 17:] = 1, 1
    error = np.abs(smooth(image, mask, wrap=True).astype(int) - image).max()
    assert error < 20
    assert error < np.abs(smooth(image, mask).astype(int) - image).max() / 2


def test_poisson_blending_takes_an_offset_at_the_rim_out_of_the_hole():
    image = slope(37, 50)[None].astype(np.float32)
    mask = np.zeros((1, 37, 50, 1), np.float32)
    mask[:, 8:30, 10:40] = 1
    blended = fills.poisson(image, mask, image * 1.0 + 25.0)
    np.testing.assert_allclose(blended, image, atol=1e-3)
    # An offset that changes along the rim is carried on smoothly, and a step inside of the answer stays.
    answer = image + slope(37, 50).astype(np.float32)[None, :, :, ::-1]
    answer[:, 15:20, 20:30] += 30
    left = np.array(fills.poisson(image, mask, answer) - image)[0]
    np.testing.assert_allclose(left[15:20, 20:30], 30, atol=6)  # 3% of the offset
    left[15:20, 20:30] -= 30
    assert np.abs(left).max() < 6


def test_poisson_blending_stays_in_range(colours):
    image = np.full((64, 64, 3), 250, np.uint8)
    image[:, 32:] = 5
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:44] = 1
    for depth in (np.uint8, np.uint16):
        picture = image * depth(257) if depth == np.uint16 else image
        filled = colours(picture, mask, blend="poisson") / np.iinfo(depth).max
        difference = np.abs(filled[25:35, 21] - colours(picture, mask)[25:35, 21] / np.iinfo(depth).max)
        assert filled[21:39, 21].min() > 0.5, "beside white, and not wrapped round to black"
        assert difference.max() > 0.05, "it does something here"


def test_a_lone_known_pixel_is_not_lost_on_the_way_down(smooth):
    image, mask = np.full((200, 200, 3), 200, np.uint8), np.ones((200, 200), np.uint8)
    mask[::40, ::40] = 0
    np.testing.assert_allclose(smooth(image, mask).astype(int), 200, atol=1)


def test_poisson_blending_goes_through_tiles(inpainter):
    image, mask = example(50, 70, share=0.1)
    blended = inpainter(image, mask, blend="poisson")
    np.testing.assert_array_equal(blended[mask == 0], image[mask == 0])
    assert np.any(blended != inpainter(image, mask))
    with pytest.raises(ValueError, match="blend = 'soft': known are none, poisson"):
        inpainter(image, mask, blend="soft")


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
        (np.zeros((8, 8, 3), np.float32), np.zeros((8, 8)), "image must be uint8 or uint16.*float32"),
        (np.zeros((8, 8), np.uint8), np.zeros((8, 8)), "image must be uint8"),
        (np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8)), "image must be uint8"),
        (np.zeros((8, 9, 3), np.uint8), np.zeros((9, 8)), "make them equal"),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 1)), "make them equal"),
        (np.zeros((8, 8, 3), np.uint8), np.ones((8, 8)), "the mask is all hole"),
        (np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 255.0), "must be bool, uint8, or from 0 to 1"),
    ],
    ids=lambda value: "" if isinstance(value, np.ndarray) else value,
)
def test_other_arrays_are_refused(inpainter, image, mask, message):
    with pytest.raises(ValueError, match=message):
        inpainter(image, mask)


@given(size=st.integers(1, 64), length=st.integers(1, 500))
@settings(deadline=None)
def test_tiles_on_a_ring_overlap_by_half(size, length):
    starts = inference.ring_starts(length, size)
    steps = np.diff([*starts, length])
    assert starts[0] == 0
    assert np.all(steps > 0)
    assert np.all(steps <= max(1, -(-size // 2)))


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
    options = (f"--model={folder}", "--image=a.png", "--mask=m.png", "--out=o.png")
    ran = forked_commands.run("inpaint", tmp_path, *options, environment=dict(os.environ))
    assert (ran.returncode, len(ran.stderr.splitlines())) == (1, 1), ran.stderr
    assert ran.stderr.startswith("error: the mask m.png has 40x50 pixels and the picture a.png 50x40")
    assert not (tmp_path / "o.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "run", "--image", "a.png", "--mask", "m.png"), "--out is required"),
        (("--model", "run", "--image", "a.png", "--mask", "m.png", "--out", "o.jpg"), "must end in .png"),
        ((), "--image is required"),
    ],
)
def test_command_explains_wrong_usage(tmp_path, options, message):
    ran = fill(tmp_path, *options)
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1), ran.stderr
    assert message in ran.stderr
