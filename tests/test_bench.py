"""The benchmark's figures fit together and are those of the programs that training and inference run."""

import gzip
import json
import os
import re
from pathlib import Path

import fast_compilation
import forked_commands
import jax
import numpy as np
import pytest

from configs import unet_cosine
from inpaint_jax import bench, bench_report, describe, image_files, input_rate, run, startup, state, step
from inpaint_jax.data import source

TINY = f"{forked_commands.ROOT / 'configs' / 'unet_cosine.py'}:tiny"
TWO_DEVICES = f"{fast_compilation.ONE_DEVICE} --xla_force_host_platform_device_count=2"
SHORT = ("--steps=2", "--repeats=3", "--warmup=1")


def command(folder: Path, *options: str, flags: str = fast_compilation.ONE_DEVICE):
    environment = {**os.environ, "XLA_FLAGS": flags}
    return forked_commands.run("bench", folder, "--config", TINY, *options, environment=environment)


def figures_of(ran) -> dict:
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def check_pace(figures: dict, images: int) -> None:
    assert len(figures["repeats_ms"]) == 3
    low, middle, high = sorted(figures["repeats_ms"])
    assert (low, middle, high) == tuple(figures[f"ms_per_step{name}"] for name in ("_min", "", "_max"))
    assert figures["images_per_s"] == pytest.approx(images / middle * 1e3, rel=1e-4)
    assert 0 < figures["trace_s"] < figures["compile_s"]
    assert figures["compile_cached"] is False
    assert figures["host_to_device_ms"] > 0


def check_rates(figures: dict) -> None:
    achieved = figures["gflops_per_image"] * 1e9 * figures["images_per_s"]
    assert figures["achieved_flops_per_s"] == pytest.approx(achieved, rel=1e-4)
    assert figures["matmul_share"] == pytest.approx(achieved / figures["matmul_flops_per_s"], rel=1e-4)
    assert 0 < figures["matmul_share"] < 1
    assert 1e8 < figures["matmul_flops_per_s"] < 1e16
    memory = figures["program_memory_bytes"]
    assert memory["peak"] == memory["arguments"] + memory["outputs"] + memory["temporary"]
    assert figures["peak_memory_bytes"] > memory["peak"]
    assert figures["peak_memory_of"] == "process"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict]:
    """The folder, the output and the figures of a training benchmark on two devices, traced."""
    folder = tmp_path_factory.mktemp("bench")
    ran = command(folder, *SHORT, "--json", "--profile=trace", flags=TWO_DEVICES)
    assert "tensorboard --logdir trace" in ran.stderr
    return folder, ran.stdout, figures_of(ran)


def test_training_figures_fit_together(trained):
    _, _, figures = trained
    assert (figures["mode"], figures["phase"], figures["trains"]) == ("train", "joint", "joint")
    assert (figures["batch_size"], figures["image_size"], figures["dtype"]) == (4, 32, "float32")
    assert (figures["device"], figures["devices"], figures["data_source"]) == ("cpu", 2, "procedural_normals")
    check_pace(figures, images=4)
    check_rates(figures)
    assert figures["host_to_device_bytes_per_step"] == 4 * 32 * 32 * 3 + 4 * 4, "pictures and their slots"
    config = unet_cosine.get_config("tiny")
    expected = describe.network_figures(config)["train_gflops_per_image"]
    assert figures["gflops_per_image"] == pytest.approx(expected, abs=5e-5)
    for prefix in ("first_epoch_", ""):
        assert 0 <= figures[f"{prefix}data_wait_share"] < 1
        share = figures[f"{prefix}trainer_images_per_s"] / figures["images_per_s"]
        assert figures[f"{prefix}trainer_share"] == pytest.approx(share, rel=1e-4)
    optimizers = step.make_system(config, 1).optimizers
    leaves = jax.tree.leaves(jax.eval_shape(lambda: state.create_state(config, optimizers)))
    assert figures["program_memory_bytes"]["arguments"] >= sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def test_the_table_has_the_figures(trained):
    _, output, figures = trained
    table = "\n".join(output.splitlines()[:-1])
    assert table.startswith("unet_cosine.py:tiny, train, phase joint (joint): 4 images of 32x32, float32, on 2 x cpu\n")
    assert re.search(rf"a step +{figures['ms_per_step']:.2f} ms .* median of 3 x 2 steps", table)
    assert re.search(r"host to device +12,304 bytes", table)


def test_the_trace_has_the_steps(trained):
    (written,) = (trained[0] / "trace").glob("plugins/profile/*/*.trace.json.gz")
    assert next(written.parent.glob("*.xplane.pb")).stat().st_size
    events = json.loads(gzip.decompress(written.read_bytes()))["traceEvents"]
    steps = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert sorted(map(int, steps)) == list(range(bench.PROFILED))


def test_inference_figures_fit_together_and_come_beside_earlier_ones(tmp_path):
    earlier = {"ms_per_step": 1e9, "images_per_s": 1e-9, "mode": "infer", "batch_size": 2}
    (tmp_path / "then.json").write_text(f"a table\n{json.dumps(earlier)}\n")
    ran = command(tmp_path, *SHORT, "--mode=infer", "--batch=3", "--json", "--against=then.json")
    figures = figures_of(ran)
    assert (figures["mode"], figures["batch_size"], figures["devices"]) == ("infer", 3, 1)
    check_pace(figures, images=3)
    check_pace(figures["batch_1"], images=1)
    check_rates(figures)
    assert figures["fill_ms"] > 0
    assert figures["host_to_device_bytes_per_step"] == 3 * 32 * 32 * (3 + 1) * 4
    expected = describe.network_figures(unet_cosine.get_config("tiny"))["generator_gflops_per_image"]
    assert figures["gflops_per_image"] == pytest.approx(expected, abs=5e-5)
    assert set(figures["against"]) == {"ms_per_step", "images_per_s"}
    assert figures["against"]["ms_per_step"] == pytest.approx(figures["ms_per_step"] / 1e9, rel=1e-3)
    assert "the earlier result has batch_size = 2, and this one 3" in ran.stderr
    assert not ran.stderr.count("the earlier result has mode")


def test_ratios_say_what_is_better(capsys):
    then = {
        "ms_per_step": 10.0,
        "ms_per_step_min": 9.0,
        "ms_per_step_max": 11.0,
        "images_per_s": 400.0,
        "compile_s": 5.0,
    }
    now = {
        "ms_per_step": 20.0,
        "ms_per_step_min": 10.5,
        "ms_per_step_max": 21.0,
        "images_per_s": 200.0,
        "compile_s": 4.0,
    }
    assert bench_report.compare(then, now) == {"ms_per_step": 2.0, "images_per_s": 0.5, "compile_s": 0.8}
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert "2.000   (10 -> 20, worse, within the spread of the repeats)" in lines["ms_per_step"]
    assert "0.500   (400 -> 200, worse)" in lines["images_per_s"]
    assert "0.800   (5 -> 4, better)" in lines["compile_s"]
    bench_report.compare(then, {**now, "ms_per_step_min": 11.5})
    assert "worse)" in capsys.readouterr().out.splitlines()[1]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--mode=draw",), 2, "should be one of <train|infer|startup|input|scaling>"),
        (("--batch=2",), 2, "--batch has no meaning with --mode=train"),
        (("--mode=infer", "--phase=joint"), 2, "--phase has no meaning with --mode=infer"),
        (("--mode=startup", "--repeats=2"), 2, "--repeats has no meaning with --mode=startup"),
        (("--mode=input", "--cache"), 2, "--cache has no meaning with --mode=input"),
        (("--images_per_s=3",), 2, "--images_per_s has no meaning with --mode=train"),
        (("--steps=0",), 2, "--steps=0"),
        (("--phase=warm",), 1, "--phase=warm: the phases of this config are joint"),
        (("--against=absent.json",), 1, "'absent.json' cannot be read"),
        (("--config.batch_size=3",), 1, "config.batch_size = 3 cannot be spread over 2 devices"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_is_answered_before_anything_is_measured(tmp_path, options, code, message):
    ran = command(tmp_path, *options, flags=TWO_DEVICES)
    assert ran.returncode == code
    (error,) = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert message in error
    assert not ran.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "a table alone\n", '{"images_per_s": 3}\n', "[1]\n"])
def test_a_file_without_a_result_is_refused(tmp_path, text):
    (tmp_path / "then.json").write_text(text)
    with pytest.raises(ValueError, match=r"then.json' has no result in its last line"):
        bench_report.read(tmp_path / "then.json")


def test_a_phase_can_be_chosen_and_both_networks_are_the_default():
    from configs import common

    config = unet_cosine.get_config("tiny")
    for name, trains in (("warm", "reconstruction"), ("judge", "discriminator"), ("both", "joint")):
        config.regime.phases[name] = common.phase(trains, steps=2)
    config.regime.sequence = ("warm", "judge", "both")
    assert bench.phase_of(config, "").phase == "both"
    assert bench.phase_of(config, "judge").phase == "judge"
    config.regime.sequence = ("warm", "judge")
    assert bench.phase_of(config, "").phase == "warm"
    with pytest.raises(ValueError, match=r"--phase=both: the phases of this config are warm, judge"):
        bench.phase_of(config, "both")


@pytest.mark.slow
def test_a_start_is_taken_apart_and_its_error_is_told(tmp_path):
    figures = figures_of(command(tmp_path, "--mode=startup", "--json"))
    assert (figures["mode"], figures["device"]) == ("startup", "cpu")
    for name in ("cold", "warm"):
        parts = {part: seconds for part, seconds in figures[name].items() if part != "total_s"}
        assert set(parts) == set(startup.PARTS)
        assert min(parts.values()) > 0
        assert sum(parts.values()) == pytest.approx(figures[name]["total_s"], rel=1e-3)
    assert figures["warm"]["compile_s"] < figures["cold"]["compile_s"]
    assert figures["help_s"] > 0
    ran = command(tmp_path, "--mode=startup", "--config.data.source=folder", "--config.data.path=absent")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("error: there is no folder 'absent': set config.data.path")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_first_state_has_the_same_bits_however_it_is_compiled(tmp_path, monkeypatch):
    config = unet_cosine.get_config("tiny")
    config.discriminator.name = "none"
    assembled = run.assemble(config, "tiny", tmp_path, trains=False)
    monkeypatch.delenv("XLA_FLAGS")  # which choose for the tests' programs, and were read at the beginning
    quickly, _ = run.first_state(assembled)
    create = jax.jit(
        lambda: state.create_state(config, assembled.system.optimizers),
        compiler_options={"xla_backend_optimization_level": 3},
    )
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(quickly), jax.device_get(create()))


def test_the_input_is_measured_as_the_trainer_reads_it(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 48, 3), np.uint8)
    for number, pixels in enumerate(noise):
        image_files.write_png(tmp_path / "maps" / f"{number}.png", pixels)
    source = ("--config.data.source=folder", "--config.data.path=maps", "--config.data.split_counts=(24,8,8)")
    command_line = (*source, "--mode=input", "--steps=9", "--repeats=2", "--images_per_s=1e6", "--json")
    ran = command(tmp_path, *command_line, "--config.data.reader_threads=3", "--config.data.fit=crop")
    figures = figures_of(ran)
    assert (figures["mode"], figures["pictures"], figures["data_source"]) == ("input", 24, "folder")
    assert (figures["batch_size"], figures["steps"]) == (4, 6), "an epoch is no longer than the split"
    # Crops are cut anew from whole pictures, which are what memory holds.
    assert figures["decoded_mebibytes"] == pytest.approx(24 * 40 * 48 * 3 / 2**20, rel=1e-4)
    assert figures["pictures_that_fit"] == 2048 * 2**20 // (40 * 48 * 3)
    assert figures["later_epochs_from_memory"] is True
    measured = {int(name.split("_")[0]): rates for name, rates in figures.items() if name.endswith("_threads")}
    assert set(measured) == {1, 3, figures["cores"]}
    for rates in measured.values():
        for read in ("decoding", "memory"):
            low, middle, high = (rates[read][f"images_per_s{name}"] for name in ("_min", "", "_max"))
            assert 0 < low <= middle <= high
    for read, cores in figures["cores_needed"].items():
        per_core = measured[figures["cores"]][read]["images_per_core_s"]
        assert cores == pytest.approx(1e6 / per_core, abs=1.1)
    assert "later epochs come from there" in ran.stdout
    assert re.search(rf"cores to feed 1e\+06 +{figures['cores_needed']['decoding']} while", ran.stdout)


def test_pictures_come_from_memory_only_after_they_were_decoded():
    config, loads = unet_cosine.get_config("tiny"), []

    def load(index: int) -> np.ndarray:
        loads.append(index)
        return np.full((32, 32, 3), index, np.uint8)

    whole = source.ImageSource([str(number) for number in range(40)], load, "")
    part, _ = input_rate._part(whole, 8)
    input_rate._pace(config, part, None, 0, 2)
    assert sorted(loads) == [0, 5, 10, 15, 20, 25, 30, 35], "each once, spread over the split"
    input_rate._pace(config, part, None, 2, 6)
    assert len(loads) == 8
