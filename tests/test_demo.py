"""The demo without its page: limits, examples, holes and fills as functions, and the command."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from demo_uploads import layer, noise
from PIL import Image

from configs import unet_cosine
from inpaint_jax import demo, demo_gate, relight

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, ROOT / "launch" / "demo.py"]


@pytest.fixture(scope="module")
def folder(make_generator, tmp_path_factory) -> Path:
    """A run folder with a generator of random weights, of normal maps of 32x32."""
    path = tmp_path_factory.mktemp("runs") / "my_run"
    make_generator(path, unet_cosine.get_config("tiny"))
    return path


@pytest.fixture(scope="module")
def model(folder) -> dict:
    return demo.load_models(demo.models_for([str(folder)]))["my_run"]


def test_models_are_named_by_their_run_folders():
    models = demo.models_for(["runs/a", "runs/b/generator", "elsewhere/a/", "third/a/generator"])
    assert models == {
        "a": Path("runs/a"),
        "b": Path("runs/b/generator"),
        "a (2)": Path("elsewhere/a"),
        "a (3)": Path("third/a/generator"),
    }


def test_a_folder_without_a_generator_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"has no generator\.safetensors"):
        demo.load_models({"empty": tmp_path})


@pytest.mark.parametrize("normal_maps", [True, False])
def test_examples_are_of_the_models_kind(normal_maps):
    pictures = demo.examples(normal_maps)
    assert len(pictures) == 4
    for picture in pictures.values():
        assert picture.dtype == np.uint8
        lengths = np.linalg.norm(picture * (2 / 255) - 1, axis=-1)
        assert (np.abs(lengths - 1).max() < 0.05) == normal_maps


def test_uploads_keep_pixels_and_alpha(tmp_path):
    Image.fromarray(noise(20, 30, 4)).save(tmp_path / "a.png")
    picture = demo.read_upload(tmp_path / "a.png")
    np.testing.assert_array_equal(picture["pixels"], noise(20, 30, 4)[..., :3])
    np.testing.assert_array_equal(picture["alpha"], noise(20, 30, 4)[..., 3])


def test_uploads_above_the_limits_are_refused_with_the_limit(tmp_path, monkeypatch):
    Image.fromarray(noise(20, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(demo, "UPLOAD_PIXELS", 599)
    with pytest.raises(ValueError, match=r"^a\.png has 30x20 = .* scale it down"):
        demo.read_upload(tmp_path / "a.png")
    monkeypatch.setattr(demo, "UPLOAD_BYTES", 100)
    with pytest.raises(ValueError, match=r"^a\.png has 0\.0 MB, and the demo takes"):
        demo.read_upload(tmp_path / "a.png")


def test_a_file_that_is_no_picture_is_named_without_its_folder(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"^a\.png is not an image") as caught:
        demo.read_upload(tmp_path / "a.png")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((32, 48), (341, 512)),
        ((600, 800), (600, 800)),
        ((512, 100), (512, 100)),
        ((2048, 1000), (1024, 500)),
        ((1, 1), (512, 512)),
        ((2, 3000), (1, 1024)),
    ],
    ids=str,
)
def test_the_editor_shows_every_picture_at_a_size_to_paint_on(size, shown):
    value = demo.for_editor(np.zeros((*size, 3), np.uint8))
    assert value["background"].shape == (*shown, 3)
    assert value["layers"] == []


def test_a_stroke_becomes_a_hole_of_the_pictures_size():
    window = np.s_[8:24, 40:56]
    # On a picture of the editor's size, exactly what was painted.
    same = demo.painted_hole([layer(600, 800, window)], 600, 800)
    np.testing.assert_array_equal(same, layer(600, 800, window)[..., 3] > 0)
    assert same.dtype == np.uint8
    # On one that was enlarged four times, the pixels of which half or more is painted.
    small = demo.painted_hole([layer(512, 512, np.s_[8:24, 39:54])], 128, 128)
    np.testing.assert_array_equal(small, layer(128, 128, np.s_[2:6, 10:14])[..., 3] > 0)
    # On one that was shrunk to a quarter, the same place, with borders at most half a pixel of the editor off.
    large = demo.painted_hole([layer(1024, 768, window)], 4096, 3072) > 0
    assert large[34:94, 162:222].all()
    assert not np.delete(large, np.s_[30:98], axis=0).any()
    assert not np.delete(large, np.s_[158:226], axis=1).any()
    # Several layers add up; none is no hole.
    both = demo.painted_hole([layer(9, 9, np.s_[:2]), layer(9, 9, np.s_[5:])], 9, 9)
    np.testing.assert_array_equal(both[:, 0], [1, 1, 0, 0, 0, 1, 1, 1, 1])
    assert not demo.painted_hole([], 9, 9).any()


@pytest.mark.parametrize("size", [(40, 70), (600, 530), (1100, 1030)], ids=str)
def test_a_fill_changes_the_hole_alone(model, size):
    height, width = size
    picture = {"pixels": noise(*size), "alpha": noise(*size, 4)[..., 3]}
    editor = demo.for_editor(picture["pixels"])["background"].shape[:2]
    painted = [layer(*editor, np.s_[editor[0] // 4 : editor[0] // 3, editor[1] // 4 : editor[1] // 3])]
    result = demo.fill(model, picture, painted)
    hole = demo.painted_hole(painted, height, width) > 0
    np.testing.assert_array_equal(result["picture"][~hole][:, :3], picture["pixels"][~hole])
    np.testing.assert_array_equal(result["picture"][..., 3], picture["alpha"])
    changed = (result["picture"][..., :3] != picture["pixels"]).any(axis=-1)
    assert changed[hole].mean() > 0.9
    assert f"{hole.sum()} of {hole.size} pixels filled" in result["note"]
    # What is shown: the whole picture, no larger than fits, the hole in red before and not after.
    for name in ("before", "after"):
        assert max(result[name].shape) == min(max(size), demo.VIEW_SIDE)
        assert result[name].shape[:2] == result["hole"].shape
    if max(size) <= demo.VIEW_SIDE:
        np.testing.assert_array_equal(result["after"], result["picture"][..., :3])
        np.testing.assert_array_equal(result["hole"] > 0, hole)


def test_what_cannot_be_filled_is_said(model):
    picture = {"pixels": noise(20, 30), "alpha": None}
    with pytest.raises(ValueError, match="There is no picture"):
        demo.fill(model, None, [layer(341, 512, np.s_[:9])])
    with pytest.raises(ValueError, match="Nothing is painted"):
        demo.fill(model, picture, [])
    with pytest.raises(ValueError, match="Everything is painted"):
        demo.fill(model, picture, [layer(341, 512, np.s_[:])])


def test_under_the_light_the_hole_is_shown_before_and_not_after():
    flat = np.full((8, 8, 3), (128, 128, 255), np.uint8)
    result = {"before": flat, "after": flat.copy(), "hole": np.pad(np.ones((2, 2), np.uint8), 3)}
    result["after"][3:5, 3:5] = (255, 128, 128)
    before, after = demo.relit(result, 0, 0, "up")
    np.testing.assert_array_equal(after, relight.relight(result["after"], 0, 0, "up"))
    red = before[..., 0].astype(int) - before[..., 1]
    np.testing.assert_array_equal(red > 50, result["hole"] > 0)
    np.testing.assert_array_equal(before[result["hole"] == 0], after[result["hole"] == 0])


def command(cwd: Path, *options: str | Path) -> subprocess.Popen:
    environment = {**os.environ, "TMPDIR": str(cwd)}
    pipe = subprocess.PIPE
    # Where the tests run in the background, Ctrl-C is ignored, and what they start would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen([*COMMAND, *options], cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_its_address_and_ends_cleanly(folder, tmp_path, ending):
    with command(tmp_path, "--model", folder, "--port", "0") as server:
        try:
            said = server.stdout.readline()
            address = re.fullmatch(r"open (http://127\.0\.0\.1:(\d+)/) in a browser; Ctrl-C ends the demo\n", said)
            assert address, server.stderr.read() if server.poll() is not None else said
            assert "Image inpainting" in httpx.get(address[1]).text
            assert list(tmp_path.glob("inpaint_jax_demo_*"))
            # A second one cannot have the same port.
            with command(tmp_path, "--model", folder, "--port", address[2]) as second:
                _, errors = second.communicate(timeout=300)
            expected = f"error: port {address[2]} is in use: end what listens there, or give another with --port\n"
            assert (second.returncode, errors) == (1, expected)
            server.send_signal(ending)
            said, errors = server.communicate(timeout=300)
        finally:
            server.kill()
    assert (server.returncode, said, errors) == (0, "the demo has ended\n", "")
    assert not list(tmp_path.glob("inpaint_jax_demo_*"))


def test_an_address_that_is_taken_or_no_address_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} is in use"):
            demo_gate.check_address("127.0.0.1", port)
    assert demo_gate.check_address("127.0.0.1", port) == port
    with pytest.raises(ValueError, match=r"--host=no\.such\.host\.example is not an address"):
        demo_gate.check_address("no.such.host.example", port)


def test_help_answers_without_importing_gradio_or_jax(tmp_path):
    program = [sys.executable, "-X", "importtime", COMMAND[1], "--help"]
    ran = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "--model: run folder" in ran.stdout
    imported = set(re.findall(r"\|\s*(\S+)$", ran.stderr, re.MULTILINE))
    assert "absl.flags" in imported
    assert not imported & {"jax", "gradio", "numpy"}
