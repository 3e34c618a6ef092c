"""Exported generators answer as the model does, in every format; what does not agree is not kept."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from configs import common
from inpaint_jax import config as config_module
from inpaint_jax import export, inference, models, task, weights

COMMAND = Path(__file__).parents[1] / "launch" / "export.py"
# One of each generator, and of each way in which inputs are made; the second works on windows.
FAMILIES = (
    *("unet_cosine", "faces.attention_hole", "completion.glcic", "landscapes.unet", "landscapes.encoder_decoder"),
    "pix2pix.vgg_generator",
)
OTHERS = (
    *("unet_photographs", "normal_maps.v0_1_unet", "normal_maps.v1_2_bowtie_early_stopping"),
    *("normal_maps.v2_0_unet_gen_only", "faces.attention_cosine", "faces.attention_whole"),
    *("landscapes.unet_perceptual_gan", "pix2pix.base", "pix2pix.vgg_no_mask", "pix2pix.vgg_mask"),
    *("pix2pix.vgg_512_generator_decay", "pix2pix.vgg_512_discriminator_increase"),
)
ALL = [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
CHEAP = "landscapes.encoder_decoder"  # to compile


def random_variables(config) -> dict:
    """Variables with which every layer has a say: kernels of a size that keeps values as large as they are."""
    random = np.random.default_rng(0)
    image = jax.ShapeDtypeStruct((1, *task.input_shapes(config)["generator"]), jnp.float32)
    generator = models.build_generator(config)
    shapes = jax.eval_shape(lambda key, x: generator.init(key, x, train=False), jax.random.key(0), image)

    def leaf(path: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        taps = np.prod(shape.shape[:3])
        if shape.ndim == 4 and shape.shape[0] == 4 and "down" not in jax.tree_util.keystr(path):
            taps /= 4  # of a transposed kernel only these meet any one pixel
        deviation = np.sqrt(2 / taps) if shape.ndim == 4 else 0.2
        return (deviation * random.standard_normal(shape.shape)).astype(np.float32)

    statistics = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes.get("batch_stats", {}))
    return {"params": jax.tree_util.tree_map_with_path(leaf, shapes["params"]), "batch_stats": statistics}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Callable[[str], Path]:
    """A function (name of a config) -> run folder with a generator of random weights."""
    made = {}

    def make(name: str) -> Path:
        if name not in made:
            config = importlib.import_module(f"configs.{name}").get_config("tiny")
            made[name] = tmp_path_factory.mktemp("run")
            weights.save_generator(made[name] / "generator", random_variables(config), config)
        return made[name]

    return make


@pytest.fixture(scope="module")
def filled(model) -> Callable[[str], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A function (name of a config) -> uint8 picture, its hole, and the picture as `Inpainter` fills it."""
    known = {}

    def fill(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if name not in known:
            inpainter = inference.Inpainter.load(model(name))
            size = inpainter.size
            image = np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8)
            hole = np.zeros((size, size), bool)
            hole[size // 4 : size // 2, size // 3 : size - 2] = True
            known[name] = image, hole, inpainter(image, hole)
        return known[name]

    return fill


def assert_fills_as(answer: Callable, image: np.ndarray, hole: np.ndarray, expected: np.ndarray) -> None:
    """What `answer` makes of a picture in [0, 1] is what `Inpainter` made of it, and what is known stays to the bit."""
    unit = (image / np.float32(255))[None].astype(np.float32)
    completed = np.asarray(answer(unit, np.where(hole, 0.6, 0.4).astype(np.float32)[None, ..., None]))
    assert (completed.shape, completed.dtype) == (unit.shape, np.float32)
    np.testing.assert_array_equal(completed[0][~hole], unit[0][~hole])
    difference = np.round(completed[0] * 255) - expected
    assert np.abs(difference).max() <= 1, "the other order of the sums"
    assert (difference != 0).mean() < 0.01
    assert expected[hole].std() > 10, "a network with nothing to say would hide mistakes"


@pytest.mark.parametrize("name", ALL)
def test_stablehlo_fills_as_the_model_does(model, filled, tmp_path, name):
    megabytes, difference = export.export(model(name), tmp_path / "deep" / "a.stablehlo", "stablehlo")
    content = (tmp_path / "deep" / "a.stablehlo").read_bytes()
    assert megabytes == len(content) / 1e6
    assert difference <= 1e-4
    read = jax.export.deserialize(bytearray(content))
    assert set(read.platforms) == {"cpu", "cuda", "tpu"}
    kernels = [leaf for leaf in jax.tree.leaves(weights.load_generator(model(name))[1]["params"]) if leaf.ndim == 4]
    assert read.mlir_module().count("stablehlo.convolution") >= len(kernels), "a formulation of this machine alone"
    assert_fills_as(read.call, *filled(name))


@pytest.mark.parametrize("name", ALL)
def test_onnx_fills_as_the_model_does(model, filled, tmp_path, name):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    megabytes, difference = export.export(model(name), tmp_path / "a.onnx", "onnx")
    assert megabytes == (tmp_path / "a.onnx").stat().st_size / 1e6
    assert difference <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    assert [x.name for x in session.get_inputs()] == ["image", "mask"]
    assert [x.name for x in session.get_outputs()] == ["completed"]
    assert_fills_as(lambda image, mask: session.run(None, {"image": image, "mask": mask})[0], *filled(name))
    described = json.loads(session.get_modelmeta().custom_metadata_map["config"])
    assert described["native_size"] == session.get_inputs()[0].shape[1]


def test_a_graph_takes_as_many_pictures_as_it_was_exported_for(model, tmp_path):
    export.export(model(CHEAP), tmp_path / "one.stablehlo", "stablehlo")
    export.export(model(CHEAP), tmp_path / "two.stablehlo", "stablehlo", pictures=2)
    one, two = (jax.export.deserialize(bytearray((tmp_path / f"{n}.stablehlo").read_bytes())) for n in ("one", "two"))
    image, mask = export.example(weights.load_generator(model(CHEAP))[0], 2)
    together = two.call(image, mask)
    for i in range(2):
        np.testing.assert_allclose(one.call(image[i : i + 1], mask[i : i + 1])[0], together[i], atol=1e-6)


def test_graphs_compute_in_float32_whatever_the_model_was_trained_in(model, tmp_path):
    config, variables = weights.load_generator(model(CHEAP))
    config.dtype = "bfloat16"
    weights.save_generator(tmp_path, variables, config)
    for name, run in (("whole", model(CHEAP)), ("rounding", tmp_path)):
        export.export(run, tmp_path / name, "stablehlo")
    whole, rounding = (jax.export.deserialize(bytearray((tmp_path / n).read_bytes())) for n in ("whole", "rounding"))
    assert rounding.mlir_module() == whole.mlir_module()


def read_h5(path: Path) -> inference.Inpainter:
    """What a reader without this project's own functions finds in the file."""
    flat = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, x: flat.update({name: x[()]}) if isinstance(x, h5py.Dataset) else None)
        stored = json.loads(file.attrs["config"])["config"]
    config = common.base()
    config.update(config_module.from_json(json.dumps(stored)))
    flat = {name: np.asarray(array, np.float32) for name, array in flat.items()}
    return inference.Inpainter(config, traverse_util.unflatten_dict(flat, sep="/"))


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_h5_holds_each_array_at_its_place_and_fills_as_the_model_does(model, filled, tmp_path, half):
    export.export(model(CHEAP), tmp_path / "a.h5", "h5", half=half)
    _, variables = weights.load_generator(model(CHEAP))
    with h5py.File(tmp_path / "a.h5") as file:
        kernel = file["params/enc1/kernel"][()]
    assert kernel.dtype == (np.float16 if half else np.float32)
    np.testing.assert_array_equal(kernel, variables["params"]["enc1"]["kernel"].astype(kernel.dtype))
    image, hole, expected = filled(CHEAP)
    difference = read_h5(tmp_path / "a.h5")(image, hole).astype(int) - expected
    assert np.abs(difference).max() <= (3 if half else 0)


def test_a_half_sized_generator_folder_fills_nearly_as_the_model_does(model, filled, tmp_path):
    out = tmp_path / "small" / "generator.safetensors"
    megabytes, difference = export.export(model(CHEAP), out, "safetensors", half=True)
    whole = (model(CHEAP) / "generator" / "generator.safetensors").stat().st_size / 1e6
    assert 0.45 * whole < megabytes < 0.6 * whole
    assert 0 < difference < 0.01
    image, hole, expected = filled(CHEAP)
    assert np.abs(inference.Inpainter.load(out.parent)(image, hole).astype(int) - expected).max() <= 3
    assert {path.name for path in out.parent.iterdir()} == {"generator.safetensors", "config.json"}


@pytest.mark.parametrize("name", ["safetensors", "h5", "stablehlo"])
def test_a_file_that_answers_otherwise_is_not_kept(model, tmp_path, monkeypatch, name):
    own = export.FORMATS[name]

    def write_another(path: Path, generator: export.Generator) -> None:
        own.write(path, generator._replace(variables=jax.tree.map(lambda x: 0.9 * x, generator.variables)))

    monkeypatch.setitem(export.FORMATS, name, own._replace(write=write_another))
    out = tmp_path / "new" / "generator.safetensors"
    with pytest.raises(ValueError, match=f"the {name} file answers otherwise than the model"):
        export.export(model(CHEAP), out, name)
    assert not list(out.parent.iterdir())


def test_the_model_itself_and_other_configs_are_not_overwritten(model, tmp_path):
    run = model(CHEAP)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for given, folder in ((run, run / "generator"), (run / "generator", run / "generator"), (run, run)):
        with pytest.raises(ValueError, match="is the model itself: give another folder"):
            export.export(given, folder / "generator.safetensors", "safetensors", half=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has a config\.json of something else"):
        export.export(run, tmp_path / "generator.safetensors", "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(ValueError, match=r"are read from generator\.safetensors"):
        export.export(run, tmp_path / "model.safetensors", "safetensors")


def test_graphs_are_not_halved(model, tmp_path):
    with pytest.raises(ValueError, match="stablehlo computes in float32"):
        export.export(model(CHEAP), tmp_path / "a.stablehlo", "stablehlo", half=True)


def test_without_its_packages_onnx_says_how_to_get_them(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ValueError, match=r"run: pip install .*onnxruntime.* pip install --no-deps jax2onnx=="):
        export.export(model(CHEAP), tmp_path / "a.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def run_command(cwd: Path, *options: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, COMMAND, *options]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_command_exports_and_reports_size_and_difference(model, tmp_path):
    ran = run_command(tmp_path, "--model", model(CHEAP), "--out", "small", "--format", "safetensors", "--half")
    assert ran.returncode == 0, ran.stderr
    megabytes = (tmp_path / "small" / "generator.safetensors").stat().st_size / 1e6
    assert (
        f"wrote small/generator.safetensors: {megabytes:.2f} MB, greatest difference from the model's answers "
        in ran.stderr
    )
    weights.load_generator(tmp_path / "small")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--model", "absent", "--out", "a.h5"), 1, "'absent' has no generator.safetensors: give a finished run"),
        (("--model", "absent", "--out", "a.pt"), 2, "--out=a.pt: let the name end in .safetensors, .h5, .onnx, .stab"),
        (("--model", "absent", "--out", "a.onnx", "--half"), 2, "--half is for arrays"),
        (("--model", "absent", "--out", "a.h5", "--pictures", "2"), 2, "--pictures is for graphs"),
        (("--model", "absent"), 2, "--out is required"),
    ],
    ids=["model", "suffix", "half", "pictures", "out"],
)
def test_command_explains_what_is_wrong(tmp_path, options, code, message):
    ran = run_command(tmp_path, *options)
    assert (ran.returncode, len(ran.stderr.splitlines())) == (code, 1), ran.stderr
    assert message in ran.stderr
    assert not list(tmp_path.iterdir())
