"""Generators as files: `generator.safetensors` and `config.json`, no pickles."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from inpaint_jax import config as config_module
from inpaint_jax import json_files, models, run_folder, task
from inpaint_jax.state import initial_variables

WEIGHTS, CONFIG = "generator.safetensors", "config.json"
_WEIGHTS_HASH = "weights_sha256"  # in the config's file; models that were saved before it was there have none
SHIPPED = Path(__file__).with_name("shipped")  # the generators that come along, a folder each


def shipped_generators() -> dict[str, Path]:
    """Returns the generators that come along, name -> folder."""
    return {path.parent.name: path.parent for path in sorted(SHIPPED.glob(f"*/{WEIGHTS}"))}


def save_generator(folder: Path, variables: dict, config: ml_collections.ConfigDict, half: bool = False) -> float:
    """Writes a generator's variables and what is needed to use them, each file atomically.

    Args:
        variables: `{"params": …, "batch_stats": …}`, float32.
        half: store float16, in half the size; it is read as float32 again.

    Returns:
        The size of the weights file in megabytes (10^6 bytes).

    Raises:
        ValueError: a value that float16 does not hold.
    """
    # One entry alone: the library writes several in an order that changes from run to run.
    content = safetensors.numpy.save(flat_arrays(variables, half), metadata={"format": "flax, kernels HWIO"})
    run_folder.write_bytes(folder / WEIGHTS, content)
    described = {**description(config), _WEIGHTS_HASH: hashlib.sha256(content).hexdigest()}
    run_folder.write_json(folder / CONFIG, described)
    return (folder / WEIGHTS).stat().st_size / 1e6


def description(config: ml_collections.ConfigDict) -> dict:
    """Returns what stands beside a generator's arrays: its sizes in pixels, the hashes and the whole config."""
    return {
        "native_size": task.input_shapes(config)["generator"][0],
        "size_multiple": models.size_multiple(config),
        "hashes": config_module.hashes(config),
        "config": json.loads(config_module.to_json(config)),
    }


def flat_arrays(variables: dict, half: bool = False) -> dict[str, np.ndarray]:
    """Returns a generator's arrays by their names in the tree, such as "params/down0/kernel", in C order.

    Args:
        half: as float16.

    Raises:
        ValueError: a value that float16 does not hold.
    """
    flat = {k: np.asarray(v, order="C") for k, v in traverse_util.flatten_dict(variables, sep="/").items()}
    if not half:
        return flat
    with np.errstate(over="ignore"):
        halves = {name: array.astype(np.float16) for name, array in flat.items()}
    for name, array in halves.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has values beyond 65504, which float16 does not hold: leave out --half")
    return halves


def full_precision(flat: Mapping[str, np.ndarray]) -> dict:
    """Returns arrays by their names in the tree, float16 or float32, as a generator's variables, float32.

    Raises:
        TypeError: an array of another type.
    """
    for name, array in flat.items():
        if array.dtype not in (np.float16, np.float32):
            raise TypeError(f"{name} is of type {array.dtype}")
    tree = traverse_util.unflatten_dict({name: array.astype(np.float32) for name, array in flat.items()}, sep="/")
    # Without batch normalisation there are no statistics, and a file holds no empty collection.
    return {"batch_stats": {}, **tree}


def generator_folder(folder: Path) -> Path:
    """Returns where a generator lies: in a run folder its generator/; for the name of one that comes along, its own."""
    inner = folder / run_folder.GENERATOR
    if not (folder / WEIGHTS).exists() and (inner / WEIGHTS).exists():
        return inner
    if (folder / WEIGHTS).exists():
        return folder
    return shipped_generators().get(str(folder), folder)


def load_generator(folder: Path) -> tuple[ml_collections.ConfigDict, dict]:
    """Returns the config and the variables of a saved generator, float32 however they are stored.

    Args:
        folder: the generator's folder, or a run folder that has one, or the name of one that comes along.

    Raises:
        ValueError: no generator there, or a damaged one.
    """
    folder = generator_folder(folder)
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).exists():
            names = "".join(f", or {name!r}, which comes along" for name in shipped_generators())
            raise ValueError(
                f"{str(folder)!r} has no {name}: give a finished run folder, or its generator/ folder{names}"
            )
    try:
        content = (folder / WEIGHTS).read_bytes()
        config, written = _read_description(folder / CONFIG)
        variables = full_precision(safetensors.numpy.load(content))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"the generator in {str(folder)!r} is damaged ({reason}): copy it anew") from error
    expected = jax.eval_shape(lambda: initial_variables(config))["generator"]
    if jax.tree.map(jnp.shape, variables) != jax.tree.map(jnp.shape, expected):
        raise ValueError(f"the weights in {str(folder)!r} are not of the generator in its {CONFIG}: copy both anew")
    if written is not None and hashlib.sha256(content).hexdigest() != written:
        raise ValueError(f"the generator in {str(folder)!r} is damaged ({WEIGHTS} is not as written): copy both anew")
    return config, variables


def _read_description(path: Path) -> tuple[ml_collections.ConfigDict, str | None]:
    """Returns the config of a saved generator, and the SHA-256 of its weights where it is known.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not as it was written.
    """
    described = json_files.read(path)
    stored = config_module.from_json(json.dumps(described["config"]))
    if config_module.hashes(stored)["config"] != described["hashes"]["config"]:
        # One changed word could make of the same weights other fills, and nobody would see why.
        raise ValueError(f"the config in {path.name} is not the one that its hash was made of")
    # Fields that came later have their defaults, which leave older models as they were.
    config = config_module.on_base(stored)
    config_module.validate(config)
    return config, described.get(_WEIGHTS_HASH)
