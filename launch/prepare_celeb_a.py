"""Prepares CelebA for the tfds source from files that you fetched by hand; needs no network and no TensorFlow.

    python launch/prepare_celeb_a.py --files my_downloads --out my_data
    python launch/main.py --config configs/unet_photographs.py --config.data.source=tfds \\
      --config.data.name=celeb_a --config.data.path=my_data

The page of CelebA (Z. Liu, P. Luo, X. Wang, X. Tang, "Deep Learning Face Attributes in the Wild", ICCV 2015) offers
it for non-commercial research only: read its terms there. From its folders Img, Eval and Anno, put these files into one
folder of yours, unchanged:

    img_align_celeba.zip               the aligned and cropped pictures, 178x218 pixels
    list_eval_partition.txt            train, validation and test: 162770, 19867 and 19962 pictures
    list_attr_celeba.txt
    list_landmarks_align_celeba.txt
    identity_CelebA.txt

They are checked first. The set is written whole or not at all, and takes 2 GB of memory; a second call says that it is
there. Exit codes: 0 it is there; 1 an error with a message; 2 wrong usage.
"""

from pathlib import Path

from absl import flags, logging

from inpaint_jax import command_line

_FILES = flags.DEFINE_string("files", None, "folder with the archive and the four lists")
_OUT = flags.DEFINE_string("out", None, "TFDS data folder to write into; the set comes to <out>/celeb_a")


def _main() -> int:
    files, out = (Path(command_line.require(flag)).expanduser() for flag in (_FILES, _OUT))
    # TFDS warns about a set that is not there, which is why it is prepared.
    logging.set_verbosity(logging.ERROR)
    from inpaint_jax.data import celeb_a

    folder, counts, there = celeb_a.prepare(files, out)
    numbers = ", ".join(f"{split} {count}" for split, count in counts.items())
    print(f"{folder} {'is already there' if there else 'is ready'}: {numbers} pictures")
    print("To train on it, with its own splits:\n")
    print("  python launch/main.py --config configs/unet_photographs.py --config.data.source=tfds \\")
    print(f"    --config.data.name=celeb_a --config.data.path={out}\n")
    if sum(counts.values()) >= 1024:
        print('Add --config.data.split_counts="(819,102,103)" for so many pictures of all three, chosen by hash.')
    return 0


if __name__ == "__main__":
    command_line.run(_main, __doc__)
