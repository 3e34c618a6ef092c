"""With config.remat gradients compute parts of the networks once more: the same numbers, from less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import unet_cosine
from configs.completion import glcic
from configs.pix2pix import base, vgg_mask
from inpaint_jax import config as config_module
from inpaint_jax import models, pretrained, step
from inpaint_jax.state import initial_variables

FILES = {"unet": base, "vgg_unet": vgg_mask}
EXAMPLES = 7  # divides no number of a kernel's rows


def configured(name: str, remat: bool):
    config = FILES[name].get_config("tiny")
    config.remat = remat
    return config


@functools.cache
def variables(name: str) -> dict:
    """Random weights and statistics, none at a value that would hide a mistake."""
    random = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = random.standard_normal(leaf.shape, np.float32)
        if leaf.ndim > 1:  # so that values neither grow nor vanish from layer to layer
            return noise * np.sqrt(2 / np.prod(leaf.shape[:-1]), dtype=np.float32)
        return 0.1 * noise + ("scale" in jax.tree_util.keystr(path) or "var" in jax.tree_util.keystr(path))

    shapes = jax.eval_shape(lambda: initial_variables(configured(name, False)))["generator"]
    return jax.tree_util.tree_map_with_path(draw, shapes)


def gradients(name: str, remat: bool):
    """Returns the output, the new statistics and the gradients of a loss of the generator that is trained."""
    config = configured(name, remat)
    generator = step.make_system(config, 1, axis_name=None).generator
    given = variables(name)
    seen = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (2, 32, 32, 4)), jnp.float32)
    dropout_keys = jax.random.split(jax.random.key(3), 2)

    def loss(params):
        output, updated = generator.apply(
            {"params": params, "batch_stats": given["batch_stats"]},
            seen, train=True, dropout_keys=dropout_keys, mutable=["batch_stats"],
        )  # fmt: skip
        return jnp.mean(jnp.square(output - 0.1)), (output, updated)

    return jax.jit(jax.grad(loss, has_aux=True))(given["params"])


@pytest.mark.parametrize("name", FILES)
def test_gradients_dropout_and_statistics_are_the_same(name):
    (plain, (output, statistics)), (again, (output_again, statistics_again)) = (
        gradients(name, remat) for remat in (False, True)
    )
    assert jax.tree.structure((plain, statistics)) == jax.tree.structure((again, statistics_again))
    # Another mask of dropout would change outputs by tenths.
    np.testing.assert_allclose(output_again, output, atol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), statistics_again, statistics)
    for place, ours in jax.tree_util.tree_leaves_with_path(again):
        theirs = functools.reduce(lambda tree, key: tree[key.key], place, plain)
        scale = np.abs(theirs).max()
        assert scale > 0, place
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * scale, err_msg=jax.tree_util.keystr(place))


def kept_bytes(config) -> int:
    """Returns what a pass through the generator and what VGG16 sees of it keeps for the gradients, in bytes."""
    system = step.make_system(config, 1, axis_name=None)
    state = jax.eval_shape(lambda: step.create_state(config, system.optimizers))
    frozen = {"vgg16": pretrained.load_vgg16("random", config.vgg.width)}
    picture, side = jax.ShapeDtypeStruct, config.image_size
    example = {
        "image": picture((EXAMPLES, side, side, 3), jnp.float32),
        "mask": picture((EXAMPLES, side, side, 1), jnp.float32),
        "slot": picture((EXAMPLES,), jnp.int32),
    }

    def pull(params, stats, example):
        def output(params):
            images, _ = step.generate(system, params, stats, frozen, example)
            return images["output"], images["features"].get("output")

        return jax.vjp(output, params)[1]

    def of_examples(leaf: jax.ShapeDtypeStruct) -> bool:
        return leaf.ndim > 1 and leaf.shape[0] % EXAMPLES == 0

    left = jax.eval_shape(pull, state.params["generator"], state.stats["generator"], example)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(left) if of_examples(leaf))


@pytest.mark.parametrize("name", FILES)
def test_less_is_kept_for_the_gradients(name):
    assert kept_bytes(configured(name, True)) < 0.7 * kept_bytes(configured(name, False))


def test_pictures_and_gflops_are_of_the_same_network():
    config = configured("vgg_unet", True)
    assert not models.build_generator(config).remat, "what needs no gradients is built as always"


def test_a_network_without_it_refuses_it():
    config = glcic.get_config("tiny")
    config.remat = True
    with pytest.raises(ValueError, match=r"config.remat = True does not fit config.generator.name = 'completion': use"):
        config_module.validate(config)


def test_a_run_may_go_on_with_it():
    before, now = (unet_cosine.get_config("tiny") for _ in range(2))
    now.remat = True
    config_module.validate(now)
    assert config_module.resume_differences(before, now) == []
    assert config_module.hashes(before)["resume"] == config_module.hashes(now)["resume"]
    assert config_module.hashes(before)["config"] != config_module.hashes(now)["config"]
