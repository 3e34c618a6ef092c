"""Trains one step of a run again, bit by bit, and shows what went in and what came out.

    python launch/replay.py runs/unet_cosine-quick --step 1450

The state before the step is reached from the nearest checkpoint before it. The run may be training meanwhile. Writes
RUN/replay/step_00001450, in place of an earlier replay of it, and nothing else:
  replay.json   every metric of the step (losses raw and weighted, norms of gradients and updates, learning rates, the
                guard), the phase and the regime, SHA-256 of the state before and after, each example's picture and
                losses, and whether all this equals what the run recorded
  batch.png     the examples, the highest loss first: image as it went in, mask, what the generator saw, its answer, and
                the completed picture
  images/       the same as single files
  batch.npz     the same as arrays, and the pictures before augmentation

Checkpoints are kept as config.keep_checkpoints says. Exit codes: 0 written; 1 an error with a message, or written and
not equal to what the run recorded, which a warning tells; 2 wrong usage.
"""

from pathlib import Path

from absl import flags

from inpaint_jax import command_line, object_store, remote_folder
from inpaint_jax import config as config_module

_STEP = flags.DEFINE_integer("step", None, "the step, counted from 1")
_OUT = flags.DEFINE_string("out", None, "folder to write; default RUN/replay/step_NNNNNNNN")
_FROM_START = flags.DEFINE_bool("from_start", False, "train from the first step on, without a checkpoint")
_ALLOW = flags.DEFINE_bool("allow_config_changes", False, "go on although config, data or masks differ from the run's")


def _main(folders: list[str]) -> int:
    if len(folders) != 1:
        raise flags.ValidationError("give one run folder; --help shows how")
    if _STEP.value is None:
        raise flags.ValidationError("--step is required; --help shows how")
    if object_store.is_url(folders[0]) and not _OUT.value:
        raise flags.ValidationError(f"{folders[0]} is only read here: give --out, a folder for the replay")
    folder = remote_folder.local(folders[0])
    command_line.prepare_jax(config_module.read_run(folder).deterministic)
    from inpaint_jax import replay

    out = Path(_OUT.value) if _OUT.value else None
    same = replay.replay(folder, _STEP.value, out, from_start=_FROM_START.value, allow_changes=_ALLOW.value)
    return 0 if same else 1


if __name__ == "__main__":
    command_line.run(_main, __doc__, arguments=True, urls=[""])
