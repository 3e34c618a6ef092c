"""Tests a trained generator on all pictures of a folder, beside the baselines, on stored masks.

    python launch/evaluate.py --model runs/unet_cosine-quick --images my_maps --out runs/my_test

What is compared, in every figure: completed pictures (the fill in the hole, known pixels around it) with the truths of
the same pictures; of the hole alone where a name ends in _hole. Each baseline fills the same holes.

Writes below <out>/test, in place of an earlier test: results.json; buckets.csv, means by the share of the picture that
is hole; per_image.csv, a line for every picture; samples.png, worst.png, best.png and single pictures.

--bucket_masks=own fills the hole ratios 1-10 %, 10-20 %, ... 50-60 % evenly, with masks of the model's own family, or
of another by name. --save_masks=FOLDER writes the masks as PNG files, for others to test on the same holes;
--masks=FOLDER tests on such files. --inception=FILE adds FID, P-IDS and U-IDS, all completed pictures against all
truths, by the features of InceptionV3, whose weights you convert once from pytorch-fid's:

    python -c "import torch, safetensors.torch as s; d = torch.load('pt_inception-2015-12-05-6726825d.pth', \
weights_only=True); s.save_file({k: v.contiguous() for k, v in d.items()}, 'inception.safetensors')"

Pictures that the model was trained on praise it too much: a warning says how many there are. Exit codes: 0 tested; 1 an
error with a message; 2 wrong usage.
"""

from pathlib import Path

from absl import flags

from inpaint_jax import command_line

_MODEL = flags.DEFINE_string("model", None, "run folder, or its generator/ folder")
_IMAGES = flags.DEFINE_string("images", None, "folder of pictures, at any depth")
_OUT = flags.DEFINE_string("out", None, "folder for results, pictures and masks")
_FIT = flags.DEFINE_enum("fit", "crop", ["crop", "resize"], "centre crop at native resolution, or scale to the size")
_LIMIT = flags.DEFINE_integer("limit", 0, "test on at most so many pictures; 0 = all", lower_bound=0)
_LPIPS = flags.DEFINE_bool("lpips", None, "LPIPS, of photographs, with or without; default as in the model's config")
_MASKS = flags.DEFINE_string("masks", "", "folder of masks, white = hole, used in sorted order, over again if few")
_BUCKETS = flags.DEFINE_string(
    "bucket_masks", "", "fill the ranges of hole ratio evenly: own | lines | squares | freeform | mixture"
)
_SAVE = flags.DEFINE_string("save_masks", "", "folder to write the masks to, white = hole, named as the pictures")
_INCEPTION = flags.DEFINE_string("inception", "", "InceptionV3's weights as .safetensors, for FID, P-IDS and U-IDS")
flags.register_multi_flags_validator(
    ["masks", "bucket_masks"], lambda given: not all(given.values()), "give --masks or --bucket_masks, not both"
)


def _main() -> int:
    model, images, out = (command_line.require(flag) for flag in (_MODEL, _IMAGES, _OUT))
    command_line.prepare_jax()
    from inpaint_jax import image_files, remote_folder
    from inpaint_jax.data import remote_files
    from inpaint_jax.evaluate_folder import evaluate_folder

    evaluate_folder(
        remote_folder.local(model, remote_folder.NOT_OF_A_MODEL),
        remote_files.folder(images, image_files.IMAGE_SUFFIXES),
        Path(out),
        fit=_FIT.value,
        limit=_LIMIT.value,
        lpips=_LPIPS.value,
        masks=_MASKS.value,
        bucket_masks=_BUCKETS.value,
        save_masks=_SAVE.value,
        inception_weights=_INCEPTION.value,
    )
    return 0


if __name__ == "__main__":
    command_line.run(_main, __doc__, urls=["model", "images"])
