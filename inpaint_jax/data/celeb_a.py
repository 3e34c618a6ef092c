"""Prepares CelebA from its files by TFDS's own builder `celeb_a`, without TensorFlow and without a network.

Z. Liu, P. Luo, X. Wang, X. Tang, "Deep Learning Face Attributes in the Wild", ICCV 2015. The pictures are lent for
non-commercial research only; the data set's page states the terms.
"""

import inspect
import io
import logging
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

log = logging.getLogger("inpaint_jax")

SIZE = (178, 218)  # width and height in pixels of the aligned pictures
ARCHIVE, PARTITION = "img_align_celeba.zip", "list_eval_partition.txt"
# File -> what TFDS's builder calls it, numbers in a row, and lines before the first row.
_LISTS = {
    PARTITION: ("list_eval_partition", 1, 0),
    "list_attr_celeba.txt": ("list_attr_celeba", 40, 2),
    "list_landmarks_align_celeba.txt": ("landmarks_celeba", 10, 2),
    "identity_CelebA.txt": ("identity_celeba", 1, 0),
}
FILES = (ARCHIVE, *_LISTS)
_SPLITS = {"0": "train", "1": "validation", "2": "test"}
# TFDS sorts a split's examples in memory up to one gigabyte, and on the disk by TensorFlow from there on. Those of the
# training split take 1.5 GB.
_SORTED_IN_MEMORY = 4 << 30


class _Picture:
    """A picture in the archive, read when TFDS asks: it would hold the files of all splits, 1.4 GB, in memory too."""

    def __init__(self, archive: zipfile.ZipFile, name: str):
        self._archive, self._name = archive, name

    def read(self) -> bytes:
        try:
            content = self._archive.read(self._name)
            with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
                size = image.size
        except (zipfile.BadZipFile, zlib.error, OSError, UnidentifiedImageError) as error:
            raise ValueError(f"{self._name} in {ARCHIVE} is damaged ({error}): fetch the archive again") from error
        if size != SIZE:
            raise ValueError(
                f"{self._name} in {ARCHIVE} has {size[0]}x{size[1]} pixels, not {SIZE[0]}x{SIZE[1]}: fetch the aligned "
                "and cropped pictures"
            )
        return content


class _LocalFiles:
    """What TFDS's builder takes for its download manager: files that are already there.

    TFDS's own manager opens archives by TensorFlow, and knows the checksums of one archive only, so that the same
    pictures zipped anew would be refused.
    """

    def __init__(self, folder: Path, archive: zipfile.ZipFile):
        self._folder, self._archive = folder, archive

    def download(self, addresses: dict[str, str]) -> dict[str, Path]:
        files = {"img_align_celeba": ARCHIVE, **{key: name for name, (key, _, _) in _LISTS.items()}}
        if unknown := set(addresses) - set(files):
            raise ValueError(f"this version of tensorflow-datasets wants more files of CelebA: {', '.join(unknown)}")
        return {key: self._folder / files[key] for key in addresses}

    def iter_archive(self, _: Path) -> Iterator[tuple[str, _Picture]]:
        return ((name, _Picture(self._archive, name)) for name in _pictures(self._archive).values())


def _pictures(archive: zipfile.ZipFile) -> dict[str, str]:
    """Returns `{file name: name in the archive}`, without the shadow files that macOS adds."""
    members = (Path(name) for name in archive.namelist() if name.endswith(".jpg"))
    return {path.name: path.as_posix() for path in members if not path.name.startswith("._")}


def check_files(folder: Path) -> dict[str, int]:
    """Checks that all files are there and fit one another, without decoding a picture.

    Args:
        folder: holds the files named in `FILES`, as CelebA's page gives them.

    Returns:
        The number of pictures of each split, {"train", "validation", "test"}.

    Raises:
        ValueError: one sentence on what is missing or damaged.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"the folder {str(folder)!r} lacks {', '.join(missing)}: fetch them by hand from the page of CelebA "
            "(folders Img, Eval and Anno) and put them there unchanged"
        )
    rows = {name: _read_list(folder / name, columns, head) for name, (_, columns, head) in _LISTS.items()}
    partition = rows[PARTITION]
    try:
        with zipfile.ZipFile(folder / ARCHIVE) as archive:
            rows[ARCHIVE] = _pictures(archive)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{folder / ARCHIVE} is no complete archive ({error}): fetch it again") from error
    for name, known in rows.items():
        absent = [picture for picture in partition if picture not in known]
        if absent:
            raise ValueError(
                f"{folder / name} lacks {len(absent)} of the {len(partition)} pictures of {PARTITION}, the first is "
                f"{absent[0]}: fetch it again"
            )
    counts = dict.fromkeys(_SPLITS.values(), 0)
    for picture, (split,) in partition.items():
        if split not in _SPLITS:
            raise ValueError(f"{folder / PARTITION} puts {picture} into split {split!r}, not 0, 1 or 2: fetch it again")
        counts[_SPLITS[split]] += 1
    if not all(counts.values()):
        raise ValueError(f"{folder / PARTITION} leaves a split empty ({counts}): fetch it again")
    return counts


def _read_list(path: Path, columns: int, head: int) -> dict[str, list[str]]:
    # The last line counts only if it ends, as TFDS reads these files.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[head:-1]
    rows = {}
    for number, line in enumerate(lines, head + 1):
        name, *values = line.split() or [""]
        if len(values) != columns:
            raise ValueError(
                f"line {number} of {path} has {len(values)} values after the name, not {columns}: fetch it again"
            )
        rows[name] = values
    return rows


def prepare(files: Path, data_dir: Path) -> tuple[Path, dict[str, int], bool]:
    """Prepares the set in the format array_record, whole or not at all.

    Args:
        files: folder with the files named in `FILES`.
        data_dir: TFDS's data_dir, where the set is written as celeb_a/<version>.

    Returns:
        The folder of the prepared set, the number of pictures of each split, and whether it was there before.

    Raises:
        ValueError: a file is missing or damaged.
        OSError: `data_dir` cannot be written.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import shuffle

    shuffle.MAX_MEM_BUFFER_SIZE = _SORTED_IN_MEMORY
    theirs = tfds.builder_cls("celeb_a")

    class CelebA(theirs, skip_registration=True):
        name = "celeb_a"
        pkg_dir_path = Path(inspect.getfile(theirs)).parent  # where its description and citation lie

        def _split_generators(self, _):
            return super()._split_generators(_LocalFiles(files, archive))

    builder = CelebA(data_dir=str(data_dir), file_format="array_record")
    there = builder.is_prepared()
    if not there:
        counts = check_files(files)
        data_dir.mkdir(parents=True, exist_ok=True)
        log.info("preparing %s: %s", builder.data_dir, counts)
        # TFDS writes into a folder of another name and renames it at the end.
        with zipfile.ZipFile(files / ARCHIVE) as archive, tempfile.TemporaryDirectory() as unused:
            settings = tfds.download.DownloadConfig(try_download_gcs=False)
            try:
                builder.download_and_prepare(download_dir=unused, download_config=settings)
            except ValueError as error:
                # TFDS puts the whole example before the sentence that `_Picture` raised.
                raise ValueError(str(error).strip().splitlines()[-1]) from error
    found = {str(split): info.num_examples for split, info in builder.info.splits.items()}
    if not there and found != counts:
        raise ValueError(f"{builder.data_dir} holds {found} pictures, not {counts}: remove it and try again")
    return Path(builder.data_dir), found, there
