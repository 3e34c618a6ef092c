"""Optimisers as optax chains, one for each fixed parameter group."""

from collections.abc import Callable, Sequence

import jax
import ml_collections
import optax

Params = dict


def group_names(params: dict[str, Params]) -> list[str]:
    """Returns the parameter groups that exist: `<network>/vgg` and `<network>/rest` for generators, `discriminator`."""
    names = []
    for network, tree in params.items():
        if network == "discriminator":
            names.append(network)
            continue
        names += [f"{network}/{part}" for part in ("vgg", "rest") if select(tree, f"{network}/{part}")]
    return names


def select(tree: Params, group: str) -> Params:
    """Returns the part of a network's parameters that belongs to the group; blocks named vgg* are the vgg group."""
    if "/" not in group:
        return tree
    pretrained = group.endswith("/vgg")
    return {name: block for name, block in tree.items() if name.startswith("vgg") == pretrained}


def without_gradients(tree: Params, network: str, groups: Sequence[str]) -> Params:
    """Returns a network's parameters, those of its blocks that belong to `groups` as constants of the gradients."""
    held = {name for group in groups if group.split("/")[0] == network for name in select(tree, group)}
    return {name: jax.lax.stop_gradient(block) if name in held else block for name, block in tree.items()}


def scale_by_rate() -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by the extra argument `lr_scale`, the group's part of the training state."""

    def update(updates: Params, state: optax.EmptyState, params: Params | None = None, *, lr_scale: jax.Array, **_):
        return jax.tree.map(lambda u: u * lr_scale, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _preconditioner(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    known: dict[str, Callable[[], optax.GradientTransformation]] = {
        "adam": lambda: optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.epsilon),
        "sgd": optax.identity,
        # With PyTorch's constants but epsilon, which the published comparison presumably had: its losses are named as
        # PyTorch names them. Optax's change the outcome: an Adagrad that starts at 0.1 is near SGD here, where squared
        # gradients add up to less.
        "rmsprop": lambda: optax.scale_by_rms(decay=0.99, eps=config.epsilon, eps_in_sqrt=False),
        # Squared, as optax adds it under the root.
        "adagrad": lambda: optax.scale_by_rss(initial_accumulator_value=0.0, eps=config.epsilon**2),
    }
    if config.name not in known:
        raise ValueError(f"config.optimizer.name = {config.name!r}: known names are {', '.join(sorted(known))}")
    return known[config.name]()


def learning_rate(config: ml_collections.ConfigDict, group: str, total_steps: int) -> optax.Schedule:
    """Returns the group's learning rate as a function of the number of its own updates."""
    top = config.learning_rate * (config.discriminator_rate_ratio if group == "discriminator" else 1.0)
    warmup = round(config.warmup_fraction * total_steps)
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(top, max(1, total_steps - warmup), alpha=config.final_fraction)
    else:
        decay = optax.constant_schedule(top)
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(top / (warmup + 1), top, warmup), decay], [warmup])


def update_count(state: optax.OptState) -> jax.Array:
    """Returns how many updates a chain of `make_optimizer` has done, the argument of its learning rate, int32."""
    return next(part.count for part in state if isinstance(part, optax.ScaleByScheduleState))


def make_optimizer(
    config: ml_collections.ConfigDict, group: str, total_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Returns the chain of one group: clipping, optimiser, schedule, rate scale, descent.

    Args:
        config: `config.optimizer`.
        group: a name of `group_names`.
        total_steps: optimiser steps of the whole run, which fractions of the schedule refer to.

    Raises:
        ValueError: an unknown optimiser.
    """
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts += [
        _preconditioner(config),
        optax.scale_by_schedule(learning_rate(config, group, total_steps)),
        scale_by_rate(),
        optax.scale(-1.0),
    ]
    return optax.chain(*parts)
