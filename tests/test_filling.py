"""Filling picture files: channels and bits survive, folders go on after a bad file, what is read is not replaced."""

import os

import cv2
import forked_commands
import jax
import numpy as np
import pytest
from PIL import Image

from configs import unet_cosine, unet_photographs
from inpaint_jax import filling, image_files, inference, weights
from inpaint_jax.state import initial_variables

HOLE = np.zeros((20, 30), bool)
HOLE[5:12, 8:25] = True


def model_of(config) -> inference.Inpainter:
    """A model whose network answers nothing: it fills smoothly."""
    shapes = jax.eval_shape(lambda: initial_variables(config))["generator"]
    return inference.Inpainter(config, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))


@pytest.fixture(scope="module")
def photographs():
    return model_of(unet_photographs.get_config("tiny"))


@pytest.fixture(scope="module")
def normal_maps():
    return model_of(unet_cosine.get_config("tiny"))


def noise(channels: int, dtype: type = np.uint8) -> np.ndarray:
    shape = (20, 30, channels)
    return np.random.default_rng(channels).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(
    # Grey of 16 bits with alpha is written as RGBA.
    ("dtype", "channels"),
    [*((np.uint8, n) for n in (1, 2, 3, 4)), *((np.uint16, n) for n in (1, 3, 4))],
)
def test_channels_and_bits_survive(photographs, tmp_path, dtype: type, channels: int, suffix: str):
    picture, path = noise(channels, dtype), tmp_path / f"a{suffix}"
    image_files.write_picture(path, picture)
    image_files.write_picture(tmp_path / "m.png", (HOLE * np.uint8(255))[..., None])
    out = tmp_path / "deep" / f"o{suffix}"
    filled = filling.fill_file(photographs, filling.Job(path, tmp_path / "m.png", out), filling.Options())
    written = image_files.read_picture(out)
    assert (filled, written.dtype, written.shape) == (HOLE.sum(), dtype, picture.shape)
    np.testing.assert_array_equal(written[~HOLE], picture[~HOLE])
    colours = written[..., : 1 if channels < 3 else 3].astype(float)
    assert np.all(np.any(colours[HOLE] != picture[HOLE][:, : colours.shape[2]], axis=-1).mean() > 0.9)
    assert colours[HOLE].std() < 0.5 * picture[HOLE].std(), "smooth, on the picture's own scale"
    assert abs(colours[HOLE].mean() / np.iinfo(dtype).max - 0.5) < 0.15
    if channels in (2, 4):
        np.testing.assert_array_equal(written[..., -1], picture[..., -1])


def test_sixteen_bit_files_of_others_are_read_exactly(tmp_path):
    picture = noise(3, np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), picture[..., ::-1])
    cv2.imwrite(str(tmp_path / "a.tiff"), picture[..., ::-1])  # LZW, as OpenCV writes it
    np.testing.assert_array_equal(image_files.read_picture(tmp_path / "a.png"), picture)
    np.testing.assert_array_equal(image_files.read_picture(tmp_path / "a.tiff"), picture)
    image_files.write_picture(tmp_path / "b.png", picture)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_UNCHANGED), picture[..., ::-1])


@pytest.mark.parametrize(
    ("mode", "suffix", "shape"),
    [("1", ".png", 1), ("P", ".png", 3), ("CMYK", ".jpg", 3), ("L", ".jpg", 1), ("I;16", ".png", 1)],
)
def test_other_modes_are_read_as_their_colours(tmp_path, mode: str, suffix: str, shape: int):
    if mode == "I;16":
        picture = Image.fromarray(noise(1, np.uint16)[..., 0])
    else:
        picture = Image.fromarray(noise(3)).convert("CMYK" if mode == "CMYK" else "L").convert(mode)
    picture.save(tmp_path / f"a{suffix}")
    read = image_files.read_picture(tmp_path / f"a{suffix}")
    assert read.shape == (20, 30, shape)
    with Image.open(tmp_path / f"a{suffix}") as again:
        expected = np.array(again if mode == "I;16" else again.convert("L" if shape == 1 else "RGB"))
    np.testing.assert_array_equal(read, expected.reshape(read.shape))


def test_what_would_lose_something_is_refused(tmp_path):
    frames = [Image.fromarray(noise(3)), Image.fromarray(255 - noise(3))]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(image_files.ImageFileError, match="has 2 frames or pages"):
        image_files.read_picture(tmp_path / "a.png")
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(image_files.ImageFileError, match=r"a\.gif is not an image of a known kind"):
        image_files.read_picture(tmp_path / "a.gif")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(image_files.ImageFileError, match="neither 8 nor 16 bits"):
        image_files.read_picture(tmp_path / "f.tif")
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(noise(1, np.uint16)[..., 0]).save(tmp_path / "t.tif", exif=turned)
    with pytest.raises(image_files.ImageFileError, match="save a copy that is upright"):
        image_files.read_picture(tmp_path / "t.tif")


def test_the_exif_orientation_is_applied_before_the_mask(photographs, tmp_path):
    turned = Image.Exif()
    turned[274] = 6
    picture = noise(3)
    Image.fromarray(picture).save(tmp_path / "a.png", exif=turned)
    image_files.write_png(tmp_path / "m.png", np.rot90(HOLE, -1) * np.uint8(255))
    job = filling.Job(tmp_path / "a.png", tmp_path / "m.png", tmp_path / "o.png")
    filling.fill_file(photographs, job, filling.Options())
    written = image_files.read_picture(job.out)
    np.testing.assert_array_equal(np.rot90(written)[~HOLE], picture[~HOLE])


def test_transparency_is_the_mask_where_there_is_none(photographs, tmp_path):
    picture = noise(4)
    picture[..., 3] = np.where(HOLE, 127, np.maximum(picture[..., 3], 128))
    image_files.write_picture(tmp_path / "a.png", picture)
    job = filling.Job(tmp_path / "a.png", None, tmp_path / "o.png")
    assert filling.fill_file(photographs, job, filling.Options()) == HOLE.sum()
    written = image_files.read_picture(job.out)
    np.testing.assert_array_equal(written[~HOLE], picture[~HOLE])
    assert np.all(written[HOLE][:, 3] == 255)
    other = filling.Job(tmp_path / "a.png", None, tmp_path / "i.png")
    assert filling.fill_file(photographs, other, filling.Options(invert=True)) == (~HOLE).sum()
    image_files.write_picture(tmp_path / "b.png", picture[..., :3])
    with pytest.raises(ValueError, match=r"b\.png has no transparency .*give --mask"):
        filling.fill_file(photographs, filling.Job(tmp_path / "b.png", None, job.out), filling.Options())


def random_normals(dtype: type = np.uint8) -> np.ndarray:
    vectors = np.random.default_rng(3).normal(size=(20, 30, 3)) * (0.5, 0.5, 0.1) + (0, 0, 1)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.round((vectors + 1) / 2 * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_green_up_and_down_are_mirror_images(normal_maps, monkeypatch, dtype: type):
    picture = random_normals(dtype)
    flipped = picture.copy()
    flipped[..., 1] = np.iinfo(dtype).max - flipped[..., 1]
    monkeypatch.setattr(normal_maps, "normal_y", "up")
    expected = filling.fill_picture(normal_maps, picture, HOLE, filling.Options(normal_y="up"))
    np.testing.assert_array_equal(expected, filling.fill_picture(normal_maps, picture, HOLE, filling.Options()))
    found = filling.fill_picture(normal_maps, flipped, HOLE, filling.Options(normal_y="down"))
    np.testing.assert_array_equal(found[..., 1], np.iinfo(dtype).max - expected[..., 1])
    np.testing.assert_array_equal(found[..., ::2], expected[..., ::2])


def test_two_channels_are_filled_as_the_whole_map_and_blue_stays(normal_maps, tmp_path):
    picture = random_normals()
    flat = picture.copy()
    flat[..., 2] = 0
    filled = filling.fill_picture(normal_maps, flat, HOLE, filling.Options(two_channels=True))
    assert np.all(filled[..., 2] == 0)
    np.testing.assert_array_equal(filled[~HOLE], flat[~HOLE])
    # Blue made from red and green is at most a few levels off.
    whole = filling.fill_picture(normal_maps, picture, HOLE, filling.Options())
    assert np.abs(filled[..., :2].astype(int) - whole[..., :2]).max() <= 3
    # As does a file that has two channels only.
    Image.fromarray(np.repeat(np.repeat(flat[:5, :5], 4, 0), 4, 1)).save(tmp_path / "a.dds", pixel_format="BC5")
    assert np.all(image_files.read_picture(tmp_path / "a.dds", two_channels=True)[..., 2] == 0)
    with pytest.raises(image_files.ImageFileError, match=r"two channels only \(BC5\): say so with --two_channels"):
        image_files.read_picture(tmp_path / "a.dds")


def test_options_that_do_not_fit_the_model_are_refused(normal_maps, photographs):
    with pytest.raises(ValueError, match="the picture is grey, and the model fills normal maps"):
        filling.fill_picture(normal_maps, noise(1), HOLE, filling.Options())
    with pytest.raises(ValueError, match="the model fills photographs"):
        filling.fill_picture(photographs, noise(3), HOLE, filling.Options(normal_y="up"))


def test_jobs_that_would_replace_what_is_read_are_refused(tmp_path):
    for name in ("in/a.png", "in/b/c.jpg", "masks/a.png"):
        image_files.write_png(tmp_path / "x.png", noise(3))
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(3)).save(tmp_path / name)
    images, masks, out = tmp_path / "in", tmp_path / "masks", tmp_path / "out"
    jobs = filling.plan_jobs(images, masks, out)
    assert [job.out.relative_to(out).as_posix() for job in jobs] == ["a.png", "b/c.png"]
    assert [job.mask.relative_to(masks).as_posix() for job in jobs] == ["a.png", "b/c.jpg"]
    with pytest.raises(ValueError, match=r"a\.png is read, and would be replaced"):
        filling.plan_jobs(images, masks, masks)
    with pytest.raises(ValueError, match=r"a\.png is read, and would be replaced"):
        filling.plan_jobs(images / "a.png", masks / "a.png", images / "a.png")
    Image.fromarray(noise(3)).save(images / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png would both be written to"):
        filling.plan_jobs(images, masks, out)
    (images / "a.jpg").unlink()
    Image.fromarray(noise(3)).save(masks / "a.tif")
    assert filling.plan_jobs(images, masks, out)[0].mask == masks / "a.png", "the same name comes first"
    (masks / "a.png").rename(masks / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.png has several masks"):
        filling.plan_jobs(images, masks, out)
    with pytest.raises(ValueError, match="where results would be taken for pictures"):
        filling.plan_jobs(images, masks, images / "filled")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no pictures"):
        filling.plan_jobs(tmp_path / "empty", masks, out)


def test_the_command_goes_on_after_bad_files(tmp_path):
    config = unet_photographs.get_config("tiny")
    shapes = jax.eval_shape(lambda: initial_variables(config))["generator"]
    weights.save_generator(tmp_path / "model", jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes), config)
    for name in ("a.png", "b.png", "c/d.png"):
        image_files.write_png(tmp_path / "in" / name, noise(3))
        image_files.write_png(tmp_path / "masks" / name, HOLE * np.uint8(255))
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    image_files.write_png(tmp_path / "in" / "e.png", noise(3))  # has no mask
    Image.fromarray(noise(3)).save(tmp_path / "in" / "f.gif")
    image_files.write_png(tmp_path / "masks" / "f.png", HOLE * np.uint8(255))
    options = ("--model=model", "--image=in", "--mask=masks", "--out=out")
    ran = forked_commands.run("inpaint", tmp_path, *options, environment=dict(os.environ))
    assert ran.returncode == 1, ran.stderr
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")) == [
        "a.png", "c/d.png",
    ]  # fmt: skip
    assert "in/b.png: in/b.png is not an image of a known kind" in ran.stderr
    assert "in/e.png: There is no file masks/e.png" in ran.stderr
    assert "not filled: in/f.gif: in/f.gif is not an image of a known kind" in ran.stderr
    assert "2 of 5 pictures written below out" in ran.stderr
