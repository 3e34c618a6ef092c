"""A compact model of photographs: the generator of `unet_compact` on landscapes and cities in the public domain.

    python launch/prepare_data.py --recipe landscapes_public_domain --out data         # once, for the full run
    python launch/main.py --config configs/unet_compact_photographs.py                 # 25 minutes of one CPU core
    python launch/main.py --config configs/unet_compact_photographs.py:quick           # on embedded photographs

Generator and holes of `unet_compact`, losses of `unet_photographs` without the discriminator. Its pictures are some
hundred photographs that are in the public domain, as the copyright file of their package says, so that no one else has
rights in the weights; they show no people and no rooms.
"""

import ml_collections

from configs import common, unet_compact


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = unet_compact.get_config()
    c.epochs = 50
    c.eval_every_epochs = 5
    c.sample_every_epochs = 20
    c.data.source = "tfds"
    c.data.name = "landscapes_public_domain"
    c.data.path = "data"
    c.data.kind = "photographs"
    c.data.turns = False
    c.generator.output = "tanh"
    c.losses = ml_collections.ConfigDict()
    c.losses.l1 = common.loss_term("l1", 20.0)
    c.regime.monitor = "psnr_db_hole"
    return common.finish(c, arg, {"quick": quick, "tiny": common.tiny})


def quick(c: ml_collections.ConfigDict) -> None:
    """Shrinks to minutes on two CPU cores, on windows of embedded photographs."""
    unet_compact.quick(c)
    common.quick_photographs(c)
    c.generator.width = 12
