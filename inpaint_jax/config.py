"""Configurations as data: flattening, hashes, validation, and what may change between a run and its resumption."""

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any

import ml_collections

from configs import common
from inpaint_jax import json_files, run_folder

# A resumed run may differ in these (prefixes of flattened keys): where things lie, how much is reported, how the work
# is spread, how fast data is read. Everything else decides numbers, and must stay.
RESUMABLE_CHANGES = (
    "parallel",
    "remat",  # as another number of devices: what is computed is the same up to rounding
    "log_every_steps",
    "sample_every_epochs",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "data.path",
    "mask.path",
    "data.reader_threads",
    "data.cache_megabytes",
    "regime.keep",
    "evaluation.samples",
    "evaluation.test_limit",
    "wandb",
    "vgg.weights",  # a path; what lies there is compared by itself
)
_ALLOWED = {
    "dtype": ("float32", "bfloat16"),
    "reduce_dtype": ("float32", "bfloat16"),
    "parallel": ("pmap", "shard_map"),
    "data.kind": ("normal_maps", "photographs"),
    "data.normal_y": ("up", "down", "mixed"),
    "data.fit": ("resize", "crop"),
    "task.fill": ("zero", "mean", "flat_normal", "harmonic"),
    "task.view": ("full", "window"),
    "task.value_range": ((-1.0, 1.0), (0.0, 1.0)),
    "generator.normalisation": ("batch", "instance", "none"),
    "generator.output": ("unit", "tanh", "linear"),
    "discriminator.normalisation": ("batch", "instance", "none"),
    "discriminator.sees": ("completed", "output"),
    "discriminator.condition": ("none", "input"),
    "regime.order": ("simultaneous", "sequential"),
    "regime.keep": ("best", "last"),
    "optimizer.schedule": ("constant", "cosine"),
    "wandb.mode": ("online", "offline"),
    "guard.action": ("skip", "halt"),
}
_POSITIVE = (
    *("image_size", "batch_size", "accumulate", "epochs", "epoch_break", "generator.width", "discriminator.width"),
    "vgg.width",
    *("log_every_steps", "eval_every_epochs", "sample_every_epochs", "checkpoint_every_steps", "evaluation.batch_size"),
    "keep_checkpoints",
)
_NOT_NEGATIVE = (
    *("seed", "max_steps", "patience", "mask.evaluation_seed", "data.limit", "data.skip_bad", "data.reader_threads"),
    *("generator.refine", "regime.reactions"),
    *("data.cache_megabytes", "evaluation.samples", "evaluation.val_limit", "evaluation.test_limit"),
)
# What lies above can only be a slip, and would end in full memory or in an integer that does not hold it.
_AT_MOST = {
    "seed": 2**32 - 1,
    "mask.evaluation_seed": 2**31 - 1,
    "image_size": 8192,
    "batch_size": 2**20,
    "accumulate": 2**20,
    "epochs": 2**31 - 1,
    "max_steps": 2**31 - 1,
    "generator.width": 4096,
    "generator.refine": 4096,
    "discriminator.width": 4096,
    "vgg.width": 4096,
    "data.reader_threads": 1024,
    "evaluation.batch_size": 2**20,
    "evaluation.samples": 1000,
}
_LARGEST_SPLIT = 10_000_000
# What the networks can be: the values of an option that each admits (every value where none are named), and what the
# sides of its input must be multiples of; 0 = powers of two.
_NO_OPTIONS = {
    "generator.refine": (0,), "generator.residual": (False,), "generator.dropout": (0.0,), "remat": (False,)
}  # fmt: skip
_NETWORKS = {
    "unet": {"generator.output": ("unit", "tanh")},
    "attention_unet": {
        "generator.refine": (0,),
        "generator.dropout": (0.0,),
        "generator.output": ("tanh",),
        "generator.normalisation": ("none",),
        "generator.skips": (True,),
        "remat": (False,),
    },
    "completion": _NO_OPTIONS | {"generator.output": ("linear", "tanh"), "generator.skips": (False,)},
    "pooling_unet": _NO_OPTIONS
    | {"generator.output": ("tanh",), "generator.normalisation": ("none",), "generator.skips": (True,)},
    "encoder_decoder": _NO_OPTIONS
    | {"generator.output": ("linear",), "generator.normalisation": ("batch",), "generator.skips": (False,)},
    "vgg_unet": {
        "generator.refine": (0,),
        "generator.residual": (False,),
        "generator.output": ("tanh",),
        "generator.skips": (True,),
    },
    "patchgan": {"discriminator.views": (("full",), ("window",))},
    "small_patch": {"discriminator.views": (("full",), ("window",))},
    "local_global": {"discriminator.views": (("full", "window"),)},
    "vgg": {"discriminator.views": (("full",),)},
}
SIZE_MULTIPLES = {
    "unet": 0, "attention_unet": 8, "completion": 4, "pooling_unet": 8, "encoder_decoder": 1, "vgg_unet": 32
}  # fmt: skip
SMALLEST_SIDE = 32
SMALLEST_JUDGED = {"patchgan": 24, "small_patch": 8, "local_global": 8}  # below, a discriminator has no logit
# What a field's default is -> what its value must be, and in words.
_TYPES = {
    bool: (bool, "True or False"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    str: (str, "a text"),
    list: (list, "a tuple"),
}
# One value for each of train, val and test.
_PER_SPLIT = {
    "data.split_counts": (int,),
    "data.embedded_counts": (int,),
    "data.split_fractions": (int, float),
    "data.split_folders": (str,),
}


# Inclusive bounds; what is not finite is refused everywhere.
_RANGES = {
    "optimizer.learning_rate": (0.0, 1e3),
    "optimizer.discriminator_rate_ratio": (0.0, 1e6),
    "optimizer.b1": (0.0, 0.9999999),
    "optimizer.b2": (0.0, 0.9999999),
    "optimizer.epsilon": (0.0, 1.0),
    "optimizer.clip_norm": (0.0, 1e9),
    "optimizer.warmup_fraction": (0.0, 1.0),
    "optimizer.final_fraction": (0.0, 1.0),
    "ema_decay": (0.0, 0.9999999),
    "task.window": (0.0, 1.0),
    "generator.dropout": (0.0, 0.9),
    "discriminator.real_label": (0.5, 1.0),
    "discriminator.accuracy_limit": (0.5, 1.0),
    "guard.surge_factor": (0.0, 1e6),
    "regime.reaction_factor": (0.0, 1e3),
}
LOSS_FIELDS = {"fn", "weight", "on", "region", "view"}


# Sections whose entries a config names itself; each has its own check.
FREE = ("losses.", "regime.phases.")


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns `{dotted key: plain value}`, sorted by key; tuples become lists, as JSON would store them."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat.update({f"{key}.{inner}": v for inner, v in flatten(value).items()})
        else:
            flat[key] = list(value) if isinstance(value, tuple) else value
    return dict(sorted(flat.items()))


def to_json(config: ml_collections.ConfigDict) -> str:
    """Returns the config as indented JSON, keys sorted."""
    return json.dumps(json.loads(config.to_json(sort_keys=True)), indent=2, sort_keys=True) + "\n"


def from_json(text: str | bytes) -> ml_collections.ConfigDict:
    """Reads what `to_json` wrote; lists become tuples again, as configs hold them.

    Raises:
        ValueError: it is no JSON, or no config.
    """

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tuples(inner) for key, inner in value.items()}
        return tuple(tuples(inner) for inner in value) if isinstance(value, list) else value

    found = json_files.parse(text)
    try:
        return ml_collections.ConfigDict(tuples(found))
    # Also for names that a ConfigDict keeps for itself, such as "update".
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it holds no config: {_brief(error)}") from error


def read_stored(path: Path) -> ml_collections.ConfigDict:
    """Reads the config of a run, on top of today's base: a field that came later had its default then.

    Args:
        path: `config.json` of a run folder.

    Raises:
        ValueError: it is damaged, or holds no config.
    """
    try:
        found = from_json(path.read_bytes())
        if "epochs" not in found:
            raise ValueError("it holds no config")
        return on_base(found)
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r} is damaged ({_brief(error)}): restore it, or start over with --restart"
        ) from error


def _brief(error: Exception) -> str:
    # ml_collections and values of fields can fill pages.
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def read_run(folder: Path) -> ml_collections.ConfigDict:
    """Reads the config of a run folder; ValueError if it is none."""
    path = folder / run_folder.CONFIG
    if not path.is_file():
        raise ValueError(f"{str(folder)!r} is no run folder, it has no {path.name}: give one that launch/main.py wrote")
    return read_stored(path)


def take_resumable(config: ml_collections.ConfigDict, other: ml_collections.ConfigDict) -> None:
    """Takes from another config what a resumed run may change: where things lie, how work is spread and reported."""
    flat = flatten(other)
    taken = {key: value for key, value in flat.items() if key.startswith(RESUMABLE_CHANGES)}
    config.update_from_flattened_dict(taken)


def on_base(found: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a stored config with every field that today's base has besides.

    Raises:
        ValueError: a field that the base has is of another type there.
    """
    config = common.base()
    try:
        config.update(found)
        for name, phase in config.regime.phases.items():
            config.regime.phases[name] = common.phase(phase.trains)
            config.regime.phases[name].update(phase)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it holds no config: {_brief(error)}") from error
    _check_types(flatten(config), flatten(common.base()))
    return config


def _digest(flat: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:16]


def _resume_view(config: ml_collections.ConfigDict) -> dict[str, Any]:
    flat = flatten(config)
    return {k: v for k, v in flat.items() if not k.startswith(RESUMABLE_CHANGES) and k not in ("epochs", "max_steps")}


def hashes(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Returns the three hashes of a config: `config`, `group` (all seeds together) and `resume` (must not change)."""
    # How many checkpoints are kept is no part of what was trained and tested.
    flat = {k: v for k, v in flatten(config).items() if k != "keep_checkpoints"}
    return {
        "config": _digest(flat),
        "group": _digest({k: v for k, v in flat.items() if k != "seed"}),
        "resume": _digest(_resume_view(config)),
    }


def resume_differences(earlier: ml_collections.ConfigDict, now: ml_collections.ConfigDict) -> list[str]:
    """Returns one line for each field that a resumption may not change, and for a shorter run."""
    a, b = _resume_view(earlier), _resume_view(now)
    lines = [
        f"{key}: {a.get(key, '(absent)')!r} -> {b.get(key, '(absent)')!r}"
        for key in sorted(a.keys() | b.keys())
        if key not in a or key not in b or a[key] != b[key]
    ]
    if now.epochs < earlier.epochs:
        lines.append(f"epochs: {earlier.epochs} -> {now.epochs} (may only grow)")
    if now.max_steps and not 0 < earlier.max_steps <= now.max_steps:
        lines.append(f"max_steps: {earlier.max_steps} -> {now.max_steps} (may only grow; 0 is no limit)")
    return lines


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks values that would fail later or silently mean nothing.

    Raises:
        ValueError: one sentence with the field, its value and what is allowed.
    """
    _validate_fields(config)
    flat = flatten(config)
    for key, allowed in _ALLOWED.items():
        value = tuple(flat[key]) if isinstance(flat[key], list) else flat[key]
        if value not in allowed:
            raise ValueError(f"config.{key} = {value!r}: use one of {', '.join(map(repr, allowed))}")
    for key in _POSITIVE:
        if flat[key] < 1:
            raise ValueError(f"config.{key} = {flat[key]}: must be at least 1")
    for key in _NOT_NEGATIVE:
        if flat[key] < 0:
            raise ValueError(f"config.{key} = {flat[key]}: must be at least 0")
    for key, most in _AT_MOST.items():
        if flat[key] > most:
            raise ValueError(f"config.{key} = {flat[key]}: must be at most {most}")
    for key, types in _PER_SPLIT.items():
        values = flat[key]
        if len(values) != 3 or not all(isinstance(value, types) for value in values):
            kinds = " or ".join(kind.__name__ for kind in types)
            raise ValueError(f"config.{key} = {tuple(values)}: give three {kinds} values, for train, val and test")
    for key in ("data.split_counts", "data.embedded_counts"):
        if min(flat[key]) < 0 or max(flat[key]) > _LARGEST_SPLIT:
            raise ValueError(f"config.{key} = {tuple(flat[key])}: each must be from 0 to {_LARGEST_SPLIT}")
    _validate_networks(config, flat)
    if config.generator.output == "unit" and tuple(config.task.value_range) != (-1.0, 1.0):
        raise ValueError(
            f"config.task.value_range = {tuple(config.task.value_range)} does not hold unit vectors: use (-1.0, 1.0), "
            "or config.generator.output = 'tanh'"
        )
    for key, (low, high) in _RANGES.items():
        # A comparison with nan is false, so nan is refused too.
        if not low <= flat[key] <= high:
            raise ValueError(f"config.{key} = {flat[key]}: must be from {low:g} to {high}")
    if config.evaluation.lpips and config.data.kind == "normal_maps":
        raise ValueError("config.evaluation.lpips = True: LPIPS is of photographs, set it to False for normal maps")
    _validate_loss_terms(config)


def _validate_networks(config: ml_collections.ConfigDict, flat: dict[str, Any]) -> None:
    """Checks sizes, and options that the chosen networks do not have; unknown names are left to their builders."""
    size, name, judge = config.image_size, config.generator.name, config.discriminator.name
    if size < SMALLEST_SIDE:
        raise ValueError(f"config.image_size = {size}: must be at least {SMALLEST_SIDE}")
    fields = {
        "full": (f"config.image_size = {size}", size),
        "window": (f"config.task.window = {config.task.window:g} ({round(config.task.window * size)} pixels)",
                   round(config.task.window * size)),
    }  # fmt: skip
    field, side = fields[config.task.view]
    if multiple := SIZE_MULTIPLES.get(name, 1):
        if side % multiple:
            raise ValueError(f"{field}: the generator {name} takes multiples of {multiple}")
    elif not _is_power_of_two(side):
        raise ValueError(f"{field}: the generator {name} takes powers of two")
    if config.task.fill == "harmonic" and not _is_power_of_two(side):
        raise ValueError(f"{field}: config.task.fill = 'harmonic' takes powers of two")
    for field, side in (fields[view] for view in config.discriminator.views if view in fields):
        if judge == "local_global" and not _is_power_of_two(side):
            raise ValueError(f"{field}: the discriminator {judge} takes powers of two")
        if side < SMALLEST_JUDGED.get(judge, 0):
            raise ValueError(f"{field}: the discriminator {judge} takes at least {SMALLEST_JUDGED[judge]} pixels")
    for network, key in ((name, "generator.name"), (judge, "discriminator.name")):
        for option, admitted in _NETWORKS.get(network, {}).items():
            value = tuple(flat[option]) if isinstance(flat[option], list) else flat[option]
            if value not in admitted:
                raise ValueError(
                    f"config.{option} = {value!r} does not fit config.{key} = {network!r}: use "
                    f"{' or '.join(map(repr, admitted))}"
                )


def _is_power_of_two(number: int) -> bool:
    return number > 0 and not number & (number - 1)


def _validate_fields(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for a field that is missing, unknown or of another type than in the base config.

    The command line knows the fields of the config file, but the file itself could misspell one.
    """
    base, flat = (
        {key: value for key, value in flatten(c).items() if not f"{key}.".startswith(FREE)}
        for c in (common.base(), config)
    )
    for key in sorted(flat.keys() - base.keys()):
        close = difflib.get_close_matches(key, base, 1)
        meant = f"did you mean config.{close[0]}?" if close else "all fields stand in configs/common.py"
        raise ValueError(f"config.{key} is no field of a config: {meant}")
    for key in base:
        if key not in flat:
            raise ValueError(f"config.{key} is missing: let the config file start from common.base()")
    _check_types(flat, base)


def _check_types(flat: dict[str, Any], base: dict[str, Any]) -> None:
    """Raises ValueError for a field of another type than in the base config; both are flattened."""
    for key, default in base.items():
        if key not in flat or f"{key}.".startswith(FREE):
            continue
        kind, words = _TYPES[type(default)]
        value = flat[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"config.{key} = {value!r}: must be {words}")


def _validate_loss_terms(config: ml_collections.ConfigDict) -> None:
    if not config.losses:
        raise ValueError("config.losses is empty: name at least one loss term")
    for name, term in config.losses.items():
        fields = set(term.keys()) if isinstance(term, ml_collections.ConfigDict) else set()
        if fields != LOSS_FIELDS:
            raise ValueError(f"config.losses.{name} = {term}: needs the fields {', '.join(sorted(LOSS_FIELDS))}")
        if not isinstance(term.weight, int | float) or not 0.0 <= term.weight < float("inf"):
            raise ValueError(f"config.losses.{name}.weight = {term.weight!r}: must be finite and at least 0")
    adversarial = [name for name, term in config.losses.items() if term.fn == "adversarial" and term.weight]
    if (config.discriminator.name == "none") != (not adversarial):
        raise ValueError(
            f"config.discriminator.name = {config.discriminator.name!r} does not fit the adversarial loss terms "
            f"{adversarial}: a discriminator needs one with a weight over 0, and without a discriminator its weight "
            "must be 0"
        )
