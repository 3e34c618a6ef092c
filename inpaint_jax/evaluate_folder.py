"""The test of a saved generator on all pictures of a folder: what `launch/evaluate.py` does."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from inpaint_jax import config as config_module
from inpaint_jax import (
    evaluate,
    fid,
    given_masks,
    inception,
    parallel,
    perceptual,
    pretrained,
    run_folder,
    weights,
)
from inpaint_jax.data import folder, normal_maps
from inpaint_jax.data.source import ImageSource
from inpaint_jax.eval_step import make_eval_step
from inpaint_jax.mask_sets import EvaluationMasks

log = logging.getLogger("inpaint_jax")


def evaluate_folder(
    model: Path,
    pictures: Path,
    out: Path,
    fit: str = "crop",
    limit: int = 0,
    lpips: bool | None = None,
    masks: str = "",
    bucket_masks: str = "",
    save_masks: str = "",
    inception_weights: str = "",
) -> dict[str, Any]:
    """Tests a generator beside the baselines, and writes and returns its results.

    Args:
        model: run folder, or its generator's folder.
        pictures: folder of pictures, at any depth.
        out: where `test/` with results, tables and pictures goes.
        fit: "crop" or "resize", see `image_files.fit_square`.
        limit: test on at most so many pictures; 0 = all.
        lpips: with or without LPIPS; None = as the model's config says.
        masks: folder with pictures of masks; "" = masks are drawn.
        bucket_masks: family of masks that fill the ranges of the hole ratio evenly, "own" = the config's; "" = the
            masks of the config.
        save_masks: folder that the masks are written to; "" = nowhere.
        inception_weights: file for `inception.load_inception`, for FID, P-IDS and U-IDS; "" = without.

    Raises:
        ValueError: one sentence on what is wrong and how to mend it.
    """
    config, variables = weights.load_generator(model)
    hashes = config_module.hashes(config)
    config.evaluation.test_limit = limit
    if lpips is not None:
        config.evaluation.lpips = lpips
    config_module.validate(config)
    config = perceptual.for_a_test(config)
    seen = _Seen(Path(inception_weights)) if inception_weights else None
    source, contents = folder.load_folder(pictures, config.image_size, fit)
    images = source.chosen(config.evaluation.test_limit)
    run_folder.check_writable(out, "--out")
    _warn_of_pictures(config, model, source, contents)
    mask_set = _masks(config, len(images), masks, bucket_masks, out / run_folder.MASKS)
    if save_masks:
        run_folder.check_writable(Path(save_masks), "--save_masks")
        given_masks.save(mask_set, images.names, Path(save_masks))
    frozen = {"lpips": pretrained.load_lpips()} if config.evaluation.lpips else {}
    spread = parallel.make_parallel(config.parallel)
    eval_step = spread.evaluate(make_eval_step(config))
    watch = seen.watch if seen else None
    results = {
        "hashes": hashes,
        "fit": fit,
        "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
        **evaluate.measure(config, eval_step, spread, variables, frozen, images, mask_set, out, watch),
    }
    results["dataset"] = {"source": "folder", "name": pictures.name, "fingerprint": source.fingerprint}
    if seen:
        results["inception"] = seen.results(images, sound=bool(np.isfinite(results["metrics"]["psnr_db_full"])))
    evaluate.write_results(out, results)
    evaluate.log_results(results)
    log.info("figures and pictures are in %s", out / run_folder.TEST)
    return results


def _warn_of_pictures(config: ml_collections.ConfigDict, model: Path, source: ImageSource, contents: list[str]) -> None:
    """Warns of pictures that tell little of the model."""
    if config.data.kind == "normal_maps":
        normal_maps.warn_of_other_pictures(source)
    if known := folder.count_known(contents, model / run_folder.DATA):
        log.warning("%d of %d pictures belong to the folder that the model was trained from", known, len(source))


def _masks(
    config: ml_collections.ConfigDict, count: int, masks: str, bucket_masks: str, store: Path
) -> EvaluationMasks:
    if masks:
        return given_masks.from_files(config, Path(masks), count)
    if bucket_masks:
        return given_masks.in_buckets(config, bucket_masks, count, store)
    return evaluate.evaluation_masks(config, "test", count, store)


class _Seen:
    """What InceptionV3 sees of the pictures of a test: features, gathered by method while it runs."""

    def __init__(self, weights_file: Path):
        fid.require_classifier()
        parameters, self._fingerprint = inception.load_inception(weights_file)
        self._eye: Callable[[np.ndarray], np.ndarray] = inception.make_eye(parameters)
        self._features: dict[str, list[np.ndarray]] = {}

    def watch(self, method: str, pictures: np.ndarray) -> None:
        """Looks at completed pictures, uint8 (n, H, W, 3); each method's come in the order of the truths."""
        self._features.setdefault(method, []).append(self._eye(pictures))

    def results(self, truths: ImageSource, sound: bool) -> dict[str, Any]:
        """Returns the scores of every method against the truths; not numbers for ours where its fills are none."""
        indices, real = range(len(truths)), []
        for start in indices[:: inception.BATCH]:
            real.append(self._eye(np.stack([truths[i] for i in indices[start : start + inception.BATCH]])))
        completed = {name: np.concatenate(parts) for name, parts in self._features.items()}
        scores = fid.compare(np.concatenate(real), completed)
        if not sound:
            scores["ours"] = dict.fromkeys(scores["ours"], float("nan"))
        return {"weights": self._fingerprint, "images": len(truths), "scores": scores}
