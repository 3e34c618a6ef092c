"""Trains a config, goes on where an earlier run stopped, and tests: one command for everything.

    python launch/main.py --config configs/unet_cosine.py:quick
    python launch/main.py --config configs/unet_cosine.py --config.data.source=folder --config.data.path=my_maps

Any field of the config can be set: --config.optimizer.learning_rate=3e-4. The same command again goes on, or tests
a finished run; --restart starts over.

--workdir=gs://bucket/run (or s3://) keeps the run folder on an object store: it is fetched from there at the start and
put there with each checkpoint; meanwhile it lies below ~/.cache/inpaint_jax/runs.

Several processes train as one: those that SLURM and Open MPI start are recognised; on a TPU slice give
--several_processes; elsewhere start each with --coordinator_address, --num_processes and --process_id.

Exit codes: 0 finished; 75 preempted, run the same command again to go on; 1 an error with a message;
2 wrong usage.
"""

import logging
import signal
import time
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from inpaint_jax import command_line, remote_folder, run_folder
from inpaint_jax import config as config_module

log = logging.getLogger("inpaint_jax")
_BEGAN = time.time()

_CONFIG = config_flags.DEFINE_config_file("config", None, "config file, with :quick or :tiny to shrink it")
_WORKDIR = flags.DEFINE_string("workdir", None, "run folder, or gs://…, s3://…; default runs/<config name>[-<arg>]")
_RESTART = flags.DEFINE_bool("restart", False, "start over: remove what an earlier run left in the run folder")
_DESCRIBE = flags.DEFINE_bool("describe", False, "print both networks with parameter counts, and exit")
_ALLOW = flags.DEFINE_bool("allow_config_changes", False, "go on although config, data or masks differ from the run's")
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "several processes: host:port of process 0")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "several processes: how many", lower_bound=1)
_SEVERAL = flags.DEFINE_bool("several_processes", False, "several processes that JAX finds by itself, as on TPU slices")
_PROCESS = flags.DEFINE_integer("process_id", None, "several processes: the number of this one, from 0")


def _main() -> int:
    # A machine may take itself away while JAX is imported, too.
    signal.signal(signal.SIGTERM, command_line.leave_preempted)
    config = command_line.require(_CONFIG)
    config_module.validate(config)  # before JAX is imported, so that the answer comes at once
    command_line.prepare_jax(config.deterministic)
    if _DESCRIBE.value:
        from inpaint_jax import describe

        describe.print_networks(config)
        return 0
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir, url = remote_folder.working_folder(_WORKDIR.value or run_folder.default_workdir(path))
    from inpaint_jax import distributed, train

    explicit = {_COORDINATOR.value, _PROCESSES.value, _PROCESS.value} != {None}
    if explicit or _SEVERAL.value or distributed.started_by_scheduler():
        distributed.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    log.info("run folder %s%s", url and f"{url}, on this machine ", workdir)
    return train.run_training(config, Path(path).name, workdir, _RESTART.value, _ALLOW.value, _BEGAN, url)


if __name__ == "__main__":
    command_line.run(_main, __doc__, urls=["workdir"])
