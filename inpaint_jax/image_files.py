"""Reading and writing pictures: the only place that opens image files.

Whatever is wrong with a file ends in an `ImageFileError`, one sentence that names it and says what to do.
"""

import contextlib
import math
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

LOSSLESS_SUFFIXES = (".png", ".tif", ".tiff")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tga", ".dds", ".tif", ".tiff", ".bmp")
OTHER_SUFFIXES = (".gif", ".avif", ".heic", ".jxl", ".jp2", ".exr", ".hdr", ".psd")  # pictures that are not read here

# Contents that are tried whatever the suffix says. TGA files have no signature, so garbage could pass for one: they
# are read only under their own suffix.
_FORMATS = ("PNG", "JPEG", "WEBP", "DDS", "TIFF", "BMP")

# What Pillow raises on files that are damaged: its parsers let errors of `struct` and of plain indexing through.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    AssertionError,
    NotImplementedError,
    ArithmeticError,
    struct.error,
)

FITS = ("resize", "crop")  # ways to make a square
_ORIENTATION = 274  # the EXIF tag
MASK_THRESHOLD = 128  # of 255; from here on a mask's pixel is hole

# The contact sheet's measures, in pixels.
GRID_GAP = 8
GRID_FONT_SIZE = 14
GRID_SMALLEST_CELL = 128
_GRID_BACKGROUND = (255, 255, 255)
_GRID_INK = (0, 0, 0)


class ImageFileError(ValueError):
    """A picture cannot be read; the message names the file and says what to do."""


def _bits(image: Image.Image, path: Path) -> int:
    """Returns the bits of a channel, which Pillow does not tell of 16-bit colour: it cuts it down to 8 on its own."""
    if image.format == "PNG":
        return _png_header(path)[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (8,)))  # BitsPerSample
    # Formats of DirectDraw Surfaces: BC6H holds 16-bit floats.
    floats = getattr(image, "pixel_format", "").startswith("BC6H")
    return 16 if floats or image.mode.startswith(("I", "F")) else 8


def _png_header(path: Path) -> bytes:
    """Returns the start of a PNG file: signature (8 bytes), length, "IHDR", width, height, depth, colour type.

    PNG specification, 11.2.1.
    """
    with open(path, "rb") as file:
        return file.read(26)


def _refuse_too_large(image: Image.Image, path: Path) -> None:
    width, height = image.size
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ImageFileError(f"{path} is {width}x{height}, above the limit of {limit} pixels: scale it down.")


def _refuse_unsuitable(image: Image.Image, path: Path) -> None:
    """Raises for pictures that Pillow would read with a silent loss."""
    if _bits(image, path) > 8 or image.mode.startswith(("I", "F")):
        raise ImageFileError(
            f"{path} has more than 8 bits per channel, and 16-bit files are not read for training: "
            "save an 8-bit copy of it."
        )
    if getattr(image, "pixel_format", "").startswith("BC5"):
        raise ImageFileError(f"{path} holds two channels only (BC5), where three are needed: save an RGB copy of it.")


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Image.Image]:
    """Opens a picture that is not too large, and turns whatever is wrong with it into an `ImageFileError`."""
    path = Path(path)
    formats = (*_FORMATS, "TGA") if path.suffix.lower() == ".tga" else _FORMATS
    try:
        with Image.open(path, formats=formats) as image:
            _refuse_too_large(image, path)
            yield image
    except ImageFileError:
        raise
    except FileNotFoundError:
        raise ImageFileError(f"There is no file {path}: correct the path.") from None
    except IsADirectoryError:
        raise ImageFileError(f"{path} is a folder: give the picture itself.") from None
    except Image.DecompressionBombError as error:
        raise ImageFileError(f"{path} is too large to decode safely ({error}): scale it down.") from error
    except UnidentifiedImageError as error:
        raise ImageFileError(
            f"{path} is not an image of a known kind ({', '.join(IMAGE_SUFFIXES)}): convert or remove it."
        ) from error
    except _DAMAGE as error:
        raise ImageFileError(
            f"{path} cannot be read ({error}): replace it with a complete copy or remove it."
        ) from error


def _upright(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "P" and image.has_transparency_data:
        image = image.convert("RGBA")  # Pillow's own advice for palettes with transparent entries
    # Without a change Pillow would copy the picture, twice.
    ImageOps.exif_transpose(image, in_place=True)
    return image if image.mode == mode else image.convert(mode)


def read_rgb(path: str | os.PathLike) -> np.ndarray:
    """Reads a PNG, JPEG, WebP, TGA, DDS, TIFF or BMP file as RGB, upright.

    An alpha channel is dropped, not blended (in normal maps it often holds something else); grey, palette and CMYK
    become RGB; the EXIF orientation is applied; of several frames the first counts.

    Args:
        path: the file; its contents decide the format, not its suffix (except for TGA).

    Returns:
        uint8 (H, W, 3) in [0, 255].

    Raises:
        ImageFileError: no such file, not an image, damaged, more than 8 bits per channel, or above Pillow's limit of
            pixels.
    """
    with _opened(path) as image:
        _refuse_unsuitable(image, Path(path))
        return np.array(_upright(image, "RGB"))


def read_picture(path: str | os.PathLike, two_channels: bool = False) -> np.ndarray:
    """Reads a picture that is to be changed and written again, with all its channels and bits, upright.

    Palettes and CMYK become RGB, bilevel pictures grey.

    Args:
        path: a PNG, JPEG, WebP, TGA, DDS, TIFF or BMP file; 16 bits a channel in PNG and TIFF.
        two_channels: files that hold two channels only (DDS with BC5) will do; the third is zero.

    Returns:
        uint8 or uint16 (H, W, C), C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.

    Raises:
        ImageFileError: as for `read_rgb`, more than 16 bits, or several frames, of which all but one would be lost.
    """
    path = Path(path)
    with _opened(path) as image:
        # Telephones put a second, smaller view into their JPEG files.
        if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:
            raise ImageFileError(f"{path} has {frames} frames or pages: save the one that you mean as a PNG file.")
        bits = _bits(image, path)
        if bits > 16 or image.mode in ("I", "F") or (bits > 8 and image.format not in ("PNG", "TIFF")):
            raise ImageFileError(f"{path} has neither 8 nor 16 bits per channel: save a 16-bit PNG copy of it.")
        if getattr(image, "pixel_format", "").startswith("BC5") and not two_channels:
            raise ImageFileError(f"{path} holds two channels only (BC5): say so with --two_channels.")
        if bits <= 8:
            alpha = "A" if image.has_transparency_data else ""
            pixels = np.array(_upright(image, ("L" if image.mode in ("1", "L", "LA") else "RGB") + alpha))
            return pixels.reshape(*pixels.shape[:2], -1)
        if image.getexif().get(_ORIENTATION, 1) != 1:
            raise ImageFileError(f"{path} has 16 bits and an EXIF orientation: save a copy that is upright.")
        # What OpenCV would take for something else: planes one after the other, inverted greys, a transparent grey.
        tags = getattr(image, "tag_v2", {})
        if tags.get(284, 1) != 1 or tags.get(262) == 0 or (image.mode == "I;16" and image.has_transparency_data):
            raise ImageFileError(f"{path} has an unusual 16-bit layout: save a plain 16-bit PNG copy of it.")
        grey_and_alpha = image.format == "PNG" and _png_header(path)[25] == 4
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None or pixels.dtype != np.uint16:
            raise ImageFileError(f"{path} cannot be read: replace it with a complete 16-bit copy or remove it.")
    pixels = _other_order(pixels.reshape(*pixels.shape[:2], -1))
    return pixels[..., [0, 3]] if grey_and_alpha else pixels


def _other_order(pixels: np.ndarray) -> np.ndarray:
    """Exchanges red and blue, which OpenCV has the other way round."""
    return pixels if pixels.shape[2] < 3 else np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])


def read_mask(path: str | os.PathLike, size: int = 0) -> np.ndarray:
    """Reads a mask from an image file: white is hole, black is known, anything between goes to the nearer one.

    Args:
        path: the file, of 8 or 16 bits; colours count by their brightness, alpha is dropped.
        size: height and width to resize it to before the threshold; 0 = as it is.

    Returns:
        uint8 (H, W), 1 = hole (brightness of 128 or more), 0 = known.

    Raises:
        ImageFileError: as for `read_picture`.
    """
    picture = read_picture(path)
    if picture.dtype == np.uint16:
        picture = (picture >> 8).astype(np.uint8)
    # Grey of one or two channels, or colours; alpha is dropped.
    grey = Image.fromarray(picture[..., 0] if picture.shape[2] < 3 else picture[..., :3]).convert("L")
    if size:
        grey = grey.resize((size, size), Image.Resampling.BILINEAR)
    return (np.asarray(grey) >= MASK_THRESHOLD).astype(np.uint8)


def write_png(path: str | os.PathLike, array: np.ndarray) -> None:
    """Writes a PNG file atomically: a reader sees the old file or the new one, never a part; makes the folder.

    Args:
        path: the file to write or replace.
        array: uint8 (H, W, 3), (H, W, 4) with alpha, or (H, W), in [0, 255].

    Raises:
        ValueError: the array is not such a picture.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(
            f"{path} needs a uint8 (H, W, 3), (H, W, 4) or (H, W) array, but got {array.dtype} {array.shape}."
        )
    with _replacing(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")


def write_picture(path: str | os.PathLike, pixels: np.ndarray) -> None:
    """Writes what `read_picture` gives to a PNG or TIFF file, every bit of it, atomically; makes the folder.

    Args:
        path: the file to write or replace, its suffix one of `LOSSLESS_SUFFIXES`.
        pixels: uint8 or uint16 (H, W, C), C = 1 to 4; grey of 16 bits with alpha becomes RGBA.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    kind = "PNG" if path.suffix.lower() == ".png" else "TIFF"
    with _replacing(path) as temporary:
        if pixels.dtype == np.uint8:
            options = {} if kind == "PNG" else {"compression": "tiff_deflate"}
            Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(temporary, format=kind, **options)
        else:
            if pixels.shape[2] == 2:
                pixels = pixels[..., [0, 0, 0, 1]]
            done, encoded = cv2.imencode(f".{kind.lower()}", _other_order(pixels))
            if not done:
                raise OSError(f"{path} cannot be encoded as {kind}")
            encoded.tofile(temporary)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside the file, which is renamed to it in the end; one name per writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a file can be renamed atomically within one file system only.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _centre_square(image: np.ndarray, size: int) -> np.ndarray:
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def fit_square(image: np.ndarray, size: int, how: str) -> np.ndarray:
    """Makes a square of a picture around its centre.

    Args:
        image: uint8 (H, W, 3).
        size: side of the square in pixels.
        how: "resize" scales the short side to `size` (area average when shrinking, bicubic when enlarging) and cuts
            the long one; "crop" cuts the square out at native resolution.

    Returns:
        uint8 (size, size, 3); the picture itself where it is that square already.

    Raises:
        ValueError: `how` is unknown, or "crop" finds the picture smaller than the square.
    """
    short = min(image.shape[:2])
    if how in FITS and image.shape[:2] == (size, size):
        return np.ascontiguousarray(image)
    if how == "resize":
        # Cutting first gives the same square and leaves no rounded long side that would stretch the picture.
        square = _centre_square(image, short)
        interpolation = cv2.INTER_AREA if size < short else cv2.INTER_CUBIC
        return square.copy() if size == short else cv2.resize(square, (size, size), interpolation=interpolation)
    if how == "crop":
        if short < size:
            raise ValueError(
                f"A picture of {image.shape[1]}x{image.shape[0]} pixels is too small for a crop of {size}x{size}: "
                'use how="resize" or leave it out.'
            )
        return _centre_square(image, size).copy()
    raise ValueError(f'Unknown way to make a square: {how!r}; known are "resize" and "crop".')


def _title_picture(text: str) -> np.ndarray:
    """Draws a text of one or more lines, uint8 (H, W, 3), no larger than it needs."""
    font = ImageFont.load_default(size=GRID_FONT_SIZE)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    _, _, right, bottom = measure.multiline_textbbox((0, 0), text, font=font, align="center")
    picture = Image.new("RGB", (max(1, math.ceil(right)), max(1, math.ceil(bottom))), _GRID_BACKGROUND)
    ImageDraw.Draw(picture).multiline_text((0, 0), text, fill=_GRID_INK, font=font, align="center")
    return np.array(picture)


def _checked_rows(rows: Sequence[Sequence[np.ndarray]], columns: int, row_titles: Sequence[str]) -> None:
    if not rows or not columns:
        raise ValueError("A picture grid needs at least one row and one column title.")
    if row_titles and len(row_titles) != len(rows):
        raise ValueError(f"A picture grid of {len(rows)} rows got {len(row_titles)} row titles: give one per row.")
    for number, row in enumerate(rows):
        if len(row) != columns:
            raise ValueError(f"Row {number} of a picture grid has {len(row)} pictures for {columns} column titles.")
        for picture in row:
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                raise ValueError(
                    f"Row {number} of a picture grid has a picture {picture.dtype} {picture.shape}: "
                    "give uint8 (H, W, 3)."
                )


def picture_grid(
    rows: Sequence[Sequence[np.ndarray]], column_titles: Sequence[str], row_titles: Sequence[str] | None = None
) -> np.ndarray:
    """Lays pictures out on a white contact sheet with a title above every column and, if given, left of every row.

    If the largest side of all pictures is below 128 pixels, every pixel becomes a square of n x n, with the least n
    that reaches it. Columns are as wide as their widest picture or title, rows as high as their highest; everything is
    centred in its cell.

    Args:
        rows: rows of pictures, uint8 (H, W, 3), of any sizes.
        column_titles: one per column; may hold line breaks.
        row_titles: one per row, or None.

    Returns:
        uint8 (H, W, 3), the sheet.

    Raises:
        ValueError: rows and titles do not match, or a picture is not as above.
    """
    row_titles = list(row_titles or [])
    _checked_rows(rows, len(column_titles), row_titles)
    largest = max(max(picture.shape[:2]) for row in rows for picture in row)
    factor = max(1, math.ceil(GRID_SMALLEST_CELL / largest))
    cells = [[_title_picture(title) for title in column_titles]]
    cells += [[picture.repeat(factor, axis=0).repeat(factor, axis=1) for picture in row] for row in rows]
    if row_titles:
        cells = [[_title_picture(title), *row] for title, row in zip(["", *row_titles], cells, strict=True)]

    heights = [max(cell.shape[0] for cell in row) for row in cells]
    widths = [max(cell.shape[1] for cell in column) for column in zip(*cells, strict=True)]
    sheet_shape = (sum(heights) + GRID_GAP * (len(heights) + 1), sum(widths) + GRID_GAP * (len(widths) + 1), 3)
    sheet = np.full(sheet_shape, 255, np.uint8)
    top = GRID_GAP
    for row, height in zip(cells, heights, strict=True):
        left = GRID_GAP
        for cell, width in zip(row, widths, strict=True):
            y, x = top + (height - cell.shape[0]) // 2, left + (width - cell.shape[1]) // 2
            sheet[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
            left += width + GRID_GAP
        top += height + GRID_GAP
    return sheet
