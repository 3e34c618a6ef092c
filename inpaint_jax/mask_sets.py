"""Sets of masks for evaluation: drawn once from frozen integers, stored, and known by the hash of their bits."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from inpaint_jax.masks import COLUMNS, RANDOM_BITS, shapes_and_mask, validate_mask_spec

TRIES = 256  # masks that are drawn for a bucket before too few of them in it are an error


@dataclass(frozen=True)
class EvaluationMasks:
    """A stored set of masks: `shapes` int32 (count, K, 6) for `rasterise`, `packed` uint8 (count, ceil(H * W / 8)).

    `id` is "<family>-<count>-<H>x<W>-<first 16 hex digits of the SHA-256 of the packed bits>"; sides are in pixels.
    """

    id: str
    shapes: np.ndarray
    packed: np.ndarray
    height: int
    width: int

    def unpack(self) -> np.ndarray:
        """The masks as uint8 (count, H, W, 1), 1 = hole."""
        bits = np.unpackbits(self.packed, axis=1, count=self.height * self.width)
        return bits.reshape(-1, self.height, self.width, 1)


def _identity_end(packed: np.ndarray, height: int, width: int) -> str:
    return f"-{len(packed)}-{height}x{width}-{hashlib.sha256(packed.tobytes()).hexdigest()[:16]}"


def evaluation_masks(spec: Mapping, count: int, height: int, width: int, seed: int = 0) -> EvaluationMasks:
    """Draw the masks of an evaluation set; mask i depends on (spec, seed, i) alone, on no JAX key or device.

    Args:
      spec: see `validate_mask_spec`, whose errors it raises.
      count: number of masks, at least 1.
      seed: of this set, 0 to 2**32 - 1; not the training seed.
    """
    if count < 1:
        raise ValueError(f"an evaluation set needs at least one mask, not {count}")
    parameters = validate_mask_spec(spec, (height, width))
    block, drawn = min(count, 64), []
    for shapes, masks in _blocks([seed], block, height, width, parameters):
        drawn.append((shapes, _packed(masks)))
        if len(drawn) * block >= count:
            break
    shapes, packed = (np.concatenate(blocks)[:count] for blocks in zip(*drawn, strict=True))
    return EvaluationMasks(parameters["name"] + _identity_end(packed, height, width), shapes, packed, height, width)


def _blocks(
    stream: Sequence[int], block: int, height: int, width: int, parameters: Mapping
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields shapes int32 (block, K, 6) and masks bool (block, H, W) without an end, from integers of the stream."""
    # The last block is drawn in full and cut by who asks, so that one compiled program serves every block.
    draw = jax.jit(jax.vmap(lambda table: shapes_and_mask(table, height, width, parameters)))
    size = (parameters["capacity"], len(COLUMNS))
    for first in itertools.count(0, block):
        streams = (np.random.RandomState([*stream, index]) for index in range(first, first + block))
        tables = [one.randint(0, 2**RANDOM_BITS, size, dtype=np.int64).astype(np.int32) for one in streams]
        yield jax.device_get(draw(np.stack(tables)))


def _packed(masks: np.ndarray) -> np.ndarray:
    return np.packbits(masks.reshape(len(masks), -1), axis=1)


def masks_in_buckets(
    spec: Mapping, buckets: Sequence[tuple[float, float]], count: int, height: int, width: int, seed: int = 0
) -> EvaluationMasks:
    """Draw a set that fills ranges of the hole ratio evenly: mask i lies in bucket i modulo their number.

    Each bucket takes those that lie in it of the masks that the family draws for its ratio. Mask i depends on (spec,
    buckets, seed, i) alone.

    Args:
      spec: see `validate_mask_spec`; its own ratio does not matter.
      buckets: ranges, above the first number, up to and including the second.
      count: number of masks, at least 1.
      seed: of this set, 0 to 2**32 - 1.

    Raises:
      ValueError: a spec that is wrong, or a bucket in which hardly a mask lies.
    """
    by_bucket = [
        _masks_within(spec, bucket, -(-(count - place) // len(buckets)), height, width, [seed, place])
        for place, bucket in enumerate(buckets[:count])
    ]
    most = max(shapes.shape[1] for shapes, _ in by_bucket)
    shapes, packed = np.zeros((count, most, 6), np.int32), np.zeros((count, by_bucket[0][1].shape[1]), np.uint8)
    for place, (own_shapes, own_packed) in enumerate(by_bucket):
        shapes[place :: len(buckets), : own_shapes.shape[1]] = own_shapes
        packed[place :: len(buckets)] = own_packed
    name = f"{spec['name']}-buckets"
    return EvaluationMasks(name + _identity_end(packed, height, width), shapes, packed, height, width)


def _masks_within(
    spec: Mapping, bucket: tuple[float, float], count: int, height: int, width: int, stream: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns shapes (count, K, 6) and packed masks of the first masks of a stream that lie in the bucket."""
    over, up_to = bucket
    parameters = validate_mask_spec({**spec, "ratio": bucket}, (height, width), sure=False)
    # Blocks of one size whatever the count, for which a mask must not depend on.
    block, drawn, kept = 32, 0, []
    for shapes, masks in _blocks(stream, block, height, width, parameters):
        drawn += block
        ratios = masks.mean(axis=(1, 2))
        inside = (ratios > over) & (ratios <= up_to)
        kept.append((shapes[inside], _packed(masks)[inside]))
        found = sum(len(shapes) for shapes, _ in kept)
        if found >= count:
            break
        if drawn >= TRIES and found < drawn / TRIES * 4:
            raise ValueError(
                f"of {drawn} masks of the family {spec['name']!r} drawn at {height}x{width}, {found} have a hole ratio "
                f"over {over} and up to {up_to}, which its shapes do not suit"
            )
    return tuple(np.concatenate(parts)[:count] for parts in zip(*kept, strict=True))


def masks_from_pictures(pictures: np.ndarray) -> EvaluationMasks:
    """Make an evaluation set of mask pictures, uint8 (count, H, W, 1) of 0 and 1; it has no shapes."""
    count, height, width, _ = pictures.shape
    packed = _packed(pictures)
    shapes = np.zeros((count, 0, 6), np.int32)
    return EvaluationMasks("files" + _identity_end(packed, height, width), shapes, packed, height, width)


def save_masks(path: str | os.PathLike, masks: EvaluationMasks) -> None:
    """Write an evaluation set as .npz under a temporary name, then rename it: a reader never sees half a file."""
    path, size = Path(path), np.asarray([masks.height, masks.width], np.int32)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, id=np.asarray(masks.id), shapes=masks.shapes, packed=masks.packed, size=size)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_masks(path: str | os.PathLike) -> EvaluationMasks:
    """Read what `save_masks` wrote and check its bits against its id; ValueError if missing, damaged or another."""
    try:
        with np.load(path, allow_pickle=False) as file:
            identity, shapes, packed, size = (file[key] for key in ("id", "shapes", "packed", "size"))
        height, width = (int(side) for side in size)
        if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != -(-height * width // 8):
            raise ValueError(f"its bits are of shape {packed.shape}")
    # A flipped bit in an archive can surface as nearly any error; each means the same to the reader.
    except Exception as error:
        # Some messages hold the file itself.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"{path} is not a readable set of evaluation masks ({reason}); delete it and draw it again"
        ) from error
    masks = EvaluationMasks(str(identity), shapes, packed, height, width)
    if not masks.id.endswith(_identity_end(packed, masks.height, masks.width)):
        raise ValueError(f"{path} is damaged: its masks do not match its id {masks.id}; delete it and draw it again")
    return masks


def stored(path: Path, draw: Callable[[], EvaluationMasks]) -> EvaluationMasks:
    """Return the set at a path, drawn and stored there if it is missing; ValueError if it is damaged."""
    if path.exists():
        return load_masks(path)
    masks = draw()
    save_masks(path, masks)
    return masks
