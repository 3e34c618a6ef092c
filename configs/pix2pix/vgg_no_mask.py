"""VGG16 in generator and discriminator, perceptual loss; the networks are not told where the hole is.

    python launch/main.py --config configs/pix2pix/vgg_no_mask.py
    python launch/main.py --config configs/pix2pix/vgg_no_mask.py:quick        # on embedded photographs, minutes

Differs from vgg_mask: the input has three channels; a hole is grey there.
"""

import ml_collections

from configs import common
from configs.pix2pix import base, vgg_mask


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = vgg_mask.get_config()
    c.task.inputs = ("masked",)
    return common.finish(c, arg, {"quick": base.quick, "tiny": base.tiny})
