"""Version 1.2 of the normal-map systems without skip connections: the bowtie.

    python launch/prepare_data.py --recipe normal_maps --out data             # once, for the full run
    python launch/main.py --config configs/normal_maps/v1_2_bowtie_early_stopping.py
    python launch/main.py --config configs/normal_maps/v1_2_bowtie_early_stopping.py:quick

Differs from v1_2_unet_early_stopping: the decoder sees nothing of the encoder but its last level. The original was far
worse than the U-Net. What was not published is chosen as v1_1_unet_early_stopping and v0_1_unet say; widths and depth
are the U-Net's.
"""

import ml_collections

from configs import common
from configs.normal_maps import v0_1_unet, v1_2_unet_early_stopping


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = v1_2_unet_early_stopping.get_config()
    c.generator.skips = False
    return common.finish(c, arg, {"quick": v0_1_unet.quick, "tiny": v0_1_unet.tiny})
