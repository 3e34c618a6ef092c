"""A compact model of normal maps: the flagship's recipe in a generator of 3.7 million parameters.

    python launch/main.py --config configs/unet_compact.py           # 50 minutes of one CPU core
    python launch/main.py --config configs/unet_compact.py:quick

What differs from `unet_cosine`: 128x128 pixels at 19 features, so that the weights fit 8 MB in half precision; no
discriminator, which neither helped nor harmed there and costs 15% of the time; and lines, squares and brush strokes as
holes, because those who use it paint holes of any kind. It is trained on procedural maps alone, so that no one else has
rights in it. Its weights come along: inpaint_jax/shipped/normal_maps, with figures in the README.md there.
"""

import ml_collections

from configs import common, unet_cosine


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Returns the config; arg: "" full, "quick" minutes on a CPU, "tiny" seconds."""
    c = unet_cosine.get_config()
    c.image_size = 128
    c.batch_size = 8
    c.epochs = 3
    c.data.embedded_counts = (16_000, 256, 640)
    c.mask.name = "mixture"
    c.generator.width = 19
    c.discriminator.name = "none"
    c.losses.adversarial.weight = 0.0
    return common.finish(c, arg, {"quick": quick, "tiny": common.tiny})


def quick(c: ml_collections.ConfigDict) -> None:
    """Shrinks to minutes on two CPU cores."""
    unet_cosine.quick(c)
    c.generator.width = 12
