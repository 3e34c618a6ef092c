"""VGG16, the generator and the discriminator on it: against NumPy in float64, sizes, patches, dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from inpaint_jax import optim, pretrained
from inpaint_jax.models.layers import dropout
from inpaint_jax.models.vgg import VGG16, VGGDiscriminator, VGGUNet

BLOCKS = {"block1": 2, "block2": 2, "block3": 3, "block4": 3, "block5": 3}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def weights(width: int) -> dict:
    """Random weights with biases, so that a missing one shows."""
    random = np.random.default_rng(5)
    drawn = pretrained.load_vgg16("random", width)
    return {
        layer: {**arrays, "bias": random.normal(0, 0.2, arrays["bias"].shape).astype(np.float32)}
        for layer, arrays in drawn.items()
    }


def convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3x3 with zeros around: (H, W, C) to (H, W, F), one channel at a time, in float64."""
    result = np.zeros((*x.shape[:2], kernel.shape[3]))
    for output in range(kernel.shape[3]):
        for channel in range(x.shape[2]):
            taps = kernel[:, :, channel, output].astype(np.float64)
            result[:, :, output] += ndimage.correlate(x[:, :, channel], taps, mode="constant")
    return result + bias


def reference(layers: dict, picture: np.ndarray) -> dict[str, np.ndarray]:
    """VGG16's features of a picture (H, W, 3) in [0, 1] before each max-pool."""
    x, features = (picture - MEAN) / DEVIATION, {}
    for block, convolutions in BLOCKS.items():
        for number in range(1, convolutions + 1):
            layer = layers[f"{block}_conv{number}"]
            x = np.maximum(convolve(x, layer["kernel"], layer["bias"]), 0)
        features[block] = x
        height, width = (side // 2 * 2 for side in x.shape[:2])
        x = x[:height, :width].reshape(height // 2, 2, width // 2, 2, -1).max(axis=(1, 3))
    return features


@pytest.mark.parametrize("size", [(32, 48), (41, 35)])
def test_features_are_those_of_an_independent_implementation(size: tuple[int, int]):
    layers = weights(3)
    pictures = np.random.default_rng(0).uniform(size=(2, *size, 3)).astype(np.float32)
    answers = jax.jit(VGG16(3).apply)({"params": layers}, pictures)
    assert list(answers) == list(BLOCKS)
    for index in range(2):
        for block, expected in reference(layers, pictures[index].astype(np.float64)).items():
            np.testing.assert_allclose(answers[block][index], expected, rtol=1e-4, atol=1e-4)


def test_fewer_blocks_are_the_first_ones():
    layers, pictures = weights(2), np.random.default_rng(1).uniform(size=(1, 16, 16, 3)).astype(np.float32)
    module = VGG16(2)
    whole, part = (module.apply({"params": layers}, pictures, blocks) for blocks in (5, 3))
    assert list(part) == ["block1", "block2", "block3"]
    assert all(np.array_equal(part[block], whole[block]) for block in part)


def test_without_weights_nothing_comes_out():
    variables = VGG16(2).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    assert all(np.isnan(f).all() for f in VGG16(2).apply(variables, jnp.full((1, 16, 16, 3), 0.3)).values())


def test_generator_has_vgg16s_parameters_and_groups():
    module = VGGUNet()
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 64, 64, 4)), train=False))["params"]
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()}
    assert count["vgg"] == 14_714_688  # the convolutions of Keras' VGG16 without its top
    assert count["mask_entry"] == 9 * 64
    assert sum(count.values()) == 35_169_411
    assert optim.group_names({"generator": params}) == ["generator/vgg", "generator/rest"]
    assert set(optim.select(params, "generator/vgg")) == {"vgg"}


def small_generator(picture_channels: int, channels: int, **options):
    """A generator with random VGG16 weights, and its variables, whose `mask_entry` is not zero."""
    module = VGGUNet(picture_channels=picture_channels, vgg_width=4, width=4, **options)
    variables = module.init(jax.random.key(1), jnp.zeros((1, 32, 32, channels)), train=False)
    params = {**variables["params"], "vgg": weights(4)}
    if "mask_entry" in params:
        drawn = np.random.default_rng(3).normal(size=params["mask_entry"]["kernel"].shape).astype(np.float32)
        params["mask_entry"] = {"kernel": drawn}
    return module, {**variables, "params": params}


def test_the_mask_enters_like_a_fourth_channel_of_the_first_kernel():
    module, variables = small_generator(3, 4)
    x = np.random.default_rng(4).uniform(-1, 1, (1, 32, 32, 4)).astype(np.float32)
    _, seen = module.apply(
        variables, x, train=False, capture_intermediates=lambda one, _: one.name == "vgg", mutable="intermediates"
    )
    first = variables["params"]["vgg"]["block1_conv1"]
    kernel = np.concatenate([first["kernel"], variables["params"]["mask_entry"]["kernel"]], axis=2)
    picture = np.concatenate([((x[0, ..., :3] + 1) / 2 - MEAN) / DEVIATION, x[0, ..., 3:]], axis=-1)
    second = variables["params"]["vgg"]["block1_conv2"]
    expected = np.maximum(convolve(picture, kernel, first["bias"]), 0)
    expected = np.maximum(convolve(expected, second["kernel"], second["bias"]), 0)
    found = seen["intermediates"]["vgg"]["__call__"][0]["block1"][0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_in_the_beginning_the_mask_changes_nothing():
    module = VGGUNet(vgg_width=4, width=4)
    variables = module.init(jax.random.key(1), jnp.zeros((1, 32, 32, 4)), train=False)
    assert not variables["params"]["mask_entry"]["kernel"].any()


def test_luminance_is_seen_as_grey():
    grey = np.random.default_rng(6).uniform(-1, 1, (1, 32, 32, 1)).astype(np.float32)
    module, variables = small_generator(1, 1)
    in_colour, _ = small_generator(3, 3)
    expected = in_colour.apply(variables, np.repeat(grey, 3, axis=-1), train=False)
    np.testing.assert_array_equal(module.apply(variables, grey, train=False), expected)


def test_both_value_ranges_mean_the_same_picture():
    picture = np.random.default_rng(7).uniform(0, 1, (1, 32, 32, 3)).astype(np.float32)
    module, variables = small_generator(3, 3)
    unit, _ = small_generator(3, 3, value_range=(0.0, 1.0))
    expected = module.apply(variables, 2 * picture - 1, train=False)
    np.testing.assert_allclose(unit.apply(variables, picture, train=False), expected, atol=1e-5)


def test_a_size_that_cannot_be_halved_five_times_is_refused():
    with pytest.raises(ValueError, match=r"48x32 pixels .*multiples of 32"):
        jax.eval_shape(lambda: VGGUNet().init(jax.random.key(0), jnp.zeros((1, 48, 32, 3)), train=False))


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_fill_depends_on_its_own_picture_alone(norm: str):
    module, variables = small_generator(3, 4, norm=norm, dropout=0.5)
    x = np.random.default_rng(8).uniform(-1, 1, (3, 32, 32, 4)).astype(np.float32)
    apply = jax.jit(functools.partial(module.apply, train=False))
    together = apply(variables, x)
    np.testing.assert_allclose(apply(variables, x[1:2]), together[1:2], atol=1e-5)
    np.testing.assert_array_equal(apply(variables, x), together)


@pytest.mark.parametrize("conditioned", [False, True])
def test_a_logit_sees_a_patch_of_124_pixels(conditioned: bool):
    # A width of 1 leaves most ReLUs closed; absolute weights keep every way open.
    layers = {name: {"kernel": np.abs(p["kernel"]), "bias": np.ones_like(p["bias"])} for name, p in weights(1).items()}
    module, side = VGGDiscriminator(width=1, norm="none"), 192
    shape = {"features": (1, side // 8, side // 8, 8)}
    if conditioned:
        shape["condition"] = (1, side, side, 4)
    variables = module.init(jax.random.key(0), jax.tree.map(jnp.zeros, shape, is_leaf=lambda s: type(s) is tuple), True)
    variables = jax.tree.map(lambda p: jnp.abs(p) + 0.01, variables)

    def logits(picture):
        features = VGG16(1).apply({"params": layers}, picture, 4)["block4"]
        seen = {"features": features, "condition": jnp.zeros((1, side, side, 4))}
        return module.apply(variables, {name: seen[name] for name in shape}, False)

    picture = jnp.full((1, side, side, 3), 0.9) + jnp.linspace(0, 0.09, side)[:, None]
    assert logits(picture).shape == (1, side // 8, side // 8, 1)
    gradient = jax.jit(jax.grad(lambda p: logits(p)[0, 12, 12, 0]))(picture)
    rows, columns = np.nonzero(np.abs(gradient[0]).sum(-1))
    # Max-pooling hands the gradient to one pixel of four, so that the outermost may have none.
    for places in (rows, columns):
        assert 124 - 16 < places.max() - places.min() + 1 <= 124


def test_dropout_belongs_to_the_example():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(8))
    x = jnp.ones((8, 5, 5, 64))
    dropped = dropout(x, 0.25, keys, purpose=2)
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    assert np.mean(dropped == 0) == pytest.approx(0.25, abs=0.02)
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])
    np.testing.assert_array_equal(dropout(x, 0.25, keys[order], purpose=2), dropped[order])
    assert not np.array_equal(dropout(x, 0.25, keys, purpose=3), dropped)
    assert not np.array_equal(dropped[0], dropped[1])
    assert dropout(x, 0.0, None, purpose=2) is x
    with pytest.raises(ValueError, match="needs a key for each example"):
        dropout(x, 0.25, None, purpose=2)
