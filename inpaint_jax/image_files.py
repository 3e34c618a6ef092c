"""Reading and writing pictures: the only place that opens image files.

Whatever is wrong with a file ends in an `ImageFileError`, one sentence that names it and says what to do.
"""

import math
import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tga", ".dds", ".tif", ".tiff", ".bmp")

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

MASK_THRESHOLD = 128  # of 255; from here on a mask's pixel is hole

# The contact sheet's measures, in pixels.
GRID_GAP = 8
GRID_FONT_SIZE = 14
GRID_SMALLEST_CELL = 128
_GRID_BACKGROUND = (255, 255, 255)
_GRID_INK = (0, 0, 0)


class ImageFileError(ValueError):
    """A picture cannot be read; the message names the file and says what to do."""


def _refuse_unsuitable(image: Image.Image, path: Path) -> None:
    """Raises for pictures that Pillow would read with a silent loss, and for those too large to decode safely."""
    width, height = image.size
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise ImageFileError(f"{path} is {width}x{height}, above the limit of {limit} pixels: scale it down.")
    bits = 8
    if image.format == "PNG":
        # Pillow cuts 16-bit colour down to 8 bits without a word, so the depth comes from the file's own header
        # (PNG specification, 11.2.1): 8 bytes of signature, length, "IHDR", width, height, then the depth.
        with open(path, "rb") as file:
            bits = file.read(25)[24]
    elif image.format == "TIFF":
        bits = max(image.tag_v2.get(258, (8,)))  # BitsPerSample
    # Formats of DirectDraw Surfaces: BC6H holds 16-bit floats.
    compression = getattr(image, "pixel_format", "")
    if bits > 8 or image.mode.startswith(("I", "F")) or compression.startswith("BC6H"):
        raise ImageFileError(
            f"{path} has more than 8 bits per channel, and 16-bit files are not read for training: "
            "save an 8-bit copy of it."
        )
    if compression.startswith("BC5"):
        raise ImageFileError(f"{path} holds two channels only (BC5), where three are needed: save an RGB copy of it.")


def _read_upright(path: str | os.PathLike, mode: str = "RGB") -> Image.Image:
    path = Path(path)
    formats = (*_FORMATS, "TGA") if path.suffix.lower() == ".tga" else _FORMATS
    try:
        with Image.open(path, formats=formats) as image:
            _refuse_unsuitable(image, path)
            if mode == "RGB or RGBA":
                mode = "RGBA" if image.has_transparency_data else "RGB"
            if image.mode == "P" and image.has_transparency_data:
                image = image.convert("RGBA")  # Pillow's own advice for palettes with transparent entries
            return ImageOps.exif_transpose(image).convert(mode)
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
    return np.array(_read_upright(path))


def read_rgb_and_alpha(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads an image file as `read_rgb` does, and its alpha channel, uint8 (H, W), or None if it has none."""
    pixels = np.array(_read_upright(path, "RGB or RGBA"))
    return pixels[..., :3], pixels[..., 3] if pixels.shape[-1] == 4 else None


def with_alpha(image: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """Returns the picture with its alpha channel put back, uint8 (H, W, 4), or as it is for None."""
    return image if alpha is None else np.concatenate([image, alpha[..., None]], axis=-1)


def read_mask(path: str | os.PathLike, size: int = 0) -> np.ndarray:
    """Reads a mask from an image file: white is hole, black is known, anything between goes to the nearer one.

    Args:
        path: the file; colours count by their brightness, alpha is dropped.
        size: height and width to resize it to before the threshold; 0 = as it is.

    Returns:
        uint8 (H, W), 1 = hole (brightness of 128 or more), 0 = known.

    Raises:
        ImageFileError: as for `read_rgb`.
    """
    grey = _read_upright(path).convert("L")
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
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a file can be renamed atomically within one file system only; one name per writer.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        Image.fromarray(array).save(temporary, format="PNG")
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
        uint8 (size, size, 3).

    Raises:
        ValueError: `how` is unknown, or "crop" finds the picture smaller than the square.
    """
    short = min(image.shape[:2])
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
