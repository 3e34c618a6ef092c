"""A U-Net on landscapes, without a discriminator: the published benchmark of losses and optimisers.

    python launch/prepare_data.py --recipe landscapes --out data               # once, for the full run
    python launch/main.py --config configs/landscapes/unet.py
    python launch/main.py --config configs/landscapes/unet.py:quick            # on embedded photographs, minutes
    python launch/main.py --config configs/landscapes/unet.py --config.losses.reconstruction.fn=l1 \
      --config.optimizer.name=adagrad

Losses: l1, mse, poisson_nll, kl_divergence, cross_entropy; optimisers: adam, sgd, rmsprop, adagrad.

Published by istepka/im-outpainting: 2,662,659 parameters; the mask over three channels and the masked picture in
[0, 1] as input, tanh as output; 256x256 crops of photographs, left-right flips and quarter turns; Adam at 1e-3, batches
of 32, mean squared error, 20 epochs. Its author found Adam a little better than Adagrad, SGD much worse, RMSprop
horrible at this rate; L1 the best loss, Poisson close, the KL divergence worst; this network far better than
encoder_decoder. The shapes of the masks stayed visible.

The recipe's crops are of free photographs; the original's were of two sets on Kaggle, Landscape Pictures and Landscape
Recognition Image Dataset, which anyone can download there: launch/prepare_data.py --source cuts crops of them too.

The output's tanh meets pictures in [0, 1], as published; losses that need positive values clip it, as `losses.py` says.

The recipe's set has 674 pictures for training, the original had 10,000: 20 epochs are 420 steps here instead of 6,250.
For as many steps: --config.epochs=300.

Not published, and chosen here: the holes (lines, squares and brush strokes); the losses are taken of the whole output;
the generator with the highest hole PSNR on validation pictures is tested.
"""

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = common.base()
    c.image_size = 256
    c.epochs = 20
    c.ema_decay = 0.0
    c.data.source = "tfds"
    c.data.name = "landscapes"
    c.data.path = "data"
    c.data.kind = "photographs"
    c.mask.name = "mixture"
    c.task.inputs = ("mask3", "masked")
    c.task.value_range = (0.0, 1.0)
    c.generator.name = "pooling_unet"
    c.generator.normalisation = "none"
    c.generator.output = "tanh"
    c.discriminator.name = "none"
    c.losses.reconstruction = common.loss_term("mse", 1.0, region="full")
    c.regime.monitor = "psnr_db_hole"
    c.optimizer.learning_rate = 1e-3
    return common.finish(c, arg, {"quick": common.quick_photographs, "tiny": common.tiny})
