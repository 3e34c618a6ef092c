"""Version 0.2 of the normal-map systems: version 0.1 with early stopping, the one whose training went astray.

    python launch/prepare_data.py --recipe normal_maps --out data             # once, for the full run
    python launch/main.py --config configs/normal_maps/v0_2_unet_early_stopping.py
    python launch/main.py --config configs/normal_maps/v0_2_unet_early_stopping.py:quick

Differs from v0_1_unet: it ends when the generator loss has not improved for 25 epochs, seen at every 25th epoch, and
after 300 epochs at the latest; and the divergence guard watches for surges.

The anomaly: in the original run the generator loss shot up after epoch 143. Its author never found the reason; he calls
his stopping logic faulty, and notes that stopping ought not to touch training at all. Here stopping only reads
validation's values. Should such a surge come back, a generator loss over 5 times its running level, the guard leaves
the updates out, says so, and the best generator is kept; --config.guard.action=halt ends the run instead.

Not published, and chosen here: the boundary of 25 epochs, the cap, the factor 5. The original watched the generator
loss on the test pictures; here it is that on the validation pictures, so that the test stays unseen, and the generator
with the lowest such loss is tested. The adversarial part of this loss rises while the discriminator gains the upper
hand: :quick ends while the angular error still falls. All else as v0_1_unet says.
"""

import ml_collections

from configs import common
from configs.normal_maps import v0_1_unet


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = v0_1_unet.get_config()
    c.epochs = 300
    c.patience = 25
    c.epoch_break = 25
    c.regime.monitor = "loss/generator"
    c.regime.keep = "best"
    c.guard.surge_factor = 5.0
    c.guard.action = "skip"
    return common.finish(c, arg, {"quick": v0_1_unet.quick, "tiny": v0_1_unet.tiny})
