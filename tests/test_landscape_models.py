"""The landscape networks against NumPy and SciPy in float64: sizes, parameters, answers, batch statistics."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from inpaint_jax.models.landscapes import EncoderDecoder, PoolingUNet

NETWORKS = [PoolingUNet, EncoderDecoder]
FAST_COMPILATION = {"xla_backend_optimization_level": 0}
CHANNELS = 6
MOMENTUM, EPSILON = 0.9, 1e-5


def shapes(module, height=16, width=16):
    image = jax.ShapeDtypeStruct((2, height, width, CHANNELS), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)


def convolutions(*channels):
    """Parameters of 3x3 convolutions with biases, one behind the other."""
    return sum((9 * before + 1) * after for before, after in itertools.pairwise(channels))


@pytest.mark.parametrize(
    ("network", "total", "blocks"),
    [
        (
            PoolingUNet,
            2_662_659,
            {
                "enc1": convolutions(6, 64, 64),
                "enc2": convolutions(64, 128, 128),
                "enc3": convolutions(128, 256, 256),
                "bottleneck": convolutions(256, 256),
                "dec3": convolutions(512, 128, 128),
                "dec2": convolutions(256, 64, 64),
                "dec1": convolutions(128, 3),
            },
        ),
        (
            EncoderDecoder,
            744_387,
            {
                "enc1": convolutions(6, 64),
                "enc2": convolutions(64, 128),
                "enc3": convolutions(128, 256),
                "dec3": convolutions(256, 128),
                "dec2": convolutions(128, 64),
                "dec1": convolutions(64, 3),
                "enc1_norm": 2 * 64,
                "enc2_norm": 2 * 128,
                "enc3_norm": 2 * 256,
                "dec3_norm": 2 * 128,
                "dec2_norm": 2 * 64,
            },
        ),
    ],
)
def test_parameters_are_the_published_ones_block_by_block(network, total, blocks):
    params = shapes(network())["params"]
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(block)) for name, block in params.items()}
    assert counts == blocks
    assert sum(counts.values()) == total
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def random_variables(module, seed=0):
    """Draws every array at random, kernels so that values keep their size, biases and statistics clearly off zero."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = random.normal(size=leaf.shape)
        name = path[-1].key
        if name == "kernel":
            noise *= np.sqrt(2 / np.prod(leaf.shape[:3]))
        else:
            noise = {"scale": 1 + 0.2 * noise, "var": np.exp(0.3 * noise)}.get(name, 0.2 * noise)
        return noise.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(module))


def picture(height, width, batch=2):
    random = np.random.default_rng(1)
    mask = random.random((batch, height, width, 1)) < 0.3
    image = random.random((batch, height, width, 3)) * ~mask
    return np.concatenate([mask.repeat(3, -1), image], -1).astype(np.float32)


# The reference: convolutions by SciPy, pooling and interpolation by hand, statistics by NumPy.


def convolve(x, layer):
    kernel = layer["kernel"]
    result = np.zeros((*x.shape[:3], kernel.shape[3])) + layer["bias"]
    for image, out in zip(x, result, strict=True):
        for feature in range(kernel.shape[3]):
            for channel in range(kernel.shape[2]):
                out[..., feature] += ndimage.correlate(
                    image[..., channel], kernel[..., channel, feature], mode="constant"
                )
    return result


def pool(x):
    blocks = [x[:, row::2, column::2] for row in range(2) for column in range(2)]
    return np.max(blocks, axis=0)


def double(x):
    # Pixel i covers [i, i + 1): output j sits at (j + 1/2) / 2 - 1/2, and SciPy repeats the border beyond.
    y, x_places = ((np.arange(2 * n) + 0.5) / 2 - 0.5 for n in x.shape[1:3])
    grid = np.meshgrid(y, x_places, indexing="ij")
    result = np.zeros((x.shape[0], len(y), len(x_places), x.shape[3]))
    for image, out in zip(x, result, strict=True):
        for channel in range(x.shape[3]):
            out[..., channel] = ndimage.map_coordinates(image[..., channel], grid, order=1, mode="nearest")
    return result


def relu(x):
    return np.maximum(x, 0)


def reference_unet(variables, x, train):
    params = variables["params"]

    def two(x, block):
        return relu(convolve(relu(convolve(x, params[block]["conv1"])), params[block]["conv2"]))

    first = two(x, "enc1")
    second = two(pool(first), "enc2")
    third = two(pool(second), "enc3")
    x = relu(convolve(pool(third), params["bottleneck"]))
    x = two(np.concatenate([double(x), third], -1), "dec3")
    x = two(np.concatenate([double(x), second], -1), "dec2")
    return np.tanh(convolve(np.concatenate([double(x), first], -1), params["dec1"])), {}


def reference_encoder_decoder(variables, x, train):
    params, old, new = variables["params"], variables["batch_stats"], {}

    def norm(x, name):
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            for key, value in (("mean", mean), ("var", var)):
                new.setdefault(name, {})[key] = MOMENTUM * old[name][key] + (1 - MOMENTUM) * value
        else:
            mean, var = old[name]["mean"], old[name]["var"]
        return (x - mean) / np.sqrt(var + EPSILON) * params[name]["scale"] + params[name]["bias"]

    for name in ("enc1", "enc2"):
        x = relu(norm(convolve(x, params[name]), f"{name}_norm"))
    x = norm(convolve(x, params["enc3"]), "enc3_norm")
    for name in ("dec3", "dec2"):
        x = relu(norm(convolve(x, params[name]), f"{name}_norm"))
    return convolve(x, params["dec1"]), new


REFERENCES = {PoolingUNet: reference_unet, EncoderDecoder: reference_encoder_decoder}


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("network", "height", "width"),
    [(PoolingUNet, 24, 40), (PoolingUNet, 8, 16), (EncoderDecoder, 13, 22), (EncoderDecoder, 1, 5)],
)
def test_answers_and_statistics_equal_a_plain_reference(network, height, width, train):
    module, image = network(width=3), picture(height, width)
    variables = random_variables(module)
    output, updated = jax.jit(
        lambda v, x: module.apply(v, x, train=train, mutable=["batch_stats"]), compiler_options=FAST_COMPILATION
    )(variables, image)
    double_precision = jax.tree.map(np.float64, variables)
    expected, new = REFERENCES[network](double_precision, image.astype(np.float64), train)
    assert (output.shape, output.dtype) == ((2, height, width, 3), jnp.float32)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())
    if network is EncoderDecoder:
        # Statistics move in training alone, and the answer is not held in any range.
        expected_stats = new if train else double_precision["batch_stats"]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), updated["batch_stats"], expected_stats
        )
        assert expected.min() < 0
        assert height == 1 or expected.max() > 1
    else:
        assert not updated
        assert np.abs(output).max() < 1


@pytest.mark.parametrize("network", NETWORKS)
def test_bfloat16_is_close_and_computes_every_convolution_in_bfloat16(network):
    image = picture(16, 24)
    module, lean = network(width=3), network(width=3, dtype=jnp.bfloat16)
    variables = random_variables(module)
    program = jax.make_jaxpr(lambda v, x: lean.apply(v, x, train=False))(variables, image)
    heavy = [e for e in program.eqns if e.primitive.name in ("conv_general_dilated", "dot_general")]
    assert len(heavy) >= 6
    assert {e.outvars[0].aval.dtype for e in heavy} == {jnp.dtype("bfloat16")}
    expected, _ = REFERENCES[network](jax.tree.map(np.float64, variables), image.astype(np.float64), False)
    output = jax.jit(lambda v, x: lean.apply(v, x, train=False), compiler_options=FAST_COMPILATION)(variables, image)
    assert output.dtype == jnp.float32
    assert np.abs(output - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_statistics_over_replicas_are_those_of_the_whole_batch(dtype):
    image = picture(8, 8, batch=4)
    whole, shared = EncoderDecoder(width=2, dtype=dtype), EncoderDecoder(width=2, dtype=dtype, axis_name="batch")
    variables = random_variables(whole)
    apply = lambda module: lambda x: module.apply(variables, x, train=True, mutable=["batch_stats"])  # noqa: E731
    fast = functools.partial(jax.jit, compiler_options=FAST_COMPILATION)
    expected, expected_stats = fast(apply(whole))(image)
    output, stats = fast(jax.vmap(apply(shared), axis_name="batch"))(image.reshape(2, 2, 8, 8, CHANNELS))
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05
    np.testing.assert_allclose(output.reshape(expected.shape), expected, rtol=tolerance, atol=tolerance)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b, rtol=tolerance, atol=tolerance), stats, expected_stats
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_new_weights_answer_near_zero_but_not_the_same_everywhere(network):
    """Kernels that are too small let the picture vanish on its way, too large ones answer beyond any picture."""
    module, image = network(width=8), picture(32, 32)

    def first_answer(key):
        variables = module.init(key, image, train=False)
        return module.apply(variables, image, train=True, mutable=["batch_stats"])[0]

    answers = jax.jit(jax.vmap(first_answer), compiler_options=FAST_COMPILATION)(jax.random.split(jax.random.key(0), 3))
    for answer in np.asarray(answers):
        assert 0.02 < answer.std() < 0.3
        assert np.abs(answer).max() < 1


@pytest.mark.parametrize(("height", "width"), [(20, 24), (24, 4), (17, 17)])
def test_sizes_that_cannot_be_halved_three_times_are_refused_with_the_mend(height, width):
    with pytest.raises(ValueError, match=rf"{height}x{width} pixels.*crop or pad.*multiples of 8"):
        shapes(PoolingUNet(width=2), height, width)
