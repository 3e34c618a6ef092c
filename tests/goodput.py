"""What kills cost: the share of the time that stays as training when the trainer is killed every minute.

    python tests/goodput.py --kills 10 --out goodput.json -- --config=configs/unet_cosine.py:quick

Goodput is the steps that are on the disk in the end x the seconds of a step / all the time. A step's seconds are those
between the end of a process's first step and its kill / the steps in them, with validations and saves. The share of
saves is what the trainer waits for them, in the same time; their writing goes on in the background.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from kill_storm import POLL, ColdCommand, said
from watched_command import Board

from inpaint_jax import checkpoint


def measure(workdir: Path, options: list[str], kills: int, seconds: float) -> dict[str, Any]:
    """Runs the trainer so many times for so many seconds each, and returns the figures.

    Raises:
        AssertionError: a process ended by itself.
    """
    board, starts, training, saving = workdir.parent / "board", [], 0.0, 0.0
    trained = saves = 0
    begun = time.monotonic()
    for kill in range(1, kills + 1):
        seen = Board(board, anew=True)
        process, first = ColdCommand(board, f"--workdir={workdir}", *options), None
        while (now := time.monotonic()) < begun + kill * seconds:
            # The second step begins with what the first gave.
            if first is None and seen.left("step"):
                first = now
                starts.append(first - begun - (kill - 1) * seconds)
            assert process.poll() is None, said(process.wait())
            time.sleep(POLL)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if first is not None:
            training += now - first
            trained += seen.left("step")
        saving += seen.seconds("save")
        saves += seen.left("save")
        took = "no step" if first is None else f"{seen.left('step')} steps, the first after {starts[-1]:.1f} s"
        print(f"kill {kill}: {took}", flush=True)
    wall = time.monotonic() - begun
    assert trained, "no process came to its second step: lengthen --seconds"
    kept = max(checkpoint.kept_steps(workdir / "checkpoints"), default=0)
    return {
        "kills": kills,
        "seconds between kills": seconds,
        "seconds to the first step, p50": round(float(np.percentile(starts, 50)), 2),
        "seconds to the first step, p95": round(float(np.percentile(starts, 95)), 2),
        "seconds of a step": round(training / trained, 4),
        "steps trained": trained,
        "steps kept": kept,
        "goodput": round(kept * training / trained / wall, 3),
        "saves": saves,
        "seconds that a save blocks": round(saving / max(1, saves), 3),
        "share of saves": round(saving / training, 4),
    }


def _main() -> None:
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60, help="between kills")
    parser.add_argument("--out", type=Path, help="JSON with the figures")
    given, options = parser.parse_args(sys.argv[1:split]), sys.argv[split + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder) / "run", options, given.kills, given.seconds)
    for name, value in found.items():
        print(f"{name:35} {value}")
    if given.out:
        given.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    _main()
