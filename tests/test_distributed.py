"""Two real processes on the loopback interface that train as one: the same numbers, ended together, gone on exactly."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import fast_compilation
import forked_commands
import numpy as np
import pytest

from inpaint_jax import distributed

ROOT = Path(__file__).parent.parent
EPOCHS, STEPS_OF_EPOCH = 3, 4
# Long after the other's death; a process that hangs would do so for minutes.
GRACE = 30  # seconds
OPTIONS = [
    f"--config={ROOT / 'configs' / 'unet_cosine.py'}:tiny", f"--config.epochs={EPOCHS}",
    # At the full rate Adam turns the rounding of gradients near zero into steps of the size of the rate.
    "--config.optimizer.learning_rate=1e-5",
]  # fmt: skip


def environment(devices: int) -> dict[str, str]:
    flags = f"{fast_compilation.ONE_DEVICE} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags}


def start(workdir: Path, *options: str, each: tuple[tuple[str, ...], ...] = ((), ())) -> list[forked_commands.Command]:
    """Starts two processes with two devices each; `each` gives options to one of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    own = [f"--workdir={workdir}", f"--coordinator_address={address}", "--num_processes=2"]
    return [
        forked_commands.start(
            "main", ROOT, *OPTIONS, *own, f"--process_id={number}", *options, *more, environment=environment(2)
        )
        for number, more in enumerate(each)
    ]


def ended(processes: list[forked_commands.Command], *codes: int, timeout: float = 300) -> list[str]:
    results = [process.wait(timeout) for process in processes]
    texts = [result.stdout + result.stderr for result in results]
    assert [result.returncode for result in results] == list(codes), "\n".join(texts)
    return texts


def alone(workdir: Path, *options: str, code: int = 0) -> str:
    """Runs one process with four devices."""
    ran = forked_commands.run("main", ROOT, *OPTIONS, f"--workdir={workdir}", *options, environment=environment(4))
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def rows(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_rows(workdir: Path, count: int, processes: list[forked_commands.Command]) -> None:
    while len(rows(workdir)) < count and all(process.poll() is None for process in processes):
        time.sleep(0.01)


def same_results(a: Path, b: Path) -> None:
    assert (a / "metrics.jsonl").read_text() == (b / "metrics.jsonl").read_text()
    weights = "generator/generator.safetensors"
    assert (a / weights).read_bytes() == (b / weights).read_bytes()


def close_losses(expected: list[dict], actual: list[dict]) -> None:
    assert [(row["step"], row["split"]) for row in actual] == [(row["step"], row["split"]) for row in expected]
    for ours, theirs in zip(actual, expected, strict=True):
        for name in (name for name in theirs if name.startswith("loss/")):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, err_msg=f"{name} of step {ours['step']}")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("one") / "run"
    alone(workdir)
    return workdir


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("two") / "run"
    ended(start(workdir), 0, 0)
    return workdir


def test_two_processes_train_as_one_does(one_process: Path, two_processes: Path):
    close_losses(rows(one_process), rows(two_processes))
    results = [json.loads((w / "test/results.json").read_text()) for w in (one_process, two_processes)]
    assert results[1]["train"]["steps"] == EPOCHS * STEPS_OF_EPOCH
    for name, value in results[0]["metrics"].items():
        np.testing.assert_allclose(results[1]["metrics"][name], value, rtol=1e-3, err_msg=name)
    assert results[0]["mask_set"] == results[1]["mask_set"]
    # The first alone has written, and all that a run has.
    files = [sorted(str(p.relative_to(w)) for p in w.rglob("*.png")) for w in (one_process, two_processes)]
    assert files[0] == files[1]
    assert len(list((two_processes / "tensorboard").iterdir())) == 1


def test_a_signal_to_one_ends_both_at_one_step_and_they_go_on_exactly(two_processes: Path, tmp_path: Path):
    workdir = tmp_path / "preempted"
    processes = start(workdir, "--config.checkpoint_every_steps=1000")
    wait_for_rows(workdir, 2, processes)
    processes[1].send_signal(signal.SIGTERM)
    texts = ended(processes, 75, 75, timeout=GRACE)
    step = rows(workdir)[-1]["step"]
    assert f"SIGTERM: state of step {step} saved" in texts[0]
    texts = ended(start(workdir), 0, 0)
    assert f"going on from step {step} of" in texts[0]
    same_results(two_processes, workdir)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_one_ends_the_other_and_they_go_on_exactly(two_processes: Path, tmp_path: Path, victim: int):
    workdir = tmp_path / "killed"
    processes = start(workdir, "--config.checkpoint_every_steps=3")
    wait_for_rows(workdir, 6, processes)
    processes[victim].send_signal(signal.SIGKILL)
    results = [process.wait(GRACE) for process in processes]
    assert results[victim].returncode == -signal.SIGKILL
    survivor = results[1 - victim]
    # JAX itself ends a process that has lost process 0, or that does not notice in a collective operation.
    assert survivor.returncode in ((75, -signal.SIGABRT) if victim == 1 else (-signal.SIGABRT,))
    if survivor.returncode == 75:
        assert "another process has ended: start all of them again" in survivor.stderr
    texts = ended(start(workdir), 0, 0)
    assert "going on from step" in texts[0]
    same_results(two_processes, workdir)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(one_process: Path, tmp_path: Path):
    workdir = tmp_path / "changing"
    ended(start(workdir, "--config.epochs=1", "--config.optimizer.schedule=constant"), 0, 0)
    assert "going on from step 4 of 8" in alone(workdir, "--config.epochs=2", "--config.optimizer.schedule=constant")
    texts = ended(start(workdir, "--config.optimizer.schedule=constant"), 0, 0)
    assert "going on from step 8 of 12" in texts[0]
    reference = tmp_path / "reference"
    alone(reference, "--config.optimizer.schedule=constant")
    close_losses(rows(reference), rows(workdir))


def test_processes_that_differ_are_refused(tmp_path: Path):
    texts = ended(start(tmp_path / "run", each=((), ("--config.seed=1",))), 1, 1)
    for text in texts:
        assert "process 1 has another config than process 0" in text
        assert "Traceback" not in text


def test_an_error_of_the_first_is_told_to_all(two_processes: Path):
    texts = ended(start(two_processes, "--config.seed=1"), 1, 1)
    assert "seed: 0 -> 1" in texts[0]
    assert "process 0 has ended: " in texts[1]
    assert "seed: 0 -> 1" in texts[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"processes": 2}, "--coordinator_address, --process_id: needed too"),
        ({"coordinator": "localhost", "processes": 2, "process": 0}, "give host:port"),
        ({"coordinator": "localhost:1", "processes": 2, "process": 2}, "--process_id=2: .* give 0 to 1"),
    ],
)
def test_incomplete_options_are_refused(given: dict, message: str):
    with pytest.raises(ValueError, match=message):
        distributed.join(**given)


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "8"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, True),
    ],
)
def test_schedulers_are_recognised(monkeypatch: pytest.MonkeyPatch, variables: dict, several: bool):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert distributed.started_by_scheduler() is several
