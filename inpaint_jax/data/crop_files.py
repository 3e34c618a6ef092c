"""Crops on the disk: one file for each finished picture, and from these a data set as array_record or PNG files."""

import contextlib
import hashlib
import io
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import cv2
import numpy as np

from inpaint_jax import command_line, image_files
from inpaint_jax.data.crops import CropSettings, choose, scaled

log = logging.getLogger("inpaint_jax")

VERSION = "1.0.0"
SPLITS = ("train", "validation", "test")
# Changes whenever the same settings would cut other crops, so that no old ones are used.
_CUTTING = 1
_SHARD_BYTES = 256 << 20
_MOST_SHARDS = 256  # of a split: readers keep all files open, and systems allow a process about a thousand
_LOG_SECONDS = 10.0
_PNG_COMPRESSION = 3  # of OpenCV's encoder: half the time of 6, for files 2% larger
_LONGEST_STEM = 180  # bytes; file systems allow 255 for a name


class Crop(NamedTuple):
    """One crop of a finished picture: where it was, and where its encoded pixels wait."""

    picture: str
    picture_hash: str
    top: int
    left: int
    pixels_hash: str
    part: Path
    entry: str
    size: int


def cores() -> int:
    """Returns how many processes can run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar on a terminal, else logs a line every ten seconds; gives a function to call with what was done."""
    if sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
        with Progress(*columns, console=command_line.console()) as bar:
            task = bar.add_task(title, total=total)
            yield lambda count: bar.advance(task, count)
        return
    done, said = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        if time.monotonic() - said >= _LOG_SECONDS:
            said = time.monotonic()
            log.info("%s: %d of %d", title, done, total)

    yield advance


def parts_folder(partial: Path, crops: CropSettings) -> Path:
    """Returns where below a work folder the crops of these settings wait."""
    identity = json.dumps([_CUTTING, asdict(crops)], sort_keys=True)
    return partial / f"crops_{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def cut(source: Path, partial: Path, hashes: Mapping[str, str], crops: CropSettings, processes: int) -> Path:
    """Cuts all pictures that an earlier run has not, and returns the folder with one file of crops for each.

    Args:
        source: folder of the pictures.
        partial: work folder; crops of other settings lie beside and are not used.
        hashes: name -> SHA-256 of the file.
        processes: 0 = one per core.

    Raises:
        ValueError: a picture changed since it was checked, or a process was killed.
        OSError: the work folder cannot be written.
    """
    parts = parts_folder(partial, crops)
    parts.mkdir(exist_ok=True)
    finished = {path.name for path in parts.iterdir()}
    waiting = [name for name in sorted(hashes) if f"{hashes[name]}.zip" not in finished]
    if len(waiting) < len(hashes):
        log.info("%d of %d pictures were cut by an earlier run", len(hashes) - len(waiting), len(hashes))
    tasks = ((source / name, hashes[name], crops, parts / f"{hashes[name]}.zip") for name in waiting)
    processes = min(processes or cores(), len(waiting))
    with progress("cutting", len(waiting)) as advance:
        if processes > 1:
            _cut_in_processes(tasks, processes, advance)
        else:
            for task in tasks:
                _cut_picture(*task)
                advance(1)
    return parts


def _cut_in_processes(tasks: Iterator[tuple], processes: int, advance: Callable[[int], None]) -> None:
    # Spawned, since a fork would copy threads' locks in whatever state they are.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin_process)
    running: set[Future] = set()
    try:
        while True:
            # Few at a time, so that an interruption has little to wait for.
            running |= {
                pool.submit(_cut_picture, *task) for task in itertools.islice(tasks, 2 * processes - len(running))
            }
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            advance(len(done))
    except BrokenProcessPool as error:
        raise ValueError(
            "a process that cut pictures was killed, perhaps for want of memory: try fewer with --processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_process() -> None:
    # The parent answers Ctrl-C. If it is killed, waiting processes would never hear of it: they watch it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _cut_picture(path: Path, content_hash: str, crops: CropSettings, part: Path) -> None:
    """Writes the crops of one picture, `<top>_<left>_<SHA-256 of the pixels>.png` in a ZIP file, under its own name."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} can no longer be read ({error.strerror}): mend it, and run again") from error
    if hashlib.sha256(content).hexdigest() != content_hash:
        raise ValueError(f"{path} changed while the data set was prepared: run the command again")
    image = scaled(image_files.read_rgb(path), crops.scale)
    temporary = part.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for top, left in choose(image, crops, content_hash):
                    pixels = image[top : top + crops.size, left : left + crops.size]
                    name = f"{top}_{left}_{hashlib.sha256(pixels.tobytes()).hexdigest()}.png"
                    archive.writestr(name, _png(pixels))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(part)
    finally:
        temporary.unlink(missing_ok=True)


def _png(pixels: np.ndarray) -> bytes:
    ok, encoded = cv2.imencode(".png", pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, _PNG_COMPRESSION])
    if not ok:
        raise ValueError(f"OpenCV could not encode a crop of {pixels.shape} as PNG: please report this")
    return encoded.tobytes()


def read_parts(hashes: Mapping[str, str], parts: Path) -> list[Crop]:
    """Returns the crops of these pictures, by picture, top and left.

    Args:
        hashes: name -> SHA-256 of the file.
        parts: the folder that `cut` returned.

    Raises:
        ValueError: a file of crops is damaged.
    """
    found = []
    for name in sorted(hashes):
        part = parts / f"{hashes[name]}.zip"
        with _opened(part) as archive:
            entries = [(entry.filename, entry.file_size) for entry in archive.infolist()]
        for entry, size in entries:
            top, left, pixels_hash = entry.removesuffix(".png").split("_")
            found.append(Crop(name, hashes[name], int(top), int(left), pixels_hash, part, entry, size))
    return found


@contextlib.contextmanager
def _opened(part: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(part) as archive:
            yield archive
    except zipfile.BadZipFile as error:
        raise ValueError(f"the file of crops {str(part)!r} is damaged ({error}): remove it and run again") from error


def _encoded(crops: Sequence[Crop]) -> Iterator[tuple[Crop, bytes]]:
    for part, some in itertools.groupby(crops, key=lambda crop: crop.part):
        with _opened(part) as archive:
            for crop in some:
                yield crop, archive.read(crop.entry)


def write_array_records(
    result: Path, name: str, chosen: Mapping[str, Sequence[Crop]], size: int, texts: Mapping[str, str]
) -> None:
    """Writes a data set that `tfds.builder(name)` reads, with features "image" and "picture" (the source's name).

    TFDS's own writer is not used: it keeps a whole split in memory, and needs TensorFlow from one gigabyte on.

    Args:
        result: folder to write, anew.
        chosen: split -> crops.
        size: side of the crops, in pixels.
        texts: "description", "homepage", "license", "citation".

    Raises:
        OSError: it cannot be written.
    """
    import tensorflow_datasets as tfds

    folder = result / VERSION
    _make_anew(folder, result)
    image = tfds.features.Image(shape=(size, size, 3), encoding_format="png")
    features = tfds.features.FeaturesDict({"image": image, "picture": tfds.features.Text()})
    template = tfds.core.ShardedFileTemplate(data_dir=folder, dataset_name=name, filetype_suffix="array_record")
    infos = []
    with progress("writing", sum(map(len, chosen.values()))) as advance:
        for split in SPLITS:
            crops = chosen[split]
            count = max(1, min(len(crops), _MOST_SHARDS, -(-sum(crop.size for crop in crops) // _SHARD_BYTES)))
            edges = [len(crops) * i // count for i in range(count + 1)]
            written = 0
            for i, (start, stop) in enumerate(itertools.pairwise(edges)):
                path = Path(template.replace(split=split).sharded_filepath(shard_index=i, num_shards=count))
                written += _write_shard(path, crops[start:stop], features, advance)
            lengths = [stop - start for start, stop in itertools.pairwise(edges)]
            info = tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=written, filename_template=template)
            infos.append(info)
    about = {key: text for key, text in texts.items() if text}
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=infos,
        filename_template=template,
        check_data=False,
        disable_shuffling=True,
        **about,
    )


def _write_shard(path: Path, crops: Sequence[Crop], features, advance: Callable[[int], None]) -> int:
    """Writes one array_record file and returns its encoded bytes."""
    from array_record.python import array_record_module

    written = 0
    try:
        # One record a group, as TFDS writes: groups cannot be read but whole.
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for crop, png in _encoded(crops):
            record = features.serialize_example({"image": io.BytesIO(png), "picture": crop.picture})
            writer.write(record)
            written += len(record)
            advance(1)
        writer.close()
    except RuntimeError as error:
        raise OSError(str(error)) from error
    return written


def write_pngs(
    result: Path, name: str, chosen: Mapping[str, Sequence[Crop]], size: int, texts: Mapping[str, str]
) -> None:
    """Writes `<split>/<picture's path with / as __, no suffix>_<top>_<left>.png`; arguments as in the other output.

    Raises:
        OSError: it cannot be written.
    """
    _make_anew(result, result)
    pictures = {crop.picture: crop.picture_hash for crops in chosen.values() for crop in crops}
    stems = _stems(pictures)
    with progress("writing", sum(map(len, chosen.values()))) as advance:
        for split in SPLITS:
            (result / split).mkdir()
            for crop, png in _encoded(chosen[split]):
                (result / split / f"{stems[crop.picture]}_{crop.top}_{crop.left}.png").write_bytes(png)
                advance(1)


def _stems(pictures: Mapping[str, str]) -> dict[str, str]:
    """Returns name -> how its crops' files begin: unlike each other, also where file systems ignore case."""
    plain = {name: str(PurePosixPath(name).with_suffix("")).replace("/", "__") for name in pictures}
    used = Counter(stem.lower() for stem in plain.values())
    result = {}
    for name, stem in plain.items():
        if used[stem.lower()] > 1 or len(stem.encode()) > _LONGEST_STEM:
            short = stem.encode()[:_LONGEST_STEM].decode(errors="ignore")
            stem = f"{short}_{pictures[name][:16]}"
        result[name] = stem
    return result


def _make_anew(folder: Path, result: Path) -> None:
    if result.exists():
        shutil.rmtree(result)
    folder.mkdir(parents=True)


# Name of the output -> function (folder, name, crops by split, size, texts) that writes it.
WRITERS: dict[str, Callable[[Path, str, Mapping[str, Sequence[Crop]], int, Mapping[str, str]], None]] = {
    "array_record": write_array_records,
    "png": write_pngs,
}
