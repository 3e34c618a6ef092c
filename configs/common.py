"""The base of every configuration: each field once, with its unit and its meaning.

A config file under `configs/` calls `base()`, edits what differs, and shrinks last (`shrink`), so that `:quick` and
`:tiny` are the real configuration made small and never a copy of it. Every field can be overridden on the command
line: `--config.optimizer.learning_rate=3e-4`. Nothing here is derived from another field: durations of warmup and
decay are fractions of the run.
"""

from collections.abc import Callable

import ml_collections

ARGUMENTS = ("", "quick", "tiny")


def base() -> ml_collections.ConfigDict:
    """Returns the common base configuration; every config file starts from it."""
    c = ml_collections.ConfigDict()
    c.seed = 0  # initial weights, order of the examples, masks and augmentations; evaluation masks and splits ignore it
    c.image_size = 128  # pixels, height = width
    c.batch_size = 32  # examples of one microbatch over all devices and hosts
    c.accumulate = 1  # microbatches whose gradients are averaged in one optimiser step
    c.epochs = 100  # passes over the training split; the remainder of an incomplete batch is dropped
    c.max_steps = 0  # stop after so many optimiser steps; 0 = the number of epochs decides
    c.patience = 0  # early stopping after so many epochs without a better validation value; 0 = off
    c.epoch_break = 1  # early stopping acts only at multiples of so many epochs
    c.log_every_steps = 50  # a metrics row each so many steps
    c.eval_every_epochs = 1  # validation and best checkpoint each so many epochs
    c.sample_every_epochs = 5  # sample grid each so many epochs, and after the first
    c.checkpoint_every_steps = 500  # checkpoint each so many steps, and at every validation
    c.keep_checkpoints = 3  # the newest so many are kept; launch/replay.py starts from them
    c.dtype = "float32"  # compute type of the networks, float32 | bfloat16; parameters and losses stay float32
    c.reduce_dtype = "float32"  # float32 | bfloat16: of gradients between devices; half the bytes, rounded to 8 bits
    c.ema_decay = 0.999  # moving average of generator weights, per step, with a warmup; 0 = off
    c.parallel = "pmap"  # pmap | shard_map
    c.remat = False  # True: less memory, slower: gradients compute U-Net levels and VGG16's blocks once more
    c.deterministic = False  # True: deterministic GPU kernels (slower), needed for bit-identical resumption on GPUs
    c.data = _data()
    c.mask = _mask()
    c.task = _task()
    c.generator = _generator()
    c.discriminator = _discriminator()
    c.vgg = _vgg()
    c.losses = ml_collections.ConfigDict()  # name: loss_term(...)
    c.regime = _regime()
    c.guard = _guard()
    c.optimizer = _optimizer()
    c.evaluation = _evaluation()
    c.wandb = _wandb()
    return c


def _data() -> ml_collections.ConfigDict:
    """Where pictures come from and how they are read."""
    c = ml_collections.ConfigDict()
    c.source = "procedural_normals"  # procedural_normals | bundled_photos (photographs in scikit-image) | folder | tfds
    c.path = ""  # folder: root of the image tree, "" = INPAINT_DATA_DIR/<name>; tfds: the data_dir, "" = TFDS's default
    c.name = ""  # a folder below INPAINT_DATA_DIR, or a TFDS set in array_record ("celeb_a", "mine:1.0.0")
    c.kind = "normal_maps"  # normal_maps | photographs: which metrics, baselines and augmentations apply
    c.normal_y = "up"  # which way the green channel of a normal map points: up (OpenGL) | down (DirectX) | mixed
    c.fit = "resize"  # resize (centre square, then scale) | crop (native resolution; random in training)
    c.limit = 0  # use only so many training examples (folder, tfds: the first by hash); 0 = all
    c.embedded_counts = (20000, 512, 640)  # procedural_normals, bundled_photos: pictures of train, val, test
    c.split_counts = (0, 0, 0)  # exact sizes of train, val, test, drawn by hash from all pictures; zeros = not used
    c.split_fractions = (0.8, 0.1, 0.1)  # thresholds on the hash of a picture's group; tfds: its own splits come first
    c.split_folders = ("", "", "")  # for train, val, test: folder: folders below the path; tfds: splits of the set
    c.group_pattern = ""  # regular expression on the file name; equal first groups stay in one split
    c.skip_bad = 0  # so many unreadable files are left out with a warning; one more is an error
    c.reader_threads = 2  # threads that decode or render examples
    c.cache_megabytes = 2048  # decoded pictures of a split stay in memory if all fit in here; 0 = decode each time
    c.augment = True  # random left-right flips and quarter turns on the device
    c.turns = True  # False: flips alone, for pictures that have an upper side, such as faces
    return c


def _mask() -> ml_collections.ConfigDict:
    """What the holes look like."""
    c = ml_collections.ConfigDict()
    c.name = "lines"  # lines | squares | freeform | mixture | files
    c.path = ""  # files: root of a tree of mask pictures, white = hole
    c.ratio = (0.03, 0.4)  # hole pixels / all pixels, bounds of one drawn mask
    c.evaluation_seed = 1  # of the stored evaluation masks; the training seed does not touch them
    # Bounds are (low, high); lengths are fractions of the image side.
    c.lines = ml_collections.ConfigDict({"number": (4, 16), "length": (0.2, 0.9), "thickness": (0.015, 0.085)})
    c.squares = ml_collections.ConfigDict({"number": (1, 1), "size": (0.2, 0.5), "margin": 0.0, "positions": ()})
    c.freeform = ml_collections.ConfigDict(
        {"number": (1, 4), "segments": (3, 8), "turn": (40, 96), "length": (0.06, 0.3), "thickness": (0.04, 0.11)}
    )
    c.mixture = ml_collections.ConfigDict({"weights": {"lines": 2.0, "squares": 1.0, "freeform": 2.0}})
    return c


def _task() -> ml_collections.ConfigDict:
    """What the networks see."""
    c = ml_collections.ConfigDict()
    c.inputs = ("masked", "mask")  # what the generator sees, from: masked, mask, mask3, luminance
    c.fill = "zero"  # what holes of the masked input hold: zero | mean | flat_normal | harmonic
    c.view = "full"  # what the generator works on: full | window (around the hole, pasted back)
    c.window = 0.0  # side of the square window around the hole / side of the image; 0 = none
    c.value_range = (-1.0, 1.0)  # of images inside the networks: (-1, 1) or (0, 1)
    return c


def _generator() -> ml_collections.ConfigDict:
    """The network that fills."""
    c = ml_collections.ConfigDict()
    # unet | attention_unet | completion | pooling_unet | encoder_decoder | vgg_unet; not each has every option below
    c.name = "unet"
    c.width = 64  # features of the outermost level
    c.skips = True  # False: bowtie
    c.normalisation = "batch"  # batch | instance | none
    c.refine = 0  # features of a last full-resolution level that sees the input again; 0 = as published
    c.residual = False  # the network's answer is added to the masked input, filled as task.fill says
    c.output = "unit"  # unit (tanh, then L2 over channels) | tanh | linear (clipped where it is shown)
    c.dropout = 0.0  # rate in the three innermost levels of the decoder, in training alone
    return c


def _discriminator() -> ml_collections.ConfigDict:
    """The network that judges."""
    c = ml_collections.ConfigDict()
    c.name = "patchgan"  # patchgan | small_patch | local_global | vgg | none (generator only)
    c.width = 64  # features of the first layer
    c.normalisation = "batch"  # batch | instance | none
    c.sees = "completed"  # completed (known pixels from the original) | output (the raw output)
    c.views = ("full",)  # what it judges: full, window (around the hole), or both, which "local_global" takes
    c.condition = "none"  # none | input: the generator's input beside the image
    c.real_label = 1.0  # its target for real images; 0.9 = one-sided label smoothing
    c.accuracy_limit = 1.0  # its update is left out while more of its judgements than this are right; 1 = never
    return c


def _vgg() -> ml_collections.ConfigDict:
    """VGG16, for the generator "vgg_unet", the discriminator "vgg" and losses with fn "perceptual"."""
    c = ml_collections.ConfigDict()
    c.weights = "imagenet"  # imagenet (of launch/fetch_weights.py) | random | a file (.h5, .safetensors, .npz)
    c.width = 64  # features of its first block; other than 64 with random weights alone
    return c


def _regime() -> ml_collections.ConfigDict:
    """When which network is trained."""
    c = ml_collections.ConfigDict()
    c.order = "simultaneous"  # simultaneous | sequential (D first, then G against the new D)
    c.monitor = "angular_error_deg_hole"  # validation value that decides the best checkpoint, and early stopping
    c.keep = "best"  # which generator is exported and tested: best (by the monitor) | last (at the end of training)
    c.phases = ml_collections.ConfigDict()  # name: phase(...)
    c.sequence = ()  # phases in their order; () = both networks, or the generator alone, for the whole run
    c.repeat = False  # after the last phase begin again with the first
    c.reactions = 0  # where patience would end the run or a phase, scale a rate instead, at most so many times
    c.reaction_group = "generator"  # generator | discriminator, or one of its parameter groups
    c.reaction_factor = 0.5  # of its learning rate
    return c


def _guard() -> ml_collections.ConfigDict:
    """What is done against divergence; updates that are not finite are always left out."""
    c = ml_collections.ConfigDict()
    c.surge_factor = 0.0  # a generator loss over so many times its running level is a surge; 0 = not watched
    c.action = "skip"  # skip (leave updates of a surge out, with a warning) | halt (end with an error, keep the best)
    return c


def _optimizer() -> ml_collections.ConfigDict:
    """How parameters move."""
    c = ml_collections.ConfigDict()
    c.name = "adam"  # adam | sgd (plain) | rmsprop (decay 0.99) | adagrad (from 0)
    c.learning_rate = 1e-4  # of the generator, at the top of the schedule
    c.discriminator_rate_ratio = 1.0  # the discriminator's learning rate / the generator's
    c.b1 = 0.9  # of adam, as b2
    c.b2 = 0.999
    c.epsilon = 1e-8
    c.clip_norm = 0.0  # global gradient norm per parameter group; 0 = no clipping
    c.schedule = "constant"  # constant | cosine
    c.warmup_fraction = 0.0  # share of the run with a linearly rising rate
    c.final_fraction = 0.0  # cosine: rate at the end / rate at the top
    return c


def _evaluation() -> ml_collections.ConfigDict:
    """How validation and the test are run."""
    c = ml_collections.ConfigDict()
    c.batch_size = 32  # examples; a smaller last batch is padded with weight 0
    c.samples = 8  # fixed validation images in a sample grid
    c.val_limit = 512  # validate on at most so many images; 0 = all
    c.test_limit = 0  # test on at most so many images; 0 = all
    c.lpips = False  # LPIPS of photographs too; needs the weights of launch/fetch_weights.py
    return c


def _wandb() -> ml_collections.ConfigDict:
    """An optional copy of scalars and pictures in Weights & Biases; needs `pip install wandb`."""
    c = ml_collections.ConfigDict()
    c.project = ""  # "" = off
    c.mode = "online"  # online | offline (written below the run folder, for `wandb sync`)
    return c


def loss_term(fn: str, weight: float, on: str = "output", region: str = "hole") -> ml_collections.ConfigDict:
    """One entry of `config.losses`: function, weight, `on` output|completed, `region` full|hole|band, full view."""
    return ml_collections.ConfigDict({"fn": fn, "weight": weight, "on": on, "region": region, "view": "full"})


def phase(
    trains: str,
    steps: int = 0,
    epochs: int = 0,
    monitor: str = "",
    frozen: tuple[str, ...] = (),
    runs: int = 1,
    restart: bool = False,
    stops_early: bool = False,
) -> ml_collections.ConfigDict:
    """One entry of `config.regime.phases`.

    Args:
        trains: joint | generator (against the discriminator as it is) | reconstruction (the generator without its
            adversarial losses) | discriminator.
        steps: optimiser steps of a run; 0, as `epochs`: until it converges, as `patience` and `epoch_break` say.
        epochs: the length in epochs instead, whatever the batch size.
        monitor: validation value that tells whether it has; "" = `config.regime.monitor`.
        frozen: groups of parameters that stay as they are, such as "generator/vgg"; batch statistics still move.
        runs: how often in a row it comes in the sequence.
        restart: at the beginning of each run the optimisers begin anew; needs a constant learning rate. What rate
            reactions have scaled stays scaled.
        stops_early: a run also ends, with a rate reaction if some are left, where one without a length would converge.
    """
    return ml_collections.ConfigDict(
        {
            "trains": trains,
            "steps": steps,
            "epochs": epochs,
            "monitor": monitor,
            "frozen": frozen,
            "runs": runs,
            "restart": restart,
            "stops_early": stops_early,
        }
    )


def finish(
    config: ml_collections.ConfigDict, arg: str, shrink: dict[str, Callable[[ml_collections.ConfigDict], None]]
) -> ml_collections.ConfigDict:
    """Applies the shrinking that `arg` names ("" = the full run) and returns the config.

    Raises:
        ValueError: an argument after the colon that the config does not know.
    """
    if arg not in ARGUMENTS:
        raise ValueError(f"unknown config argument {arg!r}: use one of :quick, :tiny, or none for the full run")
    if arg:
        shrink[arg](config)
    return config


def quick(config: ml_collections.ConfigDict) -> None:
    """Shrinks a U-Net config to minutes on two CPU cores; what else a config needs for that, it adds itself."""
    config.image_size = 64
    config.batch_size = 16
    config.epochs = 6
    config.generator.width = 24
    config.discriminator.width = 8
    config.data.embedded_counts = (4000, 256, 256)
    config.evaluation.val_limit = 128
    config.sample_every_epochs = 3


def quick_photographs(config: ml_collections.ConfigDict) -> None:
    """Shrinks a config for photographs to minutes on two CPU cores, on windows of embedded photographs."""
    quick(config)
    config.data.source = "bundled_photos"
    config.data.name = config.data.path = ""
    config.data.split_counts = (0, 0, 0)


def random_vgg(config: ml_collections.ConfigDict, width: int) -> None:
    """Shrinks VGG16, with random weights and without LPIPS, so that there is nothing to download."""
    config.vgg.weights = "random"
    config.vgg.width = width
    config.evaluation.lpips = False


def tiny(config: ml_collections.ConfigDict) -> None:
    """Shrinks any config to seconds on a laptop CPU, on embedded data: for tests."""
    config.image_size = 32
    config.batch_size = 4
    config.epochs = 3
    config.log_every_steps = 1
    config.checkpoint_every_steps = 3
    config.sample_every_epochs = 2
    config.generator.width = 8
    config.discriminator.width = 8
    config.data.source = "procedural_normals" if config.data.kind == "normal_maps" else "bundled_photos"
    config.data.path = config.data.name = ""
    config.data.embedded_counts = (18, 6, 6)
    config.data.split_counts = (0, 0, 0)
    config.evaluation.batch_size = 4
    config.evaluation.samples = 2
