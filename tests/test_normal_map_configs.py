"""The published normal-map versions: each differs from its parent in what was published, and in nothing else."""

import importlib
import json
from pathlib import Path

import pytest

from configs import common
from inpaint_jax import config as config_module
from inpaint_jax import data, describe, regimes, run_folder

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs" / "normal_maps"


def phase(trains: str) -> dict:
    return {**common.phase(trains, monitor=f"loss/{trains}"), "frozen": []}


STOPPING = {"patience": 25, "epoch_break": 25, "regime.monitor": "loss/generator", "regime.keep": "best"}
# Version -> its parent ("" = the base of all configs), and every field that differs with its value.
VERSIONS = {
    "v0_1_unet": (
        "",
        {"epochs": 150, "ema_decay": 0.0, "regime.keep": "last"}
        | {"data.source": "tfds", "data.name": "normal_maps", "data.path": "data", "data.fit": "crop"}
        | {f"losses.cosine.{k}": v for k, v in common.loss_term("cosine", 10.0).items()}
        | {f"losses.adversarial.{k}": v for k, v in common.loss_term("adversarial", 1.0).items()},
    ),
    "v0_2_unet_early_stopping": ("v0_1_unet", {"epochs": 300, "guard.surge_factor": 5.0, **STOPPING}),
    "v1_0_unet": ("v0_1_unet", {"epochs": 300}),
    "v1_1_unet_early_stopping": ("v1_0_unet", STOPPING),
    "v1_2_unet_early_stopping": ("v1_1_unet_early_stopping", {}),
    "v1_2_bowtie_early_stopping": ("v1_2_unet_early_stopping", {"generator.skips": False}),
    "v2_0_unet_gen_only": (
        "v1_2_unet_early_stopping",
        {"discriminator.name": "none", "losses.adversarial.weight": 0.0},
    ),
    "v2_2_unet_disc_then_gen": (
        "v1_2_unet_early_stopping",
        {"epochs": 1000, "epoch_break": 1, "regime.sequence": ["judge", "fill"], "regime.repeat": True}
        | {f"regime.phases.judge.{k}": v for k, v in phase("discriminator").items()}
        | {f"regime.phases.fill.{k}": v for k, v in phase("generator").items()},
    ),
    "v3_0_unet_lambda999": ("v1_0_unet", {"losses.cosine.weight": 999.0}),
    "v3_1_unet_lambda100": ("v3_0_unet_lambda999", {"losses.cosine.weight": 100.0}),
}
# What the versions take over from the base, and must not change when the base does.
INHERITED = {
    "generator.name": "unet",
    "generator.normalisation": "batch",
    "generator.refine": 0,
    "generator.residual": False,
    "generator.output": "unit",
    "discriminator.sees": "completed",
    "discriminator.condition": "none",
    "task.inputs": ["masked", "mask"],
    "task.fill": "zero",
    "mask.name": "lines",
    "optimizer.name": "adam",
    "optimizer.learning_rate": 1e-4,
    "optimizer.discriminator_rate_ratio": 1.0,
    "optimizer.b1": 0.9,
    "optimizer.schedule": "constant",
    "optimizer.clip_norm": 0.0,
    "regime.order": "simultaneous",
    "data.kind": "normal_maps",
    "data.normal_y": "up",
    "data.augment": True,
    "image_size": 128,
    "batch_size": 32,
    "accumulate": 1,
    "generator.width": 64,
    "discriminator.width": 64,
    "guard.action": "skip",
    "eval_every_epochs": 1,
}
STOPS_EARLY = {version for version in VERSIONS if "early_stopping" in version}
STOPS_EARLY |= {"v2_0_unet_gen_only", "v2_2_unet_disc_then_gen"}
SHRUNK = {"image_size", "batch_size", "generator.width", "discriminator.width"}


def config_of(version: str, arg: str = ""):
    return importlib.import_module(f"configs.normal_maps.{version}").get_config(arg) if version else common.base()


def flat(version: str, arg: str = "") -> dict:
    return config_module.flatten(config_of(version, arg))


def test_every_file_of_the_folder_is_in_the_table():
    assert {path.stem for path in FOLDER.glob("v*.py")} == set(VERSIONS)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_differs_from_its_parent_in_exactly_these_fields(version: str):
    parent, expected = VERSIONS[version]
    before, after = flat(parent), flat(version)
    assert not before.keys() - after.keys(), "fields that a version took away"
    assert {key: value for key, value in after.items() if key not in before or before[key] != value} == expected
    assert {key: after[key] for key in INHERITED} == INHERITED


@pytest.mark.parametrize("arg", common.ARGUMENTS)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_form_is_valid_and_keeps_what_makes_the_version(version: str, arg: str):
    config = config_of(version, arg)
    config_module.validate(config)
    phase = {"v2_0_unet_gen_only": "generator", "v2_2_unet_disc_then_gen": "judge"}.get(version, "joint")
    assert regimes.first_regime(config).phase == phase
    full, shrunk = flat(version), config_module.flatten(config)
    kept = {key for key in full if key.startswith(("losses.", "regime.", "guard.", "optimizer.", "task.", "mask."))}
    kept |= {*INHERITED, "generator.skips", "discriminator.name", "ema_decay"} - (SHRUNK if arg else set())
    assert {key: shrunk[key] for key in kept} == {key: full[key] for key in kept}
    assert (config.patience > 0) == (version in STOPS_EARLY)
    if arg == "quick" and config.patience:
        assert config.patience < config.epochs, "early stopping must be able to end a quick run"
        assert config.epochs % config.epoch_break == 0
    if arg:
        assert (config.data.source, config.data.name, config.data.path) == ("procedural_normals", "", "")


def test_parameters_are_equal_but_for_the_bowtie_and_the_missing_discriminator():
    figures = {version: describe.network_figures(config_of(version)) for version in VERSIONS}
    generators = {version: f["generator_parameters"] for version, f in figures.items()}
    # By hand: 4x4 kernels, seven levels down; the first and the innermost have a bias, the others scale and bias of
    # their normalisation; upwards each level but the innermost sees the skip beside it.
    widths, kernel = [64, 128, 256, 512, 512, 512, 512], 16
    down = sum(kernel * a * b for a, b in zip([4, *widths], widths, strict=False)) + 64 + 512 + 2 * sum(widths[1:-1])
    up = {
        seen: sum(kernel * (widths[i + 1] * (seen if i < 5 else 1)) * widths[i] + 2 * widths[i] for i in range(6))
        + kernel * 64 * seen * 3
        + 3
        for seen in (1, 2)
    }
    bowtie = "v1_2_bowtie_early_stopping"
    assert generators.pop(bowtie) == down + up[1]
    assert set(generators.values()) == {down + up[2]}
    discriminators = {version: f["discriminator_parameters"] for version, f in figures.items()}
    assert discriminators.pop("v2_0_unet_gen_only") == 0
    assert len(set(discriminators.values())) == 1
    assert min(discriminators.values()) > 0


def test_without_the_data_set_the_message_names_it_and_the_mend(tmp_path: Path):
    config = config_of("v0_1_unet")
    config.data.path = str(tmp_path)
    with pytest.raises(ValueError, match=r"'normal_maps' cannot be read .*config\.data\.path"):
        data.load_splits(config.data, config.image_size, tmp_path / "cache")


def test_run_folders_are_named_after_the_version():
    assert run_folder.default_workdir("configs/normal_maps/v1_1_unet_early_stopping.py:tiny") == Path(
        "runs/v1_1_unet_early_stopping-tiny"
    )


# The version whose phases are its own; the others go the same ways as the flagship, with other numbers.
DISTINCT = ("v2_2_unet_disc_then_gen",)


@pytest.mark.parametrize("version", [v if v in DISTINCT else pytest.param(v, marks=pytest.mark.slow) for v in VERSIONS])
def test_a_tiny_run_goes_on_exactly_after_a_crash(version: str, tmp_path: Path, same_after_crashes):
    rows = same_after_crashes(config_of(version, "tiny"), (7,))
    trained, validated = ([row for row in rows if row["split"] == split] for split in ("train", "val"))
    assert [row["step"] for row in trained] == list(range(1, validated[-1]["step"] + 1))
    phases = {"v2_0_unet_gen_only": {"generator"}, "v2_2_unet_disc_then_gen": {"judge", "fill"}}
    assert {row["phase"] for row in trained} == phases.get(version, {"joint"})
    if version == "v2_0_unet_gen_only":
        assert not any("discriminator" in name or "adversarial" in name for row in rows for name in row)
        assert validated[-1]["loss/generator"] == pytest.approx(10 * validated[-1]["loss/cosine"], rel=1e-5)
    tested = json.loads((tmp_path / "crashed" / "test" / "results.json").read_text())["train"]
    fixed = version in VERSIONS.keys() - STOPS_EARLY
    assert tested["tested_step"] == (tested["steps"] if fixed else tested["best_step"])
