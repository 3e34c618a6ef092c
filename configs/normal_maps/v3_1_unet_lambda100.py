"""Version 3.1 of the normal-map systems: cosine similarity and adversarial loss 100 to 1.

    python launch/prepare_data.py --recipe normal_maps --out data             # once, for the full run
    python launch/main.py --config configs/normal_maps/v3_1_unet_lambda100.py
    python launch/main.py --config configs/normal_maps/v3_1_unet_lambda100.py:quick

Differs from v3_0_unet_lambda999 in that weight alone; what stands there on early stopping holds here too. The original
lay between 10 to 1 and 999 to 1.
"""

import ml_collections

from configs import common
from configs.normal_maps import v0_1_unet, v3_0_unet_lambda999


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = v3_0_unet_lambda999.get_config()
    c.losses.cosine.weight = 100.0
    return common.finish(c, arg, {"quick": v0_1_unet.quick, "tiny": v0_1_unet.tiny})
