"""Tests a trained generator on all pictures of a folder, beside the baselines, on stored masks.

    python launch/evaluate.py --model runs/unet_cosine-quick --images my_maps --out runs/my_test

Writes results.json, samples.png and single pictures below <out>/test, in place of those of an earlier test. Pictures
that the model was trained on praise it too much: a warning says how many there are. Exit codes: 0 tested; 1 an error
with a message; 2 wrong usage.
"""

import logging
from pathlib import Path

from absl import flags

from inpaint_jax import command_line

log = logging.getLogger("inpaint_jax")

_MODEL = flags.DEFINE_string("model", None, "run folder, or its generator/ folder")
_IMAGES = flags.DEFINE_string("images", None, "folder of pictures, at any depth")
_OUT = flags.DEFINE_string("out", None, "folder for results, pictures and masks")
_FIT = flags.DEFINE_enum("fit", "crop", ["crop", "resize"], "centre crop at native resolution, or scale to the size")
_LIMIT = flags.DEFINE_integer("limit", 0, "test on at most so many pictures; 0 = all", lower_bound=0)
_LPIPS = flags.DEFINE_bool("lpips", None, "LPIPS, of photographs, with or without; default as in the model's config")


def _main() -> int:
    model, images, out = (command_line.require(flag) for flag in (_MODEL, _IMAGES, _OUT))
    command_line.prepare_jax()
    import jax

    from inpaint_jax import config as config_module
    from inpaint_jax import evaluate, parallel, perceptual, pretrained, run_folder, step, weights
    from inpaint_jax.data import folder, normal_maps

    config, variables = weights.load_generator(Path(model))
    hashes = config_module.hashes(config)
    config.evaluation.test_limit = _LIMIT.value
    if _LPIPS.value is not None:
        config.evaluation.lpips = _LPIPS.value
    config_module.validate(config)
    config = perceptual.for_a_test(config)
    source, contents = folder.load_folder(Path(images), config.image_size, _FIT.value)
    run_folder.check_writable(Path(out), "--out")
    if config.data.kind == "normal_maps":
        normal_maps.warn_of_other_pictures(source)
    if known := folder.count_known(contents, Path(model) / run_folder.DATA):
        log.warning("%d of %d pictures belong to the folder that the model was trained from", known, len(source))
    frozen = {"lpips": pretrained.load_lpips()} if config.evaluation.lpips else {}
    spread = parallel.make_parallel(config.parallel)
    eval_step = spread.evaluate(step.make_eval_step(config))
    results = {
        "hashes": hashes,
        "fit": _FIT.value,
        "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
        **evaluate.test_phase(config, eval_step, spread, variables, frozen, source, Path(out)),
    }
    results["dataset"] = {"source": "folder", "name": Path(images).name, "fingerprint": source.fingerprint}
    evaluate.write_results(Path(out), results)
    evaluate.log_results(results)
    log.info("figures and pictures are in %s", Path(out) / run_folder.TEST)
    return 0


if __name__ == "__main__":
    command_line.run(_main, __doc__)
