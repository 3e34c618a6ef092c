"""The landscape U-Net with a perceptual loss and a discriminator: what its author named as the next step. Ours.

    python launch/prepare_data.py --recipe landscapes --out data               # once, for the full run
    python launch/fetch_weights.py vgg16                                       # once
    python launch/main.py --config configs/landscapes/unet_perceptual_gan.py
    python launch/main.py --config configs/landscapes/unet_perceptual_gan.py:quick     # minutes

Differs from unet: 70x70 PatchGAN with instance normalisation, on completed pictures, so that it looks at the border of
the hole, which stayed visible there; loss 1 adversarial + 200 L1 + 0.5 perceptual, with both of the latter on completed
pictures too; Adam at 2e-4 with betas 0.5 and 0.999. The weights are those of pix2pix and its VGG variants, for pictures
in [0, 1].

:quick and :tiny run without a download, on a small VGG16 with random weights. With ImageNet's:
--config.vgg.weights=imagenet --config.vgg.width=64.
"""

import ml_collections

from configs import common
from configs.landscapes import unet


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = unet.get_config()
    c.discriminator.name = "patchgan"
    c.discriminator.normalisation = "instance"
    c.losses.reconstruction = common.loss_term("l1", 200.0, on="completed")
    c.losses.perceptual = common.loss_term("perceptual", 0.5, on="completed", region="full")
    c.losses.adversarial = common.loss_term("adversarial", 1.0)
    c.optimizer.learning_rate = 2e-4
    c.optimizer.b1 = 0.5
    c.evaluation.lpips = True
    return common.finish(c, arg, {"quick": quick, "tiny": tiny})


def quick(c: ml_collections.ConfigDict) -> None:
    """Shrinks to minutes on two CPU cores, on windows of embedded photographs."""
    common.quick_photographs(c)
    common.random_vgg(c, width=16)


def tiny(c: ml_collections.ConfigDict) -> None:
    """Shrinks to seconds, for tests."""
    common.tiny(c)
    common.random_vgg(c, width=8)
