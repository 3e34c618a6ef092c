"""Layers against plain lax, flax and NumPy: every formulation gives the same values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from inpaint_jax.models import convolutions, layers, strips, winograd
from inpaint_jax.models.convolutions import convolution, transposed_convolution

# Largest error, as a share of the largest value of the tensor compared.
TOLERANCE = {jnp.float32: 2e-5, jnp.bfloat16: 4e-2}
# Those of the convolution that halves an image, and of the transposed one that doubles it.
HALVING = [name for name in convolutions.FORMULATIONS if name != "winograd"]


def reference_convolution(x, kernel, stride, padding, dilation=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride,) * 2,
        [(padding,) * 2] * 2,
        rhs_dilation=(dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def reference_transposed(x, kernel):
    # The gradient of the 4x4 stride-2 convolution with respect to its input is the transposed convolution.
    batch, height, width, _ = x.shape
    image = jnp.zeros((batch, 2 * height, 2 * width, kernel.shape[3]), x.dtype)
    swapped = kernel.transpose(0, 1, 3, 2)
    return jax.vjp(lambda image: reference_convolution(image, swapped, 2, 1), image)[1](x)[0]


def values_and_gradients(function, x, kernel):
    def weighted(x, kernel):
        y = function(x, kernel)
        weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return jnp.sum(y.astype(jnp.float32) * weights), y

    (_, y), gradients = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True))(x, kernel)
    return y, *gradients


def assert_same(actual, expected, dtype):
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        assert ours.shape == theirs.shape
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE[dtype] * max(1e-3, np.abs(theirs).max()))


def draw(seed, shape, dtype):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("formulation", HALVING)
def test_halving_convolution_equals_native(formulation, dtype):
    x, kernel = draw(0, (2, 8, 6, 5), dtype), draw(1, (4, 4, 5, 7), dtype)
    actual = values_and_gradients(lambda x, k: convolution(x, k, 2, 1, formulation=formulation), x, kernel)
    assert_same(actual, values_and_gradients(lambda x, k: reference_convolution(x, k, 2, 1), x, kernel), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("formulation", HALVING)
def test_transposed_convolution_equals_gradient_of_convolution(formulation, dtype):
    x, kernel = draw(2, (2, 4, 3, 5), dtype), draw(3, (4, 4, 5, 7), dtype)
    actual = values_and_gradients(lambda x, k: transposed_convolution(x, k, formulation), x, kernel)
    assert_same(actual, values_and_gradients(reference_transposed, x, kernel), dtype)


def test_transposed_convolution_follows_its_formula():
    x, kernel = np.random.default_rng(4).normal(size=(1, 2, 3, 2)), np.random.default_rng(5).normal(size=(4, 4, 2, 3))
    expected = np.zeros((1, 4 + 2, 6 + 2, 3))
    for i in range(2):
        for j in range(3):
            for a in range(4):
                for b in range(4):
                    expected[0, 2 * i + a, 2 * j + b] += x[0, i, j] @ kernel[a, b]
    actual = transposed_convolution(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    np.testing.assert_allclose(actual, expected[:, 1:-1, 1:-1], atol=1e-5)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel_size=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_any_convolution_equals_native(size, kernel_size, stride, padding, dilation, channels):
    missing = dilation * (kernel_size - 1) + 1 - 2 * padding
    x = draw(6, (2, max(size[0], missing), max(size[1], missing), channels[0]), jnp.float32)
    kernel = draw(7, (kernel_size, kernel_size, *channels), jnp.float32)
    expected = values_and_gradients(lambda x, k: reference_convolution(x, k, stride, padding, dilation), x, kernel)
    for formulation in ("auto", "matrix"):
        actual = values_and_gradients(
            lambda x, k, formulation=formulation: convolution(x, k, stride, padding, dilation, formulation),
            x,
            kernel,
        )
        assert_same(actual, expected, jnp.float32)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(size=st.tuples(st.integers(1, 6), st.integers(1, 6)), channels=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_halving_and_doubling_at_any_even_size(size, channels):
    small, large = (
        draw(8, (2, *size, channels[0]), jnp.float32),
        draw(9, (2, 2 * size[0], 2 * size[1], channels[0]), jnp.float32),
    )
    kernel = draw(10, (4, 4, *channels), jnp.float32)
    down = values_and_gradients(lambda x, k: convolution(x, k, 2, 1, formulation="two_by_two"), large, kernel)
    assert_same(down, values_and_gradients(lambda x, k: reference_convolution(x, k, 2, 1), large, kernel), jnp.float32)
    expected = values_and_gradients(reference_transposed, small, kernel)
    for formulation in ("two_by_two", "matrix"):
        up = values_and_gradients(
            lambda x, k, formulation=formulation: transposed_convolution(x, k, formulation), small, kernel
        )
        assert_same(up, expected, jnp.float32)


@pytest.mark.parametrize(
    ("shape", "features"),
    [
        ((2, 6, 8, 3), 6),
        ((2, 16, 16, 96), 64),
        ((2, 2, 4, 1), 1),
        ((6, 32, 64, 64), 64),  # two strips of three maps
        ((2, 96, 128, 64), 65),  # two strips of each map
    ],
)
def test_winograd_equals_native(shape, features):
    """Within 1e-5 of each array's largest value."""
    x, kernel = draw(6, shape, jnp.float32), draw(7, (3, 3, shape[3], features), jnp.float32)
    actual = values_and_gradients(lambda x, k: convolution(x, k, 1, 1, formulation="winograd"), x, kernel)
    expected = values_and_gradients(lambda x, k: reference_convolution(x, k, 1, 1), x, kernel)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((6, 4, 4, 2), (2, 4)),  # strips of two maps
        ((5, 4, 4, 2), (1, 4)),  # five is no multiple of two: strips of one map
        ((13, 2, 4, 2), (13, 2)),  # no divisor near four: one strip
        ((3, 12, 8, 2), (1, 4)),  # three strips of each map
        ((2, 14, 8, 2), (1, 2)),  # seven strips of each map
        ((2, 4, 64, 2), (1, 2)),  # rows that are longer than a strip
    ],
)
def test_strips_of_any_shape_make_the_whole(monkeypatch, shape, sizes):
    monkeypatch.setattr(strips, "POSITIONS", 32)
    monkeypatch.setattr(winograd, "CHANNELS", 1)
    x, kernel = draw(11, shape, jnp.float32), draw(12, (3, 3, shape[3], 3), jnp.float32)
    assert strips._sizes(x, winograd.TILE[0]) == sizes
    expected = values_and_gradients(lambda x, k: reference_convolution(x, k, 1, 1), x, kernel)
    # As in a step with `config.remat`.
    again = jax.checkpoint(lambda x, k: convolution(x, k, 1, 1, formulation="winograd"))
    for ours, theirs in zip(values_and_gradients(again, x, kernel), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(("height", "width", "channels", "features"), [(8, 4, 3, 6), (16, 20, 40, 24), (4, 4, 1, 1)])
def test_winograd_of_4x4_kernels_equals_native(height, width, channels, features):
    """Within 1e-5 of each array's largest value."""
    x, kernel = draw(6, (2, height, width, channels), jnp.float32), draw(7, (4, 4, channels, features), jnp.float32)
    actual = values_and_gradients(lambda x, k: convolution(x, k, 2, 1, formulation="winograd"), x, kernel)
    expected = values_and_gradients(lambda x, k: reference_convolution(x, k, 2, 1), x, kernel)
    small = x[:, : height // 2, : width // 2]
    up = values_and_gradients(lambda x, k: transposed_convolution(x, k, "winograd"), small, kernel)
    doubled = values_and_gradients(reference_transposed, small, kernel)
    even = values_and_gradients(lambda x, k: convolution(x, k, 1, 1, formulation="winograd"), x[:, 1:], kernel)
    plain = values_and_gradients(lambda x, k: reference_convolution(x, k, 1, 1), x[:, 1:], kernel)
    for ours, theirs in zip((*actual, *up, *even), (*expected, *doubled, *plain), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("batch", "size", "channels", "dtype", "formulations"),
    [
        (8, 64, 64, jnp.float32, ("winograd", "winograd")),
        (8, 64, 64, jnp.bfloat16, ("two_by_two", "two_by_two")),
        (8, 62, 64, jnp.float32, ("two_by_two", "winograd")),
        (8, 64, 3, jnp.float32, ("winograd", "winograd")),
        (1, 4, 512, jnp.float32, ("matrix", "matrix")),
        (64, 14, 3, jnp.float32, ("matrix", "winograd")),
        (64, 14, 3, jnp.bfloat16, ("matrix", "two_by_two")),
    ],
)
def test_strided_formulation_on_cpus(batch, size, channels, dtype, formulations):
    x, kernel = jnp.zeros((batch, size, size, channels), dtype), jnp.zeros((4, 4, channels, 64), dtype)
    down, up = convolutions.choose_convolution(x, kernel, 2, 1, 1), convolutions.choose_transposed(x, kernel)
    assert (down, up) == formulations


@pytest.mark.parametrize(
    ("batch", "size", "channels", "dtype", "formulation"),
    [
        (2, 16, 64, jnp.float32, "winograd"),
        (2, 16, 64, jnp.bfloat16, "plain"),
        (2, 18, 64, jnp.float32, "plain"),
        (2, 16, 3, jnp.float32, "plain"),
        (1, 4, 64, jnp.float32, "plain"),
    ],
)
def test_winograd_is_taken_on_cpus_where_it_pays(batch, size, channels, dtype, formulation):
    x, kernel = jnp.zeros((batch, size, size, channels), dtype), jnp.zeros((3, 3, channels, 64), dtype)
    assert convolutions.choose_convolution(x, kernel, 1, 1, 1) == formulation


def test_impossible_formulations_are_named():
    with pytest.raises(ValueError, match=r"'winograd' needs float32, .* 3x3 kernel, .* got kernel 3, .* image 6x6"):
        convolution(jnp.zeros((1, 6, 6, 1)), jnp.zeros((3, 3, 1, 1)), 1, 1, formulation="winograd")
    image, kernel = jnp.zeros((1, 7, 8, 1)), jnp.zeros((4, 4, 1, 1))
    with pytest.raises(ValueError, match="'two_by_two' needs"):
        convolution(image, kernel, 2, 1, formulation="two_by_two")
    with pytest.raises(ValueError, match="unknown formulation 'quick'"):
        convolution(image, kernel, 2, 1, formulation="quick")
    with pytest.raises(ValueError, match="unknown formulation 'quick'"):
        transposed_convolution(image, kernel, "quick")
    with pytest.raises(ValueError, match="needs float32 and an even height and width, got image 7x8"):
        transposed_convolution(image, kernel, "winograd")
    with pytest.raises(ValueError, match="4x4 kernel, got 3x3"):
        transposed_convolution(image, kernel[:3, :3])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parameters_are_float32_in_the_standard_layout(dtype):
    x = jnp.ones((2, 8, 8, 3))
    for layer, size, kernel in (
        (layers.Conv(6, 4, stride=2, padding=1, dtype=dtype), 4, (4, 4, 3, 6)),
        (layers.Conv(6, 3, padding=2, dilation=2, dtype=dtype), 8, (3, 3, 3, 6)),
        (layers.ConvTranspose(6, dtype=dtype), 16, (4, 4, 3, 6)),
    ):
        y, variables = layer.init_with_output(jax.random.key(0), x)
        assert jax.tree.map(lambda p: (p.shape, p.dtype), variables) == {
            "params": {"kernel": (kernel, jnp.float32), "bias": ((6,), jnp.float32)}
        }
        assert y.shape == (2, size, size, 6)
        assert y.dtype == dtype


def test_layers_equal_flax_layers_on_the_same_parameters():
    x = draw(11, (2, 8, 8, 3), jnp.float32)
    ours = layers.Conv(6, 4, stride=2, padding=1)
    params = {"kernel": draw(12, (4, 4, 3, 6), jnp.float32), "bias": draw(13, (6,), jnp.float32)}
    theirs = nn.Conv(6, (4, 4), strides=2, padding=1)
    np.testing.assert_allclose(ours.apply({"params": params}, x), theirs.apply({"params": params}, x), atol=1e-4)
    ours = layers.ConvTranspose(6)
    theirs = nn.ConvTranspose(6, (4, 4), strides=(2, 2), padding="SAME")
    flipped = {"kernel": params["kernel"][::-1, ::-1], "bias": params["bias"]}
    np.testing.assert_allclose(ours.apply({"params": params}, x), theirs.apply({"params": flipped}, x), atol=1e-4)


def test_initial_kernels_and_scales_are_those_of_pix2pix():
    kernel = layers.Conv(64, 4, padding=1, use_bias=False).init(jax.random.key(0), jnp.ones((1, 4, 4, 32)))["params"]
    assert set(kernel) == {"kernel"}
    assert abs(float(kernel["kernel"].mean())) < 1e-3
    assert float(kernel["kernel"].std()) == pytest.approx(0.02, rel=0.05)
    scale = layers.BatchNorm().init(jax.random.key(0), jnp.ones((2, 4096)), False)["params"]["scale"]
    assert float(scale.mean()) == pytest.approx(1.0, abs=2e-3)
    assert float(scale.std()) == pytest.approx(0.02, rel=0.1)


def batch_norm_case(channels=5):
    x = 3.0 + 2.0 * draw(14, (4, 6, 6, channels), jnp.float32)
    params = {"scale": 1.0 + 0.1 * draw(15, (channels,), jnp.float32), "bias": draw(16, (channels,), jnp.float32)}
    stats = {"mean": draw(17, (channels,), jnp.float32), "var": 1.0 + jnp.square(draw(18, (channels,), jnp.float32))}
    return x, {"params": params, "batch_stats": stats}


def run_norm(layer, variables, x, use_running_average):
    def weighted(params, x):
        variables_now = {"params": params, "batch_stats": variables["batch_stats"]}
        y, updated = layer.apply(variables_now, x, use_running_average=use_running_average, mutable=["batch_stats"])
        weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return jnp.sum(y.astype(jnp.float32) * weights), (y, updated["batch_stats"])

    (_, output), gradients = jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True)(variables["params"], x)
    return output, gradients


@pytest.mark.parametrize("use_running_average", [False, True])
def test_batch_norm_equals_flax(use_running_average):
    x, variables = batch_norm_case()
    ours = run_norm(layers.BatchNorm(), variables, x, use_running_average)
    theirs = run_norm(nn.BatchNorm(momentum=0.9, epsilon=1e-5), variables, x, use_running_average)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), ours, theirs)


def test_batch_norm_in_bfloat16_stays_near_float32():
    x, variables = batch_norm_case()
    (half, half_stats), half_gradients = run_norm(layers.BatchNorm(dtype=jnp.bfloat16), variables, x, False)
    (full, full_stats), full_gradients = run_norm(layers.BatchNorm(), variables, x, False)
    assert half.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((half_stats, half_gradients))} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(half.astype(jnp.float32), full, atol=0.05)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.01), half_stats, full_stats)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=0.03 * float(jnp.abs(b).max())),
        half_gradients,
        full_gradients,
    )


def test_bfloat16_gradients_sum_over_many_pixels_without_drift():
    # Summed in bfloat16 these are wrong by tens of per cent.
    x, weights = (
        0.5 + draw(21, (8, 64, 64, 4), jnp.bfloat16).astype(jnp.float32),
        0.5 + draw(22, (8, 64, 64, 4), jnp.float32),
    )

    def gradients(layer, *arguments):
        variables = layer.init(jax.random.key(0), x, *arguments)

        def loss(params, x, weights):
            y, _ = layer.apply({**variables, "params": params}, x, *arguments, mutable=["batch_stats"])
            return jnp.sum(y.astype(jnp.float32) * weights)

        params, image = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables["params"], x, weights)
        return {"image": image, "scale": params.get("scale", 0.0), "bias": params["bias"]}

    for layer, arguments in ((layers.BatchNorm, (False,)), (lambda dtype: layers.Conv(4, 1, dtype=dtype), ())):
        half, full = gradients(layer(dtype=jnp.bfloat16), *arguments), gradients(layer(dtype=jnp.float32), *arguments)
        for name, value in full.items():
            assert float(jnp.linalg.norm(half[name] - value)) <= 0.02 * float(jnp.linalg.norm(value)), name


def test_batch_norm_synchronised_over_replicas_equals_the_whole_batch():
    x, variables = batch_norm_case()
    whole = run_norm(layers.BatchNorm(), variables, x, False)
    layer = layers.BatchNorm(axis_name="batch")

    def loss(params, replicas, weights):
        def replica(x):
            now = {"params": params, "batch_stats": variables["batch_stats"]}
            return layer.apply(now, x, use_running_average=False, mutable=["batch_stats"])

        y, updated = jax.vmap(replica, axis_name="batch")(replicas)
        return jnp.sum(y * weights), (y, updated["batch_stats"])

    weights = jnp.cos(jnp.arange(x.size, dtype=jnp.float32))
    replicas = x.reshape(2, 2, *x.shape[1:])
    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, (y, stats)), gradients = gradient(variables["params"], replicas, weights.reshape(replicas.shape))
    for one in range(2):
        jax.tree.map(
            lambda a, b, one=one: np.testing.assert_allclose(a[one], b, rtol=1e-5, atol=1e-5), stats, whole[0][1]
        )
    np.testing.assert_allclose(y.reshape(x.shape), whole[0][0], atol=1e-5)
    np.testing.assert_allclose(gradients[1].reshape(x.shape), whole[1][1], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradients[0], whole[1][0])


def test_batch_norm_keeps_a_small_variance_beside_a_large_mean():
    noise = np.random.default_rng(19).normal(size=(64, 8, 8, 1))
    x = jnp.asarray(2000.0 + 0.01 * noise, jnp.float32)
    layer = layers.BatchNorm(momentum=0.0, scale_init=nn.initializers.ones)
    variables = {
        "params": {"scale": jnp.ones(1), "bias": jnp.zeros(1)},
        "batch_stats": {"mean": jnp.full(1, 2000.0), "var": jnp.ones(1)},
    }
    _, updated = layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    assert float(updated["batch_stats"]["var"][0]) == pytest.approx(np.asarray(x, np.float64).var(), rel=1e-2)


def test_instance_norm_gives_every_picture_zero_mean_and_unit_variance():
    x = 5.0 + draw(20, (3, 8, 8, 4), jnp.float32) * jnp.arange(1, 4)[:, None, None, None]
    layer = layers.InstanceNorm(scale_init=nn.initializers.ones)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    assert set(variables) == {"params"}
    np.testing.assert_allclose(y.mean((1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(y.var((1, 2)), 1.0, atol=1e-3)


def test_normalisation_by_name():
    assert isinstance(layers.normalisation("batch", jnp.float32, "batch", "norm"), layers.BatchNorm)
    assert isinstance(layers.normalisation("instance", jnp.float32, None, "norm"), layers.InstanceNorm)
    with pytest.raises(ValueError, match="unknown normalisation 'group'"):
        layers.normalisation("group", jnp.float32, None, "norm")


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3))
def test_unit_normalise_keeps_direction_and_gives_unit_length(vector):
    x = np.asarray(vector, np.float32)
    length = np.linalg.norm(x.astype(np.float64))
    y = layers.unit_normalise(jnp.asarray(x))
    if length > 1e-5:
        np.testing.assert_allclose(y, x / length, atol=1e-5)
    assert float(jnp.linalg.norm(y)) <= 1.0 + 1e-5


def test_unit_normalise_at_zero_and_in_bfloat16():
    gradient = jax.grad(lambda x: layers.unit_normalise(x)[..., 0].sum())(jnp.zeros((2, 3)))
    assert bool(jnp.isfinite(gradient).all())
    np.testing.assert_array_equal(layers.unit_normalise(jnp.zeros((2, 3))), 0.0)
    y = layers.unit_normalise(jnp.asarray([[0.3, -0.4, 1.2]], jnp.bfloat16))
    assert y.dtype == jnp.float32
    assert float(jnp.linalg.norm(y)) == pytest.approx(1.0, abs=1e-5)
