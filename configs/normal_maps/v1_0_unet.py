"""Version 1.0 of the normal-map systems: the baseline of 300 epochs.

    python launch/prepare_data.py --recipe normal_maps --out data             # once, for the full run
    python launch/main.py --config configs/normal_maps/v1_0_unet.py
    python launch/main.py --config configs/normal_maps/v1_0_unet.py:quick

Differs from v0_1_unet: 300 epochs, which were published. The original overfitted towards the end, and lost to version
1.1, its twin with early stopping, on every metric. What is tested is thus the last generator, and the curves of the
report show how far it lies from the best one. What was not published is chosen as v0_1_unet says.
"""

import ml_collections

from configs import common
from configs.normal_maps import v0_1_unet


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = v0_1_unet.get_config()
    c.epochs = 300
    return common.finish(c, arg, {"quick": v0_1_unet.quick, "tiny": v0_1_unet.tiny})
