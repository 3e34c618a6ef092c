"""Trains and tests configs x variations x seeds, one run after the other; the same command again does what is left.

    python launch/experiment.py --config configs/unet_cosine.py:quick --seeds 0,1,2
    python launch/experiment.py --config configs/unet_cosine.py:quick --seeds 0,1,2 --vary optimizer.name=adam,sgd
    python launch/experiment.py --config configs/unet_cosine.py:tiny --set epochs=2 --root runs/two_epochs --dry_run

Each run is launch/main.py in a process of its own and in a run folder below --root that says what it is; its output
stands there in experiment.log, and the state of all runs in <root>/experiment.json. Finished runs are skipped. Ctrl-C
or SIGTERM saves the running one.

Exit codes: 0 all finished; 75 stopped with the state saved, run the same command again; 130 stopped by a second
Ctrl-C; 1 a run failed (the others were run all the same) or an error with a message; 2 wrong usage.
"""

import shlex
from pathlib import Path

from absl import flags

from inpaint_jax import command_line

_CONFIGS = flags.DEFINE_multi_string("config", None, "config file, with :quick or :tiny to shrink it; can be repeated")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "seeds, such as 0,1,2")
_ROOT = flags.DEFINE_string("root", "runs/experiment", "folder of the run folders")
_VARY = flags.DEFINE_multi_string("vary", [], "field=value,value: one run for each value; repeated: for each pair")
_SET = flags.DEFINE_multi_string("set", [], "field=value, for all runs; can be repeated")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the commands of the runs that are not finished, and exit")


def _main() -> int:
    configs = command_line.require(_CONFIGS)
    from inpaint_jax import experiment
    from inpaint_jax import experiment_plan as plan

    variations = {field: plan.split_values(text) for field, text in plan.parse_settings(_VARY.value, "vary").items()}
    settings, seeds = plan.parse_settings(_SET.value, "set"), plan.parse_seeds(_SEEDS.value)
    runs = plan.plan(configs, seeds, variations, settings, Path(_ROOT.value), Path(__file__).with_name("main.py"))
    if _DRY_RUN.value:
        for run in runs:
            print(f"# {run.name} is finished" if experiment.is_finished(run) else shlex.join(run.command))
        return 0
    return experiment.run_all(runs, Path(_ROOT.value))


if __name__ == "__main__":
    command_line.run(_main, __doc__)
