"""The attention U-Net and its discriminator against SciPy in float64, and against the published parameter counts."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import zoom
from scipy.signal import correlate
from scipy.special import softmax
from skimage.measure import block_reduce

from inpaint_jax.models.attention_unet import AttentionUNet, SelfAttention
from inpaint_jax.models.small_patch import SmallPatchDiscriminator

FAST_COMPILATION = {"xla_backend_optimization_level": 0}
PUBLISHED = {
    "enc1": 39_296,
    "enc2": 221_440,
    "enc3": 885_248,
    "attention": 82_241,
    "bottleneck": 1_180_160,
    "dec3": 1_769_984,
    "dec2": 590_080,
    "dec1": 112_387,
}


def shapes(module, shape, **options):
    """Returns the shapes of the variables and of the output for an input of this shape; nothing is compiled."""
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, **options), image)
    output, _ = jax.eval_shape(lambda v, x: module.apply(v, x, mutable=["batch_stats"], **options), variables, image)
    return variables, output


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def random_variables(module, shape, seed=0, **options):
    """Draws every variable at random, kernels such that signals keep their scale; gamma is 0.7, never 0."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        name, noise = path[-1].key, random.normal(size=leaf.shape)
        scale = 1.4 / np.sqrt(np.prod(leaf.shape[:-1]))
        values = {"kernel": scale * noise, "scale": 1 + 0.2 * noise, "var": np.exp(0.3 * noise), "gamma": 0.7}
        return np.asarray(values.get(name, 0.2 * noise), np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(module, shape, **options)[0])


def apply(module, variables, x, **options):
    program = jax.jit(lambda v, x: module.apply(v, x, **options), compiler_options=FAST_COMPILATION)
    return program(variables, x)


def double(tree):
    return jax.tree.map(np.float64, tree)


def random_images(shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# The reference: one image and one channel at a time, by SciPy and scikit-image.


def convolve(x, layer, stride=1, padding=1):
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    maps = [
        [correlate(image, kernel, mode="valid")[..., 0] for kernel in np.moveaxis(layer["kernel"], -1, 0)]
        for image in padded
    ]
    return np.moveaxis(np.array(maps), 1, -1)[:, ::stride, ::stride] + layer["bias"]


def leaky(x):
    return np.maximum(x, 0.2 * x)


def attend(x, params):
    query, key, value = (convolve(x, params[name], padding=0) for name in ("query", "key", "value"))
    result = x.copy()
    for image, row, column in np.ndindex(x.shape[:3]):
        weights = softmax(key[image] @ query[image, row, column])
        result[image, row, column] += params["gamma"] * np.tensordot(weights, value[image], axes=2)
    return result


def reference_generator(x, params):
    def block(x, name, draws=False):
        x = leaky(convolve(x, params[name]["conv0"]))
        x = convolve(x, params[name]["conv1"])
        return x if draws else leaky(x)

    def pool(x):
        return block_reduce(x, (1, 2, 2, 1), np.max)

    def join(x, skip):
        return np.concatenate([zoom(x, (1, 2, 2, 1), order=1), skip], axis=-1)

    enc1 = block(x, "enc1")
    enc2 = block(pool(enc1), "enc2")
    enc3 = block(pool(enc2), "enc3")
    x = block(attend(pool(enc3), params["attention"]), "bottleneck")
    x = block(join(x, enc3), "dec3")
    x = block(join(x, enc2), "dec2")
    return np.tanh(block(join(x, enc1), "dec1", draws=True))


def reference_discriminator(x, variables, norm, train):
    params = variables["params"]
    x = convolve(leaky(convolve(x, params["conv0"], stride=2)), params["conv1"], stride=2)
    if norm != "none":
        axes = (0, 1, 2) if norm == "batch" else (1, 2)
        mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        if norm == "batch" and not train:
            mean, var = (variables["batch_stats"]["conv1_norm"][name] for name in ("mean", "var"))
        x = (x - mean) / np.sqrt(var + 1e-5) * params["conv1_norm"]["scale"] + params["conv1_norm"]["bias"]
    return convolve(leaky(x), params["logits"])


def test_generator_has_the_published_parameters():
    params = shapes(AttentionUNet(), (1, 200, 200, 4), train=False)[0]["params"]
    assert {name: count(block) for name, block in params.items()} == PUBLISHED
    assert count(params) == 4_880_836
    assert params["attention"]["gamma"].shape == ()


def test_attention_alone_has_the_published_parameters():
    assert count(shapes(SelfAttention(), (1, 5, 7, 256))[0]) == 82_241


def test_discriminator_has_the_published_parameters():
    variables, logits = shapes(SmallPatchDiscriminator(), (2, 200, 200, 3), train=False)
    assert count(variables["params"]) == 35_553
    assert logits.shape == (2, 49, 49, 1)


@settings(deadline=None, max_examples=8)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    features=st.integers(1, 9),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_any_multiple_of_eight_gives_a_float32_picture_of_that_size(height, width, features, dtype):
    module = AttentionUNet(width=features, dtype=jnp.dtype(dtype))
    variables, picture = shapes(module, (2, 8 * height, 8 * width, 4), train=True)
    assert (picture.shape, picture.dtype) == ((2, 8 * height, 8 * width, 3), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(("height", "width"), [(12, 16), (16, 20), (201, 200)])
def test_other_sizes_are_refused_with_the_mend(height, width):
    with pytest.raises(ValueError, match=rf"multiples of 8, got {height}x{width}; pad, crop or resize"):
        shapes(AttentionUNet(width=2), (1, height, width, 4), train=False)


def test_the_discriminator_refuses_pictures_that_leave_no_logit():
    assert shapes(SmallPatchDiscriminator(width=2), (1, 8, 11, 3), train=False)[1].shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"at least 8x8 pixels, got 9x7; use a larger size"):
        shapes(SmallPatchDiscriminator(width=2), (1, 9, 7, 3), train=False)


def test_attention_equals_the_reference():
    module, x = SelfAttention(), random_images((2, 3, 5, 24))
    variables = random_variables(module, x.shape)
    expected = attend(x.astype(np.float64), double(variables["params"]))
    # The logits are of a size at which their scale matters, and the attention is a good part of the answer.
    assert np.abs(expected - x).mean() > 0.2
    np.testing.assert_allclose(apply(module, variables, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(16, 24), (24, 16)])
def test_generator_equals_the_reference(height, width):
    module, x = AttentionUNet(width=4), random_images((2, height, width, 4))
    variables = random_variables(module, x.shape, train=False)
    expected = reference_generator(x.astype(np.float64), double(variables["params"]))
    assert 0.2 < np.abs(expected).mean() < 0.8
    np.testing.assert_allclose(apply(module, variables, x, train=False), expected, rtol=1e-4, atol=1e-5)
    added = np.clip(expected + x[..., :3], -1, 1)
    assert 0.2 < (np.abs(added) < 1).mean() < 0.9, "some of it is clipped, some is not"
    residual = AttentionUNet(width=4, residual=True)
    np.testing.assert_allclose(apply(residual, variables, x, train=False), added, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "train"), [("batch", True), ("batch", False), ("instance", True), ("none", True)], ids=str
)
def test_discriminator_equals_the_reference(norm, train):
    module, x = SmallPatchDiscriminator(width=4, norm=norm), random_images((3, 16, 28, 3))
    variables = random_variables(module, x.shape, train=train)
    logits, _ = apply(module, variables, x, train=train, mutable=["batch_stats"])
    expected = reference_discriminator(x.astype(np.float64), double(variables), norm, train)
    assert logits.shape == (3, 3, 6, 1)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "channels"), [(AttentionUNet, 4), (SmallPatchDiscriminator, 3)], ids=["generator", "discriminator"]
)
def test_bfloat16_gives_nearly_the_same_float32_answer(build, channels):
    x = random_images((2, 16, 24, channels))
    variables = random_variables(build(width=8), x.shape, train=False)
    exact, rounded = (
        apply(build(width=8, dtype=jnp.dtype(d)), variables, x, train=False) for d in ("float32", "bfloat16")
    )
    assert rounded.dtype == exact.dtype == jnp.float32
    error = np.abs(rounded - exact)
    assert 1e-4 < error.mean() < 0.02 * np.abs(exact).mean()


@pytest.fixture(scope="module")
def new_parameters():
    """The parameters of a new generator of width 8."""
    image = np.zeros((1, 16, 24, 4), np.float32)
    initialise = jax.jit(
        lambda key: AttentionUNet(width=8).init(key, image, train=True), compiler_options=FAST_COMPILATION
    )
    return initialise(jax.random.key(0))["params"]


def test_a_new_attention_changes_nothing(new_parameters):
    x = random_images((1, 2, 3, 32))
    np.testing.assert_array_equal(apply(SelfAttention(), {"params": new_parameters["attention"]}, x), x)


def test_signals_keep_their_scale_in_a_new_network(new_parameters):
    x, module = random_images((2, 16, 24, 4)), AttentionUNet(width=8)
    picture, kept = apply(module, {"params": new_parameters}, x, train=False, capture_intermediates=True)
    blocks = {name: np.asarray(kept["intermediates"][name]["__call__"][0]) for name in PUBLISHED}
    sizes = {name: np.sqrt(np.mean(np.square(block))) for name, block in blocks.items()}
    assert all(0.2 < size < 5 for name, size in sizes.items() if name != "dec1"), sizes
    assert 0.01 < np.abs(picture).max() < 0.9


def test_gradients_reach_every_parameter_of_a_new_network(new_parameters):
    x, target = random_images((1, 16, 24, 4)), random_images((1, 16, 24, 3), seed=2)

    def loss(params):
        return jnp.mean(jnp.abs(AttentionUNet(width=8).apply({"params": params}, x, train=True) - target))

    # With gamma at 0 nothing reaches the attention's convolutions.
    params = new_parameters | {"attention": new_parameters["attention"] | {"gamma": jnp.float32(0.5)}}
    gradient = jax.jit(jax.grad(loss), compiler_options=FAST_COMPILATION)(params)
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    sizes = {"/".join(entry.key for entry in path): np.sqrt(np.mean(np.square(leaf))) for path, leaf in leaves}
    assert len(sizes) == 7 * 4 + 7
    # A bias of the keys adds the same to all logits of a query, which the softmax cancels.
    del sizes["attention/key/bias"]
    # Adam divides by the gradient's size plus 1e-8: far below that it hardly moves a parameter.
    assert not {name: size for name, size in sizes.items() if not size > 1e-7}


def test_the_discriminator_sees_22_by_22_pixels_with_one_logit():
    module, shape = SmallPatchDiscriminator(width=2), (1, 40, 48, 3)
    variables = random_variables(module, shape, train=False)
    logit = jax.grad(lambda x: module.apply(variables, x, train=False)[0, 4, 5, 0])
    gradient = jax.jit(logit, compiler_options=FAST_COMPILATION)(random_images(shape))
    expected = np.zeros(shape[1:3], bool)
    # Two layers of stride 2 and one of stride 1, padding 1 each: the window begins at 4 i - 7.
    for row, column in itertools.product(range(22), range(22)):
        expected[4 * 4 - 7 + row, 4 * 5 - 7 + column] = True
    np.testing.assert_array_equal(np.any(gradient[0] != 0, axis=-1), expected)
