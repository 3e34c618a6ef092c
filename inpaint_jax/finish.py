"""The end of a run: the generator that it keeps is exported and tested, and the report written."""

import logging

import jax

from inpaint_jax import checkpoint, evaluate, full_disk, run_folder, starts, weights
from inpaint_jax import config as config_module
from inpaint_jax.eval_step import make_eval_step
from inpaint_jax.parallel import make_parallel
from inpaint_jax.run import Run, generator_variables
from inpaint_jax.state import create_state

log = logging.getLogger("inpaint_jax")


def trained_generator(run: Run, checkpoints: checkpoint.Checkpoints) -> tuple[int, dict]:
    """Returns the step and the variables, on the host, of the generator that `config.regime.keep` names."""
    if run.config.regime.keep == "last":
        newest = checkpoints.latest_step()
        state, _ = checkpoints.restore(jax.eval_shape(lambda: create_state(run.config, run.system.optimizers)))
        if int(state.step) != newest:
            raise ValueError(
                f"the last state, of step {newest}, is damaged and was set aside: run the same command again, which "
                f"trains from step {int(state.step)}"
            )
        return int(state.step), generator_variables(state)
    template = jax.eval_shape(lambda: generator_variables(create_state(run.config, {})))
    return checkpoints.restore_best(template)


def finish(run: Run, checkpoints: checkpoint.Checkpoints, start: starts.Start) -> None:
    """Exports the generator that `config.regime.keep` names, tests it beside the baselines, writes the results."""
    if run.config.regime.keep == "best" and checkpoints.best_step() is None:
        raise ValueError(
            f"no validation gave a finite {run.config.regime.monitor}, so there is no best generator to test: "
            "start over with --restart and a lower config.optimizer.learning_rate"
        )
    tested_step, variables = trained_generator(run, checkpoints)
    parallel, eval_step = run.parallel, run.eval_step
    if parallel.processes > 1:
        # By this process alone, on its own devices.
        parallel = make_parallel(run.config.parallel, jax.local_devices())
        eval_step = parallel.evaluate(make_eval_step(run.config))
    megabytes = weights.save_generator(run.workdir / run_folder.GENERATOR, variables, run.config)
    log.info("testing the %s generator, of step %d", run.config.regime.keep, tested_step)
    timing = run_folder.read_rows(run.workdir / run_folder.TIMING)
    seconds = sum(row["seconds"] for row in timing)
    steps = checkpoints.latest_step()
    tested = evaluate.test_phase(
        run.config, eval_step, parallel, variables, run.frozen, run.splits["test"], run.workdir
    )
    results = {
        "config": run.name,
        "hashes": config_module.hashes(run.config),
        **{name: tested.pop(name) for name in ("dataset", "images", "mask_set")},
        "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
        "model_megabytes": megabytes,
        **tested,
        "train": {
            "steps": steps,
            "best_step": checkpoints.best_step(),
            "tested_step": tested_step,
            "epochs": steps / run.steps_per_epoch,
            "seconds": seconds,
            "images_per_second": sum(row["images"] for row in timing) / max(seconds, 1e-9),
            "data_wait_share": sum(row["data_wait_s"] for row in timing) / max(seconds, 1e-9),
        },
    }
    evaluate.write_results(run.workdir, results)
    evaluate.log_results(results)
    log.info("pictures and figures are in %s", run.workdir / run_folder.TEST)
    start.end(starts.FINISHED)
    start.say()
    # Here: no step waits for matplotlib.
    from inpaint_jax import report

    with full_disk.skipping(run.workdir / run_folder.REPORT):
        report.write_report(run.workdir)
        log.info("the report is %s", run.workdir / run_folder.REPORT)
