"""Which runs an experiment consists of: configs x variations x seeds, their commands, and names of their folders."""

import dataclasses
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from inpaint_jax import command_line
from inpaint_jax import config as config_module

_LONGEST_NAME = 120  # characters of one folder's name; file systems allow 255 bytes
# Safe in file systems, shells and URLs, and the same on systems that do not tell upper from lower case.
_SAFE = re.compile(r"[a-z0-9_.+-]+")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.+=,-]+")


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of an experiment.

    Attributes:
        name: of the run folder below the root, with forward slashes; says what the run is.
        command: that trains it, goes on with it, or tests it.
        config: as the command will see it.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    config: ml_collections.ConfigDict


def split_values(text: str) -> list[str]:
    """Splits at the commas outside brackets: "adam,sgd" or "(1, 2),(3, 4)"."""
    values, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            values.append("")
        else:
            values[-1] += character
    return [value.strip() for value in values]


def parse_settings(texts: Sequence[str], option: str) -> dict[str, str]:
    """Returns `{field: text}` of `field=text` settings.

    Raises:
        flags.ValidationError: one without "=", a field given twice, or the seed, which has an option of its own.
    """
    settings: dict[str, str] = {}
    for text in texts:
        field, equals, value = text.partition("=")
        field = field.strip().removeprefix("config.")
        if not field or not equals:
            raise flags.ValidationError(f"--{option}={text}: write it as field=value, such as epochs=3")
        if field == "seed":
            raise flags.ValidationError(f"--{option}={text}: use --seeds=0,1,2 for seeds")
        if field in settings:
            raise flags.ValidationError(f"--{option}: the field {field} is given twice")
        settings[field] = value
    return settings


def parse_seeds(texts: Sequence[str]) -> list[int]:
    """Returns the seeds as numbers.

    Raises:
        flags.ValidationError: none, not a whole number of at least 0, or one given twice.
    """
    if not texts or not all(text.strip().isdecimal() for text in texts):
        raise flags.ValidationError(f"--seeds={','.join(texts)}: give whole numbers of at least 0, such as 0,1,2")
    seeds = [int(text) for text in texts]
    if len(set(seeds)) < len(seeds):
        raise flags.ValidationError(f"--seeds={','.join(texts)}: a seed is given twice")
    return seeds


def resolve_config(spec: str, settings: dict[str, str]) -> ml_collections.ConfigDict:
    """Returns the config as the training command would see it, with the same parser.

    Args:
        spec: a config file, with `:quick` or `:tiny` to shrink it.
        settings: texts of fields, `{"optimizer.learning_rate": "1e-3"}`.

    Raises:
        flags.ValidationError: there is no such file, no such field, or a value has the wrong type.
    """
    arguments = ["main", f"--config={spec}", *_options(settings)]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
        config = holder.value
        getattr(config, "seed", None)  # a file that cannot be opened raises only at the first look into it
    except OSError as error:
        raise flags.ValidationError(f"--config={spec}: there is no such config file, or it is unreadable") from error
    except (flags.Error, *command_line.CONFIG_FILE_ERRORS) as error:
        text = command_line.message(error)
        named = text.startswith(f"--config={spec}:")
        raise flags.ValidationError(text if named else f"--config={spec}: {text}") from error
    return config


def _options(settings: dict[str, str]) -> list[str]:
    return [f"--config.{field}={value}" for field, value in settings.items()]


def _value_text(value: Any) -> str:
    """Returns a value as a part of a file name; what had to be replaced is told apart by a hash after a `~`."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    if isinstance(value, list) and value and all(type(item) in (int, float) for item in value):
        text = "x".join(map(json.dumps, value))
    # "~" is not among the safe characters, so a text that needed no hash never equals one that did.
    return text if _SAFE.fullmatch(text) else f"{_UNSAFE.sub('_', text)[:40]}~{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def folder_name(spec: str, varied: dict[str, Any], seed: int) -> str:
    """Returns the name of a run's folder: `<config>[-<arg>]/[<field>=<value>,.../]seed<n>`.

    It depends on the run alone, not on the others of the experiment. Different settings have different names; only
    config files of the same name in different folders share one.

    Args:
        spec: the value of `--config`.
        varied: resolved values of the fields that the experiment varies, tuples as lists.
    """
    path, _, argument = spec.partition(":")
    stem = Path(path).stem
    # A file a-b.py and the argument b of a file a.py would look the same.
    parts = [_value_text(stem) if "-" not in stem else f"{_UNSAFE.sub('_', stem)}~{_digest(stem)}"]
    if argument:
        parts[0] += f"-{_value_text(argument)}"
    if varied:
        parts.append(",".join(f"{field}={_value_text(value)}" for field, value in sorted(varied.items())))
    short = [part if len(part) <= _LONGEST_NAME else f"{part[:_LONGEST_NAME]}~{_digest(part)}" for part in parts]
    return "/".join([*short, f"seed{seed}"])


def plan(
    specs: Sequence[str],
    seeds: Sequence[int],
    variations: dict[str, Sequence[str]],
    settings: dict[str, str],
    root: Path,
    main: Path,
) -> list[PlannedRun]:
    """Returns the runs of an experiment: configs x the cross product of the variations x seeds, seeds innermost.

    Args:
        specs: values of `--config`.
        variations: texts to try for each field.
        settings: texts of fields that all runs share.
        root: folder of the run folders.
        main: the training command's file.

    Raises:
        flags.ValidationError: a config or a field is wrong, or two runs would share a folder.
    """
    if both := sorted(variations.keys() & settings.keys()):
        raise flags.ValidationError(f"the field {both[0]} is in --vary and in --set: leave one out")
    runs: dict[str, PlannedRun] = {}
    for spec, texts, seed in itertools.product(specs, itertools.product(*variations.values()), seeds):
        chosen = dict(zip(variations, texts, strict=True))
        asked = {**settings, **chosen, "seed": str(seed)}
        config = resolve_config(spec, asked)
        flat = config_module.flatten(config)
        name = folder_name(spec, {field: flat[field] for field in chosen}, seed)
        if name in runs:
            raise flags.ValidationError(
                f"two runs would share the folder {str(root / name)!r}: a config or a value is given twice, or two "
                "config files have the same name (rename one, or give each a --root)"
            )
        command = (sys.executable, str(main), "--config", spec, "--workdir", str(root / name), *_options(asked))
        runs[name] = PlannedRun(name, root / name, command, config)
    return list(runs.values())
