"""What a training step sees of its batch and makes of it: arrays, losses of each example, labelled pictures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from inpaint_jax import image_files, losses, task
from inpaint_jax.step import Batch, System, generate, judge, microbatches

Tree = Any
COLUMNS = ("image", "mask", "input", "output", "completed")
SHOWN = 64  # examples on the sheet; single files are written of all
_NAME_LENGTH = 24  # characters of a picture's name on the sheet


def make_look(system: System, kind: str) -> Callable[[Tree, Batch], dict[str, Any]]:
    """Returns `look(variables, batch)` for one replica: what a step of `kind` computes of each example on its way.

    The networks answer as in training: batch statistics of the microbatch, dropout by slot. It is a program of its own,
    so that its numbers may differ from the step's in their last bits.

    Returns:
        A function of `{"params", "stats", "frozen"}`, of the state before the step, and the step's batch; it gives
        float32 arrays in the order of the batch: `image` as it went in, `mask`, `input` of the generator, `output` and
        `completed`, (B, H, W, C) in the value range; and `values`, (B,) each: reconstruction losses, raw, and the mean
        logits on the real and the generated image of the discriminator as it was before the step.
    """
    config, judges = system.config, system.discriminator is not None and kind != "reconstruction"

    def look(variables: Tree, batch: Batch) -> dict[str, Any]:
        stats, looked = dict(variables["stats"]), []
        for microbatch in microbatches(batch, config.accumulate):
            example = task.training_example(config, microbatch)
            params, frozen = variables["params"], variables["frozen"]
            images, stats["generator"] = generate(system, params["generator"], stats["generator"], frozen, example)
            values = losses.reconstruction_losses(config.losses, images, config.task.value_range)
            if judges:
                for label, name in (("real", "image"), ("fake", config.discriminator.sees)):
                    logits, new = judge(system, params["discriminator"], stats["discriminator"], images, name)
                    stats["discriminator"] = new
                    values[f"discriminator/logit_{label}"] = logits.mean(axis=(1, 2, 3))
            pictures = {name: images[name] for name in ("image", "mask", "output", "completed")}
            looked.append({**pictures, "input": images["condition"], "values": values})
        return jax.tree.map(lambda *parts: jnp.stack(parts, 1).reshape(-1, *parts[0].shape[1:]), *looked)

    return look


def shown_input(config: ml_collections.ConfigDict, seen: np.ndarray) -> np.ndarray:
    """Returns the picture in what the generator sees, (B, H, W, C) -> (B, H, W, 3) in the value range.

    That is the masked image, else its luminance, else the mask.
    """
    tokens = tuple(config.task.inputs)
    token = next((name for name in ("masked", "luminance") if name in tokens), tokens[0])
    first = sum(task.INPUT_CHANNELS[name] for name in tokens[: tokens.index(token)])
    part = seen[..., first : first + task.INPUT_CHANNELS[token]]
    if token.startswith("mask") and token != "masked":
        part = task.from_unit_range(part, config.task.value_range)
    return np.broadcast_to(part, (*part.shape[:3], 3))


def pictures(config: ml_collections.ConfigDict, looked: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the columns of the sheet, uint8 (B, H, W, 3) each, from what `make_look`'s function gives."""
    shown = {name: looked[name] for name in ("image", "output", "completed")}
    shown["input"] = shown_input(config, looked["input"])
    shown = {name: np.asarray(task.to_uint8(array, config.task.value_range)) for name, array in shown.items()}
    return shown | {"mask": np.repeat(looked["mask"] > 0.5, 3, axis=-1).astype(np.uint8) * 255}


def write(folder: Path, columns: Mapping[str, np.ndarray], names: Sequence[str], examples: Sequence[dict]) -> None:
    """Writes `images/` with single files, and `batch.png`: the examples with the highest loss, the worst first.

    Args:
        columns: of `pictures`.
        names: of the pictures that the examples were made of.
        examples: with their `hole_ratio` and `loss`, None for one that is not finite.
    """
    for place in range(len(examples)):
        for name in COLUMNS:
            image_files.write_png(folder / "images" / f"{place:04d}_{name}.png", columns[name][place])
    worst = sorted(range(len(examples)), key=lambda place: _order(examples[place]["loss"]))[:SHOWN]
    titles = [_title(place, names[place], examples[place]) for place in worst]
    rows = [[columns[name][place] for name in COLUMNS] for place in worst]
    image_files.write_png(folder / "batch.png", image_files.picture_grid(rows, COLUMNS, titles))


def _order(loss: float | None) -> float:
    return -np.inf if loss is None else -loss


def _title(place: int, name: str, example: Mapping[str, Any]) -> str:
    loss = "not finite" if example["loss"] is None else f"{example['loss']:.4g}"
    return f"{place:04d}  {name[-_NAME_LENGTH:]}\nhole {example['hole_ratio']:.0%}\nloss {loss}"
