"""The launch files, as far as they run without a cluster: shells, schedulers played by small scripts, and YAML."""

import functools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import fast_compilation
import pytest
import yaml

LAUNCH = Path(__file__).parents[1] / "launch"
ROOT = LAUNCH.parent
SCRIPTS = ["run_until_done.sh", "slurm.sbatch", "tpu_vm.sh"]


def program(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.write_text("\n".join(["#!/usr/bin/env bash", *lines, ""]))
    path.chmod(0o755)
    return path


def until_done(*command: object, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "WAIT_SECONDS": "0", **variables}
    return subprocess.run(
        [LAUNCH / "run_until_done.sh", *command], env=environment, capture_output=True, text=True, timeout=60
    )


def ending_with(folder: Path, *codes: str) -> Path:
    """A command that ends with these codes in turn, "kill" for a kill; it counts its starts in `starts`."""
    (folder / "codes").write_text("".join(f"{code}\n" for code in codes))
    return program(
        folder, "command", f"cd {folder}", "echo start >> starts", "code=$(sed -n $(wc -l < starts)p codes)",
        "[ $code != kill ] || kill -KILL $$", "exit $code",
    )  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash(name: str):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)


def test_a_command_is_started_until_it_has_finished(tmp_path: Path):
    ran = until_done(ending_with(tmp_path, "75", "kill", "134", "75", "0"), QUICK_ENDS="9")
    assert ran.returncode == 0
    assert (tmp_path / "starts").read_text().count("start") == 5
    assert "ended with code 137; starting again" in ran.stderr


@pytest.mark.parametrize("code", [1, 2, 3])
def test_an_error_is_not_tried_again(tmp_path: Path, code: int):
    ran = until_done(ending_with(tmp_path, "75", str(code), "0"))
    assert ran.returncode == code
    assert (tmp_path / "starts").read_text().count("start") == 2


def test_a_command_that_gets_nowhere_is_given_up(tmp_path: Path):
    ran = until_done(ending_with(tmp_path, *["75"] * 9), QUICK_ENDS="3")
    assert ran.returncode == 75
    assert (tmp_path / "starts").read_text().count("start") == 3
    assert "ended 3 times in a row within 60 s" in ran.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_command_and_ends_the_script_with_its_code(tmp_path: Path, number: signal.Signals):
    command = program(
        tmp_path, "command", f"cd {tmp_path}", "trap 'sleep 0.5; touch saved; exit 75' TERM", "touch begun",
        "while true; do sleep 0.1; done",
    )  # fmt: skip
    # A shell cannot catch what was ignored when it began, as Ctrl-C is in the background of another.
    default = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([LAUNCH / "run_until_done.sh", command], preexec_fn=default)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=30) == 75
    assert (tmp_path / "saved").exists()


def test_nothing_to_start_is_wrong_usage():
    ran = until_done()
    assert ran.returncode == 2
    assert "usage: " in ran.stderr


# Starts the processes of a job as srun does, on one machine, and gives them what SLURM says.
SRUN = f"""
import os, subprocess, sys
count, command = 2, [part for part in sys.argv[1:] if not part.startswith("--kill-on-bad-exit")]
own = {{"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_LOCALID": "0"}}
own["XLA_FLAGS"] = {fast_compilation.ONE_DEVICE!r}
processes = [
    subprocess.Popen(command, env={{**os.environ, **own, "SLURM_PROCID": str(number)}}) for number in range(count)
]
sys.exit(max(process.wait() for process in processes))
"""


def slurm(tmp_path: Path, srun: str, *options: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs the batch script with a `srun` and a `scontrol` of our own before those of PATH."""
    (tmp_path / "srun.py").write_text(srun)
    program(tmp_path, "srun", f'exec {sys.executable} {tmp_path}/srun.py "$@"')
    program(tmp_path, "scontrol", f'echo "$@" >> {tmp_path}/scontrol.log')
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHON": sys.executable, **variables}
    return subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", *options], env=environment, cwd=ROOT, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


def is_free(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.slow
def test_slurm_trains_over_processes(tmp_path: Path):
    # JAX takes the coordinator's port from the job's number.
    job = next(str(number) for number in range(4096) if is_free(number + 61440))
    ran = slurm(
        tmp_path, SRUN, "--config=configs/unet_cosine.py:tiny", f"--workdir={tmp_path / 'run'}",
        "--config.epochs=1", SLURM_JOB_ID=job,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (tmp_path / "run/test/results.json").exists()
    assert not (tmp_path / "scontrol.log").exists()


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"), [(75, "0", True), (134, "3", True), (0, "0", False), (1, "0", False)]
)
def test_slurm_puts_a_preempted_job_back_into_the_queue(tmp_path: Path, code: int, restarts: str, requeued: bool):
    ran = slurm(tmp_path, f"raise SystemExit({code})", SLURM_JOB_ID="77", SLURM_RESTART_COUNT=restarts)
    assert ran.returncode == code
    log = tmp_path / "scontrol.log"
    assert (log.read_text() if log.exists() else "") == ("requeue 77\n" if requeued else "")


def test_slurm_gives_up_a_job_that_is_always_killed(tmp_path: Path):
    ran = slurm(tmp_path, "raise SystemExit(75)", SLURM_JOB_ID="77", SLURM_RESTART_COUNT="4", MOST_RESTARTS="4")
    assert ran.returncode == 75
    assert not (tmp_path / "scontrol.log").exists()


def test_kubernetes_job_starts_the_processes_that_it_says():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    options = dict(option.removeprefix("--").split("=", 1) for option in container["args"])
    assert options["num_processes"] == str(spec["completions"]) == str(spec["parallelism"])
    host, _, port = options["coordinator_address"].partition(":")
    # Pods are named after job and index, below the subdomain, which a headless service of that name resolves.
    assert host == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["clusterIP"] == "None"
    assert {"containerPort": int(port)} in container["ports"]
    ending = [rule for rule in spec["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    assert ending[0]["onExitCodes"]["values"] == [1, 2]
    assert pod["restartPolicy"] == "Never"


def test_tpu_script_says_what_it_would_do(tmp_path: Path):
    names = {"DRY_RUN": "1", "RUN_NAME": "inpaint", "ZONE": "zone", "TYPE": "v5litepod-16"}
    command = [LAUNCH / "tpu_vm.sh", "--config", "configs/unet_cosine.py", "--workdir", "/mnt/runs/a b"]
    ran = subprocess.run(command, env={**os.environ, **names}, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    (created,) = (line for line in lines if "queued-resources create inpaint" in line)
    assert "--spot" in created
    (copied,) = (line for line in lines if "tpu-vm scp" in line)
    assert copied.split()[-2:] == ["/tmp/inpaint.tar", "inpaint:inpaint.tar"]
    assert any("launch/main.py" in line and "--worker=all" in line for line in lines)
    assert "queued-resources delete inpaint" in lines[-1]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "RUN_NAME" in ran.stderr


def test_the_image_installs_every_package_before_the_code_is_copied():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    before = lines[: lines.index('RUN pip install --no-cache-dir -r requirements.txt "$JAX"')]
    # An editable installation knows the packages that are there when it is made.
    for package in ("inpaint_jax", "configs"):
        assert f"COPY {package}/__init__.py {package}/__init__.py" in before
