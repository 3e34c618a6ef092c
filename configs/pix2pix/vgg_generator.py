"""VGG16 as the generator's encoder, perceptual loss, and the PatchGAN of pix2pix.

    python launch/prepare_data.py --recipe landscapes --out data               # once, for the full run
    python launch/fetch_weights.py vgg16                                       # once
    python launch/main.py --config configs/pix2pix/vgg_generator.py
    python launch/main.py --config configs/pix2pix/vgg_generator.py:quick      # on embedded photographs, minutes

Differs from base: the generator's encoder is VGG16 with ImageNet's weights, its decoder a U-Net's on the features
before each max-pool; loss + 0.5 x the mean squared error of VGG16's features at block1_conv2, block2_conv2 and
block3_conv3. VGG16 in the generator stays as it is for 5 runs of 100 epochs and is trained for 10 more. Early stopping
watches the discriminator's loss, so that the generator does not overpower it: each stop halves the generator's learning
rate, at most 10 times. Its author found full pictures in one colour; a higher L1 weight may help.

Not published, and chosen here: a run ends after 100 epochs or when the discriminator's validation loss has not fallen
for 20, and the next begins with new moments in Adam; while VGG16 is frozen, no run ends early. The features are those
of torchvision's weights, from pictures normalised as these expect, and the three errors are added up.

:quick and :tiny run without a download, on a small VGG16 with random weights, which shows that everything works. With
ImageNet's: --config.vgg.weights=imagenet --config.vgg.width=64. Number of runs: --config.regime.phases.unfrozen.runs=5;
for more than ten raise --config.epochs too.
"""

import ml_collections

from configs import common
from configs.pix2pix import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = base.get_config()
    c.generator.name = "vgg_unet"
    c.losses.perceptual = common.loss_term("perceptual", 0.5, region="full")
    c.regime.phases.frozen = common.phase("joint", epochs=100, runs=5, restart=True, frozen=("generator/vgg",))
    c.regime.phases.unfrozen = common.phase(
        "joint", epochs=100, runs=10, restart=True, stops_early=True, monitor="loss/discriminator"
    )
    c.regime.sequence = ("frozen", "unfrozen")
    c.regime.reactions = 10
    c.epochs = 1500
    c.patience = 20
    return common.finish(c, arg, {"quick": base.quick, "tiny": base.tiny})
