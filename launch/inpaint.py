"""Fills the hole of one picture with a trained generator.

    python launch/inpaint.py --model runs/unet_cosine-quick --image a.png --mask m.png --out o.png

The mask is a picture of the same size, white = hole. Any height and width; known pixels stay byte-identical; an
alpha channel is kept. Exit codes: 0 written; 1 an error with a message; 2 wrong usage.
"""

import logging
from pathlib import Path

from absl import flags

from inpaint_jax import command_line

log = logging.getLogger("inpaint_jax")

_MODEL = flags.DEFINE_string("model", None, "run folder, or its generator/ folder")
_IMAGE = flags.DEFINE_string("image", None, "picture to fill: PNG, JPEG, WebP, TGA, DDS or TIFF, 8 bits a channel")
_MASK = flags.DEFINE_string("mask", None, "mask picture of the same size, white = hole")
_OUT = flags.DEFINE_string("out", None, "PNG file to write")


def _main() -> int:
    model, image, mask, out = (command_line.require(flag) for flag in (_MODEL, _IMAGE, _MASK, _OUT))
    if Path(out).suffix.lower() != ".png":
        raise flags.ValidationError(f"--out={out}: the name must end in .png, which keeps every pixel as it is")
    if Path(out).is_dir():
        raise ValueError(f"--out={out} is a folder: give the name of a file in it")
    command_line.prepare_jax()
    from inpaint_jax import image_files, inference

    pixels, alpha = image_files.read_rgb_and_alpha(image)
    hole = image_files.read_mask(mask)
    if hole.shape != pixels.shape[:2]:
        raise ValueError(
            f"the mask {mask} has {hole.shape[::-1]} pixels and the image {pixels.shape[1::-1]}: give one of the same "
            "size"
        )
    if hole.all():
        raise ValueError(f"the mask {mask} is all hole (white): leave what is to be kept black, the fill grows from it")
    inpainter = inference.Inpainter.load(model)
    # A model that works on windows refuses holes that do not fit.
    if not inpainter.windowed and (width := inference.widest(hole)) > inpainter.size:
        log.warning(
            "the hole is %d pixels wide and the model was trained on pictures of %d: far from known pixels expect "
            "nonsense; scale the picture down, or train a larger model",
            width, inpainter.size,
        )  # fmt: skip
    filled = inpainter(pixels, hole)
    try:
        image_files.write_png(out, image_files.with_alpha(filled, alpha))
    except OSError as error:
        raise ValueError(f"--out={out} cannot be written ({error.strerror}): choose another place") from error
    if hole.any():
        log.info("wrote %s: %d of %d pixels filled", out, hole.sum(), hole.size)
    else:
        log.warning("wrote %s as it was: the mask %s has no hole (no white pixel)", out, mask)
    return 0


if __name__ == "__main__":
    command_line.run(_main, __doc__)
