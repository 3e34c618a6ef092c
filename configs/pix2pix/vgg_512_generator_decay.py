"""vgg_mask at 512x512: each early stop halves the generator's learning rate.

    python launch/main.py --config configs/pix2pix/vgg_512_generator_decay.py
    python launch/main.py --config configs/pix2pix/vgg_512_generator_decay.py:quick    # minutes

Batches of one picture, on one device, with instance normalisation, which does the same in training and in the test.
Published: about
two hours on one RTX 4090, one with VGG16 frozen and one without, on a spot instance that was terminated three times;
more white spaces than at 256x256.

The recipe's crops have 256x256 pixels and are enlarged for it: give your own pictures with --config.data.source=folder
--config.data.path=DIR, or prepare larger crops with launch/prepare_data.py --source DIR --size 512.
"""

import ml_collections

from configs import common
from configs.pix2pix import base, vgg_mask


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = vgg_mask.get_config()
    c.image_size = 512
    c.batch_size = 1
    c.generator.normalisation = "instance"
    c.discriminator.normalisation = "instance"
    c.evaluation.batch_size = 2
    return common.finish(c, arg, {"quick": base.quick, "tiny": base.tiny})
