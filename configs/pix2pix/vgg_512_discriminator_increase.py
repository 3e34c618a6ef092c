"""vgg_mask at 512x512: each early stop multiplies the discriminator's learning rate by 1.1.

    python launch/main.py --config configs/pix2pix/vgg_512_discriminator_increase.py
    python launch/main.py --config configs/pix2pix/vgg_512_discriminator_increase.py:quick    # minutes

Differs from vgg_512_generator_decay: the published alternative to halving the generator's rate; also at most 10 times.
"""

import ml_collections

from configs import common
from configs.pix2pix import base, vgg_512_generator_decay


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = vgg_512_generator_decay.get_config()
    c.regime.reaction_group = "discriminator"
    c.regime.reaction_factor = 1.1
    return common.finish(c, arg, {"quick": base.quick, "tiny": base.tiny})
