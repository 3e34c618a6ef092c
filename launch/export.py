"""Writes a trained generator in a format of other programs, and compares its answers with the model's.

    python launch/export.py --model runs/unet_cosine-quick --out model.onnx
    python launch/export.py --model runs/unet_cosine-quick --out small/generator.safetensors --half

The name's end chooses the format, or --format does:
  .safetensors  a generator folder as runs have it, with its config.json; other commands take it as --model
  .h5           HDF5: a dataset for each array, kernels HWIO, and the config as an attribute
  .onnx         ONNX, a graph from picture and mask to the completed picture, float32 in [0, 1]
  .stablehlo    the same graph for jax.export.deserialize, on CPU, CUDA and TPU

Graphs take pictures of the model's native size alone, those of a model that works on windows its windows. ONNX needs:
  pip install "onnx>=1.23,<2" "onnx-ir>=1,<2" "onnxruntime>=1.24,<2" && pip install --no-deps jax2onnx==0.17.1

Exit codes: 0 written; 1 an error with a message; 2 wrong usage.
"""

import logging
import os
from pathlib import Path

from absl import flags

from inpaint_jax import command_line

log = logging.getLogger("inpaint_jax")

_ARRAYS, _GRAPHS = ("safetensors", "h5"), ("onnx", "stablehlo")
_MODEL = flags.DEFINE_string("model", None, "run folder, or its generator/ folder")
_OUT = flags.DEFINE_string("out", None, "file to write; with --format=safetensors also a folder")
_FORMAT = flags.DEFINE_enum("format", None, [*_ARRAYS, *_GRAPHS], "format, where the name's end does not tell it")
_HALF = flags.DEFINE_bool("half", False, "store arrays as float16, in half the size (safetensors and h5)")
_PICTURES = flags.DEFINE_integer("pictures", 1, "how many a graph takes at once (onnx and stablehlo)", lower_bound=1)


def _main() -> int:
    model, out = command_line.require(_MODEL), Path(command_line.require(_OUT))
    name = _FORMAT.value or out.suffix.lower().removeprefix(".")
    if name not in (*_ARRAYS, *_GRAPHS):
        known = ", ".join(f".{suffix}" for suffix in (*_ARRAYS, *_GRAPHS))
        raise flags.ValidationError(f"--out={out}: let the name end in {known}, or give --format")
    if _HALF.value and name in _GRAPHS:
        raise flags.ValidationError(f"--half is for arrays ({', '.join(_ARRAYS)}): graphs compute in float32")
    if _PICTURES.present and name in _ARRAYS:
        raise flags.ValidationError(f"--pictures is for graphs ({', '.join(_GRAPHS)}): arrays take any number")
    if name == "safetensors" and out.suffix.lower() != ".safetensors":
        out = out / "generator.safetensors"
    if out.is_dir():
        raise ValueError(f"--out={out} is a folder: give the name of a file in it")
    # Nothing here needs an accelerator, whose float32 convolutions are less exact.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    command_line.prepare_jax()
    from inpaint_jax import export, remote_folder

    model = remote_folder.local(model, remote_folder.NOT_OF_A_MODEL)
    megabytes, difference = export.export(model, out, name, _HALF.value, _PICTURES.value)
    log.info("wrote %s: %.2f MB, greatest difference from the model's answers %.1g", out, megabytes, difference)
    return 0


if __name__ == "__main__":
    command_line.run(_main, __doc__, urls=["model"])
