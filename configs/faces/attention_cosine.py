"""The attention U-Net on faces, trained to be good, not to be faithful."""

import ml_collections

from configs import common
from configs.faces import attention_hole


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = attention_hole.get_config()
    c.epochs = 300
    c.ema_decay = 0.999
    c.task.window = 0.32
    c.task.fill = "harmonic"
    c.generator.residual = True
    c.losses = ml_collections.ConfigDict()
    c.losses.l1 = common.loss_term("l1", 20.0)
    c.losses.adversarial = common.loss_term("adversarial", 0.2)
    c.regime.keep = "best"
    c.optimizer.learning_rate = 4e-4
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup_fraction = 0.02
    c.optimizer.clip_norm = 1.0
    return common.finish(c, arg, {"quick": attention_hole.quick, "tiny": attention_hole.tiny})
