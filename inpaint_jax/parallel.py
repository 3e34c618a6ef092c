"""The only file that knows how a per-replica function is spread over devices.

Two equal forms: `pmap`, and `jit(shard_map)`. In both the function sees its replica's part of the batch and may use
collectives over the named axis `batch`; the state is the same on every replica.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


class Parallel(NamedTuple):
    """How to place arrays and spread functions; made by `make_parallel`.

    Attributes:
        count: replicas in this process.
        replicate: tree on the host -> the same on every replica.
        unreplicate: replicated tree -> one copy.
        shard: tree with a leading batch axis -> its parts on the replicas.
        gather: result with a leading batch axis -> NumPy arrays of the whole batch.
        train: (state, frozen, batch) -> (state, metrics), state donated, everything but the batch replicated.
        evaluate: (replicated variables, batch) -> per-example results, sharded as the batch.
    """

    count: int
    replicate: Callable[[Any], Any]
    unreplicate: Callable[[Any], Any]
    shard: Callable[[Any], Any]
    gather: Callable[[Any], Any]
    train: Callable[[Callable], Callable]
    evaluate: Callable[[Callable], Callable]


def make_parallel(kind: str, devices: Sequence[jax.Device] | None = None) -> Parallel:
    """Returns the `pmap` or `shard_map` form over `devices` (default: all of this process).

    Raises:
        ValueError: an unknown kind.
    """
    devices = list(jax.local_devices() if devices is None else devices)
    if kind == "pmap":
        return _pmap(devices)
    if kind == "shard_map":
        return _shard_map(devices)
    raise ValueError(f"config.parallel = {kind!r}: use 'pmap' or 'shard_map'")


def check_divisible(batch_size: int, replicas: int) -> None:
    """Raises ValueError if a batch cannot be spread evenly."""
    if batch_size % replicas:
        raise ValueError(
            f"config.batch_size = {batch_size} cannot be spread over {replicas} devices: use a multiple of {replicas}, "
            "or show JAX fewer devices, such as with CUDA_VISIBLE_DEVICES"
        )


def _pmap(devices: list[jax.Device]) -> Parallel:
    count = len(devices)
    # The sharding of what pmap gives: with flax.jax_utils.replicate's own the second step would be compiled once more.
    leading = NamedSharding(Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,)), PartitionSpec(AXIS))

    def copies(x: Any) -> jax.Array:
        return jax.device_put(np.broadcast_to(x, (count, *np.shape(x))), leading)

    def split(tree: Any) -> Any:
        return jax.tree.map(lambda x: np.asarray(x).reshape(count, -1, *np.shape(x)[1:]), tree)

    return Parallel(
        count=count,
        replicate=lambda tree: jax.tree.map(copies, tree),
        # flax.jax_utils.unreplicate keeps the leading axis where one of several local devices is used.
        unreplicate=lambda tree: jax.tree.map(lambda x: x.addressable_data(0)[0], tree),
        shard=split,
        gather=lambda tree: jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree),
        train=lambda step: jax.pmap(step, AXIS, devices=devices, donate_argnums=(0,)),
        evaluate=lambda step: jax.pmap(step, AXIS, devices=devices),
    )


def _shard_map(devices: list[jax.Device]) -> Parallel:
    # Auto axes: jax.make_mesh would make explicit ones, which put sharding into the types.
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    same, sharded = PartitionSpec(), PartitionSpec(AXIS)

    def spread(step: Callable, in_specs: tuple, out_specs: Any, donate: tuple) -> Callable:
        # check_vma=True would hand back gradients already summed over devices, and a pmean of those is N times too
        # large.
        mapped = jax.shard_map(step, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
        return jax.jit(mapped, donate_argnums=donate)

    return Parallel(
        count=len(devices),
        replicate=lambda tree: jax.device_put(tree, NamedSharding(mesh, same)),
        unreplicate=lambda tree: tree,
        shard=lambda tree: jax.device_put(tree, NamedSharding(mesh, sharded)),
        gather=lambda tree: jax.tree.map(np.asarray, tree),
        train=lambda step: spread(step, (same, same, sharded), (same, same), (0,)),
        evaluate=lambda step: spread(step, (same, sharded), sharded, ()),
    )
