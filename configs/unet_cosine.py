"""The flagship: a U-Net that fills irregular line holes in normal maps, trained to be good, not to be faithful.

    python launch/main.py --config configs/unet_cosine.py          # the full run
    python launch/main.py --config configs/unet_cosine.py:quick    # minutes on two CPU cores, test included

U-Net and losses of the published normal-map systems (cosine similarity and an adversarial term), with what they
lacked: varied data, flips and quarter turns that turn the vectors too, cosine decay of the learning rate, and moving
averages of the weights.
"""

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = common.base()
    c.epochs = 60
    c.data.normal_y = "mixed"
    c.losses.cosine = common.loss_term("cosine", 20.0)
    c.losses.distance = common.loss_term("vector_distance", 20.0)
    c.losses.adversarial = common.loss_term("adversarial", 0.1)
    c.task.fill = "harmonic"
    c.generator.residual = True
    c.generator.refine = 16
    c.optimizer.learning_rate = 1e-3
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup_fraction = 0.02
    c.optimizer.clip_norm = 1.0
    return common.finish(c, arg, {"quick": quick, "tiny": common.tiny})


def quick(c: ml_collections.ConfigDict) -> None:
    """Shrinks to at most four minutes on two CPU cores, from the command to the finished test."""
    c.image_size = 64
    c.batch_size = 16
    c.epochs = 6
    c.generator.width = 24
    c.generator.refine = 8
    c.discriminator.width = 8
    c.data.procedural_counts = (4000, 256, 256)
    c.evaluation.val_limit = 128
    c.sample_every_epochs = 3
