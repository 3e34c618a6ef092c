"""What the library refuses, by the name of the field or the file, and what a refused run leaves: nothing."""

import json
import re
import sys

import pytest

from configs import common, unet_cosine
from inpaint_jax import checkpoint, optim, run, run_folder, task, train, weights
from inpaint_jax import config as config_module


@pytest.mark.parametrize(
    ("field", "value", "with_"),
    [
        ("seed", 2**32, {}),
        ("image_size", 2**30, {}),
        ("epochs", 10**30, {}),
        ("generator.width", 10**8, {}),
        ("evaluation.samples", 10**20, {}),
        ("mask.evaluation_seed", 2**31, {}),
        ("data.embedded_counts", (10**14, 1, 1), {}),
        ("data.embedded_counts", (-1, 1, 1), {}),
        ("data.reader_threads", 10**6, {}),
        ("image_size", 2048, {}),
        ("mask.ratio", (0.5, 0.1), {}),
        ("mask.ratio", (0.3, 0.31), {}),
        ("mask.lines.number", (0, 4), {}),
        ("mask.lines.number", (1, 400), {}),
        ("mask.lines.length", (float("nan"), 1.0), {}),
        ("mask.mixture.weights.lines", float("nan"), {"mask.name": "mixture"}),
        ("mask.mixture.weights.lines", float("inf"), {"mask.name": "mixture"}),
        ("mask.freeform.segments", (1.5, 2), {"mask.name": "mixture"}),
        ("mask.squares.margin", float("nan"), {"mask.name": "squares"}),
        ("mask.squares.positions", ((0.1,),), {"mask.name": "squares"}),
        ("mask.squares.positions", (0.1, 0.2), {"mask.name": "squares"}),
        ("mask.squares.positions", (("a", "b"),), {"mask.name": "squares"}),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_by_the_name_of_their_field(field, value, with_):
    config = unet_cosine.get_config("tiny")
    config.update_from_flattened_dict({field: value, **with_})
    named = "config.mask.mixture.weights" if "weights" in field else f"config.{field}"

    def check() -> None:
        config_module.validate(config)
        task.validate_mask(config)

    with pytest.raises(ValueError, match=re.escape(named)):
        check()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", None, "config.batch_size = None: must be a whole number"),
        ("batch_size", 4.0, "config.batch_size = 4.0: must be a whole number"),
        ("batch_size", True, "config.batch_size = True: must be a whole number"),
        ("ema_decay", "much", "config.ema_decay = 'much': must be a number"),
        ("deterministic", 1, "config.deterministic = 1: must be True or False"),
        ("dtype", 32, "config.dtype = 32: must be a text"),
        ("data", None, "config.data is no field of a config: "),
        ("losses", {"cosine": common.loss_term("cosine", "heavy")}, "config.losses.cosine.weight = 'heavy'"),
    ],
    ids=str,
)
def test_a_config_of_wrong_types_is_refused_by_the_name_of_the_field(tiny_config, field, value, message):
    with tiny_config.ignore_type():
        tiny_config[field] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        config_module.validate(tiny_config)


def test_a_package_that_is_missing_is_named_before_an_earlier_run_is_removed(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    tiny_config.wandb.project = "holes"
    (tmp_path / run_folder.METRICS).write_text("earlier")
    with pytest.raises(ValueError, match=r"config\.wandb\.project = 'holes' needs .*pip install wandb"):
        train.run_training(tiny_config, "unet_cosine.py:tiny", tmp_path, restart=True, allow_changes=False)
    assert (tmp_path / run_folder.METRICS).read_text() == "earlier"


def test_a_config_without_a_field_is_refused(tiny_config):
    del tiny_config.seed
    with pytest.raises(ValueError, match=r"config\.seed is missing: .*common\.base"):
        config_module.validate(tiny_config)


def test_the_estimate_of_space_covers_what_checkpoints_take(tmp_path, tiny_config, make_state):
    groups = ("generator/rest", "discriminator")
    state = make_state(tiny_config, {g: optim.make_optimizer(tiny_config.optimizer, g, 10) for g in groups})
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(state, {})
    checkpoints.save_best(0, run.generator_variables(state))
    checkpoints.close()
    weights.save_generator(tmp_path / "generator", run.generator_variables(state), tiny_config)
    taken = {
        name: sum(file.stat().st_size for file in (tmp_path / name).rglob("*") if file.is_file())
        for name in ("checkpoints/last", "checkpoints/best", "generator")
    }
    needed = run.needed_bytes(tiny_config, state)
    everything = 4 * taken["checkpoints/last"] + 2 * taken["checkpoints/best"] + 2 * taken["generator"]
    assert everything < needed < 3 * everything + run.SPACE_MARGIN


def test_only_a_folder_that_was_made_for_a_refused_run_goes_again(tmp_path):
    run_folder.lock(tmp_path / "new" / "run").close()
    assert not list(tmp_path.iterdir())
    (tmp_path / "old" / "run").mkdir(parents=True)
    run_folder.lock(tmp_path / "old" / "run").close()
    assert (tmp_path / "old" / "run").is_dir()
    with run_folder.lock(tmp_path / "used" / "run"):
        (tmp_path / "used" / "run" / "written").touch()
    assert (tmp_path / "used" / "run" / "written").exists()
    (tmp_path / "parent").mkdir()
    run_folder.lock(tmp_path / "parent" / "run").close()
    assert (tmp_path / "parent").is_dir()
    assert not (tmp_path / "parent" / "run").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', "\0"])
def test_a_damaged_config_of_the_run_is_named(tmp_path, tiny_config, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json' is damaged .*--restart"):
        run.check_config(tiny_config, tmp_path, allow_changes=True)


def test_a_run_from_before_a_field_was_there_goes_on_with_the_fields_default(tmp_path, tiny_config):
    stored = json.loads(config_module.to_json(tiny_config))
    del stored["task"]["window"], stored["regime"]["keep"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    run.check_config(tiny_config, tmp_path, allow_changes=False)
    tiny_config.task.window = 0.5
    with pytest.raises(ValueError, match=r"task\.window: 0\.0 -> 0\.5"):
        run.check_config(tiny_config, tmp_path, allow_changes=False)


@pytest.mark.parametrize("line", [b"garbage", b"{}", b"[1]", b'"step"', b"\xff\xfe\x00"])
def test_a_damaged_row_is_named_by_its_line(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "split": "train"}\n' + line + b'\n{"step": 3, "split": "train"}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*metrics\.jsonl is damaged"):
        run_folder.read_rows(path)
