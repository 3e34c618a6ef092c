"""Version 2.0 of the normal-map systems: the generator alone, on its reconstruction loss.

    python launch/prepare_data.py --recipe normal_maps --out data             # once, for the full run
    python launch/main.py --config configs/normal_maps/v2_0_unet_gen_only.py
    python launch/main.py --config configs/normal_maps/v2_0_unet_gen_only.py:quick

Differs from v1_2_unet_early_stopping: no discriminator, and no weight on its loss term. What stopping watches is thus
the weighted cosine similarity alone. The original had a slightly better loss, SSIM and PSNR than version 1.2, and
visible flaws in its pictures.

Not published clearly, and chosen here: the skip connections stay. The version's table leaves them out, its name says
U-Net. All else as v1_1_unet_early_stopping and v0_1_unet say.
"""

import ml_collections

from configs import common
from configs.normal_maps import v0_1_unet, v1_2_unet_early_stopping


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = v1_2_unet_early_stopping.get_config()
    c.discriminator.name = "none"
    c.losses.adversarial.weight = 0.0
    return common.finish(c, arg, {"quick": v0_1_unet.quick, "tiny": v0_1_unet.tiny})
