"""The attention U-Net on faces, trained to be good, not to be faithful.

    python launch/prepare_celeb_a.py --source celeb_a_files --out data         # once, for the full run
    python launch/main.py --config configs/faces/attention_cosine.py
    python launch/main.py --config configs/faces/attention_cosine.py:quick     # on embedded photographs, minutes

Networks, pictures, holes, and the ratio of L1 to the adversarial loss are those of attention_hole. What is ours: a
context of 16 pixels around the hole instead of 4, a smooth fill of the hole to which the network's answer is added, no
losses of edges and SSIM, cosine decay of a doubled learning rate, clipped gradients, moving averages of the weights,
the best generator on validation pictures, and 300 epochs.

With 32 features, on 560 pictures, one seed, hole PSNR on 70 others (Navier-Stokes 19.9, the smooth fill 19.7): 22.8 dB
after 30 epochs, 24.4 after 200 in batches of 10. Of the parts, two were tried alone, in batches of 10 and without a
discriminator. 400 steps from the smooth fill gave 20.7 dB and a seam of 0.87; 400 steps from an empty hole, to which
nothing can be added, 20.7 and 1.80. Windows of 128 pixels with 16 features, which take the same time, gave 19.7 dB on
validation pictures after 224 steps, windows of 64 with 32 features 20.0.
"""

import ml_collections

from configs import common
from configs.faces import attention_hole


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = attention_hole.get_config()
    c.epochs = 300
    c.ema_decay = 0.999
    c.task.window = 0.32  # 64 pixels: the smooth fill takes powers of two
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
