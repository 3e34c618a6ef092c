"""The demo as a page in the browser, by Gradio: paint a hole, fill it, look at it before and after, download it.

The page needs no network: fonts are the system's, usage is not reported, and the browser is told to load nothing from
other addresses.
"""

import functools
import html
import logging
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read by Gradio when it is imported.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import numpy as np
from PIL import Image
from starlette.middleware import Middleware

from inpaint_jax import demo, demo_gate, image_files

log = logging.getLogger("inpaint_jax")

Model = dict[str, Any]  # one of `demo.load_models`
QUEUE = 8  # requests that wait; one more is refused with a message
SESSIONS = 16  # pages whose picture is kept, the newest ones
KEPT_SECONDS = 3600  # pictures and files of a page are forgotten after so long
HEIGHT = 460  # of the editor and, at most, of the pictures shown, in pixels
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
INTRODUCTION = """# Image inpainting

Choose an example or upload a picture (up to 20 MB, 12 million pixels), paint over what is to be filled, press **Fill**.
Pictures stay on the machine that runs this page.
"""
# Columns as wide as they will be before there is anything in them: the editor measures its own when it is made. The
# label of the examples stands above them, not on them.
CSS = """
.gradio-container {width: 100% !important}
.half {flex: 1 1 0 !important; min-width: min(320px, 100%) !important}
#examples .grid-wrap {padding-top: 2.2rem}
"""


def _in_page(function: Callable) -> Callable:
    """Wraps a callback: what the user can mend is shown in the page as one sentence."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except ValueError as error:
            # The page takes messages for HTML, and this one may hold the name of a file.
            raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from error

    return call


def _write_download(picture: np.ndarray) -> str:
    """Writes a picture where Gradio serves files from, in a folder of its own, and returns the path."""
    path = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])) / "filled.png"
    image_files.write_png(path, picture)  # from the array alone: nothing of the upload's metadata
    return str(path)


def _gallery(model: Model) -> list[tuple[np.ndarray, str]]:
    return [(pixels, name) for name, pixels in demo.examples(model["normal_maps"]).items()]


def _light(result: dict | None, azimuth: float, elevation: float, normal_y: str):
    return demo.relit(result, azimuth, elevation, normal_y) if result else None


def _callbacks(models: dict[str, Model]) -> dict[str, Callable]:
    """Returns what the page's events call, by name; arguments and results are as `_connect` lists them."""

    def choose_model(name: str):
        model = models[name]
        return _gallery(model), gr.update(visible=model["normal_maps"]), model["normal_y"]

    def open_example(name: str, index: int = 0):
        pixels = list(demo.examples(models[name]["normal_maps"]).values())[index]
        return {"pixels": pixels, "alpha": None}, demo.for_editor(pixels)

    def choose_example(name: str, chosen: gr.SelectData):
        return open_example(name, chosen.index)

    def open_upload(path: str):
        picture = demo.read_upload(path)
        return picture, demo.for_editor(picture["pixels"])

    def restore(picture: dict | None):
        return gr.skip() if picture is None else demo.for_editor(picture["pixels"])

    def fill(name: str, picture: dict | None, painted: dict | None, azimuth: float, elevation: float, normal_y: str):
        result = demo.fill(models[name], picture, painted["layers"] if painted else [])
        download = gr.update(value=_write_download(result.pop("picture")), interactive=True)
        views = demo.show_hole(result["before"], result["hole"]), result["after"]
        shaded = result if models[name]["normal_maps"] else None
        return shaded, views, download, result["note"], _light(shaded, azimuth, elevation, normal_y)

    functions = (choose_model, open_example, choose_example, open_upload, restore, fill, _light)
    return {function.__name__.strip("_"): _in_page(function) for function in functions}


def _slider_of_pictures(label: str, name: str) -> gr.ImageSlider:
    return gr.ImageSlider(
        label=label, format="png", interactive=False, buttons=["fullscreen"], max_height=HEIGHT, elem_id=name
    )


def _left_column(models: dict[str, Model]) -> dict[str, gr.components.Component]:
    """Makes what is given: model, picture and hole."""
    with gr.Row(equal_height=True):
        model = gr.Dropdown(list(models), value=next(iter(models)), label="Model", filterable=False, scale=2)
        upload = gr.UploadButton("Upload a picture", file_types=list(image_files.IMAGE_SUFFIXES), elem_id="upload")
    gallery = gr.Gallery(
        _gallery(models[model.value]),
        label="Examples",
        columns=4,
        height=190,
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        format="png",
        elem_id="examples",
    )
    brush = f"rgb{demo.HOLE_COLOUR}", demo.HOLE_OPACITY
    editor = gr.ImageEditor(
        label="Paint the hole",
        image_mode="RGBA",
        sources=(),  # pictures come in beside it: the editor would hand them back re-encoded
        transforms=(),  # what is painted stays where it is painted
        layers=False,
        format="png",
        brush=gr.Brush(default_size=24, colors=[brush], default_color=brush, color_mode="fixed"),
        eraser=gr.Eraser(default_size=24),
        buttons=[],
        height=HEIGHT,
        elem_id="editor",
    )
    button = gr.Button("Fill", variant="primary", elem_id="fill")
    return {"model": model, "upload": upload, "gallery": gallery, "editor": editor, "button": button}


def _right_column(model: Model) -> dict[str, gr.blocks.Block]:
    """Makes what comes out: the pictures, the file and, for normal maps, the light."""
    views = _slider_of_pictures("Before, hole in red | after", "views")
    note = gr.Markdown()
    download = gr.DownloadButton("Download PNG", interactive=False, elem_id="download")
    with gr.Column(visible=model["normal_maps"]) as relit:
        relit_views = _slider_of_pictures("Under a light: before, hole in red | after", "relit")
        azimuth = gr.Slider(0, 360, 135, step=5, label="Light from (degrees: 0 = right, 90 = top)", elem_id="azimuth")
        elevation = gr.Slider(5, 90, 45, step=5, label="Height of the light (degrees)")
        directions = [("up (OpenGL)", "up"), ("down (DirectX)", "down")]
        normal_y = gr.Radio(directions, value=model["normal_y"], label="Green of the map points")
    shown = {"views": views, "note": note, "download": download, "relit": relit, "relit_views": relit_views}
    return {**shown, "azimuth": azimuth, "elevation": elevation, "normal_y": normal_y}


def _connect(page: gr.Blocks, call: dict[str, Callable], on: dict[str, gr.blocks.Block]) -> None:
    """Ties the events of components, by name, to their callbacks."""
    model, picture, editor, result = (on[name] for name in ("model", "picture", "editor", "result"))
    lights = [on["azimuth"], on["elevation"], on["normal_y"]]
    # One worker for everything: a fill keeps all cores busy.
    one = {"concurrency_limit": 1, "concurrency_id": "worker", "api_visibility": "undocumented"}
    # Without a sign of progress: the editor would go on showing it after a second picture, and take no strokes.
    quiet = {**one, "show_progress": "hidden"}
    shown = [picture, editor]
    page.load(call["open_example"], [model], shown, api_name="start", **quiet)
    on["upload"].upload(call["open_upload"], [on["upload"]], shown, api_name="open", **quiet)
    on["gallery"].select(call["choose_example"], [model], shown, api_name="example", **quiet)
    editor.clear(call["restore"], [picture], [editor], api_name="restore", **quiet)
    chosen = [on["gallery"], on["relit"], on["normal_y"]]
    model.change(call["choose_model"], [model], chosen, api_name="model", **quiet)
    filled = [result, on["views"], on["download"], on["note"], on["relit_views"]]
    on["button"].click(call["fill"], [model, picture, editor, *lights], filled, api_name="fill", **one)
    moved = [on["azimuth"].release, on["elevation"].release, on["normal_y"].input]
    gr.on(moved, call["light"], [result, *lights], [on["relit_views"]], api_name="light", **quiet)


def build(models: dict[str, Model]) -> gr.Blocks:
    """Returns the page.

    Args:
        models: name -> model, from `demo.load_models`; the first is chosen at the start.
    """
    with gr.Blocks(title="Image inpainting", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)) as page:
        kept = {name: gr.State(time_to_live=KEPT_SECONDS) for name in ("picture", "result")}
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(elem_classes="half"):
                left = _left_column(models)
            with gr.Column(elem_classes="half"):
                right = _right_column(models[left["model"].value])
        _connect(page, _callbacks(models), {**kept, **left, **right})
    return page.queue(max_size=QUEUE, api_open=False, default_concurrency_limit=1)


def start(models: dict[str, Model], host: str, port: int) -> gr.Blocks:
    """Starts the server in threads of its own and returns the page; its `local_url` is the address.

    Sets, for the whole process, the most pixels that Pillow decodes, and where Gradio keeps its files
    (GRADIO_TEMP_DIR), which must exist.

    Raises:
        ValueError: as for `demo_gate.check_address`.
    """
    port = demo_gate.check_address(host, port)
    # Refused by the header, before a picture takes memory; the editor's layers as well.
    Image.MAX_IMAGE_PIXELS = demo.UPLOAD_PIXELS
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the page says it
    # Gradio asks its own server whether it is up, which a proxy must not answer.
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), host, "localhost"]))
    page = build(models)
    names = {host, "127.0.0.1", "localhost"} if demo_gate.is_private(host) else ()
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        quiet=True,
        prevent_thread_lock=True,
        show_error=False,  # a sentence of ours is shown, a traceback stays in the terminal
        max_file_size=demo.UPLOAD_BYTES,
        state_session_capacity=SESSIONS,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        root_path="",
        theme=gr.themes.Default(primary_hue="blue", **FONTS),
        css=CSS,
        app_kwargs={"middleware": [Middleware(demo_gate.gate, hosts=sorted(names))], "openapi_url": None},
    )
    return page


def serve(models: dict[str, Model], host: str, port: int) -> None:
    """Shows the page until Ctrl-C; its files are removed then.

    Raises:
        ValueError: as for `demo_gate.check_address`.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, so that nothing is left behind
    with tempfile.TemporaryDirectory(prefix="inpaint_jax_demo_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = os.path.realpath(folder)
        os.environ["GRADIO_EXAMPLES_CACHE"] = os.environ["GRADIO_TEMP_DIR"]  # else a folder below the current one
        page = start(models, host, port)
        if not demo_gate.is_private(host):
            log.warning("whoever reaches this machine can use the page")
        print(f"open {page.local_url} in a browser; Ctrl-C ends the demo", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("the demo has ended", flush=True)
        finally:
            page.close(verbose=False)
