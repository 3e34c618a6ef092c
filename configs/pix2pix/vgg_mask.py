"""VGG16 in generator and discriminator, perceptual loss; the networks see the mask.

    python launch/main.py --config configs/pix2pix/vgg_mask.py
    python launch/main.py --config configs/pix2pix/vgg_mask.py:quick           # on embedded photographs, minutes

Differs from vgg_generator: the discriminator judges the features before VGG16's fourth max-pool beside the generator's
input, and answers with 32x32 logits, of patches of 124x124 pixels. Not published, and chosen here: which features, and
that VGG16 itself is not trained in it.
"""

import ml_collections

from configs import common
from configs.pix2pix import base, vgg_generator


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = vgg_generator.get_config()
    c.discriminator.name = "vgg"
    return common.finish(c, arg, {"quick": base.quick, "tiny": base.tiny})
