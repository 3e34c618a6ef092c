"""Figures of --describe: parameters of the real trees, and operations counted by hand."""

import json

import jax
import pytest

from configs import unet_cosine
from inpaint_jax import describe, state

KEYS = {
    "generator_parameters",
    "discriminator_parameters",
    "generator_gflops_per_image",
    "train_gflops_per_image",
}


def size_of(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_last_line_is_json_with_the_parameters_of_the_flagship(capsys):
    config = unet_cosine.get_config()
    describe.print_networks(config)
    printed = capsys.readouterr().out.splitlines()
    figures = json.loads(printed[-1])
    assert set(figures) == KEYS
    variables = jax.eval_shape(lambda: state.initial_variables(config))
    for network in ("generator", "discriminator"):
        assert figures[f"{network}_parameters"] == size_of(variables[network]["params"])
        assert f"{network}: {figures[f'{network}_parameters']:,} parameters" in printed
        for block, tree in variables[network]["params"].items():
            assert any(line.split() == [block, f"{size_of(tree):,}"] for line in printed), block


def test_operations_of_a_small_pair_by_hand(tiny_config):
    tiny_config.generator.update({"width": 4, "refine": 0, "skips": True})
    tiny_config.discriminator.width = 2
    # Multiply-adds of 4x4 kernels: at each output of a convolution, at each input of a transposed one.
    down = [(4, 4, 16), (4, 8, 8), (8, 16, 4), (16, 32, 2), (32, 32, 1)]
    up = [(32, 32, 1), (64, 16, 2), (32, 8, 4), (16, 4, 8), (8, 3, 16)]
    generator = sum(2 * 16 * before * after * side**2 for before, after, side in down + up)
    patchgan = [(3, 2, 16), (2, 4, 8), (4, 8, 4), (8, 16, 3), (16, 1, 2)]
    discriminator = sum(2 * 16 * before * after * side**2 for before, after, side in patchgan)
    figures = describe.network_figures(tiny_config)
    assert figures["generator_gflops_per_image"] == pytest.approx(generator / 1e9, abs=5e-5)
    expected = (3 * generator + 7 * discriminator) / 1e9
    assert figures["train_gflops_per_image"] == pytest.approx(expected, abs=5e-5)
    # The rounded figures of so small a pair say little: compare the counts themselves too.
    modules = describe.models
    assert describe.forward_gflops(modules.build_generator(tiny_config), (32, 32, 4)) == generator / 1e9
    assert describe.forward_gflops(modules.build_discriminator(tiny_config), (32, 32, 3)) == discriminator / 1e9


def test_without_a_discriminator_it_counts_the_generator_alone(tiny_config):
    tiny_config.discriminator.name = "none"
    figures = describe.network_figures(tiny_config)
    assert figures["discriminator_parameters"] == 0
    expected = 3 * figures["generator_gflops_per_image"]
    assert figures["train_gflops_per_image"] == pytest.approx(expected, abs=2e-4)


def test_operations_of_a_step_are_those_of_its_passes(tiny_config):
    shapes = describe.task.input_shapes(tiny_config)
    g = describe.forward_gflops(describe.models.build_generator(tiny_config), shapes["generator"])
    d = describe.forward_gflops(describe.models.build_discriminator(tiny_config), shapes["discriminator"])
    expected = {
        "joint": 3 * g + 7 * d,
        "generator": 3 * g + 2 * d,
        "reconstruction": 3 * g,
        "discriminator": g + 6 * d,
    }
    for kind, operations in expected.items():
        assert describe.step_gflops(tiny_config, kind) == pytest.approx(operations, rel=1e-9), kind
    held = describe.step_gflops(tiny_config, "joint", ("discriminator",))
    assert held == pytest.approx(3 * g + 3 * d, rel=1e-9)
    tiny_config.regime.order = "sequential"
    assert describe.step_gflops(tiny_config, "joint") == pytest.approx(4 * g + 8 * d, rel=1e-9)


def test_a_frozen_encoder_has_no_gradients_of_weights_and_none_at_all_without_a_layer_before_it(tiny_config):
    tiny_config.generator.update({"name": "vgg_unet", "output": "tanh", "refine": 0, "residual": False})
    tiny_config.vgg.update({"weights": "random", "width": 4})
    tiny_config.discriminator.name = "none"
    tiny_config.losses = type(tiny_config.losses)()
    for inputs, left_out in ((("masked", "mask"), 1), (("masked",), 2)):
        tiny_config.task.inputs = inputs
        vgg = describe.forward_gflops(describe.VGG16(4), (32, 32, 3), {"blocks": 5})
        both = describe.step_gflops(tiny_config, "generator")
        frozen = describe.step_gflops(tiny_config, "generator", ("generator/vgg",))
        assert both - frozen == pytest.approx(left_out * vgg, rel=1e-9), inputs


def test_attention_is_counted_beside_its_convolutions():
    layer, positions, channels = describe.SelfAttention(), 6 * 4, 16
    projections = positions * channels * (2 + 2 + channels)
    products = positions**2 * (2 + channels)
    assert describe.forward_gflops(layer, (6, 4, channels), {}) == 2 * (projections + products) / 1e9
