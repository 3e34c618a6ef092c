"""Sets of masks for evaluation: drawn once from frozen integers, stored, and known by the hash of their bits."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from inpaint_jax.masks import COLUMNS, RANDOM_BITS, shapes_and_mask, validate_mask_spec


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
    draw = jax.jit(jax.vmap(lambda table: shapes_and_mask(table, height, width, parameters)))
    size, block, drawn = (parameters["capacity"], len(COLUMNS)), min(count, 64), []
    for first in range(0, count, block):
        # The last block is drawn in full and cut, so that one compiled program serves every block.
        streams = (np.random.RandomState([seed, index]) for index in range(first, first + block))
        tables = [stream.randint(0, 2**RANDOM_BITS, size, dtype=np.int64).astype(np.int32) for stream in streams]
        shapes, masks = jax.device_get(draw(np.stack(tables)))
        drawn.append((shapes, np.packbits(masks.reshape(block, -1), axis=1)))
    shapes, packed = (np.concatenate(blocks)[:count] for blocks in zip(*drawn, strict=True))
    return EvaluationMasks(parameters["name"] + _identity_end(packed, height, width), shapes, packed, height, width)


def masks_from_pictures(pictures: np.ndarray) -> EvaluationMasks:
    """Make an evaluation set of mask pictures, uint8 (count, H, W, 1) of 0 and 1; it has no shapes."""
    count, height, width, _ = pictures.shape
    packed = np.packbits(pictures.reshape(count, -1), axis=1)
    shapes = np.zeros((count, 0, 6), np.int32)
    return EvaluationMasks("files" + _identity_end(packed, height, width), shapes, packed, height, width)


def save_masks(path: str | os.PathLike, masks: EvaluationMasks) -> None:
    """Write an evaluation set as .npz under a temporary name, then rename it: a reader never sees half a file."""
    path, size = Path(path), np.asarray([masks.height, masks.width], np.int32)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, id=np.asarray(masks.id), shapes=masks.shapes, packed=masks.packed, size=size)
    temporary.replace(path)


def load_masks(path: str | os.PathLike) -> EvaluationMasks:
    """Read what `save_masks` wrote and check its bits against its id; ValueError if missing, damaged or another."""
    try:
        with np.load(path, allow_pickle=False) as file:
            identity, shapes, packed, size = (file[key] for key in ("id", "shapes", "packed", "size"))
    # A flipped bit in an archive can surface as nearly any error; each means the same to the reader.
    except Exception as error:
        raise ValueError(
            f"{path} is not a readable set of evaluation masks ({error}); delete it and draw it again"
        ) from error
    masks = EvaluationMasks(str(identity), shapes, packed, int(size[0]), int(size[1]))
    if not masks.id.endswith(_identity_end(packed, masks.height, masks.width)):
        raise ValueError(f"{path} is damaged: its masks do not match its id {masks.id}; delete it and draw it again")
    return masks
