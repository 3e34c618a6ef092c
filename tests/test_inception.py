"""InceptionV3 for FID: against an independent network in NumPy, its size, scaling, and files of something else."""

import ast
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
import safetensors.numpy

from inpaint_jax import inception

TRAINED = 21_785_568  # parameters of pytorch-fid's network without its classes, as PyTorch counts them

# Branches of a block: the ends of its layers' names, kernels (height x width), features. Those behind "|" all see what
# is before it. "s2": stride 2 without padding; "bare": without padding; else as much as keeps the size.
BLOCK_A = {
    "branch1x1": "1x1 64",
    "branch5x5": "_1 1x1 48, _2 5x5 64",
    "branch3x3dbl": "_1 1x1 64, _2 3x3 96, _3 3x3 96",
    "branch_pool": "1x1 {0}",
}
BLOCK_C = {
    "branch1x1": "1x1 192",
    "branch7x7": "_1 1x1 {0}, _2 1x7 {0}, _3 7x1 192",
    "branch7x7dbl": "_1 1x1 {0}, _2 7x1 {0}, _3 1x7 {0}, _4 7x1 {0}, _5 1x7 192",
    "branch_pool": "1x1 192",
}
BLOCK_E = {
    "branch1x1": "1x1 320",
    "branch3x3": "_1 1x1 384 | _2a 1x3 384, _2b 3x1 384",
    "branch3x3dbl": "_1 1x1 448, _2 3x3 384 | _3a 1x3 384, _3b 3x1 384",
    "branch_pool": "1x1 192",
}
NETWORK = [
    ("Conv2d_1a_3x3", "3x3 32 s2"),
    ("Conv2d_2a_3x3", "3x3 32 bare"),
    ("Conv2d_2b_3x3", "3x3 64"),
    ("maximum", ""),
    ("Conv2d_3b_1x1", "1x1 80"),
    ("Conv2d_4a_3x3", "3x3 192 bare"),
    ("maximum", ""),
    ("Mixed_5b", BLOCK_A, 32, "average"),
    ("Mixed_5c", BLOCK_A, 64, "average"),
    ("Mixed_5d", BLOCK_A, 64, "average"),
    ("Mixed_6a", {"branch3x3": "3x3 384 s2", "branch3x3dbl": "_1 1x1 64, _2 3x3 96, _3 3x3 96 s2"}, 0, "smaller"),
    ("Mixed_6b", BLOCK_C, 128, "average"),
    ("Mixed_6c", BLOCK_C, 160, "average"),
    ("Mixed_6d", BLOCK_C, 160, "average"),
    ("Mixed_6e", BLOCK_C, 192, "average"),
    (
        "Mixed_7a",
        {"branch3x3": "_1 1x1 192, _2 3x3 320 s2", "branch7x7x3": "_1 1x1 192, _2 1x7 192, _3 7x1 192, _4 3x3 192 s2"},
        0,
        "smaller",
    ),
    ("Mixed_7b", BLOCK_E, 0, "average"),
    ("Mixed_7c", BLOCK_E, 0, "maximum"),
]


class Reference:
    """The network in float64, one picture at a time; draws weights for what it meets, with names of the state dict."""

    def __init__(self):
        self.random, self.state = np.random.default_rng(3), {}

    def convolve(self, name: str, x: np.ndarray, kernel: str, features: str, how: str = "same") -> np.ndarray:
        height, width = map(int, kernel.split("x"))
        shape = (int(features), x.shape[2], height, width)
        if f"{name}.conv.weight" not in self.state:
            self.state[f"{name}.conv.weight"] = self.random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
            self.state[f"{name}.bn.weight"] = self.random.uniform(0.7, 1.3, shape[0])
            self.state[f"{name}.bn.bias"] = self.random.normal(0, 0.2, shape[0])
            self.state[f"{name}.bn.running_mean"] = self.random.normal(0, 0.3, shape[0])
            self.state[f"{name}.bn.running_var"] = self.random.uniform(0.5, 1.5, shape[0])
        weight, scale, shift, mean, variance = (
            self.state[f"{name}.{part}"].astype(np.float32).astype(np.float64)
            for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        )
        if how == "same":
            x = np.pad(x, [(height // 2, height // 2), (width // 2, width // 2), (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(x, (height, width), axis=(0, 1))
        if how == "s2":
            windows = windows[::2, ::2]
        answer = np.tensordot(windows, weight, axes=([2, 3, 4], [1, 2, 3]))
        return np.maximum((answer - mean) / np.sqrt(variance + 1e-3) * scale + shift, 0)

    def pool(self, x: np.ndarray, how: str) -> np.ndarray:
        # What is not a number around the map takes part in neither average nor maximum.
        padded = x if how == "smaller" else np.pad(x, [(1, 1), (1, 1), (0, 0)], constant_values=np.nan)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
        if how == "smaller":
            windows = windows[::2, ::2]
        return (np.nanmean if how == "average" else np.nanmax)(windows, axis=(3, 4))

    def branch(self, name: str, x: np.ndarray, layers: str) -> list[np.ndarray]:
        chain, _, fork = layers.partition(" | ")
        for layer in chain.split(", "):
            suffix, *rest = layer.split() if layer[0] == "_" else ("", *layer.split())
            x = self.convolve(name + suffix, x, *rest)
        forked = [layer.split() for layer in fork.split(", ") if layer]
        return [self.convolve(name + suffix, x, *rest) for suffix, *rest in forked] or [x]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        for name, layers, *more in NETWORK:
            if not layers:
                x = self.pool(x, "smaller")
            elif isinstance(layers, str):
                x = self.branch(name, x, layers)[0]
            else:
                width, pool = more
                parts = []
                for branch, chain in layers.items():
                    seen = self.pool(x, pool) if branch == "branch_pool" else x
                    parts += self.branch(f"{name}.{branch}", seen, chain.format(width))
                x = np.concatenate(parts + ([self.pool(x, pool)] if pool == "smaller" else []), axis=-1)
        return x.mean(axis=(0, 1))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A file of random weights, a picture whose innermost map is 3x3, and the reference's features of it."""
    reference = Reference()
    picture = np.random.default_rng(0).uniform(-1, 1, (139, 139, 3))
    expected = reference(picture)
    state = {name: array.astype(np.float32) for name, array in reference.state.items()}
    state["fc.weight"] = np.zeros((1008, 2048), np.float32)
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    safetensors.numpy.save_file(state, path)
    return path, picture, expected


def test_features_are_those_of_an_independent_network(drawn):
    path, picture, expected = drawn
    parameters, identity = inception.load_inception(path)
    found = jax.jit(inception.features)(parameters, picture[None].astype(np.float32))
    assert found.shape == (1, inception.FEATURES)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4 * expected.max())
    assert inception.load_inception(path)[1] == identity


def test_parameters_are_as_many_as_pytorch_counts():
    shapes = inception.layer_shapes()
    assert len(shapes) == 94
    # Beside each kernel scale and shift of its batch normalisation.
    assert sum(int(np.prod(shape)) + 2 * shape[3] for shape in shapes.values()) == TRAINED


@pytest.mark.parametrize("side", [64, 299, 512])
def test_pictures_are_scaled_between_the_centres_of_pixels(side: int):
    picture = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    expected = cv2.resize(picture.astype(np.float32), (299, 299), interpolation=cv2.INTER_LINEAR) / 127.5 - 1
    np.testing.assert_allclose(inception.as_seen(picture[None])[0], expected, atol=2e-4)


def changed(path: Path, folder: Path, **arrays: np.ndarray | None) -> Path:
    """A copy of the file with some arrays replaced, or left out for None; "__" stands for a dot."""
    state = safetensors.numpy.load_file(path)
    for name, array in arrays.items():
        state.pop(name.replace("__", "."))
        if array is not None:
            state[name.replace("__", ".")] = array
    safetensors.numpy.save_file(state, folder / "changed.safetensors")
    return folder / "changed.safetensors"


def test_files_that_are_not_the_weights_are_refused(drawn, tmp_path):
    path = drawn[0]
    with pytest.raises(ValueError, match=r"fc\.weight is of shape \(1000, 2048\).* torchvision's InceptionV3"):
        inception.load_inception(changed(path, tmp_path, fc__weight=np.zeros((1000, 2048), np.float32)))
    layer = "Mixed_7c__branch_pool__bn__running_var"
    with pytest.raises(ValueError, match=r"has no Mixed_7c\.branch_pool\.bn\.running_var: give a complete file"):
        inception.load_inception(changed(path, tmp_path, **{layer: None}))
    with pytest.raises(ValueError, match="has negative values"):
        inception.load_inception(changed(path, tmp_path, **{layer: np.full(192, -1, np.float32)}))
    with pytest.raises(ValueError, match=r"of shape \(7,\), not \(192,\): give a file of InceptionV3's weights"):
        inception.load_inception(changed(path, tmp_path, **{layer: np.ones(7, np.float32)}))
    (tmp_path / "short.safetensors").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged"):
        inception.load_inception(tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match="there is no such file"):
        inception.load_inception(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"a \.pth is a pickle; once: python -c"):
        inception.load_inception(tmp_path / "weights.pth")


def test_the_command_shows_how_to_convert_the_weights():
    text = (Path(__file__).parents[1] / "launch" / "evaluate.py").read_text()
    assert inception.CONVERSION in ast.get_docstring(ast.parse(text))
