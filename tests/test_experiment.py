"""Experiments: which runs there are and where, and the real command stopped, continued, skipped and refused."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import fast_compilation
import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from configs import unet_cosine
from inpaint_jax import config as config_module
from inpaint_jax import experiment, experiment_plan, run_folder

ROOT = Path(__file__).parents[1]
TINY = f"{ROOT / 'configs' / 'unet_cosine.py'}:tiny"

NAMES = st.from_regex(r"[\w-]{1,12}", fullmatch=True)
VARIED = st.fixed_dictionaries(
    {},
    optional={
        "optimizer.learning_rate": st.floats(1e-9, 1e9),
        "optimizer.name": st.text(max_size=200),
        "data.embedded_counts": st.lists(st.integers(0, 9), max_size=3),
        "data.split_folders": st.lists(st.text("ab,x", max_size=3), max_size=3),
        "data.augment": st.booleans(),
    },
)
SETTINGS = st.tuples(NAMES, st.one_of(st.just(""), NAMES), VARIED, st.integers(0, 99))


def name_of(setting: tuple) -> str:
    stem, argument, varied, seed = setting
    return experiment_plan.folder_name(f"configs/{stem}.py" + (f":{argument}" if argument else ""), varied, seed)


@given(SETTINGS, SETTINGS)
def test_different_settings_have_different_safe_folders(a: tuple, b: tuple):
    # Also where the file system does not tell upper from lower case.
    assert (name_of(a).casefold() == name_of(b).casefold()) == (json.dumps(a) == json.dumps(b))
    for part in name_of(a).split("/"):
        assert re.fullmatch(r"[A-Za-z0-9_.+=,~-]{1,200}", part)
        assert part.strip(".")


def test_folder_names_say_what_the_run_is():
    varied = {"optimizer.name": "adam", "optimizer.learning_rate": 0.001, "data.embedded_counts": [18, 6, 6]}
    name = experiment_plan.folder_name("configs/unet_cosine.py:quick", varied, 2)
    fields = "data.embedded_counts=18x6x6,optimizer.learning_rate=0.001,optimizer.name=adam"
    assert name == f"unet_cosine-quick/{fields}/seed2"
    assert experiment_plan.folder_name("configs/unet_cosine.py", {}, 0) == "unet_cosine/seed0"
    # A hyphen in the file's name is not an argument.
    assert experiment_plan.folder_name("a/unet-quick.py", {}, 0) != experiment_plan.folder_name(
        "a/unet.py:quick", {}, 0
    )


def test_the_plan_is_the_cross_product_with_configs_as_the_training_command_sees_them(tmp_path: Path):
    variations = {"optimizer.name": ["adam", "sgd"], "data.embedded_counts": ["(18, 6, 6)", "(20, 6, 6)"]}
    runs = experiment_plan.plan([TINY], [0, 3], variations, {"epochs": "2"}, tmp_path, Path("launch/main.py"))
    assert len({run.folder for run in runs}) == 2 * 2 * 2
    assert [run.config.seed for run in runs] == [0, 3] * 4
    last = runs[-1]
    assert (last.config.optimizer.name, last.config.data.embedded_counts, last.config.epochs) == ("sgd", (20, 6, 6), 2)
    assert last.command[1:6] == ("launch/main.py", "--config", TINY, "--workdir", str(last.folder))
    assert set(last.command[6:]) == {
        *("--config.epochs=2", "--config.optimizer.name=sgd", "--config.data.embedded_counts=(20, 6, 6)"),
        "--config.seed=3",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"specs": ["absent.py"]}, r"absent.py: there is no such config file"),
        ({"specs": [TINY.replace(":tiny", ":huge")]}, "unknown config argument 'huge'"),
        ({"settings": {"optimizer.lerning_rate": "1"}}, 'Did you mean "learning_rate"'),
        ({"settings": {"epochs": "many"}}, "epochs=many"),
        ({"variations": {"optimizer.learning_rate": ["1e-3", "0.001"]}}, "two runs would share the folder"),
        ({"specs": [TINY, TINY]}, "two runs would share the folder"),
        ({"settings": {"epochs": "2"}, "variations": {"epochs": ["3"]}}, "epochs is in --vary and in --set"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_plans_are_refused(tmp_path: Path, arguments: dict, message: str):
    full = {"specs": [TINY], "seeds": [0], "variations": {}, "settings": {}, "root": tmp_path, "main": Path("main.py")}
    with pytest.raises(flags.ValidationError, match=message):
        experiment_plan.plan(**{**full, **arguments})


def test_options_are_parsed_or_refused():
    assert experiment_plan.split_values("adam,sgd") == ["adam", "sgd"]
    assert experiment_plan.split_values("(1, 2), (3, 4)") == ["(1, 2)", "(3, 4)"]
    assert experiment_plan.parse_settings(["config.a.b=1", "c=x=y"], "set") == {"a.b": "1", "c": "x=y"}
    assert experiment_plan.parse_seeds(["0", " 12"]) == [0, 12]
    for texts in (["epochs"], ["=3"], ["seed=3"], ["a=1", "a=2"]):
        with pytest.raises(flags.ValidationError, match="--set"):
            experiment_plan.parse_settings(texts, "set")
    for texts in ([], ["a"], ["-1"], ["1", "1"], ["1", ""]):
        with pytest.raises(flags.ValidationError, match="--seeds"):
            experiment_plan.parse_seeds(texts)


def test_exit_codes_and_errors_of_a_run():
    assert experiment.state_of_exit(0, stopping=True) == "finished"
    assert experiment.state_of_exit(75, stopping=False) == "interrupted"
    assert experiment.state_of_exit(-signal.SIGKILL, stopping=False) == "interrupted"
    assert experiment.state_of_exit(1, stopping=False) == "failed"
    assert experiment.state_of_exit(2, stopping=False) == "failed"
    text = "12:00 step 1\nerror: an earlier one\n12:01 more\nerror: another config:\n  seed: 0 -> 1\n\n"
    assert experiment.error_of(text) == "error: another config:\n  seed: 0 -> 1"
    assert experiment.error_of("Traceback\nRuntimeError: broken\n") == "RuntimeError: broken"
    assert experiment.error_of("") == ""
    with experiment.Stop() as stop:
        assert experiment.exit_code(["finished", "finished"], stop) == 0
        assert experiment.exit_code(["finished", "failed", "interrupted"], stop) == 1
        assert experiment.exit_code(["finished", "interrupted"], stop) == 75


def test_results_count_only_for_the_config_that_is_asked_for(tmp_path: Path):
    def finished(**settings: str) -> bool:
        (run,) = experiment_plan.plan([TINY], [0], {}, settings, tmp_path, Path("main.py"))
        return experiment.is_finished(run)

    assert not finished()
    (run,) = experiment_plan.plan([TINY], [0], {}, {}, tmp_path, Path("main.py"))
    results = {"hashes": config_module.hashes(run.config), "metrics": {"angular_error_deg_hole": 5.8266}}
    run_folder.write_json(run.folder / "test/results.json", results)
    assert not finished()
    run_folder.write_text(run.folder / "config.json", config_module.to_json(run.config))
    assert finished()
    assert experiment.result_text(run) == "angular_error_deg_hole 5.827"
    run.config.regime.monitor = "loss/generator"  # which the test has not where there is a discriminator
    assert experiment.result_text(run) == "angular_error_deg_hole 5.827"
    run.config.regime.monitor = "angular_error_deg_hole"
    assert not finished(epochs="4")
    assert not finished(**{"optimizer.name": "sgd"})
    longer = unet_cosine.get_config("tiny")
    longer.epochs = 4
    run_folder.write_text(run.folder / "config.json", config_module.to_json(longer))
    assert not finished()  # more epochs were begun since
    assert not finished(epochs="4")
    for damaged in ("{", "[]"):
        run_folder.write_text(run.folder / "config.json", damaged)
        assert not finished()


def start(root: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, ROOT / "launch" / "experiment.py", "--config", TINY, "--root", root, *options]
    environment = {**os.environ, "XLA_FLAGS": fast_compilation.ONE_DEVICE}  # one device, as on a user's CPU
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(root: Path, *options: str, code: int) -> str:
    process = start(root, *options)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == code, output + errors
    return output


def states(root: Path) -> dict[str, str]:
    rows = json.loads((root / "experiment.json").read_text())["runs"]
    return {name.removeprefix("unet_cosine-tiny/"): row["state"] for name, row in rows.items()}


def wait_for(condition, process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_an_experiment_is_stopped_continued_skipped_and_refuses_changes(tmp_path: Path):
    root = tmp_path / "root"
    options = ["--vary", "image_size=33,32", "--set", "epochs=6", "--set", "checkpoint_every_steps=1000"]
    process = start(root, *options)
    folder = root / "unet_cosine-tiny/image_size=32/seed0"
    metrics = folder / "metrics.jsonl"
    wait_for((folder / "experiment.log").exists, process)
    # Another one in the same root is refused at once.
    other = start(root, *options)
    assert "another process works in the folder" in other.communicate(timeout=60)[1]
    assert other.returncode == 1
    assert states(root) == {"image_size=33/seed0": "failed", "image_size=32/seed0": "running"}
    wait_for(lambda: metrics.exists() and len(metrics.read_text()) > 0, process)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "config.image_size = 33: the generator unet takes powers of two" in output
    assert states(root) == {"image_size=33/seed0": "failed", "image_size=32/seed0": "interrupted"}
    step = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert f"SIGTERM: state of step {step} saved" in (folder / "experiment.log").read_text()

    output = run(root, *options, code=1)  # because the other run still fails
    assert states(root) == {"image_size=33/seed0": "failed", "image_size=32/seed0": "finished"}
    assert f"going on from step {step} of 24" in (folder / "experiment.log").read_text()
    assert "1 of 2 runs are finished" in output

    written = (folder / "experiment.log").read_text()
    options[1] = "image_size=32"
    assert "angular_error_deg_hole" in run(root, *options, code=0)
    assert "/seed0 is finished" in run(root, *options, "--dry_run", code=0)
    assert (folder / "experiment.log").read_text() == written
    assert len(states(root)) == 2  # the other run is not forgotten
    output = run(root, *options, "--set", "batch_size=6", code=1)
    assert "began with another config" in output
    assert "batch_size: 4 -> 6" in output
    assert not list(root.rglob(".*.tmp"))


def test_dry_run_prints_the_commands_and_writes_nothing(tmp_path: Path):
    output = run(tmp_path / "root", "--seeds", "0,1", "--dry_run", code=0)
    lines = output.splitlines()
    assert [line.split()[-1] for line in lines] == ["--config.seed=0", "--config.seed=1"]
    assert all(f"--workdir {tmp_path}/root/unet_cosine-tiny/seed" in line for line in lines)
    assert not list(tmp_path.iterdir())
    assert run(tmp_path / "root", "--seeds", "0,0", code=2) == ""


CHILD = """
import pathlib, signal, sys, time
def interrupted(*_):
    pathlib.Path("first").touch()
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
signal.signal(signal.SIGINT, interrupted)
pathlib.Path("ready").touch()
time.sleep(100)
"""
DRIVER = f"""
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background may have it ignored
from configs import unet_cosine
from inpaint_jax import experiment
from inpaint_jax.experiment_plan import PlannedRun
command = (sys.executable, "-c", {CHILD!r})
runs = [PlannedRun(name, Path(name), command, unet_cosine.get_config("tiny")) for name in ("one", "two")]
sys.exit(experiment.run_all(runs, Path("root")))
"""


def test_a_second_interrupt_reaches_the_run_and_ends_with_130(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", DRIVER], cwd=tmp_path)
    for file in ("ready", "first"):
        wait_for((tmp_path / file).exists, process)
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    rows = json.loads((tmp_path / "root/experiment.json").read_text())["runs"]
    assert {name: row["state"] for name, row in rows.items()} == {"one": "interrupted", "two": "waiting"}
