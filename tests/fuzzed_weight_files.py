"""Reads damaged files of VGG16's weights in a process of its own: a reader in C that crashed would end the test run.

    python tests/fuzzed_weight_files.py FILE FIRST LAST

The file is small and sound. For each seed from FIRST to LAST - 1 it is damaged, beside itself, and read; a line of JSON
says what came of it: [seed, "same" | "other" | "refused" | name of another exception, message].
"""

import json
import resource
import sys
from pathlib import Path

import mutations
import numpy as np

from inpaint_jax import weight_files

WIDTH = 2
MEMORY = 3 << 30  # bytes: a size that only a damaged header asks for is an error


def outcome(path: Path, sound: dict) -> tuple[str, str]:
    try:
        read = weight_files.read_vgg16(path, WIDTH)
    except (ValueError, OSError) as error:
        return "refused", str(error)
    except Exception as error:  # noqa: BLE001 - what it is, is what is asked
        return type(error).__name__, str(error)
    equal = all(np.array_equal(read[layer][part], sound[layer][part]) for layer in sound for part in sound[layer])
    return ("same" if equal else "other"), ""


def main(path: Path, first: int, last: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    content, sound = path.read_bytes(), weight_files.read_vgg16(path, WIDTH)
    damaged = path.with_name(f"damaged{path.suffix}")
    for seed in range(first, last):
        print(f"[{seed}", end="", flush=True)
        damaged.write_bytes(mutations.mutated(content, mutations.BYTES, seed))
        word, message = outcome(damaged, sound)
        print(f", {json.dumps(word)}, {json.dumps(message)}]", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
