"""Validation and the test phase: metrics per image on stored masks, always beside what a user would otherwise use."""

import functools
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from inpaint_jax import baselines, image_files, inference, mask_sets, metrics, monitor, perceptual, run_folder, task
from inpaint_jax.data import load_mask_files
from inpaint_jax.data.pipeline import evaluation_batches
from inpaint_jax.data.source import ImageSource
from inpaint_jax.parallel import Parallel

log = logging.getLogger("inpaint_jax")

PerImage = dict[str, np.ndarray]
# Large holes are where fills differ: they get figures of their own.
LARGE_HOLE = 0.2


def evaluation_masks(
    config: ml_collections.ConfigDict, split: str, count: int, folder: Path
) -> mask_sets.EvaluationMasks:
    """Returns the masks of a split, stored in `folder` at the first call.

    They depend on the mask's config and on nothing else of the run.
    """
    identity = [config.image_size, config.mask.to_dict()]
    if config.mask.name == "files":
        identity.append(load_mask_files(config.mask.path, config.image_size).fingerprint)
    spec = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    path = folder / f"{split}-{count}-{spec[:8]}.npz"
    if path.exists():
        return mask_sets.load_masks(path)
    masks = _draw_masks(config, split, count)
    mask_sets.save_masks(path, masks)
    return masks


def _draw_masks(config: ml_collections.ConfigDict, split: str, count: int) -> mask_sets.EvaluationMasks:
    size = config.image_size
    seed = 2 * config.mask.evaluation_seed + (split == "test")
    if config.mask.name == "files":
        source = load_mask_files(config.mask.path, size)
        pictures = np.stack([source[(i * 2 + (split == "test")) % len(source)] for i in range(count)])
        return mask_sets.masks_from_pictures(pictures)
    return mask_sets.evaluation_masks(task.mask_spec(config), count, size, size, seed)


def evaluate(
    eval_step: Callable,
    parallel: Parallel,
    variables: Any,
    images: ImageSource,
    masks: np.ndarray,
    batch: int,
    show: Iterable[int] = (),
) -> tuple[PerImage, dict[int, dict[str, np.ndarray]]]:
    """Fills every image and returns its metrics, and the pictures of those to show.

    Args:
        eval_step: `parallel.evaluate(step.make_eval_step(config))`.
        variables: the generator's, replicated.
        masks: uint8 (N, H, W, 1); the first N images are taken.
        batch: examples at a time over all devices; rounded up to a multiple of their number.
        show: indices whose pictures are returned.

    Returns:
        `{metric or loss/<term>: float32 (N,)}` and `{index: {"masked", "output", "completed", "truth"}}`, pictures
        uint8 (H, W, 3).
    """
    batch += -batch % parallel.count
    collected: dict[str, list[np.ndarray]] = {}
    show, pictures = set(show), {}
    for data in evaluation_batches(images, masks, batch):
        results = parallel.gather(eval_step(variables, parallel.shard({k: data[k] for k in ("image", "mask")})))
        real = int(data["weight"].sum())
        shown = {name: results.pop(name) for name in ("masked", "output", "completed")}
        for name, values in results.items():
            collected.setdefault(name, []).append(values[:real])
        for position in range(real):
            if (index := int(data["index"][position])) in show:
                pictures[index] = {name: values[position] for name, values in shown.items()}
                pictures[index]["truth"] = data["image"][position]
    return {name: np.concatenate(parts) for name, parts in collected.items()}, pictures


def means(per_image: PerImage, chosen: np.ndarray | None = None) -> dict[str, float]:
    """Returns `metrics.mean_metrics` of all images, or of the chosen ones; empty if none is chosen."""
    if chosen is not None and not chosen.any():
        return {}
    return metrics.mean_metrics({n: values if chosen is None else values[chosen] for n, values in per_image.items()})


@functools.partial(jax.jit, static_argnames="normal_maps")
def _score(lpips: dict, prediction: jax.Array, target: jax.Array, mask: jax.Array, normal_maps: bool) -> dict:
    values = metrics.image_metrics(prediction, target, mask, normal_maps)
    return values | (perceptual.lpips_metrics(lpips, prediction, target, mask) if lpips else {})


def evaluate_baseline(
    fill: Callable[[np.ndarray, np.ndarray], np.ndarray],
    images: ImageSource,
    masks: np.ndarray,
    batch: int,
    normal_maps: bool,
    lpips: dict,
) -> PerImage:
    """Returns the metrics of a baseline on the same images and masks, `{metric: float32 (N,)}`.

    Args:
        batch: examples at a time.
        lpips: weights of LPIPS; `{}` leaves it out.
    """
    collected: dict[str, list[np.ndarray]] = {}
    for data in evaluation_batches(images, masks, batch):
        filled = np.stack([fill(i, m[..., 0]) for i, m in zip(data["image"], data["mask"], strict=True)])
        truth = jnp.asarray(data["image"], jnp.float32) / 255.0
        hole = jnp.asarray(data["mask"], jnp.float32)
        values = _score(lpips, jnp.asarray(filled, jnp.float32) / 255.0, truth, hole, normal_maps=normal_maps)
        for name, value in values.items():
            collected.setdefault(name, []).append(np.asarray(value)[: int(data["weight"].sum())])
    return {name: np.concatenate(parts) for name, parts in collected.items()}


def seconds_per_image(config: ml_collections.ConfigDict, variables: dict, image: np.ndarray, mask: np.ndarray) -> float:
    """Returns the median time to fill one picture of the native size, compilation excluded, in seconds."""
    inpainter = inference.Inpainter(config, jax.device_put(variables))
    mask = mask.astype(bool)
    if not mask.any():
        mask[0, 0] = True  # a picture without a hole would be returned unfilled
    inpainter(image, mask)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        inpainter(image, mask)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def test_phase(
    config: ml_collections.ConfigDict,
    eval_step: Callable,
    parallel: Parallel,
    variables: dict,
    frozen: dict,
    images: ImageSource,
    workdir: Path,
) -> dict[str, Any]:
    """Tests a generator beside the baselines, writes pictures, and returns the figures for `results.json`.

    Args:
        variables: the generator's, on the host.
        frozen: `perceptual.load_frozen(config)`.
        images: the test split.
        workdir: the run folder.
    """
    images = images.chosen(config.evaluation.test_limit)
    count = len(images)
    mask_set = evaluation_masks(config, "test", count, workdir / run_folder.MASKS)
    masks = mask_set.unpack()
    normal_maps = config.data.kind == "normal_maps"
    shown = range(min(count, 4 * config.evaluation.samples))
    replicated = parallel.replicate({**variables, "frozen": frozen})
    per_image, pictures = evaluate(eval_step, parallel, replicated, images, masks, config.evaluation.batch_size, shown)
    lpips = jax.device_put(frozen.get("lpips", {}))
    by_baseline = {
        name: evaluate_baseline(fill, images, masks, config.evaluation.batch_size, normal_maps, lpips)
        for name, fill in baselines.baselines_for(normal_maps).items()
    }
    large = masks.mean(axis=(1, 2, 3)) > LARGE_HOLE
    losses = {name: per_image.pop(name) for name in list(per_image) if name.startswith("loss/")}
    _write_pictures(config, images, masks, pictures, workdir / run_folder.TEST)
    return {
        "dataset": {
            "source": config.data.source,
            "name": config.data.name or Path(config.data.path).name,
            "fingerprint": images.fingerprint,
        },
        "images": count,
        "mask_set": mask_set.id,
        "mean_hole_ratio": float(masks.mean()),
        "inference_seconds_per_image": seconds_per_image(config, variables, images[0], masks[0, ..., 0]),
        "metrics": means(per_image),
        "losses": means(losses),
        "baselines": {name: means(values) for name, values in by_baseline.items()},
        "large_holes": {
            "hole_ratio_over": LARGE_HOLE,
            "images": int(large.sum()),
            "metrics": means(per_image, large),
            "baselines": {name: means(values, large) for name, values in by_baseline.items()},
        },
    }


def _write_pictures(
    config: ml_collections.ConfigDict,
    images: ImageSource,
    masks: np.ndarray,
    pictures: dict[int, dict[str, np.ndarray]],
    folder: Path,
) -> None:
    """Writes `images/` with single files and `samples.png`, which shows Telea's fill beside ours."""
    shutil.rmtree(folder / "images", ignore_errors=True)  # an earlier test may have shown more pictures
    (folder / "images").mkdir(parents=True)
    telea = baselines.baselines_for(config.data.kind == "normal_maps")["telea"]
    rows, titles = [], []
    for index, row in sorted(pictures.items()):
        for name in monitor.SAMPLE_COLUMNS:
            image_files.write_png(folder / "images" / f"{index:04d}_{name}.png", row[name])
        image_files.write_png(folder / "images" / f"{index:04d}_mask.png", masks[index, ..., 0] * np.uint8(255))
        if len(rows) < config.evaluation.samples:
            rows.append([row["masked"], telea(images[index], masks[index, ..., 0]), row["completed"], row["truth"]])
            titles.append(f"{index:04d}")
    if rows:
        columns = ("masked", "Telea", "completed", "truth")
        image_files.write_png(folder / "samples.png", image_files.picture_grid(rows, columns, titles))


def log_results(results: dict[str, Any]) -> None:
    """Logs the figures inside the hole as a table, the baselines below ours."""
    rows = {"ours": results["metrics"], **results["baselines"]}
    names = {name: name.split("_")[0] for name in results["metrics"] if name.endswith("_hole")}
    widths = {name: max(8, len(shown) + 1) for name, shown in names.items()}
    log.info("test on %d images, mask set %s; inside the hole:", results["images"], results["mask_set"])
    log.info("%-14s%s", "", "".join(f"{shown:>{widths[name]}}" for name, shown in names.items()))
    for label, values in rows.items():
        log.info("%-14s%s", label, "".join(f"{values[name]:{widths[name]}.3f}" for name in names))


def write_results(workdir: Path, results: dict[str, Any]) -> None:
    """Writes `test/results.json` atomically."""
    run_folder.write_json(workdir / run_folder.TEST / "results.json", results)
