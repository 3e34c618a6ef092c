"""Version 0.1 of the normal-map systems: U-Net and PatchGAN, cosine similarity and adversarial loss 10 to 1.

    python launch/prepare_data.py --recipe normal_maps --out data             # once, for the full run
    python launch/main.py --config configs/normal_maps/v0_1_unet.py
    python launch/main.py --config configs/normal_maps/v0_1_unet.py:quick     # without data, minutes on two CPU cores

The root of all versions: the others start from it, directly or through a parent. Published: a U-Net of strided and
transposed convolutions with batch normalisation, whose output is normalised to unit vectors; a convolutional
discriminator; one minus the cosine similarity at weight 10 beside an adversarial term at weight 1; Adam at 1e-4 for
both networks, trained together for a fixed number of epochs; holes of irregular lines. Its figures cannot be compared
with ours: neither the pictures nor all of the settings were published.

Not published, and chosen here:

- Data: the recipe `normal_maps`, random crops at native resolution, flipped and turned with their vectors.
- Sizes: 128x128, batches of 32, gradients applied after each batch, 150 epochs.
- Networks: widths and depth of pix2pix and its 70x70 PatchGAN. The generator sees the masked map, zero in the hole, and
  the mask; the discriminator sees the completed map alone.
- Loss: cosine similarity in the hole, where there is something to learn, of the output. `region="full"` takes the whole
  map: --config.losses.cosine.region=full.
- Which generator is tested: the last one, as after a fixed number of epochs in the original. The one with the lowest
  hole angular error on validation maps is kept beside it: the same command with --config.regime.keep=best tests that
  one, without training again. There is no moving average of weights.

:quick keeps losses, rate and regime of the version and shrinks networks, maps and epochs. It shows that a version
works, and nothing about how the versions compare.
"""

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = common.base()
    c.epochs = 150
    c.ema_decay = 0.0
    c.regime.keep = "last"
    c.data.source = "tfds"
    c.data.name = "normal_maps"
    c.data.path = "data"
    c.data.fit = "crop"
    c.losses.cosine = common.loss_term("cosine", 10.0)
    c.losses.adversarial = common.loss_term("adversarial", 1.0)
    return common.finish(c, arg, {"quick": quick, "tiny": tiny})


def quick(c: ml_collections.ConfigDict) -> None:
    """Shrinks any version to a few minutes on two CPU cores, test included, on procedural maps."""
    common.quick(c)
    c.data.source = "procedural_normals"
    c.data.name = c.data.path = ""
    if c.patience:
        c.patience = c.epoch_break = 2  # so that it can end such a short run


def tiny(c: ml_collections.ConfigDict) -> None:
    """Shrinks any version to seconds, for tests; early stopping and phases can act within its three epochs."""
    common.tiny(c)
    if c.patience:
        c.patience = c.epoch_break = 1
