"""Normalisation layers by name."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from inpaint_jax.models.layers import BatchNorm


def normalisation(
    kind: str, dtype: jnp.dtype, axis_name: str | None, name: str
) -> Callable[[jax.Array, bool], jax.Array]:
    """Returns the layer `(x, use_running_average) -> x` of a kind: batch (synchronised over `axis_name`) | instance.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "batch":
        return BatchNorm(axis_name=axis_name, dtype=dtype, name=name)
    if kind == "instance":
        # The same in training and in use: no running statistics.
        layer = nn.InstanceNorm(dtype=dtype, name=name)
        return lambda x, use_running_average: layer(x)
    raise ValueError(f"normalisation {kind!r}: known are batch, instance, none")
