"""How a run was configured, and the command that repeats it: two sections of its report."""

import html
import importlib
import importlib.util
import json
import shlex
from typing import Any

import ml_collections

from configs import common
from inpaint_jax import config as config_module
from inpaint_jax import pages


def config_section(run: dict) -> str:
    """Returns every field of the config; those that differ from the common base are marked and show its value."""
    if not run["config"]:
        return ""
    own = config_module.flatten(ml_collections.ConfigDict(run["config"]))
    base = {key: _plain(value) for key, value in config_module.flatten(common.base()).items()}
    rows, chosen = [], []
    for number, (key, value) in enumerate(own.items()):
        differs = key not in base or base[key] != value
        chosen += [number] if differs else []
        shown = "" if not differs else json.dumps(base[key]) if key in base else "(absent)"
        cells = [html.escape(text) for text in (key, json.dumps(value), shown)]
        rows.append([f"<strong>{cell}</strong>" for cell in cells[:2]] + cells[2:] if differs else cells)
    table = pages.table(["field", "value", "in the base"], rows, texts=3, chosen=chosen)
    note = f"{len(chosen)} of {len(rows)} fields differ from configs/common.py; they are bold and shaded."
    return f'<p>{note}</p>\n<div class="fields">{table}</div>'


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))  # tuples within tuples become lists, as in config.json


def _command(run: dict) -> tuple[str, str]:
    """Returns the command of the run, as recorded or put together from its config, and a note on it."""
    if recorded := run["environment"].get("command"):
        return shlex.join(map(str, recorded)), ""
    stem, _, argument = run["name"].removesuffix(".py").replace(".py:", ":").partition(":")
    if not run["config"] or not stem.isidentifier() or not importlib.util.find_spec(f"configs.{stem}"):
        return "", "Neither the command nor a config of this repository is recorded."
    own = config_module.flatten(config_module.from_json(json.dumps(run["config"])))
    try:
        start = config_module.flatten(importlib.import_module(f"configs.{stem}").get_config(argument))
    except (AttributeError, ValueError) as error:
        return "", f"The command cannot be put together: {error}."
    words = ["python", "launch/main.py", "--config", f"configs/{stem}.py" + (f":{argument}" if argument else "")]
    changed = {key: value for key, value in own.items() if key in start and start[key] != value}
    words += [f"--config.{key}={tuple(value) if isinstance(value, list) else value}" for key, value in changed.items()]
    unknown = [key for key in own if key not in start]
    note = "Put together from config.json, because the run did not record its command."
    return shlex.join(words), note + (f" Today's config has no {', '.join(unknown)}." if unknown else "")


def command_section(run: dict) -> str:
    """Returns the command that repeats the run, and what it ran on."""
    environment = run["environment"]
    command, note = _command(run)
    text = f"<pre>{html.escape(command)}</pre>\n" if command else ""
    text += f'<p class="note">{html.escape(note)}</p>\n' if note else ""
    packages = environment.get("packages") or {}
    pairs = [
        ("Folder", str(environment.get("working_folder", ""))),
        ("Git commit", str(environment.get("git_commit", ""))),
        ("Python", str(environment.get("python", ""))),
        ("Platform", str(environment.get("platform", ""))),
        ("Packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
    ]
    return text + (pages.pairs(pairs) if environment else "")
