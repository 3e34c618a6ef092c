"""What a run was started with, for its report: command, machine, versions."""

import datetime
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "opencv-python-headless", "pillow")


def describe_environment() -> dict[str, Any]:
    """Returns command, folder, Python, platform, devices, versions of packages, start time (UTC) and git commit.

    A package that is not installed under its usual name is left out. The commit is "" where this code does not lie in
    a git checkout, and ends in "+" where files differ from it.
    """
    return {
        "command": [Path(sys.executable).name, *sys.argv],
        "working_folder": str(Path.cwd()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [device.device_kind for device in jax.devices()],
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_commit": _git_commit(Path(__file__).parents[1]),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""  # such as OpenCV installed as opencv-python


def _git_commit(root: Path) -> str:
    # A copy that was installed into some other repository's folder must not claim that one's commit.
    if not (root / ".git").exists():
        return ""

    def git(*words: str) -> str:
        ran = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
        return ran.stdout.strip() if ran.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except FileNotFoundError:
        return ""
    return commit + ("+" if commit and changed else "")
