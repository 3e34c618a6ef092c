"""The attention U-Net GAN on faces, variant "whole": it sees the complete picture around the hole.

    python launch/prepare_celeb_a.py --source celeb_a_files --out data         # once, for the full run
    python launch/main.py --config configs/faces/attention_whole.py
    python launch/main.py --config configs/faces/attention_whole.py:quick

Differs from attention_hole: generator and discriminator see the whole picture of 200x200 pixels; half the width; 30
epochs of 1,000 pictures. The original calls it more coherent, and says that it needs less memory: 80 seconds an epoch
on a laptop's GPU, 0.29 s for a batch at test time. What was not published is chosen as attention_hole says; the 1,000
pictures are split in 800, 100 and 100.
"""

import ml_collections

from configs import common
from configs.faces import attention_hole


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = attention_hole.get_config()
    c.epochs = 30
    c.data.split_counts = (800, 100, 100)
    c.task.view = "full"
    c.task.window = 0.0
    c.generator.width = 32
    c.discriminator.views = ("full",)
    return common.finish(c, arg, {"quick": quick, "tiny": attention_hole.tiny})


def quick(c: ml_collections.ConfigDict) -> None:
    """Shrinks to a few minutes on two CPU cores; half the width of the other variant, as in full."""
    attention_hole.quick(c)
    c.generator.width //= 2
