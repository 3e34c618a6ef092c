"""The attention U-Net on faces, trained to be good, not to be faithful.

    python launch/prepare_celeb_a.py --source celeb_a_files --out data         # once, for the full run
    python launch/main.py --config configs/faces/attention_cosine.py
    python launch/main.py --config configs/faces/attention_cosine.py:quick     # on embedded photographs, minutes

Networks, pictures and holes of attention_hole. What is ours: a context of 16 pixels around the hole instead of 4, a
smooth fill of the hole to which the network's answer is added, the absolute error and a hundredth of the adversarial
loss alone, cosine decay of a doubled learning rate, clipped gradients, moving averages of the weights, the best
generator on validation pictures, and 300 epochs.
"""

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
