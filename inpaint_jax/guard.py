"""The divergence guard: updates that would wreck a run are left out, counted and told.

Two things are watched in every step, on the device: anything that is not finite (a loss, a gradient, an update), and,
where `config.guard.surge_factor` asks for it, a generator loss far over its running level.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections

LEVEL_STEPS = 100  # the running level is an average over about so many steps, and is trusted after as many
SKIPPED_TOO_OFTEN = 20  # steps in a row

Guard = dict[str, jax.Array]


def first_guard() -> Guard:
    """Returns the guard's part of the training state before the first step.

    skipped: updates left out; surges: those for a surge; last_skipped: the step of the last of them, counted from 1;
    skipped_in_a_row: steps in a row that left one out; level: running level of the generator loss, absolute; counted:
    steps in the level.
    """
    counts = {name: jnp.int32(0) for name in ("skipped", "skipped_in_a_row", "surges", "last_skipped", "counted")}
    return {**counts, "level": jnp.float32(0.0)}


def judge(
    config: ml_collections.ConfigDict, guard: Guard, step: jax.Array, finite: jax.Array, loss: jax.Array | None
) -> tuple[jax.Array, Guard]:
    """Returns whether an update may be made, and the guard after it.

    Args:
        config: `config.guard`.
        step: steps done before this one.
        finite: whether losses, gradients and updates are.
        loss: the generator's; None for an update that has none, of the discriminator alone.
    """
    surge, level, counted = jnp.bool_(False), guard["level"], guard["counted"]
    if loss is not None:
        size = jnp.abs(loss)
        trusted = counted >= LEVEL_STEPS
        surge = finite & trusted & (config.surge_factor > 0) & (size > config.surge_factor * level)
        enters = finite & ~surge
        share = 1.0 / jnp.minimum(counted + 1, LEVEL_STEPS)
        level = jnp.where(enters, level + share * (size - level), level)
        counted = counted + enters
    accepted = finite & ~surge
    return accepted, {
        **guard,
        "skipped": guard["skipped"] + ~accepted,
        "surges": guard["surges"] + surge,
        "last_skipped": jnp.where(accepted, guard["last_skipped"], step + 1),
        "level": level,
        "counted": counted,
    }


def after_step(before: Guard, after: Guard) -> Guard:
    """Returns the guard after all updates of a step: where networks take turns, one that is made ends no row."""
    left_out = after["skipped"] > before["skipped"]
    return {**after, "skipped_in_a_row": jnp.where(left_out, before["skipped_in_a_row"] + 1, 0)}


def forget_level(guard: Guard) -> Guard:
    """Returns the guard at the start of a phase, where the loss may have other parts or meet another discriminator."""
    return {**guard, "level": guard["level"] * 0, "counted": guard["counted"] * 0}


def scalars(guard: Guard) -> dict[str, jax.Array]:
    """Returns what a metrics row holds of the guard, float32."""
    return {f"guard/{name}": value.astype(jnp.float32) for name, value in guard.items() if name != "counted"}


def told(config: ml_collections.ConfigDict, earlier: Mapping, now: Mapping) -> str:
    """Returns one sentence on the updates that were left out between two metrics rows; "" if none was.

    Args:
        config: the whole config.
        earlier, now: rows of the training split; `earlier` may be empty before the first.

    Raises:
        FloatingPointError: updates have been left out for long, or a surge and `config.guard.action` is "halt".
    """
    skipped = int(now["guard/skipped"] - earlier.get("guard/skipped", 0))
    surges = int(now["guard/surges"] - earlier.get("guard/surges", 0))
    if not skipped:
        return ""
    first, last = int(earlier.get("step", 0)) + 1, now["step"]
    reasons = [f"not finite: {skipped - surges}"] if skipped > surges else []
    if surges:
        reasons.append(f"generator loss over {config.guard.surge_factor:g} times its level: {surges}")
    words = (
        f"step{'' if first == last else f's {first} to'} {last}: updates left out: {skipped}, the last at step "
        f"{int(now['guard/last_skipped'])} ({', '.join(reasons)}; level {now['guard/level']:.4g})"
    )
    mend = (
        "lower config.optimizer.learning_rate or set config.optimizer.clip_norm, and start over with --restart or go "
        "on from the last checkpoint with --allow_config_changes; the best generator so far is kept"
    )
    if surges and config.guard.action == "halt":
        raise FloatingPointError(f"{words}: {mend}")
    if (in_a_row := int(now["guard/skipped_in_a_row"])) >= SKIPPED_TOO_OFTEN:
        raise FloatingPointError(f"{words}, {in_a_row} of them in a row: {mend}")
    return words
