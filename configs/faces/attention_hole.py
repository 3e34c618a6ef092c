"""The attention U-Net GAN on faces, variant "hole": it sees the hole and a narrow band around it, and nothing else.

    python launch/prepare_celeb_a.py --source celeb_a_files --out data         # once, for the full run
    python launch/main.py --config configs/faces/attention_hole.py
    python launch/main.py --config configs/faces/attention_hole.py:quick       # on embedded photographs, minutes

Published by Farmerobot/image_inprinting: a U-Net of 4,880,836 parameters with self-attention at its narrowest place, a
small patch discriminator (35,553), 1,024 pictures of CelebA at 200x200 in 819, 102 and 103, square holes of 32x32
pixels at least 16 from the border, a context of 4 pixels around each; loss 1 adversarial + 100 L1 + 10 edges (Sobel) +
1 SSIM; Adam at 2e-4 with betas 0.5 and 0.999, batches of 20, 20 epochs; three minutes an epoch on a laptop's GPU.

The window of 40x40 pixels around the hole is cut out, filled and pasted back. The page says that the input has three
channels; the parameters say four: the picture without its hole, and the mask.

Chosen here, where the page leaves it open or the published program does otherwise:

  - Losses are means over the hole of the completed picture. The program's are means over more of the picture, so that
    its weight of 100 pulls less against the adversarial loss than ours does.
  - Edges are signed differences of Sobel gradients (`losses.edge`); the program compares magnitudes over their maximum.
  - The discriminator sees the window that the generator sees.
  - Pictures are cut to the centre square before they are scaled; the program squeezes them. Left-right flips.
  - The last generator is tested.

The program also clips gradients, lowers the real label, and leaves out updates of a discriminator that is right too
often, in its mean over many batches, where ours looks at the batch at hand:

    --config.optimizer.clip_norm=1.0 --config.discriminator.real_label=0.9 --config.discriminator.accuracy_limit=0.8

Holes of other sizes: --config.mask.squares.size="(0.08,0.16)" (shares of the side; the window must hold the largest).
In training too at one place: --config.mask.squares.positions="((0.5,0.4),)". The stored test holes never move.
"""

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = common.base()
    c.image_size = 200
    c.batch_size = 20
    c.epochs = 20
    c.ema_decay = 0.0
    c.data.source = "tfds"
    c.data.name = "celeb_a"
    c.data.path = "data"
    c.data.kind = "photographs"
    c.data.split_counts = (819, 102, 103)
    c.data.turns = False
    c.mask.name = "squares"
    c.mask.squares.size = (0.16, 0.16)
    c.mask.squares.margin = 0.08
    c.mask.ratio = (0.0, 0.5)  # one square has 0.0256
    c.task.view = "window"
    c.task.window = 0.2
    c.generator.name = "attention_unet"
    c.generator.normalisation = "none"
    c.generator.output = "tanh"
    c.discriminator.name = "small_patch"
    c.discriminator.width = 32
    c.discriminator.views = ("window",)
    c.losses.adversarial = common.loss_term("adversarial", 1.0)
    c.losses.l1 = common.loss_term("l1", 100.0, on="completed")
    c.losses.edge = common.loss_term("edge", 10.0, on="completed")
    c.losses.ssim = common.loss_term("ssim", 1.0, on="completed")
    c.regime.monitor = "psnr_db_hole"
    c.regime.keep = "last"
    c.optimizer.learning_rate = 2e-4
    c.optimizer.b1 = 0.5
    return common.finish(c, arg, {"quick": quick, "tiny": tiny})


def quick(c: ml_collections.ConfigDict) -> None:
    """Shrinks any variant to a few minutes on two CPU cores, test included, on windows of embedded photographs."""
    common.quick_photographs(c)
    _shrink_hole(c)


def tiny(c: ml_collections.ConfigDict) -> None:
    """Shrinks any variant to seconds, for tests."""
    common.tiny(c)
    _shrink_hole(c)


def _shrink_hole(c: ml_collections.ConfigDict) -> None:
    # A quarter of the side: smaller holes would have too few pixels.
    c.mask.squares.size = (0.25, 0.25)
    if c.task.view == "window":
        c.task.window = 0.5
