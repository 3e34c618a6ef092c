"""The model of weak scaling agrees with cases worked out by hand, with its limits, and with what the program says."""

import dataclasses
import json
import os

import fast_compilation
import forked_commands
import pytest

from configs import unet_cosine
from inpaint_jax import collectives, config, scaling, scaling_report

# Two networks with round figures: 100 GB/s and 1 us a hop in nodes of four, 10 GB/s and 10 us a hop between them.
PLAIN = scaling.Link(
    chips=4, chips_per_host=4, inside_gb_s=100.0, inside_us=1.0, between_gb_s=10.0, between_us=10.0, begin_us=5.0,
    attained=1.0,
)  # fmt: skip
NO_COST = dataclasses.replace(
    PLAIN, inside_gb_s=float("inf"), between_gb_s=float("inf"), inside_us=0.0, between_us=0.0, begin_us=0.0
)
TINY = f"{forked_commands.ROOT / 'configs' / 'unet_cosine.py'}:tiny"


@pytest.mark.parametrize(
    ("chips", "change", "expected_ms"),
    [
        (1, {}, 0.0),
        # 2 * 1/2 * 100 MB at 100 GB/s = 1 ms; 5 us to begin and 2 hops.
        (2, {}, 1.0 + 0.007),
        # 2 * 3/4 * 100 MB at 100 GB/s = 1.5 ms; 4 hops inside.
        (4, {}, 1.5 + 0.009),
        # Two nodes: 2 * 1/2 * 25 MB at 10 GB/s = 2.5 ms, beside which the 1.5 ms inside go on; 2 hops between.
        (8, {}, 2.5 + 0.029),
        (8, {"pipelined": False}, 1.5 + 2.5 + 0.029),
        # Five nodes, as six chips more need one of their own: 2 * 4/5 * 25 MB at 10 GB/s = 4 ms; 6 hops between.
        (18, {}, 4.0 + 0.069),
        (4, {"attained": 0.5}, 3.0 + 0.009),
        # A torus of 2 x 2: four hops as well, and of 8 x 8 sixteen.
        (4, {"torus": 2, "chips": 64}, 1.5 + 0.009),
        (64, {"torus": 2, "chips": 64}, 2 * 63 / 64 + 0.021),
    ],
)
def test_an_all_reduce_takes_what_was_worked_out_by_hand(chips, change, expected_ms):
    link = dataclasses.replace(PLAIN, **change)
    assert scaling.all_reduce_ms(100e6, chips, link) == pytest.approx(expected_ms, rel=1e-9)


def test_parts_add_up_to_the_efficiency():
    one = scaling.predict(10.0, [100e6, 0], [0, 0, 0], 4, PLAIN)
    assert one.gradients_ms == pytest.approx(1.5 + 2 * 0.009)
    assert one.statistics_ms == pytest.approx(3 * 0.009)
    assert one.efficiency == pytest.approx(10.0 / (10.0 + 1.545))
    # All of the gradients' talk fits beside the backward pass of 6.7 ms; nothing of the statistics'.
    assert one.overlapped == pytest.approx(10.0 / (10.0 + 0.027))
    slow = scaling.predict(1.5, [100e6], [], 4, PLAIN)
    assert slow.overlapped == pytest.approx(1.5 / (1.5 + 0.509)), "1 ms of 1.509 ms fits beside 2/3 of the step"


@pytest.mark.parametrize("link", [*scaling.LINKS.values(), PLAIN])
def test_efficiency_falls_with_every_chip_from_all_of_it(link):
    found = [
        scaling.predict(20.0, [200e6], [4096] * 40, chips, link).efficiency for chips in (*range(1, 70), 512, 8192)
    ]
    assert found[0] == 1.0
    assert found == sorted(found, reverse=True)
    assert 0 < found[-1] < found[1] < 1


def test_a_network_without_cost_takes_nothing():
    for chips in scaling.CHIPS:
        assert scaling.predict(20.0, [200e6], [4096] * 40, chips, NO_COST).efficiency == 1.0
    assert scaling.breaks_at(20.0, [200e6], [4096] * 40, NO_COST) is None


def test_scaling_breaks_with_the_first_chip_that_is_too_many():
    # 0.9 = T / (T + t): a step of 9 ms bears 1 ms, two chips take 1.007 ms.
    assert scaling.breaks_at(9.0, [100e6], [], PLAIN).chips == 2
    found = scaling.breaks_at(20.0, [100e6], [], PLAIN)
    assert found.efficiency < scaling.ENOUGH
    assert scaling.predict(20.0, [100e6], [], found.chips - 1, PLAIN).efficiency >= scaling.ENOUGH
    assert found.chips == 5, "4 chips take 1.5 ms, a second node 2.5 ms, and 2.2 ms are 10%"


def test_the_model_is_near_what_others_measured():
    """Published all-reduces of 16 H100 in two nodes over InfiniBand: drmysore/nebius-h100-16gpu-benchmark."""
    link = scaling.LINKS["h200_infiniband"]
    for size, measured_ms, factor in ((1000 * 2**20, 4.52, 1.2), (100 * 2**20, 0.647, 1.2), (2**20, 0.088, 2.5)):
        assert 1 / factor < scaling.all_reduce_ms(size, 16, link) / measured_ms < factor


def test_hosts_must_read_for_their_chips():
    assert scaling.host_images_per_s(20.0, 64, PLAIN) == pytest.approx(4 * 64 * 50)


def test_a_link_comes_from_a_file_as_it_is_printed(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(dataclasses.asdict(PLAIN)))
    assert scaling.read_link(str(path)) == PLAIN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inside_us": -1.0}, "inside_us = -1.0: use"),
        ({"inside_gb_s": 0}, "inside_gb_s = 0"),
        ({"between_gb_s": float("nan")}, "between_gb_s = nan"),
        ({"attained": 1.2}, "attained = 1.2"),
        ({"chips": 2.5}, "chips = 2.5"),
        ({"pipelined": 1}, "pipelined = 1"),
        ({"begin_us": True}, "begin_us = True"),
        ({"speed": 3}, "describes no link: give an object with the fields chips, chips_per_host"),
    ],
)
def test_a_wrong_link_is_refused(tmp_path, change, message):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(dataclasses.asdict(PLAIN) | change))
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        scaling.read_link(str(path))


def test_an_unknown_link_is_told_the_known_ones():
    with pytest.raises(ValueError, match=r"--link=carrier_pigeon: use one of h200_infiniband, .*\.json"):
        scaling.read_link("carrier_pigeon")


def test_each_microbatch_has_its_own_statistics_and_gradients_go_once():
    tiny = unet_cosine.get_config("tiny")
    tiny.discriminator.name, tiny.accumulate = "none", 2
    tiny.losses.adversarial.weight = 0.0
    found = collectives.of_step(tiny, "generator")
    assert len([one for one in found if one.of_gradients]) == 1
    layers = 7
    assert len(collectives.applications(found)) == 2 * 2 * layers


@pytest.fixture(scope="module")
def predicted(tmp_path_factory) -> tuple[str, dict]:
    """What the command prints, and the figures of its last line."""
    options = ("--mode=scaling", "--step_ms=20", "--link=h200_ethernet_100g", "--json")
    ran = command(tmp_path_factory.mktemp("scaling"), *options)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, json.loads(ran.stdout.splitlines()[-1])


def command(folder, *options: str):
    environment = {**os.environ, "XLA_FLAGS": fast_compilation.ONE_DEVICE}
    return forked_commands.run("bench", folder, "--config", TINY, *options, environment=environment)


def test_the_command_predicts_what_the_model_does(predicted):
    _, figures = predicted
    assert figures["link"] == dataclasses.asdict(scaling.LINKS["h200_ethernet_100g"])
    (values,) = figures["gradient_values"]
    assert figures["gradient_bytes"]["float32"] == 4 * values
    # The metrics, at most 20, stay float32.
    assert 2 * values <= figures["gradient_bytes"]["bfloat16"] <= 2 * values + 2 * 20
    cases = {(case["reduce_dtype"], case["synchronised"]): case for case in figures["cases"]}
    assert len(cases) == 4
    found = cases["float32", False]["predictions"]
    assert [one["chips"] for one in found] == list(scaling.CHIPS)
    link = scaling.LINKS["h200_ethernet_100g"]
    for one in found:
        expected = scaling.predict(20.0, [4 * values], [], one["chips"], link)
        assert one["efficiency"] == pytest.approx(expected.efficiency, rel=1e-5)
        assert one["images_per_s"] == pytest.approx(one["chips"] * 4 / 20e-3 * expected.efficiency, rel=1e-4)
    for one, other in zip(cases["float32", True]["predictions"], found, strict=True):
        assert one["statistics_ms"] > other["statistics_ms"] == 0
    assert cases["float32", True]["breaks_because_of"] == "batch statistics"
    assert figures["host_images_per_s"] == pytest.approx(8 * 4 / 20e-3)


def test_the_table_says_what_it_rests_on(predicted):
    output, figures = predicted
    assert output.startswith("unet_cosine.py:tiny, scaling, phase joint (joint): 20.00 ms for 4 images of 32x32 on one")
    assert "450 GB/s a chip among 8 chips (a switch), 1.5625 GB/s beyond   (h200_ethernet_100g)" in output
    assert "0.6 us a hop, 50 us beyond, 20 us to begin; 80% of the bandwidth is reached; no chip is late" in output
    case = figures["cases"][0]
    assert f"below 90% from {case['breaks_at_chips']} chips on, most of it for batch statistics" in output
    row = next(line for line in output.splitlines() if line.startswith("  float32, joint statistics"))
    assert row.split()[3:5] == ["8", f"{case['predictions'][0]['efficiency']:.1%}"]


def test_the_step_comes_from_a_measured_result_of_one_chip(tmp_path, caplog):
    tiny = unet_cosine.get_config("tiny")
    path = tmp_path / "measured.json"
    result = {"mode": "train", "devices": 1, "ms_per_step": 12.5, "config_hash": config.hashes(tiny)["config"]}
    path.write_text(json.dumps(result))
    assert scaling_report._measured(path, tiny) == 12.5
    assert not caplog.records
    tiny.batch_size = 8
    assert scaling_report._measured(path, tiny) == 12.5
    assert "of another config" in caplog.text
    path.write_text(json.dumps(result | {"devices": 4}))
    with pytest.raises(ValueError, match="no result of --mode=train on one device"):
        scaling_report._measured(path, tiny)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--mode=scaling",), 1, "the model needs the step of one chip: give --step_ms, or --against"),
        (("--mode=scaling", "--step_ms=5", "--link=modem"), 1, "--link=modem: use one of h200_infiniband"),
        (("--mode=scaling", "--step_ms=0"), 2, "--step_ms=0"),
        (("--mode=scaling", "--step_ms=5", "--steps=3"), 2, "--steps has no meaning with --mode=scaling"),
        (("--step_ms=5",), 2, "--step_ms has no meaning with --mode=train"),
    ],
)
def test_wrong_usage_is_told(tmp_path, options, code, message):
    ran = command(tmp_path, *options)
    assert ran.returncode == code
    (error,) = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert message in error
    assert not ran.stdout
