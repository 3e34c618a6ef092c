"""Version 2.2 of the normal-map systems: the discriminator, then the generator, in turns, each to convergence.

    python launch/prepare_data.py --recipe normal_maps --out data             # once, for the full run
    python launch/main.py --config configs/normal_maps/v2_2_unet_disc_then_gen.py
    python launch/main.py --config configs/normal_maps/v2_2_unet_disc_then_gen.py:quick

Differs from v1_2_unet_early_stopping in when which network is trained: one is trained until its loss on held-out
pictures has not been better for 25 epochs, then the other against it as it is. The whole run ends when a phase of the
generator brings no better generator loss than any before. The original was worse than version 1.2.

Not published, and chosen here: best and patience begin anew with each phase, the discriminator comes first, any epoch
may end a phase (no boundary of 25), and 1,000 epochs are the cap. The losses watched are those on the validation
pictures, so that the test stays unseen. All else as v1_1_unet_early_stopping and v0_1_unet say.
"""

import ml_collections

from configs import common
from configs.normal_maps import v0_1_unet, v1_2_unet_early_stopping


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = v1_2_unet_early_stopping.get_config()
    c.epochs = 1000
    c.epoch_break = 1
    c.regime.phases.judge = common.phase("discriminator", monitor="loss/discriminator")
    c.regime.phases.fill = common.phase("generator", monitor="loss/generator")
    c.regime.sequence = ("judge", "fill")
    c.regime.repeat = True
    return common.finish(c, arg, {"quick": quick, "tiny": v0_1_unet.tiny})


def quick(c: ml_collections.ConfigDict) -> None:
    """Shrinks as the other versions, with phases that can end after an epoch."""
    v0_1_unet.quick(c)
    c.patience = c.epoch_break = 1
