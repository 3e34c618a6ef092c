"""The grain pipeline: batch = f(seed, step), so that a restart at any step sees what the first run would have seen."""

from collections.abc import Iterator, Sequence
from typing import Any

import grain
import ml_collections
import numpy as np

from inpaint_jax.data.source import ImageSource


def steps_per_epoch(examples: int, batch: int) -> int:
    """Returns the number of whole batches in one epoch; the remainder is dropped.

    Raises:
        ValueError: not even one batch.
    """
    if examples < batch:
        raise ValueError(
            f"the training split has {examples} pictures but one step takes {batch}: lower config.batch_size "
            "(or config.accumulate), or add pictures"
        )
    return examples // batch


def train_batches(
    source: ImageSource,
    *,
    seed: int,
    batch: int,
    start_step: int,
    stop_step: int,
    threads: int,
    crop: int = 0,
    masks: ImageSource | None = None,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this host's share of the batches of steps [start_step, stop_step).

    Args:
        source: the training pictures, uint8 (H, W, 3) each.
        seed: orders the pictures of every epoch anew; another part is dropped in each.
        batch: examples of one step over all hosts, a multiple of `hosts`.
        crop: side of a random window cut from each picture, drawn by (seed, slot); 0 = pictures are taken whole.
        masks: pictures of masks, uint8 (H, W, 1) of 0 and 1, drawn at random by slot; None = drawn on the device.
        host: this process; it reads the `host`-th contiguous block of every step's slots.

    Yields:
        {image: uint8 (batch / hosts, H, W, 3), slot: int32 (batch / hosts,), mask?: uint8 (batch / hosts, H, W, 1)}.
    """
    per_epoch = steps_per_epoch(len(source), batch)
    epochs = -(-stop_step // per_epoch)
    mask_order = None
    if masks is not None:
        mask_order = _mask_order(masks, seed)

    def example(slot: int, image: np.ndarray) -> dict[str, np.ndarray]:
        fields = {"image": random_window(image, crop, seed, slot) if crop else image, "slot": np.int32(slot)}
        if mask_order is not None:
            fields["mask"] = masks[mask_order[slot]]
        return fields

    dataset = _in_order(source, seed, per_epoch * batch, epochs).map_with_index(example).batch(batch // hosts)
    dataset = dataset[start_step * hosts + host : stop_step * hosts : hosts]
    # Threads, not processes: worker processes take seconds to start and decoding releases the interpreter lock.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, 2 * threads))
    return iter(dataset.to_iter_dataset(options))


def batches_of(
    config: ml_collections.ConfigDict,
    source: ImageSource,
    masks: ImageSource | None,
    start_step: int,
    stop_step: int,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches that a config's training takes at steps [start_step, stop_step); see `train_batches`."""
    return train_batches(
        source, seed=config.seed, batch=config.batch_size * config.accumulate,
        start_step=start_step, stop_step=stop_step, threads=config.data.reader_threads,
        crop=config.image_size if config.data.fit == "crop" else 0, masks=masks, host=host, hosts=hosts,
    )  # fmt: skip


def _in_order(source: Any, seed: int, per_epoch: int, epochs: int) -> grain.MapDataset:
    return grain.MapDataset.source(source).seed(seed).shuffle()[:per_epoch].repeat(epochs)


def pictures_of(source: ImageSource, *, seed: int, batch: int, slots: Sequence[int]) -> list[int]:
    """Returns which pictures of the source `train_batches` gives to slots; arguments as there."""
    per_epoch = steps_per_epoch(len(source), batch) * batch
    order = _in_order(range(len(source)), seed, per_epoch, max(slots) // per_epoch + 1)
    return [int(order[int(slot)]) for slot in slots]


def mask_files_of(masks: ImageSource, *, seed: int, slots: Sequence[int]) -> list[int]:
    """Returns which mask pictures `train_batches` gives to slots; arguments as there."""
    order = _mask_order(masks, seed)
    return [int(order[int(slot)]) for slot in slots]


def _mask_order(masks: ImageSource, seed: int) -> grain.MapDataset:
    return grain.MapDataset.range(len(masks)).seed(seed + 1).shuffle().repeat()


def random_window(image: np.ndarray, size: int, seed: int, slot: int) -> np.ndarray:
    """Returns a window of `size` pixels a side at a place drawn by (seed, slot); image uint8 (H, W, C)."""
    random = np.random.Generator(np.random.Philox(key=np.array([seed, slot], np.uint64)))
    top, left = (int(random.integers(extent - size + 1)) for extent in image.shape[:2])
    return image[top : top + size, left : left + size]


def evaluation_batches(
    images: ImageSource, masks: np.ndarray, batch: int, host: int = 0, hosts: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """Yields all examples in order, the last batch padded by repeating its first example at weight 0.

    Args:
        images: pictures, uint8 (H, W, 3) each.
        masks: uint8 (N, H, W, 1), mask i belongs to picture i.
        batch: examples at a time over all hosts, a multiple of `hosts`.
        host: this process; it reads the pictures of the `host`-th contiguous block of every batch.

    Yields:
        {image: uint8 (batch / hosts, H, W, 3), mask: uint8 (batch / hosts, H, W, 1)} of this host, and of the whole
        batch {weight: float32 (batch,), index: int32 (batch,)}.
    """
    own = batch // hosts
    for start in range(0, len(masks), batch):
        real = list(range(start, min(start + batch, len(masks))))
        padded = real + real[:1] * (batch - len(real))
        here = padded[host * own : (host + 1) * own]
        yield {
            "image": np.stack([images[i] for i in here]),
            "mask": np.stack([masks[i] for i in here]),
            "weight": np.asarray([1.0] * len(real) + [0.0] * (batch - len(real)), np.float32),
            "index": np.asarray(padded, np.int32),
        }
