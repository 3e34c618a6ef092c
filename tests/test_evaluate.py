"""Evaluation: what is not a number is not scored, means, and which masks a run is tested on."""

import jax
import numpy as np
from PIL import Image

from configs import unet_cosine
from inpaint_jax import data, evaluate, models
from inpaint_jax.data.source import ImageSource
from inpaint_jax.eval_step import make_eval_step
from inpaint_jax.parallel import make_parallel
from inpaint_jax.state import initial_variables


def test_figures_of_a_sound_generator_and_of_one_with_weights_that_are_not_numbers(tiny_config):
    parallel = make_parallel("pmap", jax.devices()[:2])
    eval_step = parallel.evaluate(make_eval_step(tiny_config))
    splits = data.load_splits(tiny_config.data, tiny_config.image_size)
    masks = np.zeros((5, 32, 32, 1), np.uint8)
    masks[:, 8:14, 4:28] = 1
    drawn = jax.device_get(jax.jit(lambda: initial_variables(tiny_config))())
    variables = {**drawn["generator"], "discriminator": drawn["discriminator"]}

    def run(variables, batch, watch=None):
        return evaluate.evaluate(
            eval_step, parallel, parallel.replicate(variables), splits["val"], masks, batch, [1, 4], watch
        )

    watched = []
    figures, pictures = run(variables, 4, watched.append)
    again, _ = run(variables, 2)
    assert [len(part) for part in watched] == [4, 1]
    for index in (1, 4):
        np.testing.assert_array_equal(np.concatenate(watched)[index], pictures[index]["completed"])
    assert {len(values) for values in figures.values()} == {5}
    for name, values in figures.items():
        assert np.isfinite(values).all()
        np.testing.assert_allclose(values, again[name], rtol=1e-4, err_msg=name)
    # The losses are those of training, of each picture: here the adversarial ones by hand.
    judge = models.build_discriminator(tiny_config)
    for index in (1, 4):
        real, fake = (
            judge.apply(drawn["discriminator"], np.float32(pictures[index][name])[None] / 127.5 - 1, train=False)
            for name in ("truth", "completed")
        )
        expected = {
            "loss/adversarial": np.logaddexp(0, -fake).mean(),
            "loss/discriminator": np.logaddexp(0, -real).mean() + np.logaddexp(0, fake).mean(),
        }
        terms = {name: figures[f"loss/{name}"][index] for name in tiny_config.losses}
        expected["loss/generator"] = sum(tiny_config.losses[name].weight * value for name, value in terms.items())
        for name, value in expected.items():
            np.testing.assert_allclose(figures[name][index], value, rtol=2e-3, err_msg=name)
    for index in (1, 4):
        known = masks[index, ..., 0] == 0
        np.testing.assert_array_equal(pictures[index]["completed"][known], splits["val"][index][known])
    variables["params"]["out"]["bias"] = np.full(3, np.nan, np.float32)
    assert all(np.isnan(values).all() for values in run(variables, 4)[0].values())


def test_means_over_all_and_over_chosen_images():
    figures = {"l1_hole": np.asarray([1.0, 2.0, 6.0], np.float32)}
    assert evaluate.means(figures) == {"l1_hole": 3.0}
    assert evaluate.means(figures, np.asarray([True, False, True])) == {"l1_hole": 3.5}
    assert evaluate.means(figures, np.zeros(3, bool)) == {}


def test_stored_masks_are_those_of_the_config_and_of_the_mask_files(tmp_path):
    config = unet_cosine.get_config("tiny")
    first = evaluate.evaluation_masks(config, "val", 6, tmp_path / "masks")
    config.seed = 5
    assert evaluate.evaluation_masks(config, "val", 6, tmp_path / "masks").id == first.id
    assert evaluate.evaluation_masks(config, "test", 6, tmp_path / "masks").id != first.id
    config.mask.lines.number = (1, 2)
    assert evaluate.evaluation_masks(config, "val", 6, tmp_path / "masks").id != first.id

    config.mask.name, config.mask.path = "files", str(tmp_path / "pictures")
    (tmp_path / "pictures").mkdir()
    seen = []
    for level in (255, 0):
        Image.fromarray(np.full((32, 32), level, np.uint8)).save(tmp_path / "pictures/mask.png")
        data.load_mask_files.cache_clear()
        seen.append(evaluate.evaluation_masks(config, "val", 2, tmp_path / "masks").unpack().mean())
    assert seen == [1, 0]


def test_baselines_are_scored_on_the_same_images():
    image = np.zeros((32, 32, 3), np.uint8) + np.uint8(100)
    source = ImageSource(["a", "b"], lambda i: image, "x")
    masks = np.zeros((2, 32, 32, 1), np.uint8)
    masks[:, :4] = 1
    perfect = evaluate.evaluate_baseline(lambda image, mask: image, source, masks, 4, False, {})
    assert perfect["psnr_db_hole"].tolist() == [100, 100]
    watched = []
    off = evaluate.evaluate_baseline(
        lambda image, mask: image + np.uint8(51), source, masks, 4, False, {}, watched.append
    )
    np.testing.assert_allclose(off["l1_hole"], 0.2, rtol=1e-5)
    assert [part.shape for part in watched] == [(2, 32, 32, 3)]
    assert (watched[0] == 151).all()
