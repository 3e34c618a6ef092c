"""Version 3.0 of the normal-map systems: cosine similarity and adversarial loss 999 to 1.

    python launch/prepare_data.py --recipe normal_maps --out data             # once, for the full run
    python launch/main.py --config configs/normal_maps/v3_0_unet_lambda999.py
    python launch/main.py --config configs/normal_maps/v3_0_unet_lambda999.py:quick

Differs from v1_0_unet: the cosine similarity weighs 999 instead of 10. The original had a higher SSIM and PSNR than
10 to 1 gave.

The published name speaks of early stopping, the published table of a fixed number of epochs. Followed here is the
table, with version 1.0's 300 epochs; for early stopping as in version 1.1 add

    --config.patience=25 --config.epoch_break=25 --config.regime.monitor=loss/generator --config.regime.keep=best

What else was not published is chosen as v0_1_unet says.
"""

import ml_collections

from configs import common
from configs.normal_maps import v0_1_unet, v1_0_unet


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = v1_0_unet.get_config()
    c.losses.cosine.weight = 999.0
    return common.finish(c, arg, {"quick": v0_1_unet.quick, "tiny": v0_1_unet.tiny})
