"""Damaged files through the readers that commands use: the same result as before, or one sentence that names the file.

Each file is damaged in hundreds of ways, the same in every run; the slow ones repeat it in thousands:

    python -m pytest -n 0 -m slow tests/test_fuzz.py
"""

import collections
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked_commands
import jax
import mutations
import numpy as np
import pytest
import safetensors.numpy
from test_pretrained import checkpoint as stored_tree
from test_pretrained import layers, own_arrays, pickled, write_package
from test_weight_files import write_keras

from inpaint_jax import checkpoint, compare, compare_curves, pretrained, report, run, run_folder, weights

ROOT = Path(__file__).parents[1]
WIDTH = 2  # of VGG16
MASKS = f"{run_folder.MASKS}/val-*.npz"
MANIFEST = f"{run_folder.DATA}/manifest.json"


def tries(few: int, many: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("tries", [few, pytest.param(many, marks=pytest.mark.slow)])


def is_same(first: Any, second: Any) -> bool:
    """Returns whether trees of arrays and plain values are equal to the bit."""
    if jax.tree.structure(first) != jax.tree.structure(second):
        return False
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


class Outcomes(collections.Counter):
    """Counts what came of damage: "same", "other" or "refused"; anything else is raised as it is."""

    def add(self, seed: int, read: Callable[[], Any], sound: Any, *names: str) -> None:
        try:
            result = read()
        except (ValueError, OSError) as error:
            said = str(error)
            assert any(name in said for name in names), f"seed {seed}: {said} does not name {names}"
            assert len(said.splitlines()[0]) < 1000, f"seed {seed}: {said}"
            self["refused"] += 1
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        else:
            self["same" if is_same(result, sound) else "other"] += 1


# Weights of VGG16.


def write_weights(path: Path, form: str) -> Path:
    arrays = layers(WIDTH)
    if form == "keras":
        write_keras(path.with_suffix(".h5"), arrays, "new")
        return path.with_suffix(".h5")
    if form == "safetensors":
        safetensors.numpy.save_file(own_arrays(arrays), path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    (np.savez if form == "npz" else np.savez_compressed)(path.with_suffix(".npz"), **own_arrays(arrays))
    return path.with_suffix(".npz")


@tries(200, 5000)
@pytest.mark.parametrize("form", ["keras", "safetensors", "npz", "compressed npz"])
def test_damaged_weights_of_vgg16(tmp_path, form, tries):
    """In a process of its own with little memory: a crash, or a size that only a damaged header asks for, shows."""
    path = write_weights(tmp_path / "sound", form)
    program = [sys.executable, Path(__file__).with_name("fuzzed_weight_files.py"), path, "0", str(tries)]
    ran = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout[-200:] + ran.stderr
    outcomes = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [seed for seed, _, _ in outcomes] == list(range(tries))
    found = collections.Counter(word for _, word, _ in outcomes)
    # Only NPZ archives have checksums; in the others a flipped bit of a weight is another weight.
    assert set(found) <= {"same", "refused", *(["other"] if form in ("keras", "safetensors") else [])}, found
    assert found["refused"] > tries / 3
    for seed, word, message in outcomes:
        if word == "refused":
            named = f"damaged{path.suffix}" in message
            assert named, f"seed {seed}: {message}"
            assert "\n" not in message


@pytest.mark.slow
def test_damaged_fetched_weights(tmp_path, monkeypatch):
    """60 MB each time: a fingerprint is in the file, so that no weight can be another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, _ = pretrained.fetch_vgg16(*write_package(tmp_path / "package.tar.gz", pickled(stored_tree(layers()))))
    content, sound, found = path.read_bytes(), pretrained.load_lpips(), Outcomes()
    length = 8 + int.from_bytes(content[:8], "little")
    for seed in range(60):
        # Every other time its header alone, which is the thousandth part of it.
        head = mutations.mutated(content[:length], mutations.BYTES, seed) + content[length:]
        path.write_bytes(head if seed % 2 else mutations.mutated(content, mutations.BYTES, seed))
        found.add(seed, pretrained.load_lpips, sound, str(path))
    assert set(found) <= {"same", "refused"}, found
    assert found["refused"] > 40


# A run folder.


@pytest.fixture
def copied(finished_run, tmp_path) -> Path:
    """A copy of the finished run's folder, to be damaged."""
    return shutil.copytree(finished_run[1], tmp_path / "run")


def damage(source: Path, target: Path, kinds: tuple, seed: int) -> None:
    target.write_bytes(mutations.mutated(source.read_bytes(), kinds, seed))


@tries(40, 1000)
@pytest.mark.parametrize("name", [weights.WEIGHTS, weights.CONFIG])
def test_damaged_generators(finished_run, copied, name, tries):
    folder, found = copied / "generator", Outcomes()
    sound = weights.load_generator(folder)[1]
    kinds = mutations.JSON if name == weights.CONFIG else mutations.BYTES
    for seed in range(tries):
        damage(finished_run[1] / "generator" / name, folder / name, kinds, seed)
        found.add(seed, lambda: weights.load_generator(folder)[1], sound, str(folder))
    assert set(found) <= {"same", "refused"}, found
    assert found["refused"] > tries / 2


@tries(250, 5000)
def test_damaged_configs_of_a_run(finished_run, copied, tries):
    made, path, found = finished_run[0], copied / run_folder.CONFIG, Outcomes()
    for seed in range(tries):
        damage(finished_run[1] / path.name, path, mutations.JSON, seed)
        found.add(seed, lambda: run.check_config(made, copied, False), None, str(path), "began with another config")
    assert set(found) <= {"same", "refused"}, found
    assert found["refused"] > tries / 2


@tries(250, 4000)
@pytest.mark.parametrize("name", [run_folder.METRICS, run_folder.TIMING])
def test_damaged_rows(finished_run, copied, name, tries):
    path, found = copied / name, Outcomes()
    first = finished_run[1] / name

    def read() -> list[dict]:
        if name == run_folder.METRICS:
            run_folder.truncate_rows(path, 2**31)
        run_folder.RowFile(path).close()
        rows = run_folder.read_rows(path)
        assert all(isinstance(row["step"], int) for row in rows)
        return [{key: value for key, value in row.items() if key in ("step", "split", "seconds")} for row in rows]

    sound = read()
    for seed in range(tries):
        damage(first, path, mutations.ROWS, seed)
        found.add(seed, read, sound, str(path))
    assert found["refused"] > tries / 3, found


@pytest.mark.parametrize(
    ("name", "tries"),
    [
        *((name, 40) for name in (run_folder.CONFIG, run_folder.ENVIRONMENT, run_folder.STARTS, report.RESULTS)),
        *((name, 15) for name in (run_folder.TIMING, "log.txt")),
        pytest.param(run_folder.METRICS, 100, marks=pytest.mark.slow),  # the curves take a second
        *(
            pytest.param(name, 500, marks=pytest.mark.slow)
            for name in (run_folder.CONFIG, run_folder.ENVIRONMENT, report.RESULTS, run_folder.TIMING)
        ),
    ],
)
def test_damaged_files_of_a_report(finished_run, copied, name, tries):
    """The page names what cannot be read, and is written all the same."""
    kinds = mutations.ROWS if name.endswith("l") else mutations.BYTES if name.endswith("txt") else mutations.JSON
    for picture in [*copied.glob("samples/*"), *copied.glob("*.png"), *copied.glob("test/*.png")]:
        picture.unlink()  # they would take most of the time, as the curves would
    if name != run_folder.METRICS:
        (copied / run_folder.METRICS).unlink()
    named = 0
    for seed in range(tries):
        damage(finished_run[1] / name, copied / name, kinds, seed)
        try:
            page = report.write_report(copied).read_text()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        named += f"{name}, which cannot be read" in page
    assert named > tries / 5 or name == "log.txt"


@tries(150, 3000)
@pytest.mark.parametrize("name", [run_folder.CONFIG, report.RESULTS, run_folder.METRICS])
def test_damaged_files_of_a_comparison(finished_run, copied, tmp_path, name, tries):
    found = Outcomes()
    kinds = mutations.ROWS if name.endswith("l") else mutations.JSON

    def read() -> list:
        runs = compare.find_runs([copied], False)
        compare.check_comparable(runs)
        groups = compare.group_runs(runs)
        rows = compare.statistics(groups)
        compare.text_table(rows)
        if name == run_folder.METRICS:
            compare_curves.read_curves(groups[0]["runs"][0], "loss/cosine")
        return [row["mean"] for row in rows]

    sound = read()
    for seed in range(tries):
        damage(finished_run[1] / name, copied / name, kinds, seed)
        found.add(seed, read, sound, str(copied))
    assert found["refused"] > tries / 4, found


@tries(100, 1500)
def test_damaged_lists_of_checked_pictures(finished_run, copied, tries):
    """What is damaged is made anew: pictures and splits are the same."""
    made, found = finished_run[0], Outcomes()

    def read() -> list[str]:
        splits = run.data_module.load_splits(made.data, made.image_size, copied / run_folder.DATA)
        return [source.fingerprint for source in splits.values()]

    sound = read()
    for seed in range(tries):
        damage(finished_run[1] / MANIFEST, copied / MANIFEST, mutations.JSON, seed)
        found.add(seed, read, sound, "nothing is refused")
    assert set(found) == {"same"}, found


@tries(200, 3000)
def test_damaged_masks(finished_run, copied, tries):
    found, path = Outcomes(), next(copied.glob(MASKS))
    made = finished_run[0]

    def read() -> dict:
        masks = run.evaluate.evaluation_masks(made, "val", 6, copied / run_folder.MASKS)
        return {"bits": masks.unpack(), "shapes": masks.shapes}

    content, sound = path.read_bytes(), read()
    for seed in range(tries):
        path.write_bytes(mutations.mutated(content, mutations.BYTES, seed))
        found.add(seed, read, sound, str(path))
    assert set(found) <= {"same", "refused"}, found
    assert found["refused"] > tries / 2


# Checkpoints.


@pytest.fixture(scope="module")
def assembled(finished_run, tmp_path_factory) -> run.Run:
    made, folder = finished_run
    return run.assemble(made, "unet_cosine.py:tiny", folder)


def kinds_of(content: bytes) -> tuple:
    try:
        json.loads(content)
    except ValueError:
        return mutations.BYTES
    return mutations.JSON


@tries(30, 300)
def test_damaged_files_of_checkpoints(finished_run, assembled, copied, tries):
    """The run goes on from the newest state that is as it was saved, bit by bit; each file of the newest is damaged."""
    states = {}
    for step in checkpoint.kept_steps(finished_run[1] / run_folder.CHECKPOINTS):
        template = jax.eval_shape(lambda: run.create_state(assembled.config, assembled.system.optimizers))
        states[step] = checkpoint.read_state(finished_run[1] / run_folder.CHECKPOINTS, step, template)[0]
    newest = max(states)
    source = finished_run[1] / run_folder.CHECKPOINTS
    folders = (source / f"last/step_{newest}", next((source / "best").glob("step_*")))
    files = sorted(path.relative_to(source) for folder in folders for path in folder.rglob("*") if path.is_file())
    moved = dataclasses.replace(assembled, workdir=copied)
    steps = collections.Counter()
    for seed in range(tries):
        shutil.rmtree(copied / run_folder.CHECKPOINTS)
        shutil.copytree(source, copied / run_folder.CHECKPOINTS)
        shutil.copy(finished_run[1] / run_folder.METRICS, copied)
        name = files[seed % len(files)] if seed < len(files) else random.Random(seed).choice(files)
        damage(source / name, copied / run_folder.CHECKPOINTS / name, kinds_of((source / name).read_bytes()), seed)
        opened = checkpoint.Checkpoints(copied / run_folder.CHECKPOINTS)
        try:
            state, _ = run.begin(moved, opened, False)
            opened.close()
        except BaseException as error:
            error.add_note(f"seed {seed}: {name}")
            raise
        steps[int(state.step)] += 1
        assert is_same(state, states[int(state.step)]), f"seed {seed}: {name}"
    assert set(steps) <= {newest, sorted(states)[-2]}
    assert len(steps) == 2, steps


def test_foreign_entries_among_checkpoints_do_no_harm(finished_run, assembled, copied):
    last = copied / run_folder.CHECKPOINTS / "last"
    newest = checkpoint.kept_steps(last.parent)[-1]
    (last / "step_abc").mkdir()
    (last / "step_-1").mkdir()
    (last / "step_99999999999999999999999").mkdir()
    (last / f"step_{newest + 7}").mkdir()
    (last / f"step_{newest + 8}").write_text("a file")
    (last / f"step_{newest + 9}").symlink_to(f"step_{newest + 9}")
    (last / ".hidden").mkdir()
    (last / "notes.txt").write_text("mine")
    opened = checkpoint.Checkpoints(copied / run_folder.CHECKPOINTS)
    state, _ = run.begin(dataclasses.replace(assembled, workdir=copied), opened, False)
    opened.close()
    assert int(state.step) == newest
    assert (last / "notes.txt").exists()


# The command.


@pytest.mark.slow
def test_the_command_on_a_damaged_run(finished_run, tmp_path):
    """One file of the run folder is damaged: the same run, or one error that says what to do; minutes."""
    config, whole = finished_run
    options = [f"--config={ROOT / 'configs/unet_cosine.py'}:tiny", "--workdir=run", "--config.data.source=folder"]
    options += [f"--config.data.path={config.data.path}", "--config.data.split_counts=(18,6,6)", "--config.epochs=2"]
    options += ["--config.checkpoint_every_steps=2", "--config.data.cache_megabytes=0"]
    kinds = ("*.json", "*.jsonl", "masks/*", "data/*", "test/*.json", "generator/*", "checkpoints/*/*8/*")
    names = sorted(path.relative_to(whole) for kind in kinds for path in whole.glob(kind) if path.is_file())
    names += [path.relative_to(whole) for path in whole.glob("checkpoints/*/*8/*/*") if path.is_file()]
    codes, rowfiles = collections.Counter(), (run_folder.METRICS, run_folder.TIMING)
    for seed, name in enumerate(sorted(set(names))):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "run")
        kind = mutations.ROWS if str(name) in rowfiles else kinds_of((whole / name).read_bytes())
        damage(whole / name, tmp_path / "run" / name, kind, seed)
        ran = forked_commands.run("main", tmp_path, *options, environment=dict(os.environ))
        codes[ran.returncode] += 1
        assert ran.returncode in (0, 1), f"seed {seed}, {name}: {ran.stderr}"
        assert "Traceback" not in ran.stderr, f"seed {seed}, {name}: {ran.stderr}"
        if ran.returncode:
            assert "error: " in ran.stderr
            assert name.name in ran.stderr or "another config" in ran.stderr, f"seed {seed}, {name}: {ran.stderr}"
        elif str(name) not in rowfiles:
            for same in (run_folder.METRICS, f"generator/{weights.WEIGHTS}"):
                equal = (tmp_path / "run" / same).read_bytes() == (whole / same).read_bytes()
                assert equal, f"seed {seed}, {name}: other {same}"
    assert codes[0] > 5, codes
    assert codes[1] > 0, codes
