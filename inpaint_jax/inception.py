"""InceptionV3 as FID sees pictures: the network of TensorFlow's file inception-2015-12-05, in plain JAX functions.

C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, trained on ImageNet, with
what is particular to that file: average pools do not count the zeros around a feature map, and the last block has a
maximum pool where the paper has an average. Published figures of FID are of these weights; other InceptionV3s,
torchvision's own among them, give other figures.

The weights are the user's own file: the state dict of pytorch-fid (`pt_inception-2015-12-05-6726825d.pth`), saved once
as safetensors with `CONVERSION`, because a .pth is a pickle. Its names are those of torchvision's InceptionV3,
`Mixed_5b.branch1x1.conv.weight`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from inpaint_jax import pretrained, weight_files
from inpaint_jax.weight_files import Parameters

FEATURES = 2048
SIDE = 299  # pixels; every picture is scaled to this
BATCH = 8  # pictures at a time; at 299x299 one takes some 40 MB on its way
CLASSES = 1008  # of TensorFlow's network; torchvision's has 1000
EPSILON = 1e-3  # of batch normalisation
CONVERSION = (
    'python -c "import torch, safetensors.torch as s; '
    "d = torch.load('pt_inception-2015-12-05-6726825d.pth', weights_only=True); "
    "s.save_file({k: v.contiguous() for k, v in d.items()}, 'inception.safetensors')\""
)
_WHAT = "InceptionV3's weights for FID"

# (name, x, features, kernel height and width, stride, padding) -> convolution, batch normalisation and ReLU of x.
Convolution = Callable[..., jax.Array]


def _maximum(x: jax.Array, stride: int = 2, padding: str = "VALID") -> jax.Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _average(x: jax.Array) -> jax.Array:
    """Averages 3x3 neighbourhoods; at the border over the pixels that there are."""

    def add(values: jax.Array) -> jax.Array:
        return jax.lax.reduce_window(values, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return add(x) / add(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


def _chain(conv: Convolution, block: str, x: jax.Array, *layers: tuple) -> jax.Array:
    """Applies convolutions one after another; a layer is its name in the block, its features and perhaps its kernel."""
    for name, features, *kernel in layers:
        x = conv(f"{block}.{name}", x, features, *kernel)
    return x


def _joined(parts: Sequence[jax.Array]) -> jax.Array:
    return jnp.concatenate(parts, axis=-1)


def _block_35(conv: Convolution, name: str, x: jax.Array, pooled: int) -> jax.Array:
    """One of the three blocks at 35x35 (of a picture of 299x299); `pooled`: features of the pooled branch."""
    double = [("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3))]
    return _joined(
        [
            _chain(conv, name, x, ("branch1x1", 64)),
            _chain(conv, name, x, ("branch5x5_1", 48), ("branch5x5_2", 64, (5, 5))),
            _chain(conv, name, x, *double),
            _chain(conv, name, _average(x), ("branch_pool", pooled)),
        ]
    )


def _to_17(conv: Convolution, name: str, x: jax.Array) -> jax.Array:
    double = _chain(conv, name, x, ("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, (3, 3)))
    return _joined(
        [
            conv(f"{name}.branch3x3", x, 384, (3, 3), 2, "VALID"),
            conv(f"{name}.branch3x3dbl_3", double, 96, (3, 3), 2, "VALID"),
            _maximum(x),
        ]
    )


def _block_17(conv: Convolution, name: str, x: jax.Array, inner: int) -> jax.Array:
    """One of the four blocks at 17x17; `inner`: features between its 1x7 and 7x1 convolutions."""
    across, down = (1, 7), (7, 1)
    single = [("branch7x7_1", inner), ("branch7x7_2", inner, across), ("branch7x7_3", 192, down)]
    double = [("branch7x7dbl_1", inner), ("branch7x7dbl_2", inner, down), ("branch7x7dbl_3", inner, across)]
    double += [("branch7x7dbl_4", inner, down), ("branch7x7dbl_5", 192, across)]
    return _joined(
        [
            _chain(conv, name, x, ("branch1x1", 192)),
            _chain(conv, name, x, *single),
            _chain(conv, name, x, *double),
            _chain(conv, name, _average(x), ("branch_pool", 192)),
        ]
    )


def _to_8(conv: Convolution, name: str, x: jax.Array) -> jax.Array:
    single = conv(f"{name}.branch3x3_1", x, 192)
    long = [("branch7x7x3_1", 192), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1))]
    return _joined(
        [
            conv(f"{name}.branch3x3_2", single, 320, (3, 3), 2, "VALID"),
            conv(f"{name}.branch7x7x3_4", _chain(conv, name, x, *long), 192, (3, 3), 2, "VALID"),
            _maximum(x),
        ]
    )


def _block_8(conv: Convolution, name: str, x: jax.Array, pool: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """One of the two blocks at 8x8, whose 3x3 convolutions fork into one across and one down."""
    single = conv(f"{name}.branch3x3_1", x, 384)
    double = _chain(conv, name, x, ("branch3x3dbl_1", 448), ("branch3x3dbl_2", 384, (3, 3)))
    return _joined(
        [
            conv(f"{name}.branch1x1", x, 320),
            conv(f"{name}.branch3x3_2a", single, 384, (1, 3)),
            conv(f"{name}.branch3x3_2b", single, 384, (3, 1)),
            conv(f"{name}.branch3x3dbl_3a", double, 384, (1, 3)),
            conv(f"{name}.branch3x3dbl_3b", double, 384, (3, 1)),
            conv(f"{name}.branch_pool", pool(x), 192),
        ]
    )


def _network(conv: Convolution, x: jax.Array) -> jax.Array:
    """Maps pictures (B, H, W, 3) in [-1, 1], H and W at least 75, to the features (B, 2048) before the classes."""
    x = conv("Conv2d_1a_3x3", x, 32, (3, 3), 2, "VALID")
    x = conv("Conv2d_2a_3x3", x, 32, (3, 3), 1, "VALID")
    x = _maximum(conv("Conv2d_2b_3x3", x, 64, (3, 3)))
    x = conv("Conv2d_3b_1x1", x, 80)
    x = _maximum(conv("Conv2d_4a_3x3", x, 192, (3, 3), 1, "VALID"))
    for letter, pooled in (("b", 32), ("c", 64), ("d", 64)):
        x = _block_35(conv, f"Mixed_5{letter}", x, pooled)
    x = _to_17(conv, "Mixed_6a", x)
    for letter, inner in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
        x = _block_17(conv, f"Mixed_6{letter}", x, inner)
    x = _to_8(conv, "Mixed_7a", x)
    x = _block_8(conv, "Mixed_7b", x, _average)
    x = _block_8(conv, "Mixed_7c", x, lambda x: _maximum(x, 1, "SAME"))
    return jnp.mean(x, axis=(1, 2))


def layer_shapes() -> dict[str, tuple[int, int, int, int]]:
    """Returns the kernel's shape, HWIO, of each of the 94 convolutions."""
    shapes = {}

    def record(name, x, features, kernel=(1, 1), stride=1, padding="SAME"):
        shapes[name] = (*kernel, x.shape[-1], features)
        sides = [
            -(-side // stride) if padding == "SAME" else (side - extent) // stride + 1
            for side, extent in zip(x.shape[1:3], kernel, strict=True)
        ]
        return jnp.zeros((x.shape[0], *sides, features))

    jax.eval_shape(lambda: _network(record, jnp.zeros((1, SIDE, SIDE, 3))))
    return shapes


def features(parameters: Parameters, pictures: jax.Array) -> jax.Array:
    """Computes the features (B, 2048) of pictures (B, H, W, 3) in [-1, 1] that are not scaled, at least 75x75."""

    def conv(name, x, features, kernel=(1, 1), stride=1, padding="SAME"):
        layer = parameters[name]
        dimensions = ("NHWC", "HWIO", "NHWC")
        answer = jax.lax.conv_general_dilated(
            x, layer["kernel"], (stride, stride), padding, dimension_numbers=dimensions
        )
        return jax.nn.relu(answer + layer["bias"])

    # A GPU would by default multiply in TF32.
    with jax.default_matmul_precision("highest"):
        return _network(conv, pictures)


def as_seen(pictures: jax.Array) -> jax.Array:
    """Scales pictures, uint8 (B, H, W, 3), to float32 (B, 299, 299, 3) in [-1, 1]."""
    shape = (pictures.shape[0], SIDE, SIDE, 3)
    # Without smoothing first, as FID has always been computed, though pictures that are made smaller alias.
    scaled = jax.image.resize(pictures.astype(jnp.float32) / 255.0, shape, "linear", antialias=False)
    return 2.0 * scaled - 1.0


_features_of_bytes = jax.jit(lambda parameters, pictures: features(parameters, as_seen(pictures)))


def make_eye(parameters: Parameters) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function of any number of pictures, uint8 (N, H, W, 3) to features float32 (N, 2048).

    Args:
        parameters: of `load_inception`.
    """
    on_device = jax.device_put(parameters)

    def see(pictures: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(pictures), BATCH):
            part = pictures[start : start + BATCH]
            # One program serves every batch: a last one is filled up.
            filled = np.concatenate([part, np.repeat(part[:1], BATCH - len(part), axis=0)])
            parts.append(np.asarray(_features_of_bytes(on_device, filled))[: len(part)])
        return np.concatenate(parts)

    return see


def load_inception(path: Path) -> tuple[Parameters, str]:
    """Reads the weights of pytorch-fid's InceptionV3 from a safetensors file.

    Batch normalisation is multiplied into the kernels, which changes features by rounding alone.

    Returns:
        `{"Conv2d_1a_3x3": {"kernel": HWIO, "bias": (F,)}, …}`, float32, and the fingerprint of what the file holds.

    Raises:
        ValueError: no such file, of another kind, damaged, without a layer, or of another InceptionV3.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: {_WHAT} are read from .safetensors alone, as a .pth is a pickle; once: {CONVERSION}")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file of weights: mend the path")
    with weight_files.damage_of(path, "convert it anew"), safetensors.safe_open(path, "numpy") as file:
        return _parameters(set(file.keys()), file.get_tensor, path)


def _parameters(names: set[str], read: Callable[[str], np.ndarray], path: Path) -> tuple[Parameters, str]:
    _refuse_other_networks(names, read, path)
    raw, parameters = {}, {}
    for layer, shape in layer_shapes().items():
        height, width, channels, count = shape
        wanted = {"conv.weight": (count, channels, height, width)}
        wanted |= dict.fromkeys(("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"), (count,))
        found = {}
        for part, part_shape in wanted.items():
            name = f"{layer}.{part}"
            if name not in names:
                raise ValueError(f"{path} has no {name}: give a complete file of {_WHAT}")
            found[part] = raw[name] = weight_files.checked(read(name), part_shape, path, name, _WHAT)
        if (found["bn.running_var"] < 0).any():
            raise ValueError(f"{path}: {layer}.bn.running_var has negative values: convert the file anew")
        scale = found["bn.weight"].astype(np.float64) / np.sqrt(found["bn.running_var"].astype(np.float64) + EPSILON)
        kernel = found["conv.weight"].transpose(2, 3, 1, 0) * scale
        bias = found["bn.bias"] - found["bn.running_mean"] * scale
        parameters[layer] = {
            "kernel": np.asarray(kernel, np.float32, order="C"),
            "bias": bias.astype(np.float32),
        }
    return parameters, pretrained.fingerprint(raw)


def _refuse_other_networks(names: set[str], read: Callable[[str], np.ndarray], path: Path) -> None:
    # Torchvision's own has the same layers in the same shapes, but for what comes after the features.
    if "fc.weight" not in names:
        raise ValueError(f"{path} has no fc.weight, which tells whose InceptionV3 it is: convert the whole file")
    shape = np.shape(read("fc.weight"))
    if shape != (CLASSES, FEATURES):
        raise ValueError(
            f"{path}: fc.weight is of shape {shape}, not {(CLASSES, FEATURES)}: these weights are of another network, "
            "such as torchvision's InceptionV3, whose FID nobody could compare; give pytorch-fid's"
        )
