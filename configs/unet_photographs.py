"""A U-Net that fills irregular line holes in photographs: the flagship's recipe with the losses of colours.

    python launch/main.py --config configs/unet_photographs.py:quick    # a look at it, on embedded photographs
    python launch/main.py --config configs/unet_photographs.py --config.data.source=folder --config.data.path=my_photos
    python launch/main.py --config configs/unet_photographs.py --config.data.source=tfds --config.data.name=celeb_a \
      --config.data.path=my_data                                        # prepared by launch/prepare_celeb_a.py

What differs from `unet_cosine`: the output is a colour and no unit vector, the absolute error takes the place of both
vector losses, and the best checkpoint is that of the highest PSNR in the hole. The weights are the flagship's, not
tuned for photographs.

Without a data set of your own it trains on windows of seven photographs that come with scikit-image. That shows that
it works, and no more: :quick, as much work as the flagship's, ends on windows of two other photographs with a hole PSNR
of 29.3 dB and an SSIM in the hole of 0.876 (mean fill 20.6 and 0.583, Telea 28.2 and 0.860, Navier-Stokes 29.2 and
0.877; 256 windows of 64x64, one seed). On the landscapes of the recipe (36 epochs of :quick, 161 crops of other
photographs): 26.0 dB and 0.797, mean fill 17.2 and 0.440, Telea 24.6 and 0.760, Navier-Stokes 25.1 and 0.777. The
discriminator collapsed in that run. The length of the full run, 60 epochs, is not measured.
"""

import ml_collections

from configs import common, unet_cosine


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = unet_cosine.get_config()
    c.data.source = "bundled_photos"
    c.data.kind = "photographs"
    c.generator.output = "tanh"
    c.losses = ml_collections.ConfigDict()
    c.losses.l1 = common.loss_term("l1", 20.0)
    c.losses.adversarial = common.loss_term("adversarial", 0.1)
    c.regime.monitor = "psnr_db_hole"
    return common.finish(c, arg, {"quick": unet_cosine.quick, "tiny": common.tiny})
