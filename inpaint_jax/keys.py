"""Random keys: every random choice is keyed by (seed, purpose, slot), never by a state, a device or the time."""

import jax

# Numbers, not hashes, so that adding a purpose leaves the others as they were.
PURPOSES = {"generator": 0, "discriminator": 1, "mask": 2, "augment": 3, "dropout": 4}


def purpose_key(seed: int, purpose: str) -> jax.Array:
    """Returns the key of one purpose of a run."""
    return jax.random.fold_in(jax.random.key(seed), PURPOSES[purpose])


def slot_keys(seed: int, purpose: str, slots: jax.Array) -> jax.Array:
    """Returns one key for each slot; `slots` int32 (B,), the position of each example in the whole run."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(purpose_key(seed, purpose), slots)
