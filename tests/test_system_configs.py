"""The configs of completion, faces and landscapes: parameter counts, what each admits, and that each runs."""

import importlib
import json

import jax
import numpy as np
import pytest

from configs import common
from inpaint_jax import config as config_module
from inpaint_jax import describe, mask_sets, network_picture, regimes, state, task

# Generator and discriminator parameters as published; the generator's of the whole variant follows from half the width.
PARAMETERS = {
    "completion.glcic": (6_066_179, 45_056_769),
    "faces.attention_hole": (4_880_836, 35_553),
    "faces.attention_whole": (1_221_860, 35_553),
    "faces.attention_cosine": (4_880_836, 35_553),
    "landscapes.unet": (2_662_659, 0),
    "landscapes.encoder_decoder": (744_387, 0),
}


WHOLE, HOLE, GLCIC = "faces.attention_whole", "faces.attention_hole", "completion.glcic"


def config_of(name: str, arg: str = ""):
    return importlib.import_module(f"configs.{name}").get_config(arg)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name: str):
    figures = describe.network_figures(config_of(name))
    assert (figures["generator_parameters"], figures["discriminator_parameters"]) == PARAMETERS[name]


def test_without_the_mask_channel_completion_has_the_re_implementations_parameters():
    config = config_of("completion.glcic")
    config.task.inputs = ("masked",)
    assert describe.network_figures(config)["generator_parameters"] == 6_064_579


@pytest.mark.parametrize("arg", common.ARGUMENTS)
@pytest.mark.parametrize("name", PARAMETERS)
def test_every_form_is_valid(name: str, arg: str):
    config = config_of(name, arg)
    config_module.validate(config)
    task.validate_task(config)
    task.validate_mask(config)
    regimes.first_regime(config)
    jax.eval_shape(lambda: state.initial_variables(config))
    if arg:
        assert config.data.source == "bundled_photos"
    full = config_module.flatten(config_of(name))
    kept = [key for key in full if key.startswith(("losses.", "optimizer.", "task.inputs", "task.fill", "task.view"))]
    assert {key: config_module.flatten(config)[key] for key in kept} == {key: full[key] for key in kept}


def test_published_sizes_in_pixels():
    hole, completion = config_of("faces.attention_hole"), config_of("completion.glcic")
    assert task.input_shapes(hole) == {"generator": (40, 40, 4), "discriminator": (40, 40, 3)}
    assert round(hole.mask.squares.size[0] * 200) == 32
    assert round(hole.mask.squares.margin * 200) == 16
    assert task.input_shapes(completion)["discriminator"] == {"full": (256, 256, 3), "window": (128, 128, 3)}
    assert task.input_shapes(config_of("landscapes.unet"))["generator"] == (256, 256, 6)


@pytest.mark.parametrize("name", [HOLE, WHOLE, "faces.attention_cosine"])
def test_faces_have_one_hole_of_32_pixels_at_least_16_from_the_border(name: str):
    config = config_of(name)
    masks = mask_sets.evaluation_masks(task.mask_spec(config), 20, 200, 200, 0).unpack()[..., 0]
    for mask in masks:
        rows, columns = np.nonzero(mask)
        assert mask.sum() == 32 * 32
        for places in (rows, columns):
            assert places.max() - places.min() == 31
            assert places.min() >= 16
            assert places.max() < 200 - 16


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_can_be_drawn(name: str):
    assert network_picture.draw_networks(config_of(name)).shape[1] > 300


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (WHOLE, {"generator.skips": False}, r"skips = False does not fit .*attention_unet"),
        (WHOLE, {"generator.output": "unit"}, r"'unit' does not fit .*use 'tanh'"),
        (
            WHOLE,
            {"image_size": 204},
            r"config\.image_size = 204: .*attention_unet takes multiples of 8",
        ),
        (
            HOLE,
            {"task.window": 0.21},
            r"config\.task\.window = 0\.21 \(42 pixels\): .*multiples of 8",
        ),
        (
            HOLE,
            {"generator.name": "unet"},
            r"window = 0\.2 \(40 pixels\): .*unet takes powers of two",
        ),
        (
            HOLE,
            {"task.fill": "harmonic"},
            r"\(40 pixels\): config\.task\.fill = 'harmonic' takes powers",
        ),
        (
            HOLE,
            {"discriminator.name": "patchgan", "task.window": 0.08},
            r"patchgan takes at least 24",
        ),
        (GLCIC, {"image_size": 96}, r"image_size = 96: .*local_global takes powers of two"),
        (GLCIC, {"task.window": 0.3}, r"window = 0\.3 \(77 pixels\): .*local_global takes powers of two"),
        (GLCIC, {"discriminator.views": ("full",)}, r"does not fit .*local_global"),
        ("landscapes.encoder_decoder", {"generator.normalisation": "none"}, "use 'batch'"),
    ],
)
def test_options_that_a_network_does_not_have_are_refused(name: str, changes: dict, message: str):
    config = config_of(name)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        config_module.validate(config)


def test_completion_goes_on_exactly_after_a_crash_in_its_last_phase(same_after_crashes, tmp_path):
    rows = same_after_crashes(config_of("completion.glcic", "tiny"), (8,))
    phases = [row["phase"] for row in rows if row["split"] == "train"]
    assert phases == ["complete"] * 4 + ["judge"] * 2 + ["both"] * 6
    tested = json.loads((tmp_path / "crashed" / "test" / "results.json").read_text())["train"]
    assert tested["tested_step"] == tested["steps"] == 12, "the last generator, whichever is the best"


@pytest.mark.parametrize(
    "name",
    [
        "faces.attention_hole",
        pytest.param("faces.attention_whole", marks=pytest.mark.slow),
        "faces.attention_cosine",
        "landscapes.unet",
        pytest.param("landscapes.encoder_decoder", marks=pytest.mark.slow),
    ],
)
def test_a_tiny_run_trains_and_tests(name: str, tmp_path, train_with_crashes):
    config = config_of(name, "tiny")
    rows = train_with_crashes(config, tmp_path)
    losses = {key for key in rows[0] if key.startswith("loss/") and not key.endswith("_weighted")}
    assert {f"loss/{term}" for term in config.losses} <= losses
    assert (tmp_path / "test" / "results.json").exists()
