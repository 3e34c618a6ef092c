"""Version 1.1 of the normal-map systems: version 1.0 with early stopping.

    python launch/prepare_data.py --recipe normal_maps --out data             # once, for the full run
    python launch/main.py --config configs/normal_maps/v1_1_unet_early_stopping.py
    python launch/main.py --config configs/normal_maps/v1_1_unet_early_stopping.py:quick

Differs from v1_0_unet: the run ends when the generator loss has not improved for 25 epochs, but only at a boundary of
epochs and after the checkpoint is written; 300 epochs are the cap. The original ended at epoch 225, and was better than
version 1.0 on every metric and to look at.

Not published, and chosen here: a boundary at every 25th epoch, which 225 is. The original watched the generator loss on
the test pictures; here it is that on the validation pictures, so that the test stays unseen, and the generator with the
lowest such loss is tested. Its adversarial part rises while the discriminator gains the upper hand, so that a run may
end while the angular error still falls. All else as v0_1_unet says.
"""

import ml_collections

from configs import common
from configs.normal_maps import v0_1_unet, v1_0_unet


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = v1_0_unet.get_config()
    c.patience = 25
    c.epoch_break = 25
    c.regime.monitor = "loss/generator"
    c.regime.keep = "best"
    return common.finish(c, arg, {"quick": v0_1_unet.quick, "tiny": v0_1_unet.tiny})
