"""How fast batches come out of a config's data, without any training: from the files, and from memory."""

import logging
import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from inpaint_jax import data, run
from inpaint_jax.data import crop_files, pipeline
from inpaint_jax.data.source import ImageSource

log = logging.getLogger("inpaint_jax")

LATER_EPOCHS = 4  # read from memory in each repeat: one alone would be over in milliseconds
READS = ("decoding", "memory")


def measure(config: ml_collections.ConfigDict, steps: int, repeats: int, wanted: float | None) -> dict[str, Any]:
    """Reads batches as the trainer does and returns how many pictures come in a second.

    "decoding" is the first epoch, in which each picture is read, decoded and fitted (the system may hold the files in
    its memory: they are looked through before); "memory" are the epochs after it, where the decoded pictures fit. Each
    is measured with one thread, with `config.data.reader_threads` and with one for each core, in turns.

    Args:
        config: a validated one.
        steps: batches in an epoch, fewer where the training split has fewer; its pictures are spread over the split.
        repeats: of each measurement; of them the median is taken.
        wanted: images per second to feed, for the number of cores; None = not asked.

    Raises:
        ValueError: something is wrong with the data.
    """
    config = config.copy_and_resolve_references()
    with tempfile.TemporaryDirectory(prefix="inpaint_jax_bench_") as folder:
        log.info("looking through the data")
        train = data.load_splits(config.data, config.image_size, Path(folder))["train"]
    masks = run.read_mask_files(config) if config.mask.name == "files" else None
    batch, cores = config.batch_size * config.accumulate, crop_files.cores()
    steps = min(steps, pipeline.steps_per_epoch(len(train), batch))
    threads = sorted({1, max(1, config.data.reader_threads), cores})
    paces: dict[int, dict[str, list[tuple[float, float]]]] = {n: {read: [] for read in READS} for n in threads}
    log.info("reading %d batches of %d pictures, %d times with %s threads", steps, batch, repeats, threads)
    for _ in range(repeats):
        for number in threads:
            config.data.reader_threads = number
            part, picture_bytes = _part(train, steps * batch)
            for read, (start, stop) in zip(READS, ((0, steps), (steps, (1 + LATER_EPOCHS) * steps)), strict=True):
                paces[number][read].append(_pace(config, part, masks, start, stop))
    rates = {f"{number}_threads": {read: _figures(paces[number][read]) for read in READS} for number in threads}
    fits = picture_bytes() * len(train) <= train.cache_bytes
    figures = {
        "mode": "input",
        "data_source": config.data.source,
        "pictures": len(train),
        "image_size": config.image_size,
        "batch_size": batch,
        "steps": steps,
        "cores": cores,
        **rates,
        "decoded_mebibytes": picture_bytes() * len(train) / 2**20,
        "cache_mebibytes": train.cache_bytes / 2**20,
        "later_epochs_from_memory": fits,
        "pictures_that_fit": int(train.cache_bytes / picture_bytes()),
        "pixel_megabytes_per_picture": 3 * config.image_size**2 / 1e6,
    }
    if wanted:
        all_cores = rates[f"{cores}_threads"]
        figures["wanted_images_per_s"] = wanted
        figures["cores_needed"] = {read: math.ceil(wanted / all_cores[read]["images_per_core_s"]) for read in READS}
    return figures


def _part(source: ImageSource, count: int):
    """Returns so many pictures of a source, spread over it, none of them read yet; and what one takes in memory."""
    chosen = [number * len(source) // count for number in range(count)]
    sizes: dict[int, int] = {}

    def load(index: int):
        image = source.load(chosen[index])
        sizes[index] = image.nbytes
        return image

    # However large the whole is: what memory gives is measured even where it does not hold all.
    part = ImageSource([source.names[number] for number in chosen], load, source.fingerprint, 1 << 62)
    return part, lambda: statistics.mean(sizes.values())


def _pace(
    config: ml_collections.ConfigDict, source: ImageSource, masks: ImageSource | None, start: int, stop: int
) -> tuple[float, float]:
    """Returns images per second, and images per second of a core's work, all threads together."""
    images = (stop - start) * config.batch_size * config.accumulate
    begun, work = time.perf_counter(), time.process_time()
    for _ in pipeline.batches_of(config, source, masks, start, stop):
        pass
    return images / (time.perf_counter() - begun), images / (time.process_time() - work)


def _figures(paces: list[tuple[float, float]]) -> dict[str, Any]:
    rates, per_core = zip(*paces, strict=True)
    return {
        "images_per_s": statistics.median(rates),
        "images_per_s_min": min(rates),
        "images_per_s_max": max(rates),
        "images_per_core_s": statistics.median(per_core),
        "images_per_core_s_min": min(per_core),
        "images_per_core_s_max": max(per_core),
    }


def show(figures: Mapping[str, Any], name: str) -> None:
    """Prints the figures of `measure` as a table."""
    side, megabytes = figures["image_size"], figures["pixel_megabytes_per_picture"]
    print(f"{name}, input: {figures['pictures']:,} pictures from {figures['data_source']}, batches of ", end="")
    print(f"{figures['batch_size']} of {side}x{side}, {figures['cores']} cores")
    print("  images per s: median (lowest to highest); of a core's work; MB of pixels per s")
    for title, read in (("first epoch", "decoding"), ("from memory", "memory")):
        for key, rates in figures.items():
            if key.endswith("_threads"):
                pace = rates[read]
                low, high = pace["images_per_s_min"], pace["images_per_s_max"]
                count = f"{title}, {key.replace('_', ' ').replace('1 threads', '1 thread')}"
                print(f"  {count:24}{pace['images_per_s']:,.0f}   ({low:,.0f} to {high:,.0f}); ", end="")
                print(f"{pace['images_per_core_s']:,.0f}; {pace['images_per_s'] * megabytes:,.0f}")
    kept = "later epochs come from there" if figures["later_epochs_from_memory"] else "each epoch decodes them"
    print(f"  decoded, they take      {figures['decoded_mebibytes']:,.0f} MiB; kept in memory up to ", end="")
    print(f"{figures['cache_mebibytes']:,.0f} MiB, {figures['pictures_that_fit']:,} such pictures: {kept}")
    if "cores_needed" in figures:
        decoding, memory = (figures["cores_needed"][read] for read in READS)
        print(f"  cores to feed {figures['wanted_images_per_s']:<9g} ", end="")
        print(f"{decoding} while pictures are decoded, {memory} from memory")
