"""Trained generators in the formats of other programs: float16 and HDF5 arrays, ONNX and StableHLO graphs.

A graph holds all that lies between a picture with its mask and the completed picture, so that it needs nothing of this
project: the value range, the fill of the hole, the generator, unit vectors of normal maps, known pixels kept. It takes
`image`, float32 (N, H, W, 3) in [0, 1], and `mask`, float32 (N, H, W, 1), more than 0.5 = hole, of the model's native
size (that of the window, where the generator works on one) and of the number N it was exported for; it gives
`completed`, float32 (N, H, W, 3) in [0, 1]. It computes in float32, also that of a model trained in bfloat16.

Every file is read back and compared with the model on a random picture before it takes its name.
"""

import json
import logging
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import jax
import jax.export
import jax.numpy as jnp
import ml_collections
import numpy as np

from inpaint_jax import inference, task, weights
from inpaint_jax.models import convolutions

INPUTS, OUTPUT = ("image", "mask"), "completed"
ARRAYS = ("safetensors", "h5")  # the formats that are no graphs
PLATFORMS = ("cpu", "cuda", "tpu")  # that a StableHLO graph is lowered for
# Without --no-deps pip would put an older orbax-checkpoint in the place of the one that training needs.
ONNX_COMMAND = (
    'pip install "onnx>=1.23,<2" "onnx-ir>=1,<2" "onnxruntime>=1.24,<2" && pip install --no-deps jax2onnx==0.17.1'
)
ONNX_OPSET = 18

Complete = Callable[[dict, jax.Array, jax.Array], jax.Array]
Answer = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Generator(NamedTuple):
    """What is exported: a generator's config and variables, and how: arrays as float16, graphs for so many pictures."""

    config: ml_collections.ConfigDict
    variables: dict
    half: bool = False
    pictures: int = 1


class Format(NamedTuple):
    """How a file is written, read back as a function of picture and mask, and how far its answers may be off."""

    write: Callable[[Path, Generator], None]
    read: Callable[[Path, Complete], Answer]
    tolerance: float


def completing(config: ml_collections.ConfigDict) -> Complete:
    """Returns `complete(variables, image, mask) -> completed`, pure: from a picture with a hole to one without.

    Args (of `complete`):
        image: float32 (B, S, S, 3) in [0, 1]; S is the native size, or that of the window the generator works on.
        mask: float32 (B, S, S, 1), more than 0.5 = hole.

    Returns (of `complete`):
        float32 (B, S, S, 3) in [0, 1]; known pixels as they were, vectors of normal maps of unit length.
    """
    config = config.copy_and_resolve_references()
    config.dtype = "float32"  # few other programs convolve in bfloat16
    answer = inference.answering(config)

    def complete(variables: dict, image: jax.Array, mask: jax.Array) -> jax.Array:
        hole = (mask > 0.5).astype(jnp.float32)
        filled = answer(variables, image, hole)
        if config.data.kind == "normal_maps":
            vectors = filled * 2.0 - 1.0
            length = jnp.sqrt(jnp.sum(vectors * vectors, axis=-1, keepdims=True))
            filled = vectors / jnp.maximum(length, 1e-6) / 2.0 + 0.5
        return jnp.where(hole > 0.0, filled, image)

    return complete


def example(config: ml_collections.ConfigDict, pictures: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random pictures (N, S, S, 3) in [0, 1] and masks (N, S, S, 1) with square holes, the same every time."""
    random, size = np.random.default_rng(0), task.input_shapes(config)["generator"][0]
    image = random.random((pictures, size, size, 3), np.float32)
    cells = random.random((pictures, -(-size // 4), -(-size // 4), 1)) < 0.3
    mask = cells.repeat(4, axis=1).repeat(4, axis=2)[:, :size, :size]
    return image, mask.astype(np.float32)


def export(model: Path, out: Path, name: str, half: bool = False, pictures: int = 1) -> tuple[float, float]:
    """Writes a trained generator in another format, atomically; nothing is left if its answers are not the model's.

    Args:
        model: a run folder, or its generator/ folder.
        out: the file; of "safetensors", which has a config.json beside it, `<folder>/generator.safetensors`.
        name: one of FORMATS.
        half: arrays as float16; safetensors and h5 alone.
        pictures: how many a graph takes at once; onnx and stablehlo alone.

    Returns:
        The size of the file in megabytes (10^6 bytes), and the greatest difference of a random completed picture, in
        [0, 1], from the model's own.

    Raises:
        ValueError: an unknown format, or one that cannot be halved, a damaged model, a place for the model itself or
            another's config, packages that are missing, or a file that does not answer as the model does.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}: known formats are {', '.join(FORMATS)}")
    if half and name not in ARRAYS:
        raise ValueError(f"{name} computes in float32: half precision is for {' and '.join(ARRAYS)}")
    generator = Generator(*weights.load_generator(model), half, pictures)
    if name == "safetensors":
        _check_folder(model, out)
    complete = jax.jit(completing(generator.config))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
        temporary = Path(folder) / out.name
        FORMATS[name].write(temporary, generator)
        difference = _difference(generator, complete, FORMATS[name].read(temporary, complete))
        tolerance = math.inf if half else FORMATS[name].tolerance
        if not difference <= tolerance:  # NaN too
            raise ValueError(
                f"the {name} file answers otherwise than the model, by up to {difference:.2g} where {tolerance:g} is "
                "allowed, and was not kept: use another format, or other versions of its packages"
            )
        megabytes = temporary.stat().st_size / 1e6
        for path in sorted(Path(folder).iterdir(), key=lambda path: path != temporary):
            path.replace(out.parent / path.name)
    return megabytes, difference


def _check_folder(model: Path, out: Path) -> None:
    if out.name != weights.WEIGHTS:
        raise ValueError(f"{out}: a generator's arrays are read from {weights.WEIGHTS}: give a folder, or that name")
    if out.parent.resolve() in (model.resolve(), weights.generator_folder(model).resolve()):
        raise ValueError(f"{out} is the model itself: give another folder")
    if (out.parent / weights.CONFIG).exists() and not out.exists():
        raise ValueError(f"{out.parent} has a {weights.CONFIG} of something else: give another folder")


def _difference(generator: Generator, complete: Complete, answer: Answer) -> float:
    """Returns the greatest difference of any value of a random completed picture; NaN if either has one."""
    image, mask = example(generator.config, generator.pictures)
    expected = np.asarray(complete(generator.variables, image, mask))
    given = np.asarray(answer(image, mask))
    if given.shape != expected.shape or given.dtype != expected.dtype:
        raise ValueError(f"the file gives {given.dtype} {given.shape}, not {expected.dtype} {expected.shape}")
    return float(np.max(np.abs(given - expected)))


def _write_safetensors(path: Path, generator: Generator) -> None:
    weights.save_generator(path.parent, generator.variables, generator.config, generator.half)


def _read_safetensors(path: Path, complete: Complete) -> Answer:
    _, variables = weights.load_generator(path.parent)
    return lambda image, mask: complete(variables, image, mask)


def _write_hdf5(path: Path, generator: Generator) -> None:
    """Writes a dataset for each array, at its place in the tree, and what config.json has as the attribute "config"."""
    with h5py.File(path, "w") as file:
        file.attrs["config"] = json.dumps(weights.description(generator.config))
        for name, array in weights.flat_arrays(generator.variables, generator.half).items():
            file.create_dataset(name, data=array)


def _read_hdf5(path: Path, complete: Complete) -> Answer:
    flat = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: flat.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    variables = weights.full_precision({name: np.asarray(array) for name, array in flat.items()})
    return lambda image, mask: complete(variables, image, mask)


def _shapes(generator: Generator) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in example(generator.config, generator.pictures)]


def _graph(generator: Generator) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns the function of picture and mask alone: the variables are constants in it."""
    complete = completing(generator.config)

    def graph(image: jax.Array, mask: jax.Array) -> jax.Array:
        # Not this machine's formulations: of convolutions, other runtimes make the best of theirs.
        with convolutions.portable():
            return complete(generator.variables, image, mask)

    return graph


def _write_stablehlo(path: Path, generator: Generator) -> None:
    exported = jax.export.export(jax.jit(_graph(generator)), platforms=PLATFORMS)(*_shapes(generator))
    path.write_bytes(exported.serialize())


def _read_stablehlo(path: Path, complete: Complete) -> Answer:
    return jax.export.deserialize(bytearray(path.read_bytes())).call


def _write_onnx(path: Path, generator: Generator) -> None:
    try:
        import jax2onnx
        import onnx
        import onnxruntime  # noqa: F401 - its answers are compared below: without it nothing need be converted
    except ImportError as error:
        raise ValueError(f"ONNX needs packages that are not here ({error}); run: {ONNX_COMMAND}") from error
    logging.getLogger("jax2onnx").setLevel(logging.ERROR)  # it warns of each other framework that is not here
    model = jax2onnx.to_onnx(
        _graph(generator),
        [(*shape.shape,) for shape in _shapes(generator)],
        model_name="inpaint_jax",
        opset=ONNX_OPSET,
        input_names=list(INPUTS),
        output_names=[OUTPUT],
    )
    onnx.helper.set_model_props(model, {"config": json.dumps(weights.description(generator.config))})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _read_onnx(path: Path, complete: Complete) -> Answer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image, mask: session.run([OUTPUT], dict(zip(INPUTS, (image, mask), strict=True)))[0]


# Arrays give the same program the same numbers; of graphs, other programs add in another order.
FORMATS: dict[str, Format] = {
    "safetensors": Format(_write_safetensors, _read_safetensors, tolerance=1e-6),
    "h5": Format(_write_hdf5, _read_hdf5, tolerance=1e-6),
    "onnx": Format(_write_onnx, _read_onnx, tolerance=1e-4),
    "stablehlo": Format(_write_stablehlo, _read_stablehlo, tolerance=1e-4),
}
