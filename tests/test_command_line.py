"""The training command's exit codes and messages, from a folder that is not the repository's."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = f"{ROOT / 'configs' / 'unet_cosine.py'}:tiny"


def main(cwd: Path, *options: str, interpreter: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    command = [sys.executable, *interpreter, ROOT / "launch" / "main.py", *options]
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in ran.stderr
    return ran


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--config is required"),
        (("--config",), "Missing value for flag --config"),
        (("--config", "absent.py"), "absent.py: there is no such config file"),
        (("--config", "absent.py:tiny", "--config.seed=3"), "absent.py"),
        (("--config", TINY.replace(":tiny", ":huge")), "'huge': use one of :quick, :tiny"),
        (("--config", TINY, "--config.optimizer.lerning_rate=1"), "'lerning_rate': Did you mean \"learning_rate\""),
        (("--config", TINY, "--config.colour=1"), "the config has no field 'colour'"),
        (("--config", TINY, "--config.batch_size=many"), "--config.batch_size=many"),
        (("--config", TINY, "--config.batch_size=1.5"), "--config.batch_size=1.5"),
        (("--config", TINY, "--wrkdir=x"), "'wrkdir'. Did you mean: workdir"),
        (("--config", TINY, "--restart=perhaps"), "--restart=perhaps"),
        (("--config", TINY, "stray"), "'stray': options start with --"),
    ],
    ids=lambda value: " ".join(value).replace(str(ROOT), "") if isinstance(value, tuple) else "",
)
def test_wrong_usage_ends_with_2_and_leaves_nothing_behind(tmp_path, options, message):
    ran = main(tmp_path, *options)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ")
    assert message in ran.stderr
    assert not ran.stdout
    assert not list(tmp_path.iterdir())


def test_help_answers_without_importing_jax(tmp_path):
    ran = main(tmp_path, "--help", interpreter=("-X", "importtime"))
    assert ran.returncode == 0
    assert "--workdir: run folder" in ran.stdout
    assert "Exit codes: 0 finished" in ran.stdout
    imported = set(re.findall(r"\|\s*(\S+)$", ran.stderr, re.MULTILINE))
    assert "absl.flags" in imported
    assert not imported & {"jax", "flax", "grain", "orbax"}


def test_a_missing_data_folder_ends_with_1_and_one_line(tmp_path):
    options = ("--config.data.source=folder", "--config.data.path=absent/maps", "--workdir", "run")
    ran = main(tmp_path, "--config", TINY, *options)
    assert ran.returncode == 1
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: there is no folder 'absent/maps': set config.data.path to the folder with the pictures"]
    assert ran.stderr.rstrip().endswith(errors[0])
