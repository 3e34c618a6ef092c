"""A run that goes on where something is not as it was: devices, config, networks, data, compiled programs."""

import dataclasses
import os
import random
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import fast_compilation
import jax
import mutations
import numpy as np
import pytest

from configs import unet_cosine
from inpaint_jax import checkpoint, course, image_files, mask_sets, run, run_folder, train
from inpaint_jax.parallel import make_parallel
from inpaint_jax.state import TrainState

ROOT = Path(__file__).parents[1]
STEPS = 10  # after each change of devices


# Devices.


@pytest.fixture(scope="module")
def on_devices(tmp_path_factory) -> Callable[[int, bool], run.Run]:
    """A function (number of devices, with a discriminator or not) -> the same run, spread over them."""
    made = {}

    def make(count: int, adversarial: bool) -> run.Run:
        if adversarial not in made:
            made[adversarial] = assembled(tmp_path_factory.mktemp("devices"), adversarial)
        return dataclasses.replace(made[adversarial], parallel=make_parallel("pmap", jax.devices()[:count]))

    return make


def assembled(folder: Path, adversarial: bool) -> run.Run:
    config = unet_cosine.get_config("tiny")
    if not adversarial:
        config.discriminator.name, config.losses.adversarial.weight = "none", 0.0
    config.batch_size = 12  # which 1, 2, 3 and 4 devices can share
    config.data.embedded_counts = (36, 4, 4)
    # Long enough for the warm-up to last: at the full rate Adam turns the rounding of small gradients into whole steps.
    config.epochs = 1000
    config.optimizer.update({"name": "adam", "warmup_fraction": 0.1})
    config.generator.dropout = 0.5
    return run.assemble(config, "unet_cosine.py:tiny", folder)


@dataclasses.dataclass
class Went:
    """What ten steps began with, saw, gave and saved."""

    begun: TrainState
    slots: np.ndarray
    losses: list[dict[str, float]]
    saved: TrainState


def go_on(own: run.Run, folder: Path, programs: dict[int, Callable]) -> Went:
    """Takes ten steps from the newest checkpoint on, through the parts that a run is made of, and saves."""
    checkpoints, parallel = checkpoint.Checkpoints(folder), own.parallel
    state, regime = run.begin(own, checkpoints, False)
    step = int(state.step)
    if parallel.count not in programs:
        programs[parallel.count] = course.compiled_step(own, regime)
    state, frozen, slots, losses = parallel.replicate(state), parallel.replicate({}), [], []
    begun = jax.device_get(parallel.unreplicate(state))
    for batch in course.batches_after(own, step, step + STEPS):
        slots.append(batch["slot"])
        state, scalars = programs[parallel.count](state, frozen, parallel.shard(batch))
        values = parallel.unreplicate(scalars)
        losses.append({name: float(value) for name, value in values.items() if name.startswith("loss/")})
    saved = jax.device_get(parallel.unreplicate(state))
    checkpoints.save(saved, checkpoint.run_record(regime, own.fingerprints, own.config.epochs, {}))
    checkpoints.close()
    return Went(begun, np.concatenate(slots), losses, saved)


@pytest.mark.parametrize("counts", [(1, 3), pytest.param((1, 2, 4, 3), marks=pytest.mark.slow)], ids=str)
def test_a_run_goes_on_on_another_number_of_devices(on_devices, tmp_path, counts):
    """The state to the bit, the same slots, and for ten steps the losses of a run that goes on on one device.

    All numbers take minutes: python -m pytest -n 0 -m slow tests/test_changed_circumstances.py -k devices
    """
    programs: dict[int, Callable] = {}
    adversarial = len(counts) > 2  # the networks of a generator alone are compiled in a third of the time
    terms = {"loss/generator", "loss/discriminator"} if adversarial else {"loss/generator"}
    earlier = go_on(on_devices(counts[0], adversarial), tmp_path / "run", programs)
    for number, count in enumerate(counts[1:], 1):
        shutil.copytree(tmp_path / "run", tmp_path / f"one{number}")
        expected = go_on(on_devices(1, adversarial), tmp_path / f"one{number}", programs)
        now = go_on(on_devices(count, adversarial), tmp_path / "run", programs)
        jax.tree.map(np.testing.assert_array_equal, now.begun, earlier.saved)
        assert int(now.begun.step) == number * STEPS
        np.testing.assert_array_equal(now.slots, 12 * STEPS * number + np.arange(12 * STEPS))
        np.testing.assert_array_equal(now.slots, expected.slots)
        for ours, theirs in zip(now.losses, expected.losses, strict=True):
            assert terms <= set(ours)
            for name, value in theirs.items():
                np.testing.assert_allclose(ours[name], value, rtol=1e-5, err_msg=f"{count} devices, {name}")
        assert now.losses[0] != now.losses[-1]
        earlier = now


# Config, networks, data: refused, and nothing is overwritten.


def contents(workdir: Path) -> dict[str, bytes]:
    """What a run is: all files but the log, the lock, and what is known of the pictures, which may become more."""
    files = {path.relative_to(workdir).as_posix(): path for path in workdir.rglob("*") if path.is_file()}
    known = (run_folder.LOG, ".lock", f"{run_folder.DATA}/")
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(known)}


def change_rate(config, workdir: Path) -> None:
    config.optimizer.learning_rate = 0.5


def change_width(config, workdir: Path) -> None:
    config.generator.width *= 2


def change_picture(config, workdir: Path) -> None:
    path = Path(config.data.path) / "7.png"
    image_files.write_png(path, 255 - image_files.read_rgb(path))


def change_masks(config, workdir: Path) -> None:
    path = next((workdir / run_folder.MASKS).glob("val-*"))
    masks = mask_sets.load_masks(path)
    mask_sets.save_masks(path, mask_sets.masks_from_pictures(1 - masks.unpack()))


@pytest.mark.parametrize(
    ("change", "allow", "message"),
    [
        (change_rate, False, r"began with another config(.|\n)*\n  optimizer\.learning_rate: \S+ -> 0\.5$"),
        (change_width, False, r"began with another config(.|\n)*\n  generator\.width: \d+ -> \d+$"),
        (change_width, True, "the state of step 8 cannot be read into these networks .*: use the config"),
        (change_picture, False, "the (train|val) split.* changed since this run began.*--restart"),
        (change_masks, False, "the validation masks changed since this run began.*--restart"),
    ],
)  # fmt: skip
def test_what_changed_is_refused_and_nothing_is_overwritten(finished_run, tmp_path, change, allow, message):
    config, workdir = finished_run[0].copy_and_resolve_references(), tmp_path / "run"
    shutil.copytree(finished_run[1], workdir)
    config.data.path = str(shutil.copytree(config.data.path, tmp_path / "maps"))
    change(config, workdir)
    before = contents(workdir)
    assert len(before) > 30
    with pytest.raises(ValueError, match=message):
        train.run_training(config, "unet_cosine.py:tiny", workdir, False, allow)
    assert contents(workdir) == before


# Compiled programs.

# A stand-in for the package that JAX would pack programs with, if it could be imported.
ZSTANDARD = """
import zlib
class ZstdCompressor:
    def compress(self, data): return b"no checksum" + zlib.compress(data)
class ZstdDecompressor:
    def decompress(self, data): return zlib.decompress(data[11:])
"""
# Programs as a command compiles them, one for each kind of damage.
PROGRAMS = """
from inpaint_jax import command_line
command_line.prepare_jax()
import jax, numpy as np
x = np.linspace(0, 1, 99, dtype=np.float32)
for number in range(6):
    print(np.asarray(jax.jit(lambda x: jax.numpy.sin(x + number).cumsum())(x)).tobytes().hex())
"""
DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flip": mutations.flip,
    "cut": mutations.cut,
    "zeros": lambda content, draw: bytes(len(content)),
    "empty": lambda content, draw: b"",
    "garbage": lambda content, draw: draw.randbytes(1000),
    "overwrite": mutations.overwrite,
}


def start(cwd: Path, cache: Path, *words: str | Path, packages: Path | None = None) -> subprocess.CompletedProcess:
    """Runs Python anew: a process that has imported JAX already would not look into this cache."""
    keeps = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    path = os.pathsep.join([str(packages)] * bool(packages) + [str(ROOT)])
    environment = {**os.environ, "XLA_FLAGS": fast_compilation.ONE_DEVICE, **keeps, "PYTHONPATH": path}
    ran = subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran


def damage(cache: Path, draw: random.Random) -> int:
    """Damages every compiled program, each in another way; returns how many."""
    entries = sorted(cache.glob("*-cache"))
    kinds = list(DAMAGES.values())
    first = draw.randrange(len(kinds))
    for number, entry in enumerate(entries):
        entry.write_bytes(kinds[(first + number) % len(kinds)](entry.read_bytes(), draw))
    return len(entries)


def test_damaged_compiled_programs_are_compiled_anew(tmp_path):
    """By a checksum, which zstandard would leave out: with it, a flipped bit ended in a crash."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/zstandard.py").write_text(ZSTANDARD)
    cache = tmp_path / "cache"
    sound = start(tmp_path, cache, "-c", PROGRAMS, packages=tmp_path / "packages")
    entries = {entry: entry.read_bytes() for entry in cache.glob("*-cache")}
    assert len(entries) >= len(DAMAGES)
    for content in entries.values():
        zlib.decompress(content)  # which checks
    again = start(tmp_path, cache, "-c", PROGRAMS, packages=tmp_path / "packages")
    assert (again.stdout, again.stderr) == (sound.stdout, "")
    damage(cache, random.Random(0))
    damaged = start(tmp_path, cache, "-c", PROGRAMS)
    assert damaged.stdout == sound.stdout
    assert "Error reading persistent compilation cache entry" in damaged.stderr


@pytest.mark.slow
def test_damaged_compiled_programs_change_no_row_of_a_run(tmp_path):
    """Minutes: python -m pytest -n 0 -m slow tests/test_changed_circumstances.py -k row"""
    config, cache = f"--config={ROOT / 'configs/unet_cosine.py'}:tiny", tmp_path / "cache"

    def rows(name: str) -> str:
        start(tmp_path, cache, ROOT / "launch/main.py", config, f"--workdir={name}")
        return (tmp_path / name / "metrics.jsonl").read_text()

    expected = rows("sound")
    assert rows("again") == expected
    for number in range(len(DAMAGES)):
        assert damage(cache, random.Random(number)) > 3
        assert rows(f"damaged{number}") == expected
