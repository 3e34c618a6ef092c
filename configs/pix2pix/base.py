"""pix2pix on landscapes: the baseline of the experiments with VGG16.

    python launch/prepare_data.py --recipe landscapes --out data               # once, for the full run
    python launch/fetch_weights.py vgg16                                       # once, for LPIPS
    python launch/main.py --config configs/pix2pix/base.py
    python launch/main.py --config configs/pix2pix/base.py:quick               # on embedded photographs, minutes

P. Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", 2017, as
wheynelau/VGG19-gan-experiment compares it with VGG variants: U-Net of 54.4 million parameters with dropout in three
levels of its decoder, 70x70 PatchGAN that sees the input beside the picture, cross-entropy + 100 L1, Adam at 2e-4 with
betas 0.5 and 0.999, 256x256, batches of 4. Its author found the pictures realistic but incomplete, like unfinished
paintings, with unnecessary noise.

Not published: data, holes, and how long; here a run is 100 epochs. Chosen here: the recipe's landscapes, left-right
flips; lines, squares and brush strokes as holes; the mask as a fourth channel (vgg_no_mask has none); both networks at
once; losses and discriminator take the whole output, as pix2pix does; the last generator is tested.

In the test there is no dropout, and batch normalisation takes running averages, so that a fill depends on nothing but
its picture. pix2pix itself keeps both at work in the test. With batches of 1 use
--config.generator.normalisation=instance and --config.discriminator.normalisation=instance: what batch normalisation is
for a single picture, in training as in the test.

Sweeps: --config.optimizer.b1=0.9, --config.losses.l1.weight=200.0, --config.batch_size=8. Without colours:
--config.task.inputs="('luminance','mask')".
"""

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = common.base()
    c.image_size = 256
    c.batch_size = 4
    c.epochs = 100
    # A checkpoint has over 600 MB, and an epoch 168 steps.
    c.eval_every_epochs = 5
    c.sample_every_epochs = 20
    c.checkpoint_every_steps = 2_000
    c.ema_decay = 0.0
    c.data.source = "tfds"
    c.data.name = "landscapes"
    c.data.path = "data"
    c.data.kind = "photographs"
    c.data.turns = False
    c.mask.name = "mixture"
    c.generator.output = "tanh"
    c.generator.dropout = 0.5
    c.discriminator.sees = "output"
    c.discriminator.condition = "input"
    c.losses.adversarial = common.loss_term("adversarial", 1.0)
    c.losses.l1 = common.loss_term("l1", 100.0, region="full")
    c.regime.monitor = "psnr_db_hole"
    c.regime.keep = "last"
    c.optimizer.learning_rate = 2e-4
    c.optimizer.b1 = 0.5
    c.evaluation.lpips = True
    c.evaluation.batch_size = 8  # LPIPS of 32 pictures takes 5 GB
    return common.finish(c, arg, {"quick": quick, "tiny": tiny})


def quick(c: ml_collections.ConfigDict) -> None:
    """Shrinks any variant to a few minutes on two CPU cores, test included, on windows of embedded photographs."""
    common.quick_photographs(c)
    common.random_vgg(c, width=16)
    _shorten(c)


def tiny(c: ml_collections.ConfigDict) -> None:
    """Shrinks any variant to seconds, for tests."""
    common.tiny(c)
    common.random_vgg(c, width=8)
    _shorten(c)


def _shorten(c: ml_collections.ConfigDict) -> None:
    """Leaves one run of an epoch with VGG16 frozen and two of two epochs without."""
    c.eval_every_epochs = 1
    for name, phase in c.regime.phases.items():
        phase.runs, phase.epochs = (1, 1) if name == "frozen" else (2, 2)
        c.patience, c.epochs = 1, 5
