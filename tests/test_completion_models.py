"""Completion network and its discriminator of two views: published parameter counts, and plain NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inpaint_jax.models.completion import CompletionNetwork
from inpaint_jax.models.local_global import LocalGlobalDiscriminator

FAST_COMPILATION = {"xla_backend_optimization_level": 0}
MOMENTUM, EPSILON = 0.9, 1e-5

# Name, kernel, stride (1/2 doubles), dilation, features at width 64: the published table.
COMPLETION_TABLE = [
    ("down0", 5, 1, 1, 64),
    ("down1", 3, 2, 1, 128),
    ("down2", 3, 1, 1, 128),
    ("down3", 3, 2, 1, 256),
    ("down4", 3, 1, 1, 256),
    ("down5", 3, 1, 1, 256),
    ("dilated2", 3, 1, 2, 256),
    ("dilated4", 3, 1, 4, 256),
    ("dilated8", 3, 1, 8, 256),
    ("dilated16", 3, 1, 16, 256),
    ("middle0", 3, 1, 1, 256),
    ("middle1", 3, 1, 1, 256),
    ("up0", 4, 0.5, 1, 128),
    ("up1", 3, 1, 1, 128),
    ("up2", 4, 0.5, 1, 64),
    ("up3", 3, 1, 1, 32),
    ("out", 3, 1, 1, 3),
]


def image_shape(height, width, channels, batch=2):
    return jax.ShapeDtypeStruct((batch, height, width, channels), jnp.float32)


def two_views(full, window, channels=3):
    return {"full": image_shape(full, full, channels), "window": image_shape(window, window, channels)}


def initial(module, seen):
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), seen)


def parameters(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("channels", "published"), [(3, 6_064_579), (4, 6_066_179)])
def test_the_completion_network_has_the_published_parameters(channels, published):
    params = initial(CompletionNetwork(), image_shape(256, 256, channels))["params"]
    assert parameters(params) == published
    before, expected = channels, {}
    for name, kernel, _, _, features in COMPLETION_TABLE:
        expected[name] = kernel**2 * before * features + features
        before = features
    assert {name: parameters(layer) for name, layer in params.items()} == expected


def test_norms_of_the_completion_network_take_the_place_of_biases():
    params = initial(CompletionNetwork(norm="batch"), image_shape(256, 256, 4))["params"]
    normalised = sum(features for *_, features in COMPLETION_TABLE[:-1])
    assert parameters(params) == 6_066_179 + normalised  # scale and bias instead of one bias
    assert [name for name, layer in params.items() if "kernel" in layer and "bias" in layer] == ["out"]


def test_the_discriminator_has_the_published_parameters():
    params = initial(LocalGlobalDiscriminator(), two_views(256, 128))["params"]
    assert parameters(params) == 45_056_769
    widths = {"full": [64, 128, 256, 512, 512, 512], "window": [64, 128, 256, 512, 512]}
    for view, tower in widths.items():
        convolutions = [params[view][f"conv{level}"]["kernel"].shape for level in range(len(tower))]
        assert convolutions == [(5, 5, *pair) for pair in zip([3, *tower[:-1]], tower, strict=True)]
        assert parameters(params[view]["dense"]) == 4 * 4 * 512 * 1024 + 1024
        assert len(params[view]) == len(tower) + 1
    assert parameters(params["logit"]) == 2 * 1024 + 1


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_norms_of_the_discriminator_spare_the_first_layer_of_each_tower(norm):
    params = initial(LocalGlobalDiscriminator(norm=norm), two_views(32, 16))["params"]
    for view, levels in (("full", 3), ("window", 2)):
        tower = params[view]
        assert {name for name in tower if name.endswith("_norm")} == {f"conv{i}_norm" for i in range(1, levels)}
        assert [name for name in tower if name.startswith("conv") and set(tower[name]) >= {"kernel", "bias"}] == [
            "conv0"
        ]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 20), (60, 36)])
def test_any_multiples_of_four_are_completed_to_float32(height, width, dtype):
    module, image = CompletionNetwork(width=4, dtype=dtype, norm="batch"), image_shape(height, width, 4)
    variables = initial(module, image)
    output = jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, image)
    assert (output.shape, output.dtype) == ((2, height, width, 3), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("full", "window"), [(8, 8), (64, 16), (512, 128)])
def test_any_powers_of_two_are_judged_in_float32(full, window, dtype):
    module, images = LocalGlobalDiscriminator(width=4, dtype=dtype, norm="batch"), two_views(full, window)
    variables = initial(module, images)
    logits = jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, images)
    assert (logits.shape, logits.dtype) == ((2, 1, 1, 1), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_bfloat16_computes_in_bfloat16():
    cases = (
        (CompletionNetwork(width=4, dtype=jnp.bfloat16), image_shape(16, 16, 4), 17),
        # All but the logit: the only number of an image would have three digits.
        (LocalGlobalDiscriminator(width=4, dtype=jnp.bfloat16), two_views(32, 16), 3 + 2 + 2),
    )
    for module, seen, expected in cases:
        program = jax.make_jaxpr(lambda v, x, m=module: m.apply(v, x, train=False))(initial(module, seen), seen)
        heavy = [e for e in program.eqns if e.primitive.name in ("conv_general_dilated", "dot_general")]
        assert sum(e.outvars[0].aval.dtype == jnp.bfloat16 for e in heavy) == expected


def test_refused_sizes_and_names():
    cases = [
        (CompletionNetwork(), image_shape(256, 250, 4), "256x250 pixels.*multiples of 4"),
        (CompletionNetwork(width=5), image_shape(8, 8, 4), "width is 5; use an even number"),
        (CompletionNetwork(output="clip"), image_shape(8, 8, 4), "'clip'.*linear or tanh"),
        (CompletionNetwork(norm="group"), image_shape(8, 8, 4), "'group'; use batch or instance"),
        (LocalGlobalDiscriminator(norm="group"), two_views(16, 16), "'group'; use batch or instance"),
    ]
    cases += [
        (LocalGlobalDiscriminator(), two_views(*sides), f"{view} image of {side}x{side} pixels.*power of two")
        for view, side, sides in (("full", 96, (96, 64)), ("window", 48, (64, 48)), ("window", 4, (64, 4)))
    ]
    oblong = {"full": image_shape(64, 32, 3), "window": image_shape(16, 16, 3)}
    for module, seen, message in [*cases, (LocalGlobalDiscriminator(), oblong, "64x32 pixels.*square")]:
        with pytest.raises(ValueError, match=message):
            initial(module, seen)


# A plain NumPy reference: one tap of the kernel after the other, statistics by hand.


def convolve(x, layer, stride, padding, dilation=1):
    kernel = layer["kernel"]
    size = kernel.shape[0]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((side - dilation * (size - 1) - 1) // stride + 1 for side in x.shape[1:3])
    result = np.zeros((x.shape[0], height, width, kernel.shape[3]))
    for a in range(size):
        for b in range(size):
            rows, columns = a * dilation + stride * np.arange(height), b * dilation + stride * np.arange(width)
            result += x[:, rows][:, :, columns] @ kernel[a, b]
    return result + layer.get("bias", 0.0)


def scatter(x, layer):
    """The 4x4 stride-2 transposed convolution by its definition: every pixel adds its kernel, shifted by two."""
    kernel = layer["kernel"]
    batch, height, width, _ = x.shape
    result = np.zeros((batch, 2 * height + 2, 2 * width + 2, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            result[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum("nc,abcf->nabf", x[:, i, j], kernel)
    return result[:, 1:-1, 1:-1] + layer.get("bias", 0.0)


def normalise(x, name, params, stats, kind, train):
    """Returns normalised values and new running statistics; the values alone where there is no such norm."""
    if name not in params:
        return x, {}
    axes = (0, 1, 2) if kind == "batch" else (1, 2)
    mean, var, new = x.mean(axes, keepdims=True), x.var(axes, keepdims=True), {}
    if kind == "batch":
        old = stats[name]
        if train:
            moments = {"mean": mean.ravel(), "var": var.ravel()}
            new = {name: {key: MOMENTUM * old[key] + (1 - MOMENTUM) * value for key, value in moments.items()}}
        else:
            mean, var, new = old["mean"], old["var"], {name: old}
    return (x - mean) / np.sqrt(var + EPSILON) * params[name]["scale"] + params[name]["bias"], new


def reference_completion(module, variables, x, train):
    params, stats, new = variables["params"], variables.get("batch_stats", {}), {}
    for name, kernel, stride, dilation, _ in COMPLETION_TABLE[:-1]:
        up = stride == 0.5
        x = scatter(x, params[name]) if up else convolve(x, params[name], stride, dilation * (kernel // 2), dilation)
        x, updated = normalise(x, f"{name}_norm", params, stats, module.norm, train)
        x, new = np.maximum(x, 0), new | updated
    x = convolve(x, params["out"], 1, 1)
    return (np.tanh(x) if module.output == "tanh" else x), new


def reference_discriminator(module, variables, images, train):
    params, new, seen = variables["params"], {}, []
    for view in ("full", "window"):
        tower, x, new[view] = params[view], images[view], {}
        stats = variables.get("batch_stats", {}).get(view, {})
        for level in range(int(np.log2(x.shape[1])) - 2):
            x = convolve(x, tower[f"conv{level}"], 2, 2)
            x, updated = normalise(x, f"conv{level}_norm", tower, stats, module.norm, train)
            x, new[view] = np.maximum(x, 0), new[view] | updated
        assert x.shape[1:3] == (4, 4)
        matrix = tower["dense"]["kernel"].reshape(-1, 16 * module.width)
        seen.append(np.maximum(x.reshape(len(x), -1) @ matrix + tower["dense"]["bias"], 0))
    logit = params["logit"]
    answer = np.concatenate(seen, -1) @ logit["kernel"].reshape(-1, 1) + logit["bias"]
    return answer[:, None, None, :], (new if module.norm == "batch" else {})


def random_variables(module, seen):
    """Weights that keep values near one through all layers, and nothing at zero that would hide a mistake."""
    random = np.random.default_rng(0)

    def draw(path, leaf):
        name, noise = path[-1].key, random.normal(size=leaf.shape)
        kernel = noise * np.sqrt(2 / np.prod(leaf.shape[:-1])) if name == "kernel" else 0.1 * noise
        value = {"scale": 1 + 0.2 * noise, "var": np.exp(0.3 * noise)}.get(name, kernel)
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, initial(module, seen))


def draw_like(seen):
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), seen)


def as_double(tree):
    return jax.tree.map(np.float64, tree)


def assert_equals_reference(module, seen, reference, train):
    variables, images = random_variables(module, seen), draw_like(seen)
    output, updated = jax.jit(
        lambda v, x: module.apply(v, x, train=train, mutable=["batch_stats"]),
        compiler_options=FAST_COMPILATION,
    )(variables, images)
    expected, expected_stats = reference(module, as_double(variables), as_double(images), train)
    assert output.shape == expected.shape
    assert expected.std() > 1e-3
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        updated.get("batch_stats", {}),
        expected_stats,
    )
    return variables.get("batch_stats", {}), updated.get("batch_stats", {})


def all_change(before, after):
    return all(not np.allclose(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


@pytest.mark.parametrize(
    ("fields", "train"),
    [
        ({}, False),
        ({"output": "tanh", "norm": "instance"}, True),
        ({"norm": "batch"}, False),
        ({"norm": "batch"}, True),
    ],
)
def test_the_completion_network_equals_a_plain_reference(fields, train):
    # A quarter of 24x72 is 6x18: the widest dilation, 16, meets values along one axis and only zeros along the other.
    module = CompletionNetwork(width=4, **fields)
    before, after = assert_equals_reference(module, image_shape(24, 72, 4), reference_completion, train)
    assert len(jax.tree.leaves(after)) == (2 * 16 if module.norm == "batch" else 0)
    assert not train or all_change(before, after)


@pytest.mark.parametrize(("norm", "train"), [("none", False), ("instance", True), ("batch", False), ("batch", True)])
def test_the_discriminator_equals_a_plain_reference(norm, train):
    module = LocalGlobalDiscriminator(width=3, norm=norm)
    before, after = assert_equals_reference(module, two_views(32, 16), reference_discriminator, train)
    assert len(jax.tree.leaves(after)) == (2 * (2 + 1) if norm == "batch" else 0)
    assert not train or all_change(before, after)


def test_first_answers_differ_from_image_to_image():
    # With kernels of a fixed small deviation they would be zero to six decimals.
    images = draw_like(image_shape(32, 32, 4))
    output, _ = jax.jit(
        lambda x: CompletionNetwork(width=16).init_with_output(jax.random.key(0), x, train=False),
        compiler_options=FAST_COMPILATION,
    )(images)
    assert 0.02 < float(jnp.std(output)) < 2.0
    assert float(jnp.std(output[0] - output[1])) > 0.01
