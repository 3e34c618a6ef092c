"""VGG16 weights in files of other programs, read into this project's layout: Keras, torchvision, D. Frossard's.

The layout is `{"block1_conv1": {"kernel": (3, 3, 3, 64), "bias": (64,)}, …, "block5_conv3": …}`, float32, kernels HWIO,
for RGB input in [0, 1] from which MEAN was taken and which was divided by DEVIATION. No pickle is read.

The files of Keras and D. Frossard hold the first weights of Simonyan and Zisserman, made with Caffe, whose input is
0 … 255 less a mean colour. Their features have another scale than those of torchvision, which were trained anew: a
weight of a perceptual loss that suits one does not suit the other.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np
import safetensors

Parameters = dict[str, dict[str, np.ndarray]]

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in [0, 1]
CAFFE_MEAN = (123.68, 116.779, 103.939)  # RGB, of 0 … 255
SUFFIXES = (".h5", ".hdf5", ".safetensors", ".npz")
CONVOLUTIONS, WIDTH_FACTORS = (2, 2, 3, 3, 3), (1, 2, 4, 8, 8)  # of the blocks; features / those of the first
_LARGEST = 1 << 28  # bytes of an array; a damaged or malicious size must not fill the memory
# Places in `features`, where ReLU and pooling count too.
_TORCHVISION = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def layer_shapes(width: int = 64) -> dict[str, tuple[int, int, int, int]]:
    """Returns the kernel's shape, HWIO, of each convolution in order; `width`: channels of the first block."""
    shapes, channels = {}, 3
    for block, (convolutions, times) in enumerate(zip(CONVOLUTIONS, WIDTH_FACTORS, strict=True), 1):
        for convolution in range(1, convolutions + 1):
            shapes[f"block{block}_conv{convolution}"] = (3, 3, channels, width * times)
            channels = width * times
    return shapes


def block_widths(width: int = 64) -> dict[str, int]:
    """Returns the channels of each block's features: `{"block1": 64, …, "block5": 512}`."""
    return {f"block{block}": width * times for block, times in enumerate(WIDTH_FACTORS, 1)}


def checked(array: object, shape: tuple[int, ...], path: Path, part: str, whose: str = "VGG16's weights") -> np.ndarray:
    """Returns an array as float32 in C order.

    Args:
        part: its name in messages, such as "the kernel of block1_conv1".
        whose: what the file is to hold, for messages.

    Raises:
        ValueError: not floating-point numbers, another shape, or NaN or infinity in it.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{path}: {part} is of type {kind}, not floating-point numbers: give another file")
    if array.shape != shape:
        raise ValueError(f"{path}: {part} is of shape {array.shape}, not {shape}: give a file of {whose}")
    with np.errstate(over="ignore"):
        array = np.array(array, np.float32, order="C")
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: {part} has values that are NaN or infinite: copy the file anew, or give another")
    return array


def read_vgg16(path: Path, width: int = 64) -> Parameters:
    """Reads VGG16's convolutions from a file; other layers in it are ignored.

    - `.h5`: Keras, such as `vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5`, in groups `block1_conv1` and so on;
    - `.safetensors` or `.npz` with torchvision's names, `features.0.weight` (OIHW), of the weights IMAGENET1K_V1 or
      others for the same input;
    - `.safetensors` or `.npz` with this project's names, `block1_conv1/kernel`;
    - `.npz` with the names of D. Frossard's `vgg16_weights.npz`, `conv1_1_W` (HWIO, RGB).

    Weights for Caffe's input (the first and the last) are converted with `from_caffe_input`, which is exact but for the
    picture's border.

    Args:
        width: channels of the first block that the file must have.

    Raises:
        ValueError: no such file, of another kind, damaged, or without a layer that is needed in its shape.
    """
    if path.suffix not in SUFFIXES:
        pickled = ", and .pth is a pickle: save it with safetensors.torch.save_file" if path.suffix == ".pth" else ""
        known = ", ".join(SUFFIXES)
        raise ValueError(f"{path}: weights are read from files whose names end in {known}{pickled or ', not this one'}")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file of weights: mend the path")
    reader = {".safetensors": _read_safetensors, ".npz": _read_npz}.get(path.suffix, _read_keras)
    with damage_of(path, "copy it anew"):
        return reader(path, width)


@contextlib.contextmanager
def damage_of(path: Path, mend: str) -> Iterator[None]:
    """Turns whatever a library raises while it reads a damaged file of weights into a ValueError.

    h5py, NumPy and safetensors let nearly any error through where a file's own tables are damaged. Errors that name
    the file already, and those of permissions, stay as they are.
    """
    try:
        yield
    except PermissionError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is damaged, or not what its name says ({first[:200]}): {mend}") from error


def from_caffe_input(parameters: Parameters, bgr: bool) -> Parameters:
    """Returns weights made for Caffe's input as weights for this project's.

    Caffe's input is 0 … 255 less CAFFE_MEAN, without a scale. Scale and offset go into the first convolution: exact
    (to rounding) but for the outermost pixels, as what lies outside the picture is zero in either form, which is
    CAFFE_MEAN there and MEAN here: a colour that differs by at most 0.5/255.

    Args:
        bgr: the input's channels are blue, green, red, as in Keras.

    Raises:
        ValueError: values that are too large to be converted.
    """
    first = parameters["block1_conv1"]
    kernel = first["kernel"].astype(np.float64)
    if bgr:
        kernel = kernel[:, :, ::-1]
    scale, offset = 255 * np.array(DEVIATION), 255 * np.array(MEAN) - np.array(CAFFE_MEAN)
    bias = first["bias"] + np.einsum("hwio,i->o", kernel, offset)
    kernel = kernel * scale[:, None]
    with np.errstate(over="ignore"):
        converted = {"kernel": np.asarray(kernel, np.float32, order="C"), "bias": bias.astype(np.float32)}
    if not all(np.isfinite(array).all() for array in converted.values()):
        raise ValueError("the first convolution has values that float32 does not hold")
    return {**parameters, "block1_conv1": converted}


def _missing(path: Path, layer: str, name: str) -> ValueError:
    return ValueError(f"{path} has no {name}, so {layer} is missing: give a complete file of VGG16's weights")


def _refuse_vgg19(names: Iterable[str], path: Path) -> None:
    # VGG19 has all layers of VGG16 in the same shapes, and more in between.
    found = next((name for name in names if re.search(r"\b(block\d_conv|conv\d_)4(?!\d)", name)), None)
    if found is not None:
        raise ValueError(f"{path} has {found}, a layer of VGG19 that VGG16 has not: give a file of VGG16's weights")


def _read_safetensors(path: Path, width: int) -> Parameters:
    with safetensors.safe_open(path, "numpy") as file:
        return _by_names(set(file.keys()), file.get_tensor, path, width)


def _read_npz(path: Path, width: int) -> Parameters:
    try:
        opened = np.load(path, allow_pickle=False)
    except ValueError as error:  # a single array, or a pickle
        raise ValueError(f"{path} is no .npz archive: copy it anew, or give another") from error
    if not isinstance(opened, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} is no .npz archive but a single array: give another file")

    def read(name: str) -> np.ndarray:
        if (size := opened.zip.getinfo(f"{name}.npy").file_size) > _LARGEST:
            raise ValueError(f"{path}: {name} takes {size} bytes unpacked, more than any layer: give another file")
        try:
            return opened[name]
        except ValueError as error:  # of pickled objects, and of damaged headers
            raise ValueError(f"{path}: {name} is not a plain array ({error}): give another file") from error

    with opened:
        return _by_names(set(opened.files), read, path, width)


def _by_names(names: set[str], read: Callable[[str], np.ndarray], path: Path, width: int) -> Parameters:
    """Finds out whose names these are, and reads the arrays with `read(name)`."""
    _refuse_vgg19(names, path)
    layers = list(layer_shapes())
    whose = {
        "own": {layer: (f"{layer}/kernel", f"{layer}/bias") for layer in layers},
        "torchvision": {
            layer: (f"features.{place}.weight", f"features.{place}.bias")
            for layer, place in zip(layers, _TORCHVISION, strict=True)
        },
        "frossard": {
            layer: tuple(layer.replace("block", "conv").replace("_conv", "_") + part for part in ("_W", "_b"))
            for layer in layers
        },
    }
    origin = next((origin for origin, table in whose.items() if table[layers[0]][0] in names), None)
    if origin is None:
        known = ", ".join(table[layers[0]][0] for table in whose.values())
        raise ValueError(f"{path} has none of {known}, one of which names VGG16's first kernel: give another file")
    result = {}
    for layer, shape in layer_shapes(width).items():
        for name in whose[origin][layer]:
            if name not in names:
                raise _missing(path, layer, name)
        kernel, bias = (read(name) for name in whose[origin][layer])
        if origin == "torchvision":
            kernel = checked(kernel, (shape[3], shape[2], 3, 3), path, f"{whose[origin][layer][0]} ({layer})")
            kernel = kernel.transpose(2, 3, 1, 0)
        result[layer] = _checked_layer(kernel, bias, shape, path, layer)
    return from_caffe_input(result, bgr=False) if origin == "frossard" else result


def _checked_layer(kernel: object, bias: object, shape: tuple, path: Path, layer: str) -> dict[str, np.ndarray]:
    return {
        "kernel": checked(kernel, shape, path, f"the kernel of {layer}"),
        "bias": checked(bias, shape[3:], path, f"the bias of {layer}"),
    }


def _read_keras(path: Path, width: int) -> Parameters:
    found: dict[str, list[h5py.Dataset]] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        # The nearest group counts; versions of Keras nest and name what is in it in their own ways.
        groups = [part for part in name.split("/")[:-1] if part in layers]
        if isinstance(item, h5py.Dataset) and groups:
            found.setdefault(groups[0], []).append(item)

    layers = layer_shapes(width)
    with h5py.File(path) as file:
        # A whole model, saved after training, holds the optimiser's arrays in the same shapes beside the weights.
        root = file.get("model_weights", file)
        names: list[str] = []
        root.visit(names.append)
        _refuse_vgg19(names, path)
        root.visititems(visit)
        result = {}
        for layer, shape in layers.items():
            if layer not in found:
                raise _missing(path, layer, f"arrays in a group {layer!r}")
            kernel, bias = (_only(found[layer], rank, path, layer) for rank in (4, 1))
            result[layer] = _checked_layer(kernel, bias, shape, path, layer)
    return from_caffe_input(result, bgr=True)


def _only(datasets: Iterable[h5py.Dataset], rank: int, path: Path, layer: str) -> np.ndarray:
    """Returns the one array of so many dimensions."""
    chosen = [dataset for dataset in datasets if dataset.ndim == rank]
    if len(chosen) != 1:
        raise ValueError(
            f"{path}: the group {layer!r} has {len(chosen)} arrays of {rank} dimensions, not one: "
            "give a file with the weights alone"
        )
    if (size := chosen[0].nbytes) > _LARGEST:
        raise ValueError(f"{path}: an array of {layer} takes {size} bytes, more than any layer: give another file")
    return chosen[0][()]
