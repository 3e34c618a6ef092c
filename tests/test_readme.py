"""The README keeps its word: its diffs work, and its commands and files are there."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import fast_compilation
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DIFFS = re.findall(r"```diff\n(.*?)```", README, re.DOTALL)


def copy_of_the_code(folder: Path) -> Path:
    for name in ("inpaint_jax", "configs", "launch"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def apply(diff: str, folder: Path) -> None:
    subprocess.run(["git", "apply", "--unidiff-zero", "-"], input=diff, text=True, cwd=folder, check=True)


def test_each_diff_is_about_ten_lines_and_applies_by_itself(tmp_path):
    assert len(DIFFS) == 3
    for number, diff in enumerate(DIFFS):
        apply(diff, copy_of_the_code(tmp_path / str(number)))
        added = [line for line in diff.splitlines() if re.match(r"\+(?!\+\+ )\s*\S", line)]
        assert len(added) <= 13


def test_a_run_uses_the_new_loss_the_new_mask_and_the_new_model(tmp_path):
    folder = copy_of_the_code(tmp_path / "code")
    for diff in DIFFS:
        apply(diff, folder)
    uses = re.findall(r": `(--config\.[\w.=]+)`", README)
    assert len(uses) == 3
    command = [
        sys.executable,
        "launch/main.py",
        "--config",
        "configs/unet_cosine.py:tiny",
        "--workdir",
        tmp_path / "run",
    ]
    command += [*uses, "--config.max_steps=2", "--config.evaluation.test_limit=2"]
    # The copy comes first on the path, and the installed package after it.
    environment = {**os.environ, "XLA_FLAGS": fast_compilation.ONE_DEVICE, "PYTHONPATH": str(folder)}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss/cosine"] > 0
    results = json.loads((tmp_path / "run/test/results.json").read_text())
    assert results["mask_set"].startswith("scratches-")
    weights = load_file(tmp_path / "run/generator/generator.safetensors")
    assert {name.split("/")[1] for name in weights} == {f"Conv_{i}" for i in range(5)}


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(shlex.split(line, comments=True)) for line in lines if "launch/" in line]


@pytest.mark.parametrize("script", sorted(set(re.findall(r"launch/\w+\.py", README))))
def test_options_in_the_readme_exist(script):
    used = set()
    for line in commands():
        if script in line:
            used |= set(re.findall(r" --(\w+)", line.split(script, 1)[1]))
    shown = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, check=True).stdout
    assert used <= set(re.findall(r"^  --(\w+):", shown, re.MULTILINE))


def test_files_named_in_the_readme_exist():
    named = set(re.findall(r"(?:configs|launch|docs|tests|inpaint_jax)/\w[\w/]*(?:\.\w+|/)", README))
    added = set(re.findall(r"^\+\+\+ b/(\S+)", README, re.MULTILINE))
    assert len(named) > 10
    assert not [name for name in named - added if not (ROOT / name).exists()]
