"""Measures how fast a config trains, fills or starts on this machine.

    python launch/bench.py --config configs/unet_cosine.py:quick                     # a training step, and its data
    python launch/bench.py --config configs/unet_cosine.py --mode infer --batch 16   # one picture, and 16 at once
    python launch/bench.py --config configs/unet_cosine.py:quick --mode startup      # from command to first step
    python launch/bench.py --config configs/unet_cosine.py --mode scaling --step_ms 44.5     # on many chips: a model
    python launch/bench.py --config configs/unet_cosine.py --mode input --images_per_s 3000   # reading, no training
    python launch/bench.py --config configs/unet_cosine.py --config.batch_size=64 --config.dtype=bfloat16 --json
    python launch/bench.py --config configs/unet_cosine.py:quick --json > before.json
    python launch/bench.py --config configs/unet_cosine.py:quick --against before.json   # after a change: ratios

Any field of the config can be set, as for launch/main.py. Programs are compiled anew, so that compiling is measured
too; --cache takes them from where training keeps them. With --json the last line is one JSON object.

Exit codes: 0 measured; 1 an error with a message; 2 wrong usage.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from inpaint_jax import command_line
from inpaint_jax import config as config_module

_CONFIG = config_flags.DEFINE_config_file("config", None, "config file, with :quick or :tiny to shrink it")
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "infer", "startup", "input", "scaling"], "what to measure; scaling: to predict"
)
_IMAGES = flags.DEFINE_float("images_per_s", None, "input: tell the cores that feed so many", lower_bound=1.0)
_JSON = flags.DEFINE_bool("json", False, "print one JSON object as the last line")
_PHASE = flags.DEFINE_string("phase", "", "phase of config.regime to train; default the first of both networks")
_BATCH = flags.DEFINE_integer("batch", None, "infer: pictures at once; default config.batch_size", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 10, "steps of one repeat", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "repeats, of which the median is taken", lower_bound=1)
_WARMUP = flags.DEFINE_integer("warmup", 3, "steps before, which do not count", lower_bound=1)
_CACHE = flags.DEFINE_bool("cache", False, "take compiled programs from the cache of launch/main.py, and keep them")
_EMBEDDED = flags.DEFINE_bool("embedded_data", False, "train: on pictures that come along, not the config's data set")
_PROFILE = flags.DEFINE_string("profile", None, "folder for a trace of a few steps, for TensorBoard's profiler")
_AGAINST = flags.DEFINE_string("against", None, "file with an earlier result (--json > FILE) to compare with")
_STEP_MS = flags.DEFINE_float("step_ms", None, "scaling: milliseconds of a step of one chip; or --against", 1e-3)
_LINK = flags.DEFINE_string(
    "link", "h200_infiniband", "scaling: the network, of inpaint_jax/scaling.py or a .json file"
)


def _main() -> int:
    config = command_line.require(_CONFIG)
    measured = (_STEPS, _REPEATS, _WARMUP, _CACHE, _PROFILE, _AGAINST)
    takes = {
        "train": (_PHASE, _EMBEDDED, *measured), "infer": (_BATCH, *measured), "startup": (),
        "input": (_STEPS, _REPEATS, _IMAGES), "scaling": (_PHASE, _AGAINST, _STEP_MS, _LINK),
    }  # fmt: skip
    own = {flag.name for flag in takes[_MODE.value]}
    for flag in (flag for taken in takes.values() for flag in taken):
        if flag.present and flag.name not in own:
            raise flags.ValidationError(f"--{flag.name} has no meaning with --mode={_MODE.value}: leave it out")
    config_module.validate(config)  # before JAX is imported, so that the answer comes at once
    command_line.prepare_jax(config.deterministic)
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).name
    if _MODE.value == "scaling":
        from inpaint_jax import scaling_report

        step, link = (_STEP_MS.value, _AGAINST.value), _LINK.value
        return scaling_report.run(config, name, _PHASE.value, *step, link, _JSON.value)
    from inpaint_jax import bench

    options = bench.Options(
        mode=_MODE.value, phase=_PHASE.value, batch=_BATCH.value or 0, steps=_STEPS.value, repeats=_REPEATS.value,
        warmup=_WARMUP.value, cache=_CACHE.value, embedded_data=_EMBEDDED.value,
        profile=Path(_PROFILE.value) if _PROFILE.value else None, images_per_s=_IMAGES.value,
    )  # fmt: skip
    return bench.run_benchmark(config, name, options, _JSON.value, Path(_AGAINST.value) if _AGAINST.value else None)


if __name__ == "__main__":
    command_line.run(_main, __doc__)
