"""The only file that knows how a per-replica function is spread over devices and processes.

Two equal forms: `pmap`, and `jit(shard_map)`. In both the function sees its replica's part of the batch and may use
collectives over the named axis `batch`; the state is the same on every replica.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


class Parallel(NamedTuple):
    """How to place arrays and spread functions; made by `make_parallel`.

    Attributes:
        count: replicas, over all processes.
        process, processes: the number of this process among those with replicas, and how many these are.
        replicate: tree on the host, the same in every process -> the same on every replica.
        unreplicate: replicated tree -> one copy.
        shard: tree with a leading batch axis, this process's block of the batch -> its parts on the replicas.
        gather: result with a leading batch axis -> NumPy arrays of the whole batch, in every process.
        train: (state, frozen, batch) -> (state, metrics), state donated, everything but the batch replicated.
        evaluate: (replicated variables, batch) -> per-example results, sharded as the batch.
    """

    count: int
    process: int
    processes: int
    replicate: Callable[[Any], Any]
    unreplicate: Callable[[Any], Any]
    shard: Callable[[Any], Any]
    gather: Callable[[Any], Any]
    train: Callable[[Callable], Callable]
    evaluate: Callable[[Callable], Callable]


def make_parallel(kind: str, devices: Sequence[jax.Device] | None = None) -> Parallel:
    """Returns the `pmap` or `shard_map` form over `devices` (default: all of all processes).

    Raises:
        ValueError: an unknown kind.
    """
    # In the order of processes, each of which has a block of the batch.
    devices = sorted(jax.devices() if devices is None else devices, key=lambda device: device.process_index)
    if kind == "pmap":
        return _pmap(devices)
    if kind == "shard_map":
        return _shard_map(devices)
    raise ValueError(f"config.parallel = {kind!r}: use 'pmap' or 'shard_map'")


def trace(step: Callable, replicas: int, state: Any, frozen: Any, batch: Any) -> jax.extend.core.ClosedJaxpr:
    """Returns the traced program of a training step on so many replicas; there need be no such devices.

    Args:
        state, frozen, batch: trees of shapes, `jax.ShapeDtypeStruct`; the batch that of all replicas together.
    """
    mesh = AbstractMesh((replicas,), (AXIS,))
    same, sharded = PartitionSpec(), PartitionSpec(AXIS)
    specs = {"in_specs": (same, same, sharded), "out_specs": (same, same)}
    return jax.make_jaxpr(jax.shard_map(step, mesh=mesh, check_vma=False, **specs))(state, frozen, batch)


def check_divisible(batch_size: int, replicas: int) -> None:
    """Raises ValueError if a batch cannot be spread evenly."""
    if batch_size % replicas:
        raise ValueError(
            f"config.batch_size = {batch_size} cannot be spread over {replicas} devices: use a multiple of {replicas}, "
            "or show JAX fewer devices, such as with CUDA_VISIBLE_DEVICES"
        )


def _place(devices: list[jax.Device]) -> tuple[int, int, int]:
    """Returns the number of this process among those of the devices, how many these are, and its devices."""
    owners = sorted({device.process_index for device in devices})
    here = jax.process_index()
    return owners.index(here), len(owners), sum(device.process_index == here for device in devices)


def _pmap(devices: list[jax.Device]) -> Parallel:
    count, (process, processes, local) = len(devices), _place(devices)
    # The sharding of what pmap gives: with flax.jax_utils.replicate's own the second step would be compiled once more.
    leading = NamedSharding(Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,)), PartitionSpec(AXIS))

    def copies(x: Any) -> jax.Array:
        shape = np.shape(x)
        return jax.make_array_from_process_local_data(leading, np.broadcast_to(x, (local, *shape)), (count, *shape))

    def split(tree: Any) -> Any:
        return jax.tree.map(lambda x: np.asarray(x).reshape(local, -1, *np.shape(x)[1:]), tree)

    return Parallel(
        count=count,
        process=process,
        processes=processes,
        replicate=lambda tree: jax.tree.map(copies, tree),
        # flax.jax_utils.unreplicate keeps the leading axis where one of several local devices is used.
        unreplicate=lambda tree: jax.tree.map(lambda x: x.addressable_data(0)[0], tree),
        shard=split,
        gather=lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), _whole(tree, processes)),
        train=lambda step: jax.pmap(step, AXIS, devices=devices, donate_argnums=(0,)),
        evaluate=lambda step: jax.pmap(step, AXIS, devices=devices),
    )


def _whole(tree: Any, processes: int) -> Any:
    """Returns sharded arrays as NumPy arrays of all that they hold."""
    if processes == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def _shard_map(devices: list[jax.Device]) -> Parallel:
    # Auto axes: jax.make_mesh would make explicit ones, which put sharding into the types.
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    same, sharded = PartitionSpec(), PartitionSpec(AXIS)
    process, processes, _ = _place(devices)

    def placed(tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)

    def spread(step: Callable, in_specs: tuple, out_specs: Any, donate: tuple) -> Callable:
        # check_vma=True would hand back gradients already summed over devices, and a pmean of those is N times too
        # large.
        mapped = jax.shard_map(step, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
        return jax.jit(mapped, donate_argnums=donate)

    return Parallel(
        count=len(devices),
        process=process,
        processes=processes,
        replicate=lambda tree: placed(tree, same),
        unreplicate=lambda tree: jax.tree.map(lambda x: x.addressable_data(0), tree),
        shard=lambda tree: placed(tree, sharded),
        gather=lambda tree: _whole(tree, processes),
        train=lambda step: spread(step, (same, same, sharded), (same, same), (0,)),
        evaluate=lambda step: spread(step, (same, sharded), sharded, ()),
    )
