"""A chain of convolutions at full resolution on landscapes: the smaller of the two published networks.

    python launch/prepare_data.py --recipe landscapes --out data               # once, for the full run
    python launch/main.py --config configs/landscapes/encoder_decoder.py
    python launch/main.py --config configs/landscapes/encoder_decoder.py:quick

Differs from unet: 744,387 parameters in six convolutions without pooling or skips, with batch normalisation; the output
is linear and clipped to [0, 1] where it is shown (clipped in training, it would have no gradient beyond). Its author
found it far worse than the U-Net.
"""

import ml_collections

from configs import common
from configs.landscapes import unet


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = unet.get_config()
    c.generator.name = "encoder_decoder"
    c.generator.skips = False
    c.generator.normalisation = "batch"
    c.generator.output = "linear"
    return common.finish(c, arg, {"quick": quick, "tiny": common.tiny})


def quick(c: ml_collections.ConfigDict) -> None:
    """Shrinks to a few minutes on two CPU cores; half the U-Net's width, as all of it works at full resolution."""
    common.quick_photographs(c)
    c.generator.width //= 2
