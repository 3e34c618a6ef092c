"""The demo in a real browser: upload, paint, fill, download. Slow, and needs what the other tests do not:

    pip install playwright        # its own browsers are not needed
    apt install chromium          # or INPAINT_CHROMIUM=<path of Chromium or Chrome>
    python -m pytest -m slow tests/test_demo_browser.py

A picture of the page for the README, with a trained model:

    INPAINT_SCREENSHOT=docs/demo.png INPAINT_DEMO_MODEL=<run folder> \\
      python -m pytest -m slow -n 0 tests/test_demo_browser.py -k screenshot
"""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from PIL import Image

from configs import unet_cosine

ROOT = Path(__file__).parents[1]
CHROMIUM = os.environ.get("INPAINT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE = 900_000  # milliseconds; a browser without a graphics card on a busy machine is very slow
LARGEST_SCREENSHOT = 400_000  # bytes

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: install it, or set INPAINT_CHROMIUM to its path"),
]


@contextmanager
def running(model: Path, cwd: Path) -> Iterator[str]:
    """Runs the command on a free port and yields its address."""
    command = [sys.executable, ROOT / "launch" / "demo.py", "--model", model.absolute(), "--port", "0"]
    with (
        open(cwd / "errors.txt", "w+") as errors,
        subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=errors, text=True) as server,
    ):
        try:
            yield re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())[0]
        finally:
            server.send_signal(signal.SIGINT)
            said, _ = server.communicate()
    assert (server.returncode, said) == (0, "the demo has ended\n")
    assert "Traceback" not in (cwd / "errors.txt").read_text()


@pytest.fixture
def open_page() -> Iterator[Callable]:
    """A function (address) -> page, and the lists of its errors and of the addresses that it asked for."""
    with playwright.sync_playwright() as start:
        browser = start.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def open_at(address: str) -> tuple:
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.set_default_timeout(PATIENCE)
            errors, asked = [], []
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(address)
            return page, errors, asked

        yield open_at
        browser.close()


def centre_colour(page) -> np.ndarray:
    """Returns the mean colour, float (3,), of what the editor shows around its middle."""
    box = page.locator("#editor canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    shot = page.screenshot(clip={"x": x - 6, "y": y - 6, "width": 12, "height": 12})
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), float).mean(axis=(0, 1))


def wait_for_colour(page, wanted: Callable[[np.ndarray], bool]) -> None:
    for _ in range(600):
        if wanted(centre_colour(page)):
            return
        page.wait_for_timeout(500)
    raise AssertionError(f"the middle of the editor stays {centre_colour(page)}")


def is_red(colour: np.ndarray) -> bool:
    return colour[0] > 140 and colour[0] > 1.5 * max(colour[1:])


def is_blue(colour: np.ndarray) -> bool:
    return colour[2] > 1.4 * max(colour[:2])


def stroke(page, *points: tuple[float, float]) -> None:
    """Draws a line with the mouse; points in shares of the picture's shown side, from its middle."""
    box = page.locator("#editor canvas").first.bounding_box()
    side = min(box["width"], box["height"]) * 0.7
    places = [(box["x"] + box["width"] / 2 + x * side, box["y"] + box["height"] / 2 + y * side) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)
    page.mouse.up()


def shown(page, place: str, index: int) -> np.ndarray:
    """Returns a picture of a slider, uint8 (H, W, 3): 0 = before, 1 = after."""
    image = page.locator(f"{place} img").nth(index)
    image.wait_for(state="attached")
    body = page.request.get(image.get_attribute("src")).body()
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))


def test_upload_paint_fill_download(open_page, make_generator, tmp_path):
    make_generator(tmp_path / "my_run", unet_cosine.get_config("tiny"))
    random = np.random.default_rng(0)
    pixels = random.integers((0, 150, 0), (60, 256, 60), (90, 120, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "green.png")
    with running(tmp_path / "my_run", tmp_path) as address:
        page, errors, asked = open_page(address)
        page.locator("#editor canvas").first.wait_for()
        # The first example is there without being asked for.
        wait_for_colour(page, lambda colour: colour.min() < 200)
        with page.expect_file_chooser() as chooser:
            page.locator("#upload").click()
        chooser.value.set_files(tmp_path / "green.png")
        wait_for_colour(page, lambda colour: colour[1] > 150 and colour[1] > 2 * max(colour[0], colour[2]))

        page.locator("#fill").click()
        page.get_by_text("Nothing is painted: draw over what is to be filled.").wait_for()
        stroke(page, (-0.25, 0), (0.25, 0))
        wait_for_colour(page, is_red)
        page.locator("#fill").click()
        page.get_by_text(re.compile(r"^\d+ of 10800 pixels filled")).wait_for()
        hole = (shown(page, "#views", 0) != pixels).any(axis=-1)
        with page.expect_download() as download:
            page.locator("#download").click()
        download.value.save_as(tmp_path / "filled.png")
        filled = np.asarray(Image.open(tmp_path / "filled.png"))

        # The hole is where the mouse went: one stroke through the middle, wider than high, away from the border.
        count, _, boxes, _ = cv2.connectedComponentsWithStats(hole.astype(np.uint8))
        assert count == 2
        left, top, width, height, area = boxes[1]
        assert width > 1.5 * height
        assert area > 100
        assert (left > 5, top > 5, left + width < 115, top + height < 85) == (True,) * 4
        assert abs(left + width / 2 - 60) < 8
        assert abs(top + height / 2 - 45) < 8
        np.testing.assert_array_equal(filled[~hole], pixels[~hole])
        assert (filled[hole] != pixels[hole]).any(axis=-1).all()
        np.testing.assert_array_equal(shown(page, "#views", 1), filled)

        # Moving the light shades the maps anew.
        lit = shown(page, "#relit", 1)
        assert (lit[..., 0] == lit[..., 1]).all()
        before = page.locator("#relit img").nth(1).get_attribute("src")
        slider = page.locator("#azimuth input[type=range]")
        box = slider.bounding_box()
        slider.click(position={"x": box["width"] * 0.8, "y": box["height"] / 2})
        page.wait_for_function("old => document.querySelectorAll('#relit img')[1].src != old", arg=before)
        assert (shown(page, "#relit", 1) != lit).any()

        # Another picture, and emptying the editor, leave nothing painted and an editor that can be used.
        page.locator("#examples button").nth(1).click()
        wait_for_colour(page, is_blue)
        stroke(page, (-0.1, 0), (0.1, 0))
        wait_for_colour(page, is_red)
        page.locator("#editor").get_by_label("Clear canvas").click()
        wait_for_colour(page, is_blue)
        stroke(page, (-0.1, 0), (0.1, 0))
        wait_for_colour(page, is_red)
        assert not errors
        assert {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:"))} == {"127.0.0.1"}


@pytest.mark.skipif("INPAINT_SCREENSHOT" not in os.environ, reason="set INPAINT_SCREENSHOT to the file to write")
def test_screenshot(open_page, tmp_path):
    path = Path(os.environ["INPAINT_SCREENSHOT"]).absolute()
    model = Path(os.environ["INPAINT_DEMO_MODEL"])
    with running(model, tmp_path) as address:
        page, _, _ = open_page(address)
        page.locator("#editor canvas").first.wait_for()
        wait_for_colour(page, lambda colour: colour.min() < 200)
        page.locator("#examples button").nth(1).click()
        page.wait_for_timeout(5000)
        for points in (((-0.3, -0.3), (0, 0.05), (0.25, 0)), ((-0.35, 0.3), (-0.1, 0.25)), ((0.1, -0.3), (0.35, -0.2))):
            stroke(page, *points)
        page.wait_for_timeout(5000)
        page.locator("#fill").click()
        page.get_by_text(re.compile(r"^\d+ of \d+ pixels filled")).wait_for()
        page.locator("#relit img").nth(1).wait_for(state="attached")
        page.mouse.move(0, 0)
        page.wait_for_timeout(5000)
        page.screenshot(path=path, full_page=True)
    if path.stat().st_size > LARGEST_SCREENSHOT:
        with Image.open(path) as image:
            image.convert("RGB").quantize(256).save(path, optimize=True)
    assert path.stat().st_size <= LARGEST_SCREENSHOT
