"""VGG16 weights of Keras, torchvision and D. Frossard: the same features, and clear words for what cannot be read."""

import json
import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.numpy
from scipy.signal import correlate2d
from test_pretrained import LAYERS, MARKER, Calls, layers, own_arrays, same

from inpaint_jax import weight_files

PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of the convolutions in torchvision's vgg16().features
CAFFE_BGR = np.array([103.939, 116.779, 123.68])
WIDTH = 2
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def write_keras(path: Path, arrays: dict, form: str) -> None:
    with h5py.File(path, "w") as file:
        for name, (kernel, bias) in arrays.items():
            if form == "old":
                file[f"{name}/{name}_W_1:0"], file[f"{name}/{name}_b_1:0"] = kernel, bias
            elif form == "new":
                file[f"{name}/{name}/kernel:0"], file[f"{name}/{name}/bias:0"] = kernel, bias
            elif form == "layers":
                file[f"layers/{name}/vars/0"], file[f"layers/{name}/vars/1"] = kernel, bias
            else:
                for root in ("model_weights", "optimizer_weights/Adam"):
                    file[f"{root}/{name}/{name}/kernel:0"] = kernel * (1 if root == "model_weights" else 9)
                    file[f"{root}/{name}/{name}/bias:0"] = bias
        for name in ("block1_pool", "input_1"):
            file.create_group(f"{name}")
        file["fc1/fc1_W_1:0"] = np.zeros((4, 4), np.float32)
        file["block1_conv10"] = np.zeros(3, np.float32)


def torchvision_arrays(arrays: dict) -> dict[str, np.ndarray]:
    flat = {"classifier.0.weight": np.full((2, 2), np.nan, np.float32), "classifier.0.bias": np.zeros(2, np.float32)}
    for place, (kernel, bias) in zip(PLACES, arrays.values(), strict=True):
        weight = np.zeros((*kernel.shape[::-1][:2], 3, 3), np.float32)
        for row in range(3):
            for column in range(3):
                weight[:, :, row, column] = kernel[row, column].T
        flat[f"features.{place}.weight"], flat[f"features.{place}.bias"] = weight, bias
    return flat


def frossard_arrays(arrays: dict) -> dict[str, np.ndarray]:
    flat = {"fc6_W": np.zeros((2, 2), np.float32), "fc6_b": np.zeros(2, np.float32)}
    for name, (kernel, bias) in arrays.items():
        short = f"conv{name[5]}_{name[-1]}"
        flat[f"{short}_W"], flat[f"{short}_b"] = kernel, bias
    return flat


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("form", [torchvision_arrays, own_arrays])
def test_files_for_the_same_input_come_back_unchanged(tmp_path, suffix, form):
    arrays = layers(WIDTH, seed=1)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".npz":
        np.savez(path, **form(arrays))
    else:
        safetensors.numpy.save_file(form(arrays), path)
    assert same(weight_files.read_vgg16(path, WIDTH), arrays)


def convolve(image: np.ndarray, kernel: np.ndarray, bias: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """A convolution (H, W, I) -> (H, W, O), with one value for each channel outside of the picture."""
    result = np.zeros((*image.shape[:2], len(bias)))
    for into in range(kernel.shape[3]):
        for channel in range(kernel.shape[2]):
            padded = np.pad(image[..., channel], 1, constant_values=outside[channel])
            result[..., into] += correlate2d(padded, kernel[:, :, channel, into], mode="valid")
        result[..., into] += bias[into]
    return result


def two_layers(image: np.ndarray, first: tuple, second: tuple, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one = np.maximum(convolve(image, *first, outside), 0)
    return one, np.maximum(convolve(one, *second, np.zeros(one.shape[2])), 0)


@pytest.mark.parametrize("form", ["old", "new", "layers", "whole model", "frossard"])
def test_weights_for_caffes_input_give_its_features(tmp_path, form):
    arrays, random = dict(layers(WIDTH)), np.random.default_rng(6)
    # Of sizes at which scale and offset both matter, and no ReLU is always open or shut.
    for name in LAYERS[:2]:
        arrays[name] = tuple(random.normal(size=array.shape).astype(np.float32) for array in arrays[name])
    if form == "frossard":
        path, order = tmp_path / "vgg16_weights.npz", [0, 1, 2]
        np.savez(path, **frossard_arrays(arrays))
    else:
        path, order = tmp_path / "vgg16.h5", [2, 1, 0]
        write_keras(path, arrays, form)
    read = weight_files.read_vgg16(path, WIDTH)
    assert all(np.array_equal(read[name]["kernel"], arrays[name][0]) for name in LAYERS[1:])
    assert all(np.array_equal(read[name]["bias"], arrays[name][1]) for name in LAYERS[1:])

    image = np.random.default_rng(3).integers(0, 256, (9, 8, 3))
    caffe = image[..., order] - CAFFE_BGR[::-1][order]
    ours = (image / 255 - MEAN) / DEVIATION
    expected = two_layers(caffe, *[arrays[name] for name in LAYERS[:2]], np.zeros(3))
    got = two_layers(ours, *[tuple(read[name].values()) for name in LAYERS[:2]], np.zeros(3))
    for depth in (0, 1):
        assert 0.2 < (expected[depth] > 0).mean() < 0.9
        inside = (slice(depth + 1, -depth - 1),) * 2
        tolerance = 1e-6 * expected[depth].max()
        np.testing.assert_allclose(got[depth][inside], expected[depth][inside], rtol=0, atol=tolerance)
    # At the border, a colour outside the picture that differs by less than 0.5 of 255 explains all of the difference.
    outside = 255 * MEAN - CAFFE_BGR[::-1]
    assert np.abs(outside).max() <= 0.5
    explained = two_layers(caffe, *[arrays[name] for name in LAYERS[:2]], outside[order])
    np.testing.assert_allclose(got[1], explained[1], rtol=0, atol=tolerance)
    assert not np.allclose(got[0], expected[0], rtol=0, atol=tolerance)


def broken(**changes) -> dict[str, np.ndarray]:
    """Torchvision's arrays with changes: name -> array, or None for one that is missing."""
    flat = torchvision_arrays(layers(WIDTH)) | {name.replace("_", "."): array for name, array in changes.items()}
    return {name: array for name, array in flat.items() if array is not None}


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        (broken(features_17_bias=None), "no features.17.bias, so block4_conv1 is missing"),
        (
            broken(features_5_weight=np.zeros((4, 2, 5, 5), np.float32)),
            r"block2_conv1\) is of shape \(4, 2, 5, 5\), not",
        ),
        (broken(features_5_bias=np.zeros(5, np.float32)), r"the bias of block2_conv1 is of shape \(5,\), not \(4,\)"),
        (broken(features_28_weight=np.full((16, 16, 3, 3), np.nan, np.float32)), "block5_conv3.* NaN or infinite"),
        (broken(features_28_bias=np.full(16, 1e300)), "the bias of block5_conv3 .* NaN or infinite"),
        (broken(features_0_bias=np.zeros(2, np.int32)), "the bias of block1_conv1 is of type int32"),
        ({"weight": np.zeros(3)}, "has none of block1_conv1/kernel, features.0.weight, conv1_1_W"),
        (own_arrays(layers(WIDTH)) | {"block3_conv4/kernel": np.zeros(3)}, "block3_conv4/kernel, a layer of VGG19"),
        (frossard_arrays(layers(WIDTH)) | {"conv5_4_W": np.zeros(3)}, "conv5_4_W, a layer of VGG19"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_wrong_file_names_itself_and_the_layer(tmp_path, flat, message, suffix):
    path = tmp_path / f"mine{suffix}"
    if suffix == ".npz":
        np.savez(path, **flat)
    else:
        safetensors.numpy.save_file(flat, path)
    with pytest.raises(ValueError, match=message) as raised:
        weight_files.read_vgg16(path, WIDTH)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_a_wrong_keras_file_names_itself_and_the_layer(tmp_path):
    good, path = layers(WIDTH), tmp_path / "mine.h5"
    theano = {name: (np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)), bias) for name, (kernel, bias) in good.items()}
    cases = [
        ({name: pair for name, pair in good.items() if name != "block4_conv2"}, "block4_conv2 is missing"),
        (good | {"block3_conv4": good["block3_conv3"]}, "block3_conv4, a layer of VGG19"),
        (theano, r"the kernel of block1_conv1 is of shape \(2, 3, 3, 3\), not \(3, 3, 3, 2\)"),
        (good | {"block2_conv2": good["block2_conv2"][:1] * 2}, "'block2_conv2' has 2 arrays of 4 dimensions, not one"),
        (good | {"block5_conv3": (good["block5_conv3"][0], np.full(16, np.inf))}, "bias of block5_conv3 .* infinite"),
    ]
    for arrays, message in cases:
        write_keras(path, arrays, "new")
        with pytest.raises(ValueError, match=message) as raised:
            weight_files.read_vgg16(path, WIDTH)
        assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".h5"])
def test_a_damaged_file_is_one_clear_sentence(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, **own_arrays(layers(WIDTH)))
    elif suffix == ".safetensors":
        safetensors.numpy.save_file(own_arrays(layers(WIDTH)), path)
    else:
        write_keras(path, layers(WIDTH), "old")
    whole = path.read_bytes()
    middle = len(whole) // 2
    damages = [b"", b"text", whole[:9], whole[:middle], whole[:-5]]
    if suffix == ".npz":  # it alone has checksums
        damages.append(whole[:middle] + bytes(8) + whole[middle + 8 :])
    for content in damages:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"copy it anew|give another") as raised:
            weight_files.read_vgg16(path, WIDTH)
        assert str(raised.value).startswith(str(path))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["BF16", "F8_E4M3", "F8_E5M2", "F4", "C64", "BOOL", "I64"])
def test_numbers_of_other_kinds_are_refused(tmp_path, kind):
    """NumPy has no word for some of them, and safetensors passes on whatever that ends in."""
    bits = {"BF16": 16, "F4": 4, "C64": 64, "I64": 64}.get(kind, 8)
    header, begin = {}, 0
    for name, array in own_arrays(layers(WIDTH)).items():
        end = begin + array.size * bits // 8
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    path = tmp_path / "mine.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(begin))
    with pytest.raises(ValueError, match=r"mine\.safetensors(:| is damaged).*(give|copy)"):
        weight_files.read_vgg16(path, WIDTH)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_an_array_too_large_for_a_layer_is_not_unpacked(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(weight_files, "_LARGEST", 8000)  # bytes, so that the test need not fill the memory
    arrays = layers(WIDTH) | {"block4_conv2": (np.zeros((3, 3, 999, 2), np.float32), np.zeros(16, np.float32))}
    path = tmp_path / f"mine{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, **own_arrays(arrays))
    else:
        write_keras(path, arrays, "new")
    with pytest.raises(ValueError, match=r"block4_conv2.* takes 7\d+ bytes.*more than any layer: give another file"):
        weight_files.read_vgg16(path, WIDTH)


def test_weights_that_the_conversion_makes_infinite_are_refused(tmp_path):
    arrays = dict(layers(WIDTH))
    arrays[LAYERS[0]] = (np.full((3, 3, 3, WIDTH), 3e38, np.float32), arrays[LAYERS[0]][1])
    write_keras(tmp_path / "mine.h5", arrays, "new")
    with pytest.raises(ValueError, match=r"mine\.h5 is damaged.*values that float32 does not hold"):
        weight_files.read_vgg16(tmp_path / "mine.h5", WIDTH)


def test_no_pickle_in_an_npz_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objects = np.array([Calls(os.mkdir, "marker")], object)
    np.savez("mine.npz", **(own_arrays(layers(WIDTH)) | {"block1_conv1/kernel": objects}), allow_pickle=True)
    np.save("single.npy", objects, allow_pickle=True)
    Path("single.npy").rename("single.npz")
    Path("pickle.npz").write_bytes(pickle.dumps(Calls(os.mkdir, "marker")))
    for name in ("mine.npz", "single.npz", "pickle.npz"):
        with pytest.raises(ValueError, match=r"is not a plain array|is no .npz archive"):
            weight_files.read_vgg16(Path(name), WIDTH)
    assert not MARKER.exists()
