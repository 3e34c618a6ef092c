"""Image files of every kind, the damaged and the unsuitable among them, written here with Pillow and OpenCV."""

import threading

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from inpaint_jax import image_files
from inpaint_jax.image_files import ImageFileError


def gradient(height: int = 24, width: int = 40) -> np.ndarray:
    """A smooth picture that differs under every flip and rotation and between channels."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([5 * x, 8 * y, 255 - 3 * x - 2 * y], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("suffix", image_files.IMAGE_SUFFIXES)
def test_every_listed_suffix_is_read(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(gradient()).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    picture = image_files.read_rgb(path)
    assert picture.dtype == np.uint8
    tolerance = 12 if suffix in (".jpg", ".jpeg") else 0
    np.testing.assert_allclose(picture.astype(int), gradient(), atol=tolerance)


@pytest.mark.parametrize("suffix", [".png", ".tga", ".tif", ".webp", ".dds"])
def test_alpha_is_dropped_and_not_blended(tmp_path, suffix):
    alpha = np.full((24, 40, 1), 1, np.uint8)
    path = tmp_path / f"picture{suffix}"
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    Image.fromarray(np.concatenate([gradient(), alpha], axis=-1)).save(path, **options)
    np.testing.assert_array_equal(image_files.read_rgb(path), gradient())


def test_grey_palette_and_black_and_white_become_rgb(tmp_path):
    grey = Image.fromarray(gradient()[..., 0])
    colours = Image.fromarray(gradient()).quantize(16)
    bilevel = grey.point(lambda value: 255 * (value > 90)).convert("1")
    for name, image in (("grey", grey), ("colours", colours), ("bilevel", bilevel)):
        image.save(tmp_path / f"{name}.png")
        expected = np.array(image.convert("RGB"))
        np.testing.assert_array_equal(image_files.read_rgb(tmp_path / f"{name}.png"), expected)


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    Image.fromarray(gradient()).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    picture = image_files.read_rgb(tmp_path / "print.jpg")
    np.testing.assert_allclose(picture.astype(int), gradient(), atol=16)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_orientation_is_applied(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    path = tmp_path / f"turned{suffix}"
    Image.fromarray(gradient()).save(path, exif=exif)
    picture = image_files.read_rgb(path)
    np.testing.assert_allclose(picture.astype(int), np.rot90(gradient(), -1), atol=30)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bit_files_are_refused(tmp_path, suffix, channels):
    """Pillow alone would cut 16-bit colour PNGs down to 8 bits in silence."""
    path = tmp_path / f"deep{suffix}"
    assert cv2.imwrite(str(path), np.full((16, 16, channels), 300, np.uint16))
    with pytest.raises(ImageFileError, match=r"deep\.\w+ has more than 8 bits .*not read for training"):
        image_files.read_rgb(path)


def test_floating_point_tiff_is_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ImageFileError, match="more than 8 bits"):
        image_files.read_rgb(tmp_path / "float.tiff")


def test_two_channel_dds_is_refused(tmp_path):
    """Its third channel, which normal maps leave out, would come back as zero."""
    Image.fromarray(gradient()).save(tmp_path / "two.dds", pixel_format="BC5")
    with pytest.raises(ImageFileError, match="two channels"):
        image_files.read_rgb(tmp_path / "two.dds")


@pytest.mark.parametrize("suffix", image_files.IMAGE_SUFFIXES)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_truncated_file_is_refused_by_name(tmp_path, suffix, share):
    path = tmp_path / f"cut{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ImageFileError, match=f"cut{suffix}"):
        image_files.read_rgb(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tga", ".dds", ".tif", ".bmp"])
@given(position=st.floats(0, 1), value=st.integers(0, 255))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_byte_gives_a_picture_or_the_documented_error(tmp_path, suffix, position, value):
    path = tmp_path / f"damaged{suffix}"
    Image.fromarray(gradient(8, 8)).save(path)
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] = value
    path.write_bytes(content)
    message = ""
    try:
        picture = image_files.read_rgb(path)
    except ImageFileError as error:
        message = str(error)
    assert str(path) in message if message else (picture.dtype == np.uint8 and picture.shape[2] == 3)


@pytest.mark.parametrize("suffix", image_files.IMAGE_SUFFIXES)
def test_text_under_an_image_name_is_refused(tmp_path, suffix):
    path = tmp_path / f"notes{suffix}"
    path.write_text("<html><body>404 Not Found</body></html>\n" * 20)
    with pytest.raises(ImageFileError, match=f"notes{suffix}"):
        image_files.read_rgb(path)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(ImageFileError, match=r"no file .*nowhere\.png"):
        image_files.read_rgb(tmp_path / "nowhere.png")
    with pytest.raises(ImageFileError, match="is a folder: give the picture itself"):
        image_files.read_rgb(tmp_path)


def test_palettes_with_transparent_entries_are_read_without_a_warning(tmp_path, recwarn):
    picture = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4), "P")
    picture.putpalette([value for i in range(16) for value in (i * 16, 255 - i, 7)])
    picture.save(tmp_path / "palette.png", transparency=bytes(range(0, 256, 16)))
    expected = np.stack([[i * 16, 255 - i, 7] for i in range(16)]).reshape(4, 4, 3)
    np.testing.assert_array_equal(image_files.read_rgb(tmp_path / "palette.png"), expected)
    assert not recwarn.list


@pytest.mark.parametrize("times", [1.5, 3])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_refused(tmp_path, monkeypatch, times):
    """Pillow itself only warns up to twice its limit; the limit is lowered here to spare memory."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(24 * 40 / times))
    Image.fromarray(gradient()).save(tmp_path / "bomb.png")
    with pytest.raises(ImageFileError, match=r"bomb\.png is .*scale it down"):
        image_files.read_rgb(tmp_path / "bomb.png")


def test_mask_is_one_where_the_file_is_white(tmp_path):
    levels = np.array([[0, 127, 128, 255]], np.uint8)
    for name, image in (
        ("grey.png", Image.fromarray(levels)),
        ("colour.png", Image.fromarray(np.repeat(levels[..., None], 3, axis=-1))),
        ("alpha.png", Image.fromarray(np.stack([levels, levels, levels, 0 * levels], axis=-1))),
        ("palette.png", Image.fromarray(levels).convert("P")),
    ):
        image.save(tmp_path / name)
        mask = image_files.read_mask(tmp_path / name)
        assert mask.dtype == np.uint8
        assert mask.tolist() == [[0, 0, 1, 1]], name


@pytest.mark.parametrize("array", [gradient(), gradient()[..., 1], gradient()[::-1, ::2]])
def test_written_png_reads_back_and_leaves_nothing_else(tmp_path, array):
    path = tmp_path / "new folder" / "picture.png"
    image_files.write_png(path, np.zeros_like(array))
    image_files.write_png(path, array)
    expected = array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=-1)
    np.testing.assert_array_equal(image_files.read_rgb(path), expected)
    assert [entry.name for entry in path.parent.iterdir()] == ["picture.png"]


def test_failed_write_keeps_the_old_file_and_leaves_no_temporary_one(tmp_path):
    taken = tmp_path / "picture.png"
    taken.mkdir()
    with pytest.raises(OSError, match="picture"):
        image_files.write_png(taken, gradient())
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.png"]
    for wrong in (gradient().astype(np.float32), np.zeros((4, 4, 2), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            image_files.write_png(tmp_path / "other.png", wrong)


def test_reader_never_sees_a_part_while_a_picture_is_replaced(tmp_path):
    path = tmp_path / "picture.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    versions = [noise, 255 - noise]
    image_files.write_png(path, noise)
    writer = threading.Thread(target=lambda: [image_files.write_png(path, versions[i % 2]) for i in range(40)])
    writer.start()
    seen = [image_files.read_rgb(path)]
    while writer.is_alive():
        seen.append(image_files.read_rgb(path))
    writer.join()
    assert all(any(np.array_equal(picture, version) for version in versions) for picture in seen)


def test_resize_by_a_whole_factor_averages_blocks_of_the_centre_square():
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    square = image_files.fit_square(image, 8, "resize")
    blocks = image[:, 8:40].reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(square, blocks, atol=0.51)


def test_resize_of_a_fine_pattern_does_not_alias():
    stripes = np.zeros((90, 90, 3), np.uint8)
    stripes[:, ::2] = 255
    square = image_files.fit_square(stripes, 40, "resize")
    assert np.abs(square.astype(int) - 127).max() < 40


@given(height=st.integers(1, 50), width=st.integers(1, 50), size=st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_fit_square_has_the_size_or_says_why_not(height, width, size):
    image = gradient(height, width)
    assert image_files.fit_square(image, size, "resize").shape == (size, size, 3)
    if min(height, width) < size:
        with pytest.raises(ValueError, match=f"{width}x{height} pixels is too small"):
            image_files.fit_square(image, size, "crop")
    else:
        crop = image_files.fit_square(image, size, "crop")
        top, left = (height - size) // 2, (width - size) // 2
        np.testing.assert_array_equal(crop, image[top : top + size, left : left + size])


def test_fit_square_enlarges_without_shift():
    square = image_files.fit_square(gradient(16, 16), 64, "resize")
    np.testing.assert_allclose(square[::-1, ::-1, 0].astype(int) + square[..., 0], 75, atol=2)


def test_fit_square_names_the_known_ways():
    with pytest.raises(ValueError, match='"resize" and "crop"'):
        image_files.fit_square(gradient(), 8, "stretch")


def test_grid_places_enlarged_pictures_below_their_titles():
    """24x40 pictures grow 4 times to 96x160; the gaps are 8 pixels, the title band takes what is left."""
    image, other = gradient(), 255 - gradient()
    one = image_files.picture_grid([[image, other]], ["truth", "output"])
    two = image_files.picture_grid([[image, other], [other, image]], ["truth", "output"])
    band = one.shape[0] - 96 - 8
    assert one.shape[1] == 8 + 160 + 8 + 160 + 8
    assert two.shape == (one.shape[0] + 96 + 8, one.shape[1], 3)
    enlarged = np.kron(image, np.ones((4, 4, 1), np.uint8))
    np.testing.assert_array_equal(one[band : band + 96, 8:168], enlarged)
    np.testing.assert_array_equal(two[band + 104 : band + 200, 176:336], enlarged)
    for columns in (slice(8, 168), slice(176, 336)):
        assert (one[:band, columns] < 100).any()
    assert (one[band:, 168:176] == 255).all()


def test_grid_makes_room_for_long_titles_and_for_rows():
    picture = gradient(128, 128)
    title = "the whole name of a version"
    plain = image_files.picture_grid([[picture]], ["a"])
    wide = image_files.picture_grid([[picture]], [f"{title}\n{title}"])
    rows = image_files.picture_grid([[picture]], ["a"], [title])
    assert wide.shape[1] > plain.shape[1]
    assert wide.shape[0] > plain.shape[0]
    assert rows.shape[0] == plain.shape[0]
    np.testing.assert_array_equal(rows[:, -plain.shape[1] + 8 :], plain[:, 8:])
    assert (rows[:, : -plain.shape[1]] < 100).any()


def test_grid_keeps_large_pictures_and_mixed_sizes_at_one_scale():
    sheet = image_files.picture_grid([[gradient(100, 200), gradient(50, 50)]], ["", ""])
    assert sheet.shape[1] == 8 + 200 + 8 + 50 + 8


def test_grid_refuses_rows_that_do_not_match():
    picture = gradient()
    with pytest.raises(ValueError, match="Row 1 of a picture grid has 1 pictures for 2"):
        image_files.picture_grid([[picture, picture], [picture]], ["a", "b"])
    with pytest.raises(ValueError, match="row titles"):
        image_files.picture_grid([[picture]], ["a"], ["x", "y"])
    with pytest.raises(ValueError, match="at least one row"):
        image_files.picture_grid([], ["a"])
    with pytest.raises(ValueError, match="give uint8"):
        image_files.picture_grid([[picture[..., 0]]], ["a"])


def test_masks_are_thresholded_after_resizing(tmp_path):
    path = tmp_path / "hole.png"
    Image.fromarray(np.asarray([[0, 0, 255, 255]] * 4, np.uint8)).save(path)
    large = image_files.read_mask(path, 10)
    assert (large.shape, large.dtype) == ((10, 10), np.uint8)
    np.testing.assert_array_equal(large, [[0] * 5 + [1] * 5] * 10)
