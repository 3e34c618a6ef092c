"""The demo's server: a whole round over HTTP, mistakes as sentences, and what it must not serve."""

import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from demo_uploads import layer, noise
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image, PngImagePlugin

from configs import unet_cosine, unet_photographs
from inpaint_jax import demo, demo_page, image_files, inference, relight, weights

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(make_generator, tmp_path_factory) -> Path:
    """A run folder with a generator of random weights, of normal maps of 32x32, and beside it one of photographs."""
    path = tmp_path_factory.mktemp("runs") / "my_run"
    make_generator(path, unet_cosine.get_config("tiny"))
    make_generator(path.with_name("photos"), unet_photographs.get_config("tiny"))
    return path


class SlowInpainter(inference.Inpainter):
    """An inpainter that says when it starts and waits until it may go on."""

    def __init__(self, folder: Path):
        super().__init__(*weights.load_generator(folder))
        self.started, self.go_on = threading.Event(), threading.Event()

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        self.started.set()
        assert self.go_on.wait(300)
        return super().__call__(image, mask)


@pytest.fixture(scope="module")
def slow(folder) -> SlowInpainter:
    return SlowInpainter(folder)


@pytest.fixture(scope="module")
def address(folder, slow, tmp_path_factory):
    """The address of a running server with the models "maps", "photos" and "slow"."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("served").resolve()))
        patch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # what the server sets ends with it
        for name in ("no_proxy", "NO_PROXY"):
            patch.setenv(name, os.environ.get(name, ""))
        models = demo.load_models({"maps": folder, "photos": folder.with_name("photos"), "slow": folder})
        models["slow"]["inpainter"] = slow
        page = demo_page.start(models, "127.0.0.1", 0)
        yield page.local_url.rstrip("/")
        page.close(verbose=False)


@pytest.fixture(scope="module")
def http(address):
    """Requests below the server's address."""
    with httpx.Client(base_url=address, timeout=300) as client:
        yield client


@pytest.fixture
def connect(address, tmp_path) -> Callable[[], Client]:
    return lambda: Client(address, verbose=False, analytics_enabled=False, download_files=tmp_path / "downloads")


def painted_value(tmp_path: Path, painted: np.ndarray) -> dict:
    Image.fromarray(painted).save(tmp_path / "layer.png")
    return {"background": None, "layers": [handle_file(tmp_path / "layer.png")], "composite": None}


def test_an_upload_comes_back_filled_with_its_known_pixels_and_without_its_metadata(connect, tmp_path):
    pixels, notes = noise(60, 90, 4), PngImagePlugin.PngInfo()
    notes.add_text("Author", "a secret")
    exif = Image.Exif()
    exif[0x010E] = "another secret"  # ImageDescription
    Image.fromarray(pixels).save(tmp_path / "mine.png", pnginfo=notes, exif=exif, dpi=(300, 300))
    assert b"secret" in (tmp_path / "mine.png").read_bytes()
    client = connect()
    client.predict(handle_file(tmp_path / "mine.png"), api_name="/open")
    value = painted_value(tmp_path, layer(341, 512, np.s_[100:200, 100:200]))
    views, download, note, relit_views = client.predict("maps", value, 135, 45, "up", api_name="/fill")
    filled = Path(download["value"] if isinstance(download, dict) else download)
    assert filled.name == "filled.png"
    assert b"secret" not in filled.read_bytes()
    with Image.open(filled) as image:
        assert (image.format, image.mode, image.info) == ("PNG", "RGBA", {})
        returned = np.asarray(image)
    hole = demo.painted_hole([layer(341, 512, np.s_[100:200, 100:200])], 60, 90) > 0
    np.testing.assert_array_equal(returned[~hole], pixels[~hole])
    assert (returned[hole] != pixels[hole]).any(axis=-1).mean() > 0.9
    assert "of 5400 pixels filled" in note
    np.testing.assert_array_equal(image_files.read_rgb(views[0]), demo.show_hole(pixels[..., :3], hole))
    np.testing.assert_array_equal(image_files.read_rgb(views[1]), returned[..., :3])
    np.testing.assert_array_equal(image_files.read_rgb(relit_views[1]), relight.relight(returned[..., :3], 135, 45))
    # The light moves without another fill.
    moved = client.predict(200, 30, "down", api_name="/light")
    np.testing.assert_array_equal(image_files.read_rgb(moved[1]), relight.relight(returned[..., :3], 200, 30, "down"))


def chosen_model(http, name: str) -> tuple[list[str], bool]:
    """Returns the captions of the examples, and whether the light is shown, once a model is chosen."""
    event = http.post("/gradio_api/call/model", json={"data": [name]}).json()["event_id"]
    answer = http.get(f"/gradio_api/call/model/{event}").text
    gallery, light, _ = json.loads(answer.split("data: ")[1])
    return [shown["caption"] for shown in gallery], light["visible"]


def test_a_model_of_photographs_has_its_own_examples_and_no_light(connect, http, tmp_path):
    assert chosen_model(http, "photos") == (list(demo.EXAMPLE_PHOTOS), False)
    assert chosen_model(http, "maps") == (list(demo.EXAMPLE_MAPS), True)
    client = connect()
    client.predict("photos", api_name="/start")
    value = painted_value(tmp_path, layer(341, 512, np.s_[100:120, 100:120]))
    views, _, note, relit_views = client.predict("photos", value, 135, 45, "up", api_name="/fill")
    assert "of 135300 pixels filled" in note
    assert image_files.read_rgb(views[1]).shape == demo.examples(False)["cat"].shape
    assert not relit_views


def test_mistakes_are_shown_as_a_sentence(connect, tmp_path):
    client = connect()
    nothing = {"background": None, "layers": [], "composite": None}
    with pytest.raises(AppError, match="There is no picture"):
        client.predict("maps", nothing, 135, 45, "up", api_name="/fill")
    client.predict("maps", api_name="/start")
    with pytest.raises(AppError, match="Nothing is painted"):
        client.predict("maps", nothing, 135, 45, "up", api_name="/fill")
    (tmp_path / "a&b.png").write_text("no picture")
    # As HTML, which the page takes it for.
    with pytest.raises(AppError, match=r"^a&amp;b\.png is not an image"):
        client.predict(handle_file(tmp_path / "a&b.png"), api_name="/open")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pictures_above_the_limits_are_refused_before_they_are_decoded(connect, http, tmp_path):
    Image.new("L", (4001, 3000)).save(tmp_path / "large.png")
    with pytest.raises(AppError, match=r"^large\.png is 4001x3000, above the limit of 12000000 pixels"):
        connect().predict(handle_file(tmp_path / "large.png"), api_name="/open")
    bytes_over = {"files": ("large.png", b"\0" * (demo.UPLOAD_BYTES + 1))}
    assert http.post("/gradio_api/upload", files=bytes_over).status_code == 413


@pytest.mark.parametrize("below", ["/gradio_api/file=", "/gradio_api/file/", "/file=", "/static/", "/assets/"])
def test_no_file_of_the_machine_is_served(http, folder, below):
    for path in ("/etc/passwd", ROOT / "README.md", folder / "generator" / "config.json", "README.md"):
        for place in (path, f"../../../../../../../../../..{path}", str(path).replace("/", "%2f")):
            assert http.get(f"{below}{place}").status_code in (403, 404), place


def test_no_place_on_the_machine_is_shown(http, folder):
    shown = http.get("/").text + http.get("/config").text + http.get("/gradio_api/info").text
    assert "my_run" not in shown
    assert str(ROOT) not in shown
    assert str(folder.parent) not in shown


def test_no_file_of_the_machine_passes_for_an_upload(http, tmp_path):
    Image.fromarray(noise(20, 30)).save(tmp_path / "private.png")
    data = {"path": str(tmp_path / "private.png"), "meta": {"_type": "gradio.FileData"}}
    event = http.post("/gradio_api/call/open", json={"data": [data]}).json()
    answer = http.get(f"/gradio_api/call/open/{event['event_id']}").text
    assert answer.startswith("event: error")
    assert str(tmp_path) not in answer


def test_requests_of_other_sites_are_refused(address, http):
    assert http.get("/").status_code == 200
    assert http.get("/", headers={"Origin": address}).status_code == 200
    assert http.get("/", headers={"Origin": "https://elsewhere.example"}).status_code == 403
    assert http.get("/", headers={"Host": "elsewhere.example"}).status_code == 403


def test_the_page_names_nothing_to_load_from_elsewhere(address, http):
    answer = http.get("/")
    loaded = re.findall(r"""<(?:script|link|img|iframe)[^>]*?(?:src|href)=["']?([^"' >]+)""", answer.text)
    assert loaded
    assert not [url for url in loaded if "//" in url and not url.startswith(address)]
    assert not re.search(r"fonts\.g|cdnjs|api\.gradio", answer.text)
    styles = http.get("/theme.css").text
    assert set(re.findall(r"url\([\"']?(.{5})", styles)) <= {"data:"}
    assert "@import" not in styles
    assert http.get("/config").json()["analytics_enabled"] is False
    # And whatever a script would load, the browser does not.
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "http" not in answer.headers["content-security-policy"]


def test_the_queue_is_bounded_and_works_off_one_by_one(connect, http, slow, tmp_path):
    client = connect()
    client.predict("slow", api_name="/start")
    value = painted_value(tmp_path, layer(512, 512, np.s_[100:120, 100:120]))
    job = client.submit("slow", value, 135, 45, "up", api_name="/fill")
    assert slow.started.wait(300)
    # As many as may wait do so behind it; one more is told at once.
    move_light = {"data": [135, 45, "up"]}
    answers = [http.post("/gradio_api/call/light", json=move_light) for _ in range(demo_page.QUEUE + 1)]
    assert [answer.status_code for answer in answers] == [200] * demo_page.QUEUE + [503]
    assert "Queue is full" in answers[-1].json()["detail"]
    assert not job.done()
    slow.go_on.set()
    assert "pixels filled" in job.result(timeout=300)[2]
    for answer in answers[:-1]:
        moved = http.get(f"/gradio_api/call/light/{answer.json()['event_id']}").text
        assert moved.startswith("event: complete")
