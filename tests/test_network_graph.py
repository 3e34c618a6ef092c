"""The graph of a network is what its forward pass does, and its picture shows it."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inpaint_jax import models, network_graph, network_picture, state, task


def generator_graph(config):
    return network_graph.block_graph(models.build_generator(config), task.input_shapes(config)["generator"])


def parameters(blocks):
    return sum(block["parameters"] for block in blocks.values())


def reached(blocks, edges, start):
    """The blocks that take the value of `start`, directly or through operations alone."""
    found = set()
    for target in (b for a, b in edges if a == start):
        found |= reached(blocks, edges, target) if blocks[target]["kind"] == "operation" else {target}
    return found


def test_blocks_of_the_flagship_have_their_shapes_and_classes(tiny_config):
    tiny_config.generator.update({"refine": 4, "residual": True})
    blocks, edges = generator_graph(tiny_config)
    shapes = {name: block["shape"] for name, block in blocks.items() if block["kind"] != "operation"}
    assert shapes == {
        "input": (32, 32, 4),
        **{f"down{n}": (16 >> n, 16 >> n, 8 * min(2**n, 8)) for n in range(5)},
        **{f"up{n}": (16 >> n, 16 >> n, 8 * 2**n) for n in range(4)},
        "up_full": (32, 32, 4),
        "refine": (32, 32, 4),
        "out": (32, 32, 3),
        "output": (32, 32, 3),
    }
    assert blocks["down0"]["kind"] == "Conv"  # the first layer is not normalised
    assert blocks["down1"]["kind"] == "Conv + BatchNorm"
    assert blocks["up3"]["kind"] == "ConvTranspose + BatchNorm"
    # The input is seen three times: at the beginning, by the last level, and where the answer is added to it.
    assert reached(blocks, edges, "input") == {"down0", "refine", "output"}


@pytest.mark.parametrize("skips", [True, False])
def test_encoder_levels_reach_the_decoder_at_their_resolution_only_by_skips(tiny_config, skips):
    tiny_config.generator.update({"skips": skips, "refine": 0, "residual": False})
    blocks, edges = generator_graph(tiny_config)
    for level in range(4):
        inner, outer = f"down{level + 1}", f"up{level - 1}" if level else "out"
        assert reached(blocks, edges, f"up{level}") == {outer}
        assert reached(blocks, edges, f"down{level}") == ({inner, outer} if skips else {inner})
        if skips:
            (meeting,) = {b for a, b in edges if a == f"up{level}"}
            assert blocks[meeting]["label"] == "concat"
            assert {a for a, b in edges if b == meeting} == {f"up{level}", f"down{level}"}
            assert blocks[meeting]["shape"][:2] == blocks[f"down{level}"]["shape"][:2]
    assert reached(blocks, edges, "down4") == {"up3"}
    assert any(block["kind"] == "operation" for block in blocks.values()) == skips


def test_parameters_of_the_blocks_are_those_of_the_network(tiny_config):
    shapes = jax.eval_shape(lambda: state.initial_variables(tiny_config))
    size = tiny_config.image_size
    discriminator = network_graph.block_graph(models.build_discriminator(tiny_config), (size, size, 3))
    for name, (blocks, _) in {"generator": generator_graph(tiny_config), "discriminator": discriminator}.items():
        tree = shapes[name]["params"]
        assert parameters(blocks) == sum(leaf.size for leaf in jax.tree.leaves(tree))
        own = {block: sum(leaf.size for leaf in jax.tree.leaves(leaves)) for block, leaves in tree.items()}
        for block, count in own.items():
            if not block.endswith("_norm"):
                assert blocks[block]["parameters"] == count + own.get(f"{block}_norm", 0)
    names = ["input", "conv0", "conv1", "conv2", "conv3", "logits", "output"]
    assert discriminator[1] == list(itertools.pairwise(names))


class Branch(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(self.features, (3, 3), strides=2, name="first")(x))
        return nn.Conv(4, (3, 3), strides=2, name="second")(x)


class TwoBranches(nn.Module):
    """Two branches, one of them rematerialised, meet in a dense layer; a parameter scales its answer."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        whole = Branch(3, name="whole")(x)
        part = nn.remat(Branch)(5, name="part")(x[:, 4:12, 4:12])
        joined = jnp.concatenate([whole.reshape(1, -1), part.reshape(1, -1)], axis=-1)
        scale = self.param("scale", nn.initializers.ones, (1,))
        return nn.Dense(1, name="logit")(joined) * scale + jnp.mean(x, (1, 2, 3))[:, None]


def test_two_branches_join_and_are_shown_in_detail_because_they_are_few():
    blocks, edges = network_graph.block_graph(TwoBranches(), (16, 16, 3))
    assert set(edges) == {
        ("input", "whole/first"),
        ("whole/first", "whole/second"),
        ("input", "part/first"),
        ("part/first", "part/second"),
        ("whole/second", "concat"),
        ("part/second", "concat"),
        ("concat", "logit"),
        ("logit", "mul"),
        ("scale", "mul"),
        ("mul", "add"),
        ("input", "add"),
        ("add", "output"),
    }
    assert blocks["whole/second"]["shape"] == (4, 4, 4)
    assert blocks["part/second"]["shape"] == (2, 2, 4)
    assert blocks["logit"] == {"label": "logit", "kind": "Dense", "shape": (1,), "parameters": 81}
    assert blocks["scale"]["kind"] == "parameter"
    assert blocks["whole/first"]["parameters"] == 9 * 3 * 3 + 3
    assert blocks["part/first"]["parameters"] == 9 * 3 * 5 + 5
    position = list(blocks).index
    assert all(position(source) < position(target) for source, target in edges)


class SharedSteps(nn.Module):
    """One layer used three times, once with a way around it, and two answers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        layer = nn.Conv(3, (3, 3), name="step")
        x, start = layer(x), x
        jax.debug.print("{} {}", x.mean(), start.mean())  # two values that meet in nothing
        x = x + nn.Dropout(0.5, deterministic=True)(layer(nn.relu(x)))
        return [x, layer(nn.max_pool(x, (2, 2), (2, 2)))]


def test_a_layer_used_again_is_another_block_without_parameters():
    blocks, edges = network_graph.block_graph(SharedSteps(), (8, 8, 3))
    assert set(edges) == {
        ("input", "step"),
        ("step", "step (2)"),
        ("step", "add"),
        ("step (2)", "add"),
        ("add", "step (3)"),
        ("add", "output"),
        ("step (3)", "output"),
    }
    assert [blocks[name]["parameters"] for name in ("step", "step (2)", "step (3)")] == [84, 0, 0]
    assert blocks["step (3)"]["shape"] == (4, 4, 3)
    assert blocks["output"]["label"] == "2 outputs"


def test_a_single_layer_is_its_own_block():
    blocks, edges = network_graph.block_graph(nn.Conv(5, (1, 1)), (4, 6, 2))
    assert edges == [("input", "Conv"), ("Conv", "output")]
    assert blocks["Conv"] == {"label": "Conv", "kind": "Conv", "shape": (4, 6, 5), "parameters": 15}


def test_the_picture_is_the_same_each_time_and_shows_both_networks(tiny_config):
    picture = network_picture.draw_networks(tiny_config)
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    np.testing.assert_array_equal(picture, network_picture.draw_networks(tiny_config))
    # White margins, so nothing is cut off, around a picture that is neither empty nor black.
    for edge in (picture[:8], picture[-8:], picture[:, :8], picture[:, -8:]):
        assert (edge == 255).all()
    assert 0.02 < np.mean(picture.min(-1) < 250) < 0.5
    tiny_config.discriminator.name = "none"
    alone = network_picture.draw_networks(tiny_config)
    assert alone.shape[0] < picture.shape[0]
    assert alone.shape[1] == picture.shape[1]


def test_a_skip_is_seen_in_the_picture(tiny_config):
    tiny_config.discriminator.name = "none"
    tiny_config.generator.update({"refine": 0, "residual": False})
    with_skips = network_picture.draw_networks(tiny_config)
    tiny_config.generator.skips = False
    without = network_picture.draw_networks(tiny_config)

    def longest_dark_runs(picture):
        dark = picture.max(-1) < 120
        # Rows of the picture in which an unbroken line is longer than any box is wide.
        return sum("1" * 120 in "".join("01"[int(pixel)] for pixel in row) for row in dark)

    assert longest_dark_runs(without) == 0
    assert longest_dark_runs(with_skips) >= 3
