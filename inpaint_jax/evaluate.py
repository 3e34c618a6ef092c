"""Validation and the test phase: metrics per image on stored masks, always beside what a user would otherwise use.

Every figure compares completed pictures, in 8 bits, with the truth of the same pictures.
"""

import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from inpaint_jax import (
    baselines,
    buckets,
    inference,
    mask_sets,
    metrics,
    perceptual,
    picture_walls,
    run_folder,
    task,
)
from inpaint_jax.data import load_mask_files
from inpaint_jax.data.pipeline import evaluation_batches
from inpaint_jax.data.source import ImageSource
from inpaint_jax.parallel import Parallel

log = logging.getLogger("inpaint_jax")

PerImage = dict[str, np.ndarray]
Pictures = dict[int, dict[str, np.ndarray]]
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
    return mask_sets.stored(folder / f"{split}-{count}-{spec[:8]}.npz", lambda: _draw_masks(config, split, count))


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
    watch: Callable[[np.ndarray], None] | None = None,
) -> tuple[PerImage, Pictures]:
    """Fills every image and returns its metrics, and the pictures of those to show.

    Args:
        eval_step: `parallel.evaluate(make_eval_step(config))`.
        variables: the generator's, replicated.
        masks: uint8 (N, H, W, 1); the first N images are taken.
        batch: examples at a time over all devices; rounded up to a multiple of their number.
        show: indices whose pictures are returned.
        watch: called with the completed pictures of every batch, uint8 (n, H, W, 3), in order.

    Returns:
        `{metric or loss/<term>: float32 (N,)}` and `{index: {"masked", "output", "completed", "truth"}}`, pictures
        uint8 (H, W, 3).
    """
    batch += -batch % parallel.count
    collected: dict[str, list[np.ndarray]] = {}
    show, pictures = set(show), {}
    for data in evaluation_batches(images, masks, batch, parallel.process, parallel.processes):
        results = parallel.gather(eval_step(variables, parallel.shard({k: data[k] for k in ("image", "mask")})))
        real = int(data["weight"].sum())
        shown = {name: results.pop(name) for name in ("masked", "output", "completed")}
        for name, values in results.items():
            collected.setdefault(name, []).append(values[:real])
        if watch:
            watch(shown["completed"][:real])
        for position in range(real):
            if (index := int(data["index"][position])) in show:
                pictures[index] = {name: values[position] for name, values in shown.items()}
                pictures[index]["truth"] = images[index]
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
    watch: Callable[[np.ndarray], None] | None = None,
) -> PerImage:
    """Returns the metrics of a baseline on the same images and masks, `{metric: float32 (N,)}`.

    Args:
        batch: examples at a time.
        lpips: weights of LPIPS; `{}` leaves it out.
        watch: called with the filled pictures of every batch, uint8 (n, H, W, 3), in order.
    """
    collected: dict[str, list[np.ndarray]] = {}
    for data in evaluation_batches(images, masks, batch):
        filled = np.stack([fill(i, m[..., 0]) for i, m in zip(data["image"], data["mask"], strict=True)])
        real = int(data["weight"].sum())
        if watch:
            watch(filled[:real])
        truth = jnp.asarray(data["image"], jnp.float32) / 255.0
        hole = jnp.asarray(data["mask"], jnp.float32)
        values = _score(lpips, jnp.asarray(filled, jnp.float32) / 255.0, truth, hole, normal_maps=normal_maps)
        for name, value in values.items():
            collected.setdefault(name, []).append(np.asarray(value)[:real])
    return {name: np.concatenate(parts) for name, parts in collected.items()}


def seconds_per_image(config: ml_collections.ConfigDict, variables: dict, image: np.ndarray, mask: np.ndarray) -> float:
    """Returns the median time to fill one picture of the native size, compilation excluded, in seconds."""
    inpainter = inference.Inpainter(config, jax.device_put(variables))
    mask = mask.astype(bool)
    # A picture without a hole would be returned unfilled, and one without a known pixel is refused.
    if mask.all() or not mask.any():
        mask[0, 0], mask[-1, -1] = True, False
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
    """Tests a generator on the masks of its config; arguments and result are those of `measure`."""
    images = images.chosen(config.evaluation.test_limit)
    mask_set = evaluation_masks(config, "test", len(images), workdir / run_folder.MASKS)
    return measure(config, eval_step, parallel, variables, frozen, images, mask_set, workdir)


def measure(
    config: ml_collections.ConfigDict,
    eval_step: Callable,
    parallel: Parallel,
    variables: dict,
    frozen: dict,
    images: ImageSource,
    mask_set: mask_sets.EvaluationMasks,
    workdir: Path,
    watch: Callable[[str, np.ndarray], None] | None = None,
) -> dict[str, Any]:
    """Tests a generator beside the baselines, writes pictures and tables, and returns the figures for `results.json`.

    Args:
        variables: the generator's, on the host.
        frozen: `perceptual.load_frozen(config)`.
        images: the test split.
        mask_set: mask i is for picture i.
        workdir: the run folder.
        watch: called with "ours" or the name of a baseline, and its completed pictures of every batch, in order.
    """
    masks, batch, normal_maps = mask_set.unpack(), config.evaluation.batch_size, config.data.kind == "normal_maps"
    replicated = parallel.replicate({**variables, "frozen": frozen})

    def complete(images: ImageSource, masks: np.ndarray, show: Iterable[int], watch: Any = None) -> tuple:
        return evaluate(eval_step, parallel, replicated, images, masks, batch, show, watch)

    def watcher(method: str) -> Callable[[np.ndarray], None] | None:
        return functools.partial(watch, method) if watch else None

    shown = range(min(len(images), 4 * config.evaluation.samples))
    per_image, pictures = complete(images, masks, shown, watcher("ours"))
    losses = {name: per_image.pop(name) for name in list(per_image) if name.startswith("loss/")}
    lpips = jax.device_put(frozen.get("lpips", {}))
    methods = {"ours": per_image} | {
        name: evaluate_baseline(fill, images, masks, batch, normal_maps, lpips, watcher(name))
        for name, fill in baselines.baselines_for(normal_maps).items()
    }
    folder = workdir / run_folder.TEST
    picture_walls.write_samples(images, masks, pictures, folder, config.evaluation.samples, normal_maps)
    picture_walls.write_walls(images, masks, methods, lambda *these: complete(*these)[1], folder, normal_maps)
    return {
        "dataset": {
            "source": config.data.source,
            "name": config.data.name or Path(config.data.path).name,
            "fingerprint": images.fingerprint,
        },
        "images": len(images),
        "mask_set": mask_set.id,
        "mean_hole_ratio": float(masks.mean()),
        "inference_seconds_per_image": seconds_per_image(config, variables, images[0], masks[0, ..., 0]),
        **_figures(methods, losses, masks.mean(axis=(1, 2, 3)), images.names, folder),
    }


def _figures(
    methods: dict[str, PerImage], losses: PerImage, ratios: np.ndarray, names: Sequence[str], folder: Path
) -> dict[str, Any]:
    """Returns the means of all pictures and by hole ratio, and writes them by hole ratio and by picture as CSV."""
    rows, large = buckets.by_bucket(methods, ratios), ratios > LARGE_HOLE
    run_folder.write_text(folder / "buckets.csv", buckets.buckets_csv(rows))
    run_folder.write_text(folder / "per_image.csv", buckets.per_image_csv(methods, ratios, names))
    baseline_names = [name for name in methods if name != "ours"]
    return {
        "metrics": means(methods["ours"]),
        "losses": means(losses),
        "baselines": {name: means(methods[name]) for name in baseline_names},
        "large_holes": {
            "hole_ratio_over": LARGE_HOLE,
            "images": int(large.sum()),
            "metrics": means(methods["ours"], large),
            "baselines": {name: means(methods[name], large) for name in baseline_names},
        },
        "buckets": rows,
    }


def log_results(results: dict[str, Any]) -> None:
    """Logs the figures inside the hole as tables, the baselines below ours: of all, and by hole ratio."""
    rows = {"ours": results["metrics"], **results["baselines"]}
    names = {name: name.split("_")[0] for name in results["metrics"] if name.endswith("_hole")}
    widths = {name: max(8, len(shown) + 1) for name, shown in names.items()}
    log.info("test on %d images, mask set %s; inside the hole:", results["images"], results["mask_set"])
    log.info("%-14s%s", "", "".join(f"{shown:>{widths[name]}}" for name, shown in names.items()))
    for label, values in rows.items():
        log.info("%-14s%s", label, "".join(f"{values[name]:{widths[name]}.3f}" for name in names))
    log.info("%s by hole ratio:", buckets.headline(results["metrics"]))
    for line in buckets.bucket_table(results["buckets"]):
        log.info("%s", line)
    for method, scores in results.get("inception", {}).get("scores", {}).items():
        percent = (100 * scores[name] for name in ("p_ids", "u_ids"))
        log.info("%-14s FID %.3f, P-IDS %.1f %%, U-IDS %.1f %%", method, scores["fid"], *percent)


def write_results(workdir: Path, results: dict[str, Any]) -> None:
    """Writes `test/results.json` atomically."""
    run_folder.write_json(workdir / run_folder.TEST / "results.json", results)
