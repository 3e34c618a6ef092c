"""Fills the holes of one picture, or of every picture in a folder, with a trained generator.

    python launch/inpaint.py --image a.png --mask m.png --out o.png           # by a model that comes along
    python launch/inpaint.py --image cut_out.png --out o.png                  # transparency is the hole
    python launch/inpaint.py --model runs/unet_cosine-quick --image maps --mask masks --out filled

The mask is a picture of the same size, white = hole; in folders it has the picture's name. Any height and width, 8 or
16 bits a channel, grey, colours, palettes, with or without alpha; the EXIF orientation is applied. Known pixels stay
byte-identical. A picture in a folder that cannot be filled is reported, and the rest go on.

Exit codes: 0 all written; 1 one or more not written, each with a message; 2 wrong usage.
"""

import logging
from pathlib import Path

from absl import flags

from inpaint_jax import command_line

log = logging.getLogger("inpaint_jax")

_MODEL = flags.DEFINE_string("model", None, "run folder or gs://…, or its generator/; default: what comes along")
_IMAGE = flags.DEFINE_string("image", None, "picture to fill: PNG, JPEG, WebP, TGA, DDS, TIFF or BMP; or a folder")
_MASK = flags.DEFINE_string("mask", None, "mask of the same size, white = hole; or a folder; default: transparency")
_OUT = flags.DEFINE_string("out", None, "PNG or TIFF file to write; for a folder of pictures, a folder")
_INVERT = flags.DEFINE_bool("invert", False, "black = hole; without --mask: opaque = hole")
_WRAP = flags.DEFINE_bool("wrap", False, "tileable texture: opposite edges meet")
_BLEND = flags.DEFINE_enum("blend", "none", ["none", "poisson"], "poisson: fit the fill to the rim of the hole")
_NORMAL_Y = flags.DEFINE_enum("normal_y", "", ["", "up", "down"], "of normal maps: where green points")
_TWO_CHANNELS = flags.DEFINE_bool("two_channels", False, "normal maps of x and y alone, such as BC5; blue is kept")


def _main() -> int:
    image, out = command_line.require(_IMAGE), command_line.require(_OUT)
    command_line.prepare_jax()
    from inpaint_jax import filling, image_files, inference

    if not Path(image).is_dir() and Path(out).suffix.lower() not in image_files.LOSSLESS_SUFFIXES:
        known = ", ".join(image_files.LOSSLESS_SUFFIXES)
        raise flags.ValidationError(f"--out={out}: the name must end in {known}, which keep every pixel as it is")
    jobs = filling.plan_jobs(Path(image), Path(_MASK.value) if _MASK.value else None, Path(out))
    inpainter = inference.Inpainter.load(_MODEL.value) if _MODEL.value else None
    options = filling.Options(_INVERT.value, _WRAP.value, _BLEND.value, _NORMAL_Y.value, _TWO_CHANNELS.value)
    if not Path(image).is_dir():
        try:
            filled = filling.fill_file(inpainter, jobs[0], options)
        except OSError as error:
            raise ValueError(f"--out={out} cannot be written ({error.strerror}): choose another place") from error
        if filled:
            log.info("wrote %s: %d pixels filled", out, filled)
        else:
            where = f"the mask {_MASK.value}" if _MASK.value else "its transparency"
            log.warning("wrote %s as it was: %s has no hole", out, where)
        return 0
    failed = filling.fill_all(inpainter, jobs, options)
    log.info("%d of %d pictures written below %s", len(jobs) - failed, len(jobs), out)
    return 1 if failed else 0


if __name__ == "__main__":
    command_line.run(_main, __doc__, urls=["model"])
