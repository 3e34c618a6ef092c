"""Shared set-up: CPU with four fake devices, and compiled programs kept between runs of the suite."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import fast_compilation

# Before JAX is imported anywhere. Four devices on one CPU, for the tests of parallel forms.
os.environ["JAX_PLATFORMS"] = "cpu"
_FLAGS = ("--xla_force_host_platform_device_count=4", *fast_compilation.FLAGS)
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()
_CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "inpaint_jax" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
# Less than a command keeps: the tests of many processes compile the same small programs.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax  # noqa: E402
import ml_collections  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from configs import unet_cosine  # noqa: E402
from inpaint_jax import image_files, train, weights  # noqa: E402
from inpaint_jax.data import pipeline  # noqa: E402
from inpaint_jax.state import TrainState, create_state, initial_variables  # noqa: E402


def _random_leaf(random: np.random.Generator, path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    room, name = jax.tree_util.keystr(path[:1]), jax.tree_util.keystr(path[-1:])
    noise = random.normal(size=leaf.shape)
    if room in (".params", ".ema_params"):
        value = 1 + 0.1 * noise if "scale" in name else 0.1 * noise if "bias" in name else 0.02 * noise
    elif room in (".stats", ".ema_stats"):
        value = np.exp(0.2 * noise) if "var" in name else 0.01 * noise
    else:
        value = np.full(leaf.shape, float(room == ".lr_scale"))
    return np.asarray(value, leaf.dtype)


pytest.register_assert_rewrite("kill_storm")  # its assertions are to tell what differs

# The files that take longest, the longest first.
LONG_FILES = (
    *(
        "interrupted_runs",
        "remote_runs",
        "distributed",
        "train",
        "parallel",
        "system_configs",
        "demo",
        "normal_map_configs",
        "step",
        "experiment",
    ),
    "demo_page",
)


def pytest_configure(config: pytest.Config) -> None:
    """Lets files be given to processes in their order; pytest-xdist would give those with the most tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first: at the end, no process waits for another that has just begun one of them."""
    order = {f"test_{name}": place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture
def tiny_config():
    """The flagship shrunk to seconds; every test gets its own to edit."""
    return unet_cosine.get_config("tiny")


@pytest.fixture(scope="session")
def make_state():
    """A function (config, optimizers, seed) -> state with random weights, biases and statistics, in NumPy arrays.

    Nothing is compiled, and nothing is at a value, such as a bias of zero, that would hide a mistake. Optimiser states
    are zero, as those of adam and sgd are in the beginning.
    """

    def make(config, optimizers, seed: int = 0) -> TrainState:
        random = np.random.default_rng(seed)
        shapes = jax.eval_shape(lambda: create_state(config, optimizers))
        return jax.tree_util.tree_map_with_path(lambda path, leaf: _random_leaf(random, path, leaf), shapes)

    return make


@pytest.fixture(scope="session")
def make_generator():
    """A function (folder, config) that saves a generator of random weights there, as a finished run does."""

    def make(folder: Path, config) -> None:
        random = np.random.default_rng(0)
        shapes = jax.eval_shape(lambda: initial_variables(config))["generator"]
        variables = jax.tree.map(lambda leaf: random.uniform(0.05, 0.2, leaf.shape).astype(np.float32), shapes)
        weights.save_generator(folder / "generator", variables, config)

    return make


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> tuple[ml_collections.ConfigDict, Path]:
    """The config and the folder of a finished run of eight steps on a folder of pictures, which nothing may change."""
    root = tmp_path_factory.mktemp("finished")
    noise = np.random.default_rng(0).integers(96, 160, (30, 32, 32, 3), np.uint8)
    for number, pixels in enumerate(noise):
        image_files.write_png(root / "maps" / f"{number}.png", pixels)
    config = unet_cosine.get_config("tiny")
    config.data.update({"source": "folder", "path": str(root / "maps"), "split_counts": (18, 6, 6)})
    config.epochs, config.checkpoint_every_steps, config.data.cache_megabytes = 2, 2, 0
    assert train.run_training(config, "unet_cosine.py:tiny", root / "run", False, False) == 0
    return config, root / "run"


def _normal_map(random: np.random.Generator, size: int) -> np.ndarray:
    """Normals of a sum of waves: noise would have no direction that a network could learn."""
    y, x = np.mgrid[:size, :size] / size
    slope = np.zeros((2, size, size))
    for _ in range(6):
        wave = random.uniform(-12, 12, 2)
        slope += np.multiply.outer(wave, np.cos(wave[0] * x + wave[1] * y + random.uniform(0, 6))) / 30
    normals = np.stack([-slope[0], slope[1], np.ones_like(x)], axis=-1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return np.round((normals + 1) * 127.5).astype(np.uint8)


@pytest.fixture(scope="session")
def make_batch():
    """A function (examples, size, step) -> batch of random normal maps with the slots of that step."""

    def make(examples: int, size: int, step: int = 0) -> dict[str, np.ndarray]:
        random = np.random.default_rng(step)
        image = np.stack([_normal_map(random, size) for _ in range(examples)])
        return {"image": image, "slot": np.arange(step * examples, (step + 1) * examples, dtype=np.int32)}

    return make


@contextlib.contextmanager
def _mounted(folder: Path, options: str) -> Iterator[None]:
    """Mounts a file system in memory, or skips the test: it takes Linux and its administrator."""
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command")
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    if (ran := subprocess.run(mount, capture_output=True, text=True)).returncode:
        pytest.skip(f"mounting is not permitted: {ran.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="session")
def mounted():
    """A function (folder, options) -> context in which a file system in memory is mounted there."""
    return _mounted


class CrashError(BaseException):
    """Ends a run where it stands; not even `except Exception` would notice."""


@pytest.fixture
def train_with_crashes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict]]:
    """A function (config, workdir, crashes) -> metrics rows of a run that crashes before each of these steps."""
    batches = pipeline.train_batches

    def run(config, workdir: Path, crashes: tuple[int, ...] = ()) -> list[dict]:
        for crash in (*crashes, None):
            jax.clear_caches()  # as in a new process; dozens of programs kept alive in one have aborted it

            def crashing(*arguments, crash=crash, **options):
                for step, batch in enumerate(batches(*arguments, **options), options["start_step"] + 1):
                    if step == crash:
                        raise CrashError
                    yield batch

            monkeypatch.setattr(pipeline, "train_batches", crashing)
            arguments = config.copy_and_resolve_references(), "crashing", workdir, False, False
            if crash is None:
                assert train.run_training(*arguments) == 0
            else:
                with pytest.raises(CrashError):
                    train.run_training(*arguments)
        return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]

    return run


@pytest.fixture
def same_after_crashes(tmp_path: Path, train_with_crashes: Callable) -> Callable[..., list[dict]]:
    """A function (config, crashes) -> metrics rows, the same with and without the crashes, as the generator is."""

    def check(config, crashes: tuple[int, ...]) -> list[dict]:
        rows = train_with_crashes(config, tmp_path / "whole")
        assert train_with_crashes(config, tmp_path / "crashed", crashes) == rows
        weights = [(tmp_path / name / "generator/generator.safetensors").read_bytes() for name in ("whole", "crashed")]
        assert weights[0] == weights[1]
        return rows

    return check
