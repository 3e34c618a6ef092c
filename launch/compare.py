"""Compares finished runs: seeds of one config together, beside other configs and the baselines.

    python launch/compare.py runs/experiment                          # all finished runs below the folder
    python launch/compare.py runs/a runs/b --out runs/a_and_b --html

The runs must have been tested on the same pictures with the same masks. Writes compare.csv, compare.png (a box plot),
curves.png (a loss in training and validation, or what validation watches), wall.png (test pictures side by side) and
with --html one page, compare.html. Exit codes: 0 written; 1 an error with a message; 2 wrong usage.
"""

import logging
from pathlib import Path

from absl import flags

from inpaint_jax import command_line

log = logging.getLogger("inpaint_jax")

_OUT = flags.DEFINE_string("out", "runs/comparison", "folder for the comparison")
_HTML = flags.DEFINE_bool("html", False, "write compare.html too, a page that needs no network")
_SKIP = flags.DEFINE_bool("skip_unfinished", False, "leave out named run folders that are not finished")


def _main(folders: list[str]) -> int:
    if not folders:
        raise flags.ValidationError("give the folders of runs, or a folder with runs in it; --help shows how")
    command_line.prepare_jax()
    from inpaint_jax import compare, compare_page, remote_folder

    local = [remote_folder.local(folder, remote_folder.NOT_OF_RESULTS) for folder in folders]
    runs = compare.find_runs(local, _SKIP.value)
    compare.check_comparable(runs)
    rows = compare_page.write_comparison(compare.group_runs(runs), Path(_OUT.value), _HTML.value)
    print(compare.text_table(rows))
    log.info("the comparison of %d runs is in %s", len(runs), _OUT.value)
    return 0


if __name__ == "__main__":
    command_line.run(_main, __doc__, arguments=True, urls=[""])
