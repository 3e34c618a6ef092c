"""The configs of the published systems but normal maps: parameter counts, what each admits, and that each runs."""

import importlib
import json

import jax
import numpy as np
import pytest

from configs import common
from inpaint_jax import config as config_module
from inpaint_jax import describe, mask_sets, network_picture, regimes, state, task

# Generator and discriminator parameters as published; the generator's of the whole variant follows from half the width.
# Of the VGG variants none are published.
PARAMETERS = {
    "completion.glcic": (6_066_179, 45_056_769),
    "faces.attention_hole": (4_880_836, 35_553),
    "faces.attention_whole": (1_221_860, 35_553),
    "faces.attention_cosine": (4_880_836, 35_553),
    "landscapes.unet": (2_662_659, 0),
    "landscapes.encoder_decoder": (744_387, 0),
    "landscapes.unet_perceptual_gan": (2_662_659, 2_765_633),
    "pix2pix.base": (54_415_555, 2_769_729),
    "pix2pix.vgg_generator": (35_169_411, 2_769_729),
    "pix2pix.vgg_no_mask": (35_168_835, 4_203_457),
    "pix2pix.vgg_mask": (35_169_411, 4_204_481),
    "pix2pix.vgg_512_generator_decay": (35_169_411, 4_204_481),
    "pix2pix.vgg_512_discriminator_increase": (35_169_411, 4_204_481),
}


WHOLE, HOLE, GLCIC = "faces.attention_whole", "faces.attention_hole", "completion.glcic"


def config_of(name: str, arg: str = ""):
    return importlib.import_module(f"configs.{name}").get_config(arg)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name: str):
    figures = describe.network_figures(config_of(name))
    assert (figures["generator_parameters"], figures["discriminator_parameters"]) == PARAMETERS[name]


def test_pix2pix_at_512_has_one_level_more():
    config = config_of("pix2pix.base")
    config.image_size = 512
    level = 16 * 512 * 512 + 2 * 512 + 16 * 1024 * 512 + 2 * 512  # a convolution down, one up, and their normalisation
    assert describe.network_figures(config)["generator_parameters"] == PARAMETERS["pix2pix.base"][0] + level


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
    assert task.input_shapes(config_of("pix2pix.base")) == {"generator": (256, 256, 4), "discriminator": (256, 256, 7)}
    assert task.input_shapes(config_of("pix2pix.vgg_512_generator_decay")) == {
        "generator": (512, 512, 4),
        "discriminator": {"features": (64, 64, 512), "condition": (512, 512, 4)},
    }


def test_published_regime_of_the_vgg_variants():
    config = config_of("pix2pix.vgg_512_generator_decay")
    assert regimes.sequence(config) == ("frozen",) * 5 + ("unfrozen",) * 10
    assert {phase.epochs for phase in config.regime.phases.values()} == {100}
    assert (config.regime.reaction_group, config.regime.reaction_factor) == ("generator", 0.5)
    other = config_of("pix2pix.vgg_512_discriminator_increase")
    assert (other.regime.reaction_group, other.regime.reaction_factor) == ("discriminator", 1.1)
    assert config.regime.reactions == other.regime.reactions == 10


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
        ("pix2pix.vgg_mask", {"image_size": 240}, r"image_size = 240: .*vgg_unet takes multiples of 32"),
        ("pix2pix.vgg_mask", {"generator.refine": 8}, r"refine = 8 does not fit .*vgg_unet"),
        ("pix2pix.vgg_mask", {"discriminator.views": ("window",)}, r"does not fit .*'vgg'"),
        ("pix2pix.base", {"generator.dropout": 1.0}, r"generator\.dropout = 1\.0: must be from 0 to 0\.9"),
        ("landscapes.unet", {"generator.dropout": 0.5}, r"dropout = 0\.5 does not fit .*pooling_unet"),
        ("pix2pix.base", {"data.kind": "normal_maps"}, r"evaluation\.lpips = True: LPIPS is of photographs"),
    ],
)
def test_options_that_a_network_does_not_have_are_refused(name: str, changes: dict, message: str):
    config = config_of(name)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        config_module.validate(config)


@pytest.mark.slow
def test_completion_goes_on_exactly_after_a_crash_in_its_last_phase(same_after_crashes, tmp_path):
    rows = same_after_crashes(config_of("completion.glcic", "tiny"), (8,))
    phases = [row["phase"] for row in rows if row["split"] == "train"]
    assert phases == ["complete"] * 4 + ["judge"] * 2 + ["both"] * 6
    tested = json.loads((tmp_path / "crashed" / "test" / "results.json").read_text())["train"]
    assert tested["tested_step"] == tested["steps"] == 12, "the last generator, whichever is the best"


@pytest.mark.parametrize("crashes", [(13,), pytest.param((3, 5, 9, 14, 20), marks=pytest.mark.slow)])
def test_a_vgg_variant_goes_on_exactly_after_a_crash(crashes: tuple[int, ...], same_after_crashes):
    config = config_of("pix2pix.vgg_512_generator_decay", "tiny")
    # Always 0 here, so that each run without frozen layers stops at its second validation.
    config.regime.phases.unfrozen.monitor = "white_hole"
    rows = [row for row in same_after_crashes(config, crashes) if row["split"] == "train"]
    assert [row["phase"] for row in rows] == ["frozen"] * 4 + ["unfrozen"] * 16
    rates = [row["learning_rate/generator/rest"] for row in rows]
    assert rates == pytest.approx([2e-4] * 12 + [1e-4] * 8)
    assert ["learning_rate/generator/vgg" in row for row in rows] == [False] * 4 + [True] * 16


def test_the_picture_comes_first_for_vgg16():
    config = config_of("pix2pix.vgg_mask")
    config.task.inputs = ("mask", "masked")
    with pytest.raises(ValueError, match=r"sees the first of config\.task\.inputs as a picture: .*not 'mask'"):
        task.validate_task(config)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("faces.attention_hole", marks=pytest.mark.slow),
        pytest.param("faces.attention_whole", marks=pytest.mark.slow),
        pytest.param("faces.attention_cosine", marks=pytest.mark.slow),
        "completion.glcic",
        "landscapes.unet",
        pytest.param("landscapes.unet_perceptual_gan", marks=pytest.mark.slow),
        pytest.param("landscapes.encoder_decoder", marks=pytest.mark.slow),
        pytest.param("pix2pix.base", marks=pytest.mark.slow),
        pytest.param("pix2pix.vgg_generator", marks=pytest.mark.slow),
        pytest.param("pix2pix.vgg_no_mask", marks=pytest.mark.slow),
        pytest.param("pix2pix.vgg_512_discriminator_increase", marks=pytest.mark.slow),
    ],
)
def test_a_tiny_run_trains_and_tests(name: str, tmp_path, train_with_crashes):
    config = config_of(name, "tiny")
    rows = train_with_crashes(config, tmp_path)
    # Of every row: a phase of reconstruction alone has no adversarial loss.
    losses = {key for row in rows for key in row if key.startswith("loss/") and not key.endswith("_weighted")}
    assert {f"loss/{term}" for term in config.losses} <= losses
    assert (tmp_path / "test" / "results.json").exists()
