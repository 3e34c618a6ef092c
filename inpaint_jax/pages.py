"""Pages of one HTML file that need no network and no script: skeleton, tables, pictures, names and units of metrics."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from inpaint_jax import curves, run_folder

# Name, unit and decimals of the metrics; one that is not here is shown under its own name.
METRICS = {
    "angular_error_deg_hole": ("hole angular error", "degrees", 2),
    "psnr_db_hole": ("hole PSNR", "dB", 2),
    "ssim_hole": ("hole SSIM", "1 = equal", 4),
    "l1_hole": ("hole L1", "of the value range", 4),
    "lpips_hole": ("hole LPIPS", "0 = equal", 4),
    "gradient_ratio_hole": ("hole sharpness", "gradients / true ones", 3),
    "seam_ratio_hole": ("hole seam", "border gradients / true ones", 3),
    "noise_ratio_hole": ("hole noise", "noise / true one", 3),
    "colour_ratio_hole": ("hole colour", "spread / true one", 3),
    "completeness_hole": ("hole completeness", "of the true structure", 3),
    "white_hole": ("hole excess white", "share of the hole", 4),
    "psnr_db_full": ("whole-image PSNR", "dB", 2),
    "ssim_full": ("whole-image SSIM", "1 = equal", 4),
    "l1_full": ("whole-image L1", "of the value range", 4),
    "lpips_full": ("whole-image LPIPS", "0 = equal", 4),
}
METHODS = {
    "mean_fill": "mean fill",
    "flat_fill": "flat fill",
    "telea": "Telea",
    "navier_stokes": "Navier-Stokes",
    "harmonic_fill": "harmonic fill",
}
BETTER = {"min": "lower is better", "max": "higher is better"}
STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1rem;font:16px/1.45 system-ui,sans-serif;color:#1a1a1a;background:#fff}
h1{font-size:1.5rem;margin:0 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;border-top:2px solid #333;padding-top:.4rem;margin:1.8rem 0 .6rem}
h3{font-size:1rem;margin:1rem 0 .3rem}
.verdict{font-size:1.15rem;font-weight:600;margin:.3rem 0}p{margin:.4rem 0;max-width:60rem}
.note,figcaption{color:#444;font-size:.85rem}.unit{color:#444;font-size:.9em;font-weight:400;display:block}
nav{margin:.6rem 0}nav a{display:inline-block;margin-right:1rem;color:#0050a0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:.5rem 0;font-size:.95rem}
dt{color:#444}dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:.5rem 0}table{border-collapse:collapse;font-size:.9rem}
th,td{padding:.25rem .6rem;border-bottom:1px solid #ccc;text-align:left;vertical-align:bottom}
th:first-child,td:first-child{position:sticky;left:0;background:#fff}td{white-space:nowrap}
.number{text-align:right;font-variant-numeric:tabular-nums}tr.chosen td{background:#eaf2fb;print-color-adjust:exact}
.fields td{font-family:ui-monospace,monospace;font-size:.8rem;padding:.1rem .5rem;vertical-align:top}
.fields td:first-child{position:static}.fields td+td{white-space:normal;overflow-wrap:anywhere;min-width:8rem}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));gap:.8rem 1.2rem}
figure{margin:.4rem 0;break-inside:avoid}figure h4{margin:0;font-size:.95rem}svg{width:100%;height:auto;display:block}
svg *{stroke-linejoin:round;stroke-linecap:butt}img{max-width:100%;height:auto;display:block;border:1px solid #ccc}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f4f4f4;border:1px solid #ccc;padding:.6rem;font-size:.85rem}
.frames input{position:absolute;opacity:0}.frames figure{display:none}.frames input:checked+label{background:#cfe3f7}
.frames label{display:inline-block;border:1px solid #555;border-radius:.3rem;padding:.2rem .6rem;margin:.15rem}
.frames input:focus-visible+label{outline:3px solid #0050a0}
@media print{body{font-size:10pt;max-width:none;padding:0}nav,.frames input,.frames label{display:none}
.frames figure{display:inline-block!important;width:32%;vertical-align:top}.wide{overflow:visible}
.panels{grid-template-columns:1fr 1fr}table{font-size:8pt}th,td{padding:.1rem .3rem}h2,h3{break-after:avoid}}
"""


def write_page(path: Path, title: str, header: str, body: str) -> None:
    """Writes a page atomically; header and body are HTML, the title is plain text.

    In ASCII with character references: the same characters whatever encoding a machine reads and writes by default.
    """
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>{header}</header>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
    run_folder.write_text(path, page.encode("ascii", "xmlcharrefreplace").decode("ascii"))


def label(metric: str) -> str:
    """Returns what a metric is called."""
    return METRICS.get(metric, (metric, "", 0))[0]


def axis_label(metric: str) -> str:
    """Returns the last word of a metric's name with its unit, for below a title that says the whole."""
    name, unit, _ = METRICS.get(metric, (metric, "", 0))
    return f"{name.split()[-1]} ({unit})" if unit else name


def number_text(value: Any, metric: str = "") -> str:
    """Returns a number with the decimals of its metric, or with four digits."""
    if not curves.is_number(value):
        return "not finite"
    return f"{value:.{METRICS[metric][2]}f}" if metric in METRICS else f"{value:.4g}"


def duration_text(seconds: float) -> str:
    """Returns seconds in hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1, chosen: Sequence[int] = ()) -> str:
    """Returns a table of cells that are HTML already; the first `texts` columns hold text, the others numbers."""

    def line(cells: Sequence[str], tag: str, name: str = "") -> str:
        classes = ['class="number"' if column >= texts else "" for column in range(len(cells))]
        inner = "".join(f"<{tag} {c}>{cell}</{tag}>" for c, cell in zip(classes, cells, strict=True))
        return f"<tr{name}>{inner}</tr>\n"

    body = "".join(line(row, "td", ' class="chosen"' if number in chosen else "") for number, row in enumerate(rows))
    return f'<div class="wide"><table>\n<thead>{line(head, "th")}</thead>\n<tbody>\n{body}</tbody></table></div>\n'


def pairs(pairs: Sequence[tuple[str, str]]) -> str:
    """Returns a list of names and values, plain text; empty values are left out."""
    return f"<dl>{''.join(f'<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>' for k, v in pairs if v)}</dl>\n"


def embedded_picture(path: Path, limit: int) -> str:
    """Returns an <img> that holds the picture, as JPEG and smaller if its text in the page would exceed `limit` bytes.

    Raises:
        OSError: not a picture, or a damaged one.
    """
    data, kind = path.read_bytes(), "png"
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    size, scale = flat.size, 1.0
    while len(data) * 4 > limit * 3 and min(size) > 1:
        size = tuple(max(1, round(scale * side)) for side in flat.size)
        buffer, kind = io.BytesIO(), "jpeg"
        flat.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=88, subsampling=0)
        data, scale = buffer.getvalue(), 0.85 * scale
    text = base64.b64encode(data).decode("ascii")
    return f'<img alt="" width="{flat.width}" height="{flat.height}" src="data:image/{kind};base64,{text}">'
