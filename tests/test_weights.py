"""Saved generators: the same arrays back, no pickles, and clear errors."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from configs import unet_cosine
from inpaint_jax import config as config_module
from inpaint_jax import models, task, weights


def random_variables(config) -> dict:
    """Variables of the shapes of the config's generator, filled without compiling anything."""
    random = np.random.default_rng(0)
    size = config.image_size
    image = jax.ShapeDtypeStruct((1, size, size, task.input_channels(config)), jnp.float32)
    generator = models.build_generator(config)
    shapes = jax.eval_shape(lambda key, x: generator.init(key, x, train=False), jax.random.key(0), image)
    return jax.tree.map(lambda x: random.standard_normal(x.shape).astype(np.float32), shapes)


@pytest.fixture
def saved(tmp_path):
    config = unet_cosine.get_config("tiny")
    variables = random_variables(config)
    folder = tmp_path / "run" / "generator"
    megabytes = weights.save_generator(folder, variables, config)
    return folder, config, variables, megabytes


def test_round_trip_from_either_folder(saved):
    folder, config, variables, megabytes = saved
    for place in (folder, folder.parent):
        loaded_config, loaded = weights.load_generator(place)
        assert loaded_config.to_dict() == config.to_dict()
        assert jax.tree.structure(loaded) == jax.tree.structure(variables)
        jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert megabytes == (folder / weights.WEIGHTS).stat().st_size / 1e6
    assert megabytes >= sum(x.nbytes for x in jax.tree.leaves(variables)) / 1e6


@pytest.mark.parametrize("kind", ["instance", "none"])
def test_round_trip_without_batch_statistics(tmp_path, kind):
    config = unet_cosine.get_config("tiny")
    config.generator.normalisation = kind
    variables = {"batch_stats": {}, **random_variables(config)}
    weights.save_generator(tmp_path, variables, config)
    _, loaded = weights.load_generator(tmp_path)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_half_precision_is_half_the_size_and_read_as_float32(saved, tmp_path):
    _, config, variables, megabytes = saved
    assert weights.save_generator(tmp_path, variables, config, half=True) < 0.6 * megabytes
    _, loaded = weights.load_generator(tmp_path)
    halves = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, halves)
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


def test_what_half_precision_does_not_hold_is_refused(saved, tmp_path):
    _, config, variables, _ = saved
    variables["params"]["down0"]["kernel"][0, 0, 0, 0] = 70000
    with pytest.raises(ValueError, match="params/down0/kernel has values beyond 65504"):
        weights.save_generator(tmp_path / "half", variables, config, half=True)
    assert not list(tmp_path.glob("half/*"))


def test_other_numbers_than_floating_point_are_refused(saved):
    folder, _, variables, _ = saved
    flat = weights.flat_arrays(variables)
    flat["params/down0/kernel"] = flat["params/down0/kernel"].astype(np.int8)
    safetensors.numpy.save_file(flat, folder / weights.WEIGHTS)
    with pytest.raises(ValueError, match=r"damaged \(params/down0/kernel is of type int8\)"):
        weights.load_generator(folder)


def test_transposed_arrays_keep_their_values(saved, tmp_path):
    _, config, variables, _ = saved
    turned = jax.tree.map(np.asfortranarray, variables)
    weights.save_generator(tmp_path / "turned", turned, config)
    _, loaded = weights.load_generator(tmp_path / "turned")
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_weights_of_another_generator_are_refused(saved):
    folder, config, _, _ = saved
    narrow = config.copy_and_resolve_references()
    narrow.generator.width = 4
    other = folder.parent / "narrow"
    weights.save_generator(other, random_variables(narrow), narrow)
    (other / weights.CONFIG).write_bytes((folder / weights.CONFIG).read_bytes())
    with pytest.raises(ValueError, match=r"not of the generator in its config\.json"):
        weights.load_generator(other)


def test_description_says_what_a_user_needs_and_nothing_is_pickled(saved):
    folder, config, variables, _ = saved
    description = json.loads((folder / "config.json").read_text())
    assert (description["native_size"], description["size_multiple"]) == (32, 32)
    assert description["hashes"] == config_module.hashes(config)
    assert {path.name for path in folder.iterdir()} == {"config.json", "generator.safetensors"}
    # The safetensors layout: the header's length, JSON, then raw little-endian numbers.
    content = (folder / "generator.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    kernel = variables["params"]["down0"]["kernel"]
    entry = next(v for k, v in header.items() if k.endswith("params/down0/kernel"))
    assert entry["shape"] == list(kernel.shape)
    start, stop = (8 + length + offset for offset in entry["data_offsets"])
    np.testing.assert_array_equal(np.frombuffer(content[start:stop], "<f4").reshape(kernel.shape), kernel)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("generator.safetensors", cut, "damaged"),
        ("generator.safetensors", lambda path: path.write_bytes(b""), "damaged"),
        ("config.json", cut, "damaged"),
        ("config.json", lambda path: path.write_text("{}"), "damaged"),
        ("config.json", lambda path: path.write_bytes(b"\xff\xfe\x80"), "damaged"),
        ("generator.safetensors", Path.unlink, r"no generator\.safetensors"),
        ("config.json", Path.unlink, r"no config\.json"),
    ],
)
def test_damaged_or_missing_files_are_named(saved, file, damage, message):
    folder = saved[0]
    damage(folder / file)
    with pytest.raises(ValueError, match=f"{folder.name}'.*{message}"):
        weights.load_generator(folder)


def test_one_changed_bit_or_word_is_noticed(saved):
    """Both would give other fills, and nobody would see why."""
    folder = saved[0]
    whole = (folder / weights.WEIGHTS).read_bytes()
    (folder / weights.WEIGHTS).write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(ValueError, match=r"damaged \(generator\.safetensors is not as written\): copy both anew"):
        weights.load_generator(folder)
    (folder / weights.WEIGHTS).write_bytes(whole)
    described = json.loads((folder / weights.CONFIG).read_text())
    described["config"]["task"]["fill"] = "mean" if described["config"]["task"]["fill"] != "mean" else "zero"
    (folder / weights.CONFIG).write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"the config in config\.json is not the one that its hash was made of"):
        weights.load_generator(folder)


def test_a_model_from_before_weights_had_a_hash_is_read(saved):
    folder, _, variables, _ = saved
    described = json.loads((folder / weights.CONFIG).read_text())
    del described["weights_sha256"]
    (folder / weights.CONFIG).write_text(json.dumps(described))
    jax.tree.map(np.testing.assert_array_equal, weights.load_generator(folder)[1], variables)


def test_a_folder_without_a_generator_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match=r"generator\.safetensors: give a finished run folder"):
        weights.load_generator(tmp_path)
