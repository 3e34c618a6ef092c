"""Configs: hashes, what a resumption may change, validation, and every file under configs/."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from configs import unet_cosine
from inpaint_jax import config as config_module
from inpaint_jax import data

ROOT = Path(__file__).parents[1]


def tiny(**changes):
    """The tiny flagship with changes to dotted fields; the dots are written as two underscores."""
    config = unet_cosine.get_config("tiny")
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


def config_modules():
    names = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")
    modules = [importlib.import_module(f"configs.{name}") for name in names]
    return [module for module in modules if hasattr(module, "get_config")]


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({}, set()),
        ({"seed": 1}, {"config", "resume"}),
        ({"epochs": 99}, {"config", "group"}),
        ({"max_steps": 9}, {"config", "group"}),
        ({"parallel": "shard_map"}, {"config", "group"}),
        ({"data__path": "/elsewhere"}, {"config", "group"}),
        ({"mask__path": "/elsewhere"}, {"config", "group"}),
        ({"data__reader_threads": 7}, {"config", "group"}),
        ({"log_every_steps": 7}, {"config", "group"}),
        ({"sample_every_epochs": 7}, {"config", "group"}),
        ({"keep_checkpoints": 7}, set()),
        ({"batch_size": 8}, {"config", "group", "resume"}),
        ({"data__split_counts": (20, 6, 6)}, {"config", "group", "resume"}),
        ({"losses__cosine__weight": 1.0}, {"config", "group", "resume"}),
    ],
    ids=lambda value: str(sorted(value)),
)
def test_hashes_change_with_what_they_stand_for(changes, changed):
    before, after = config_module.hashes(tiny()), config_module.hashes(tiny(**changes))
    assert {name for name in before if before[name] != after[name]} == changed


def test_resumption_names_every_field_that_differs():
    earlier = tiny(optimizer__learning_rate=0.5, losses__cosine__weight=100.0)
    now = tiny(optimizer__learning_rate=0.25, generator__skips=False, data__path="/elsewhere", log_every_steps=9)
    del now.losses.cosine
    lines = config_module.resume_differences(earlier, now)
    assert "optimizer.learning_rate: 0.5 -> 0.25" in lines
    assert "generator.skips: True -> False" in lines
    assert "losses.cosine.weight: 100.0 -> '(absent)'" in lines
    assert {line.split(":")[0].split(".")[0] for line in lines} == {"optimizer", "generator", "losses"}


@pytest.mark.parametrize(
    ("earlier", "now", "refused"),
    [
        ({"epochs": 3}, {"epochs": 5}, []),
        ({"epochs": 3}, {"epochs": 2}, ["epochs: 3 -> 2 (may only grow)"]),
        ({"max_steps": 5}, {"max_steps": 9}, []),
        ({"max_steps": 5}, {"max_steps": 0}, []),
        ({"max_steps": 5}, {"max_steps": 4}, ["max_steps: 5 -> 4 (may only grow; 0 is no limit)"]),
        ({}, {"max_steps": 5}, ["max_steps: 0 -> 5 (may only grow; 0 is no limit)"]),
    ],
    ids=str,
)
def test_a_run_may_become_longer_but_not_shorter(earlier, now, refused):
    assert config_module.resume_differences(tiny(**earlier), tiny(**now)) == refused


def test_json_gives_the_same_config_back():
    config = tiny(data__path="with 'quotes' and ü", mask__squares__positions=((0.1, 0.2),))
    copy = config_module.from_json(config_module.to_json(config))
    assert copy.to_dict() == config.to_dict()
    assert isinstance(copy.data.split_counts, tuple)
    assert config_module.hashes(copy) == config_module.hashes(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "float16"),
        ("parallel", "pjit"),
        ("data.kind", "maps"),
        ("data.fit", "stretch"),
        ("task.fill", ""),
        ("task.value_range", (0.0, 255.0)),
        ("task.value_range", (0.0, 1.0)),
        ("generator.output", "sigmoid"),
        ("generator.normalisation", "group"),
        ("discriminator.normalisation", "layer"),
        ("generator.refine", -1),
        ("discriminator.sees", "both"),
        ("regime.order", "phased"),
        ("optimizer.schedule", "linear"),
        ("image_size", 48),
        ("image_size", 16),
        ("batch_size", 0),
        ("epochs", 0),
        ("generator.width", 0),
        ("checkpoint_every_steps", 0),
        ("sample_every_epochs", 0),
        ("evaluation.batch_size", 0),
        ("seed", -1),
        ("data.limit", -5),
        ("data.split_counts", (5,)),
        ("data.split_counts", ("a", "b", "c")),
        ("data.split_counts", (-1, 4, 4)),
        ("data.split_fractions", (0.5, 0.5)),
        ("ema_decay", 1.0),
        ("ema_decay", float("nan")),
        ("optimizer.learning_rate", float("nan")),
        ("optimizer.learning_rate", -1e-3),
        ("optimizer.warmup_fraction", 2.0),
        ("losses.cosine.weight", float("nan")),
        ("losses.cosine.weight", -1.0),
        ("discriminator.name", "none"),
        ("losses", {}),
        ("losses", {"cosine": {"fn": "cosine"}}),
    ],
)
def test_a_bad_value_is_refused_by_its_field_name(field, value):
    config = tiny()
    if field == "losses":
        config.losses = value
    else:
        config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=f"config.{field}"):
        config_module.validate(config)


def test_a_weight_of_zero_takes_the_adversarial_term_away():
    config = tiny()
    config.discriminator.name, config.losses.adversarial.weight = "none", 0.0
    config_module.validate(config)


@pytest.mark.parametrize("module", config_modules(), ids=lambda module: module.__name__)
def test_every_config_file_is_valid_in_full_and_shrunk(module, monkeypatch):
    monkeypatch.delenv("INPAINT_DATA_DIR", raising=False)
    for arg in ("", "quick", "tiny"):
        config = module.get_config(arg)
        config_module.validate(config)
        if arg:
            # Embedded data: no path, no download.
            splits = data.load_splits(config.data, config.image_size)
            assert len(splits["train"]) >= config.batch_size * config.accumulate
            assert splits["val"][0].shape == (config.image_size, config.image_size, 3)
    with pytest.raises(ValueError, match=r"'huge'.*:quick, :tiny"):
        module.get_config("huge")
    assert module.__doc__
    assert "launch/main.py --config" in module.__doc__


def test_shrinking_touches_sizes_and_data_and_not_the_method():
    full, small = (config_module.flatten(unet_cosine.get_config(arg)) for arg in ("", "tiny"))
    assert full.keys() == small.keys()
    changed = {key for key in full if full[key] != small[key]}
    assert not {key for key in changed if key.startswith(("losses", "optimizer", "task", "regime", "mask"))}
    assert np.prod(small["data.embedded_counts"]) < np.prod(full["data.embedded_counts"])
