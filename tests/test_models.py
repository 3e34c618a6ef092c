"""Networks against plain NumPy in float64, parameter counts against the published tables, and their shapes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import unet_cosine
from inpaint_jax import models
from inpaint_jax.models.layers import normalisation

FAST_COMPILATION = {"xla_backend_optimization_level": 0}
MOMENTUM = 0.9
EPSILON = {"batch": 1e-5, "instance": 1e-5}


def configured(**fields):
    config = unet_cosine.get_config("tiny")
    config.generator.update({"refine": 0, "residual": False, "skips": True, "output": "unit"})
    config.update_from_flattened_dict(fields)
    return config


def shapes(module, size, channels):
    image = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)
    return variables, jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, image)


def parameters(module, size, channels):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(module, size, channels)[0]["params"]))


def unet_parameters(inner, outermost, channels, skips):
    """Sums kernels, norms (scale and bias) and biases of an encoder `outermost` + `inner` wide, and its decoder."""
    encoder = [outermost, *inner]
    count = 16 * channels * outermost + outermost  # the first layer has a bias and no norm
    for before, after in itertools.pairwise(encoder):
        count += 16 * before * after + 2 * after
    count -= encoder[-1]  # the bottleneck: a bias and no norm
    arriving = encoder[-1]
    for level in reversed(range(len(encoder) - 1)):
        count += 16 * arriving * encoder[level] + 2 * encoder[level]
        arriving = encoder[level] * (2 if skips else 1)
    return count + 16 * arriving * 3 + 3


def test_the_unet_has_the_parameters_of_pix2pix():
    config = configured(**{"image_size": 256, "generator.width": 64})
    count = parameters(models.build_generator(config), 256, 3)
    assert count == unet_parameters([128, 256] + [512] * 5, 64, 3, skips=True)
    # The published pix2pix generator has 54,413,955; biases of the first layer and of the bottleneck are ours.
    assert count == 54_413_955 + 64 + 512


@pytest.mark.parametrize("skips", [True, False])
def test_parameters_at_128_with_a_mask_channel(skips):
    config = configured(**{"image_size": 128, "generator.width": 64, "generator.skips": skips})
    count = parameters(models.build_generator(config), 128, 4)
    assert count == unet_parameters([128, 256] + [512] * 4, 64, 4, skips)


def test_the_refining_level_adds_its_own_layers():
    config = configured(**{"image_size": 128, "generator.width": 64})
    plain = parameters(models.build_generator(config), 128, 4)
    config.generator.refine = 24
    up, refine, out = 16 * 128 * 24 + 24, 9 * (24 + 4) * 24 + 24, 9 * 24 * 3 + 3
    assert parameters(models.build_generator(config), 128, 4) == plain - (16 * 128 * 3 + 3) + up + refine + out


def test_the_patchgan_has_the_parameters_of_pix2pix():
    config = configured(**{"discriminator.width": 64})
    kernels = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1)
    assert parameters(models.build_discriminator(config), 64, 3) == kernels + 64 + 2 * (128 + 256 + 512) + 1


@settings(deadline=None, max_examples=12)
@given(
    size=st.sampled_from([32, 64, 128, 256]),
    width=st.integers(1, 16),
    channels=st.integers(1, 7),
    skips=st.booleans(),
    times=st.integers(1, 2),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_shapes_and_types_at_any_power_of_two(size, width, channels, skips, times, dtype):
    config = configured(
        **{"image_size": size, "generator.width": width, "generator.skips": skips, "discriminator.width": width},
        dtype=dtype,
    )
    side = size * times
    variables, picture = shapes(models.build_generator(config), side, channels)
    assert (picture.shape, picture.dtype) == ((2, side, side, 3), jnp.float32)
    judge_variables, logits = shapes(models.build_discriminator(config), side, channels)
    assert (logits.shape, logits.dtype) == ((2, side // 8 - 2, side // 8 - 2, 1), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, judge_variables))} == {jnp.dtype("float32")}


def test_bfloat16_computes_every_convolution_in_bfloat16():
    config = configured(dtype="bfloat16")
    for module, channels in ((models.build_generator(config), 4), (models.build_discriminator(config), 3)):
        variables, _ = shapes(module, 32, channels)
        program = jax.make_jaxpr(lambda v, x, m=module: m.apply(v, x, train=False))(
            variables, jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
        )
        heavy = [e for e in program.eqns if e.primitive.name in ("conv_general_dilated", "dot_general")]
        assert len(heavy) >= 5
        assert {e.outvars[0].aval.dtype for e in heavy} == {jnp.dtype("bfloat16")}


# A plain NumPy reference: one tap of the kernel after the other, statistics by hand.


def convolve(x, layer, stride, padding=1):
    kernel = layer["kernel"]
    side = kernel.shape[0]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    out = (x.shape[1] - side) // stride + 1
    reach = stride * (out - 1) + 1
    result = sum(
        x[:, a : a + reach : stride, b : b + reach : stride] @ kernel[a, b] for a in range(side) for b in range(side)
    )
    return result + layer.get("bias", 0.0)


def convolve_up(x, layer):
    kernel = layer["kernel"]
    batch, height, width, _ = x.shape
    result = np.zeros((batch, 2 * height + 2, 2 * width + 2, kernel.shape[3]))
    for a in range(4):
        for b in range(4):
            result[:, a : a + 2 * height : 2, b : b + 2 * width : 2] += x @ kernel[a, b]
    return result[:, 1:-1, 1:-1] + layer.get("bias", 0.0)


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


class Reference:
    """Norm layers of one reference pass; collects the new running statistics."""

    def __init__(self, variables, kind, train):
        self.params = variables["params"]
        self.stats, self.kind, self.train, self.new = variables.get("batch_stats", {}), kind, train, {}

    def norm(self, x, name):
        if name not in self.params:
            return x
        if self.kind == "instance":
            mean, var = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
        elif self.train:
            old, mean, var = self.stats[name], x.mean((0, 1, 2)), x.var((0, 1, 2))
            self.new[name] = {
                "mean": MOMENTUM * old["mean"] + (1 - MOMENTUM) * mean,
                "var": MOMENTUM * old["var"] + (1 - MOMENTUM) * var,
            }
        else:
            mean, var = self.stats[name]["mean"], self.stats[name]["var"]
        return (x - mean) / np.sqrt(var + EPSILON[self.kind]) * self.params[name]["scale"] + self.params[name]["bias"]

    def unet(self, image, config):
        params, x, skips = self.params, image, []
        levels = int(np.log2(config.image_size))
        for level in range(levels):
            x = leaky(self.norm(convolve(x, params[f"down{level}"], 2), f"down{level}_norm"))
            skips.append(x)
        for level in reversed(range(levels - 1)):
            x = np.maximum(self.norm(convolve_up(x, params[f"up{level}"]), f"up{level}_norm"), 0)
            if config.generator.skips:
                x = np.concatenate([x, skips[level]], -1)
        if config.generator.refine:
            x = np.concatenate([np.maximum(convolve_up(x, params["up_full"]), 0), image], -1)
            x = convolve(np.maximum(convolve(x, params["refine"], 1), 0), params["out"], 1)
        else:
            x = convolve_up(x, params["out"])
        x = np.tanh(x)
        if config.generator.residual:
            x = x + image[..., :3]
        if config.generator.output == "unit":
            return x / np.linalg.norm(x, axis=-1, keepdims=True)
        return np.clip(x, -1, 1)

    def patchgan(self, x, config):
        for level, stride in enumerate((2, 2, 2, 1)):
            x = leaky(self.norm(convolve(x, self.params[f"conv{level}"], stride), f"conv{level}_norm"))
        return convolve(x, self.params["logits"], 1)


def random_variables(module, size, channels, seed=0):
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path[-1:])
        noise = random.normal(size=leaf.shape)
        value = {"'scale'": 1 + 0.2 * noise, "'var'": np.exp(0.3 * noise)}.get(name.strip("[]"), 0.1 * noise)
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(module, size, channels)[0])


VARIANTS = [
    ("unet", {}),
    ("unet", {"generator.skips": False, "generator.normalisation": "instance"}),
    ("unet", {"generator.output": "tanh", "generator.normalisation": "none"}),
    ("unet", {"generator.refine": 5, "generator.residual": True}),
    ("patchgan", {}),
    ("patchgan", {"discriminator.normalisation": "instance"}),
    ("patchgan", {"discriminator.normalisation": "none"}),
]


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("network", "fields"), VARIANTS)
def test_networks_equal_a_plain_reference(network, fields, train):
    config = configured(**{"generator.width": 4, "discriminator.width": 4, **fields})
    build, room = {
        "unet": (models.build_generator, config.generator),
        "patchgan": (models.build_discriminator, config.discriminator),
    }[network]
    module = build(config)
    variables = random_variables(module, 32, 4)
    image = np.random.default_rng(1).normal(size=(3, 32, 32, 4)).astype(np.float32)
    output, updated = jax.jit(
        lambda v, x: module.apply(v, x, train=train, mutable=["batch_stats"]),
        compiler_options=FAST_COMPILATION,
    )(variables, image)
    double = jax.tree.map(np.float64, variables)
    reference = Reference(double, room.normalisation, train)
    expected = getattr(reference, network)(image.astype(np.float64), config)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())
    if network == "unet" and config.generator.output == "unit":
        np.testing.assert_allclose(np.linalg.norm(output, axis=-1), 1.0, atol=1e-5)
    expected_stats = reference.new if train else double.get("batch_stats", {})
    if room.normalisation == "batch":
        assert len(expected_stats) == {"unet": 3 + 4, "patchgan": 3}[network]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), updated["batch_stats"], expected_stats
        )
    else:
        assert not updated


def test_one_logit_of_the_patchgan_sees_70_by_70_pixels():
    config = configured(**{"discriminator.width": 2})
    module = models.build_discriminator(config)
    variables = random_variables(module, 128, 3)
    image = jnp.asarray(np.random.default_rng(2).normal(size=(1, 128, 128, 3)), jnp.float32)
    gradient = jax.jit(jax.grad(lambda x: module.apply(variables, x, train=False)[0, 7, 6, 0]))(image)
    # Three layers of stride 2 and two of stride 1, padding 1 each: the window begins at 8 i - 23.
    expected = np.zeros((128, 128), bool)
    expected[8 * 7 - 23 : 8 * 7 - 23 + 70, 8 * 6 - 23 : 8 * 6 - 23 + 70] = True
    np.testing.assert_array_equal(np.any(gradient[0] != 0, axis=-1), expected)


def test_unknown_names_are_errors_that_list_the_known():
    config = configured(**{"generator.name": "vnet"})
    with pytest.raises(ValueError, match=r"config\.generator\.name = 'vnet'.*unet"):
        models.build_generator(config)
    config.discriminator.name = "judge"
    with pytest.raises(ValueError, match=r"config\.discriminator\.name = 'judge'.*patchgan"):
        models.build_discriminator(config)
    config.discriminator.name = "none"
    assert models.build_discriminator(config) is None
    with pytest.raises(ValueError, match=r"group.*batch or instance"):
        normalisation("group", jnp.float32, None, "norm")
