"""Sections of a run's page that show pictures."""

import html
import re

from PIL import Image

from inpaint_jax import curves, pages, run_folder

TEST_SAMPLES = f"{run_folder.TEST}/samples.png"
# Bytes of the page that pictures may take; beyond its share, a picture is made smaller.
SAMPLES_BYTES, TEST_BYTES, NETWORKS_BYTES = 2_000_000, 1_000_000, 1_000_000
FRAMES = 6  # sample grids at most


def _picture(run: dict, name: str, limit: int, caption: str) -> str:
    try:
        image = pages.embedded_picture(run["workdir"] / name, limit)
    except FileNotFoundError:
        run["missing"].append(name)
        return ""
    except (OSError, Image.DecompressionBombError) as error:
        run["missing"].append(f"{name}, which cannot be shown ({error})")
        return ""
    return f'<figure class="wide">{image}<figcaption>{html.escape(caption)}</figcaption></figure>\n'


def test_pictures(run: dict) -> str:
    """Returns the grid of the test."""
    return _picture(run, TEST_SAMPLES, TEST_BYTES, "Held-out pictures; completed is the fill of this run.")


def networks(run: dict) -> str:
    """Returns the picture of the networks."""
    return _picture(run, run_folder.NETWORKS, NETWORKS_BYTES, "The networks of this run.")


def samples(run: dict) -> str:
    """Returns the sample grids with one radio button each: the same pictures in the same place, without a script."""
    paths = sorted((run["workdir"] / run_folder.SAMPLES).glob("step_*.png"))
    if not paths:
        run["missing"].append(f"{run_folder.SAMPLES}/")
        return ""
    count = min(FRAMES, len(paths))
    chosen = sorted({round(i * (len(paths) - 1) / max(1, count - 1)) for i in range(count)})
    epochs = {row.get("step"): row["epoch"] for row in run["rows"] if curves.is_number(row.get("epoch"))}
    buttons, frames, rules = "", "", ""
    for number, index in enumerate(chosen):
        step = int(re.sub(r"\D", "", paths[index].stem) or 0)
        label = f"step {step:,}" + (f", epoch {epochs[step]:.4g}" if step in epochs else "")
        name = f"{run_folder.SAMPLES}/{paths[index].name}"
        checked = " checked" if number == len(chosen) - 1 else ""
        buttons += (
            f'<input type="radio" name="frame" id="frame{number}"{checked}><label for="frame{number}">{label}</label>\n'
        )
        frames += _picture(run, name, SAMPLES_BYTES // len(chosen), label).replace('"wide"', f'"wide f{number}"')
        rules += f"#frame{number}:checked~.f{number}{{display:block}}"
    shown = f"{len(chosen)} of {len(paths)} grids" if len(chosen) < len(paths) else "All grids"
    limits = sum((SAMPLES_BYTES, TEST_BYTES, NETWORKS_BYTES)) / 1e6
    return (
        f"<p>The same validation pictures at different times (choose one; the arrow keys go on from there). {shown} of "
        f"{run_folder.SAMPLES}/ are shown; larger files are shown smaller, so that all pictures of this page stay "
        f'below {limits:.0f} MB.</p>\n<style>{rules}</style>\n<div class="frames">\n{buttons}{frames}</div>\n'
    )
