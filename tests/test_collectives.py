"""What the compiled step says between eight devices: read from the program, so that no eight devices are needed."""

import json
import multiprocessing
import os
import re
import tempfile
from pathlib import Path

import fast_compilation
import jax
import numpy as np
import pytest

from configs import unet_cosine
from inpaint_jax import collectives
from inpaint_jax.parallel import make_parallel
from inpaint_jax.state import create_state
from inpaint_jax.step import make_system, make_train_step

DEVICES = 8
COLLECTIVE = re.compile(
    r"= (?P<result>.*?) (?P<kind>all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\("
)
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


def config_of(order: str):
    config = unet_cosine.get_config("tiny")
    config.batch_size, config.regime.order = DEVICES, order
    return config


def write_program(form: str, order: str, path: str) -> None:
    """Writes the compiled step for eight devices; runs in a process of its own, where there are so many."""
    os.environ["XLA_FLAGS"] = f"{fast_compilation.ONE_DEVICE} --xla_force_host_platform_device_count={DEVICES}"
    config = config_of(order)
    system, parallel = make_system(config, 100), make_parallel(form)
    shapes = jax.eval_shape(lambda: create_state(config, system.optimizers))
    state = parallel.replicate(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
    size = config.image_size
    images, slots = np.zeros((DEVICES, size, size, 3), np.uint8), np.arange(DEVICES, dtype=np.int32)
    batch = parallel.shard({"image": images, "slot": slots})
    program = parallel.train(make_train_step(system, "joint")).lower(state, parallel.replicate({}), batch)
    Path(path).write_text(json.dumps({"count": parallel.count, "program": program.compile().as_text()}))


@pytest.fixture(scope="module", params=[("pmap", "simultaneous"), ("shard_map", "sequential")])
def compiled(request):
    """The order of updates, and of each collective operation its kind and the numbers of values that it returns."""
    with tempfile.NamedTemporaryFile("r") as file:
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=write_program, args=(*request.param, file.name))
        process.start()
        process.join(timeout=300)
        assert process.exitcode == 0
        written = json.loads(Path(file.name).read_text())
    assert written["count"] == DEVICES
    found = []
    for line in written["program"].splitlines():
        if match := COLLECTIVE.search(line):
            shapes = SHAPE.findall(match["result"])
            found.append((match["kind"], [int(np.prod([int(n) for n in dims.split(",") if n])) for _, dims in shapes]))
    return request.param[1], found


@pytest.fixture(scope="module")
def shapes():
    config = config_of("simultaneous")
    return jax.eval_shape(lambda: create_state(config, make_system(config, 100).optimizers))


def test_gradients_go_by_one_all_reduce_of_their_size(compiled, shapes):
    order, found = compiled
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes.params.items()}
    # Beside the gradients, in the same vector, the step's metrics: at most 20.
    wanted = [sum(sizes.values())] if order == "simultaneous" else sorted(sizes.values())
    large = sorted(sum(values) for _, values in found if sum(values) >= min(sizes.values()))
    assert len(large) == len(wanted)
    for actual, size in zip(large, wanted, strict=True):
        assert size <= actual <= size + 20


def test_nothing_is_gathered(compiled):
    assert {kind for kind, _ in compiled[1]} == {"all-reduce"}


def test_batch_statistics_go_by_one_all_reduce_forward_and_one_for_each_way_back(compiled, shapes):
    order, found = compiled
    gradients = 1 if order == "simultaneous" else 2
    layers = {
        name: sum("mean" in str(path) for path, _ in jax.tree.leaves_with_path(tree))
        for name, tree in shapes.stats.items()
    }
    g, d = layers["generator"], layers["discriminator"]
    # The discriminator sees real and generated images; back through the latter go both losses, each by itself. In
    # turns, the generated images are seen once more, by the discriminator that has learned.
    forward = g + 2 * d if order == "simultaneous" else g + 3 * d
    back = g + 3 * d
    assert min(g, d) > 0
    assert 0 < len(found) - gradients <= forward + back


def test_what_is_counted_without_devices_is_what_the_compiled_program_has(compiled):
    order, found = compiled
    counted = collectives.of_step(config_of(order), "joint")
    assert sorted(one.values for one in counted) == sorted(size for _, sizes in found for size in sizes)
    assert {one.dtype for one in counted} == {"float32"}
    gradients = [one for one in counted if one.of_gradients]
    assert len(gradients) == (1 if order == "simultaneous" else 2)
    # XLA puts the two moments of an application into one all-reduce, and now and then two applications.
    applications = collectives.applications(counted)
    assert 2 * len(applications) == len(counted) - len(gradients)
    assert sum(applications) == sum(one.bytes for one in counted if not one.of_gradients)
    assert len(applications) - 3 <= len(found) - len(gradients) <= len(applications)
