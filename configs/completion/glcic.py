"""Globally and locally consistent completion: dilated convolutions, and a discriminator of the whole and of the hole.

    python launch/prepare_data.py --recipe landscapes --out data               # once, for the full run
    python launch/main.py --config configs/completion/glcic.py
    python launch/main.py --config configs/completion/glcic.py:quick           # on embedded photographs, minutes

S. Iizuka, E. Simo-Serra, H. Ishikawa, "Globally and Locally Consistent Image Completion", SIGGRAPH 2017, in the form of
its public re-implementation: 6,066,179 parameters with the mask as a fourth channel, discriminators of 45,056,769, no
normalisation, 64x64 holes in 256x256 pixels with their corner from 64 to 128, Adam at 1e-4, batches of 12. Three
phases: the generator on its reconstruction, the discriminator alone, both. The discriminator sees completed pictures,
whole and in a window of 128x128 pixels around the hole, clamped at the border; the known pixels are the picture's own.

As in the paper, and not in the re-implementation: the mask channel, and the length of the phases, which took months on
four GPUs. The re-implementation was not trained to the end either: --config.max_steps says how far to go, and
--config.regime.phases.complete.steps how long the first phase is.

    option                                               the paper's                 here
    --config.losses.reconstruction.fn=mse                mean squared error          L1, of the re-implementation
    --config.losses.adversarial.weight=0.0004            0.0004                      0.04, of the re-implementation
    --config.generator.normalisation=batch               batch normalisation         none, of the re-implementation
    --config.batch_size=96                               96                          12, of the re-implementation

Adadelta, the paper's optimiser, is not offered; the re-implementation has Adam.

Chosen here: the photographs (the paper's were of places in general); the hole is filled with the mean colour of the
picture's known pixels (the paper: of all pictures); the last generator is tested. The authors blend the result into the
picture afterwards (Poisson blending); what is tested here is not blended.
"""

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = common.base()
    c.image_size = 256
    c.batch_size = 12
    c.max_steps = 500_000
    c.epochs = 9_000  # more than 500,000 steps on the recipe's 674 pictures: the steps decide
    # A checkpoint has 640 MB, and an epoch 56 steps.
    c.eval_every_epochs = 50
    c.sample_every_epochs = 500
    c.checkpoint_every_steps = 2_000
    c.ema_decay = 0.0
    c.data.source = "tfds"
    c.data.name = "landscapes"
    c.data.path = "data"
    c.data.kind = "photographs"
    c.data.turns = False
    c.mask.name = "squares"
    c.mask.squares.size = (0.25, 0.25)
    c.mask.squares.margin = 0.25
    c.mask.ratio = (0.0, 0.4)  # one square has 0.0625
    c.task.fill = "mean"
    c.task.value_range = (0.0, 1.0)
    c.task.window = 0.5
    c.generator.name = "completion"
    c.generator.skips = False
    c.generator.normalisation = "none"
    c.generator.output = "linear"
    c.discriminator.name = "local_global"
    c.discriminator.normalisation = "none"
    c.discriminator.views = ("full", "window")
    c.losses.reconstruction = common.loss_term("l1", 1.0)
    c.losses.adversarial = common.loss_term("adversarial", 0.04)
    c.regime.phases.complete = common.phase("reconstruction", steps=90_000)
    c.regime.phases.judge = common.phase("discriminator", steps=10_000)
    c.regime.phases.both = common.phase("joint")
    c.regime.sequence = ("complete", "judge", "both")
    c.regime.monitor = "psnr_db_hole"
    c.regime.keep = "last"
    return common.finish(c, arg, {"quick": quick, "tiny": tiny})


def quick(c: ml_collections.ConfigDict) -> None:
    """Shrinks to a few minutes on two CPU cores, test included, on windows of embedded photographs."""
    common.quick_photographs(c)
    c.generator.width = 16
    c.max_steps, c.eval_every_epochs = 0, 1
    c.regime.phases.complete.steps = 900
    c.regime.phases.judge.steps = 100


def tiny(c: ml_collections.ConfigDict) -> None:
    """Shrinks to seconds, for tests; each phase has a few steps."""
    common.tiny(c)
    c.max_steps, c.eval_every_epochs = 0, 1
    c.regime.phases.complete.steps = 4
    c.regime.phases.judge.steps = 2
