"""Train steps: pure functions of one replica, with collectives over the named axis `batch`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import ml_collections
import optax

from inpaint_jax import guard, keys, losses, models, optim, perceptual, task
from inpaint_jax.parallel import AXIS
from inpaint_jax.state import TrainState, create_state

Tree = Any
Batch = Mapping[str, jax.Array]

AVERAGING = "average_gradients"  # what the means over replicas are called in programs and profiles


@dataclasses.dataclass(frozen=True)
class System:
    """What a step is made of; nothing in it changes during a run.

    Attributes:
        config: the whole config.
        generator, discriminator: modules; no discriminator in generator-only runs.
        optimizers, schedules: one chain and one learning rate, a function of the count of updates, for each group.
        axis_name: mapped axis of the replicas, over which gradients are averaged; None outside of a map.
        frozen_groups: parameter groups that keep parameters and optimiser state; no gradients of theirs are computed.
    """

    config: ml_collections.ConfigDict
    generator: nn.Module
    discriminator: nn.Module | None
    optimizers: dict[str, optax.GradientTransformationExtraArgs]
    schedules: dict[str, optax.Schedule]
    axis_name: str | None = AXIS
    frozen_groups: tuple[str, ...] = ()


def make_system(config: ml_collections.ConfigDict, total_steps: int, axis_name: str | None = AXIS) -> System:
    """Builds networks and optimisers.

    Args:
        total_steps: optimiser steps of the whole run, for schedules.
        axis_name: mapped axis of the replicas; None to call the step outside of a map.

    Raises:
        ValueError: an unknown name anywhere in the config.
    """
    losses.validate_losses(config.losses)
    task.validate_task(config)
    generator = models.build_generator(config, axis_name)
    if config.remat:
        generator = generator.clone(remat=True)  # here alone: it is for gradients, which nothing else takes
    discriminator = models.build_discriminator(config, axis_name)
    shapes = jax.eval_shape(lambda: create_state(config, {}))
    groups = optim.group_names(shapes.params)
    optimizers = {group: optim.make_optimizer(config.optimizer, group, total_steps) for group in groups}
    schedules = {group: optim.learning_rate(config.optimizer, group, total_steps) for group in groups}
    return System(config, generator, discriminator, optimizers, schedules, axis_name)


def _mean_over_replicas(gradients: Tree, scalars: Tree, system: System) -> tuple[Tree, Tree]:
    """Returns the means over replicas of gradients and metrics, float32 both, by one all-reduce.

    With `config.reduce_dtype = "bfloat16"` by two: the gradients go in half the bytes, the metrics as they are. Each
    replica's gradients are then rounded to eight bits, by up to 2^-9 of their value, and where the machine adds in
    bfloat16 so is every partial sum, in which what is smaller than 2^-9 of it gets lost.
    """
    axis_name = system.axis_name
    if axis_name is None or jax.lax.axis_size(axis_name) == 1:
        return gradients, scalars
    # As one vector: of a tree, XLA makes several all-reduces, each of which waits for the slowest link once more.
    with jax.named_scope(AVERAGING):
        if system.config.reduce_dtype == "float32":
            vector, tree_of = jax.flatten_util.ravel_pytree((gradients, scalars))
            return tree_of(jax.lax.pmean(vector, axis_name))
        vector, tree_of = jax.flatten_util.ravel_pytree(gradients)
        total = jax.lax.psum(vector.astype(system.config.reduce_dtype), axis_name)
        # Divided in float32: dividing in bfloat16 would round once more.
        gradients = tree_of(total.astype(vector.dtype) / jax.lax.axis_size(axis_name))
        vector, tree_of = jax.flatten_util.ravel_pytree(scalars)
        return gradients, tree_of(jax.lax.pmean(vector, axis_name))


def _apply(module: nn.Module, params: Tree, stats: Tree, x: Tree, **options: jax.Array) -> tuple[jax.Array, Tree]:
    """Applies a network in training mode and returns its output and new batch statistics."""
    variables = {"params": params, "batch_stats": stats}
    output, updated = module.apply(variables, x, train=True, mutable=["batch_stats"], **options)
    return output, updated.get("batch_stats", {})


def generate(system: System, params: Tree, stats: Tree, frozen: Tree, example: Batch) -> tuple[dict[str, Tree], Tree]:
    """Runs the generator on one example batch; returns every image that a loss may name, and new statistics.

    Beside the images there are the pretrained network's `features` of those that a loss or the discriminator sees so.
    """
    seen = task.generator_input(system.config, example["image"], example["mask"])
    options = {}
    if system.config.generator.dropout:
        options["dropout_keys"] = keys.slot_keys(system.config.seed, "dropout", example["slot"])
    params = optim.without_gradients(params, "generator", system.frozen_groups)
    answer, stats = _apply(system.generator, params, stats, seen, **options)
    output = task.generator_output(system.config, example["image"], example["mask"], answer)
    completed = task.complete(example["image"], example["mask"], output)
    images = {**example, "output": output, "completed": completed, "condition": seen}
    return images | {"features": perceptual.features_of(system.config, frozen, images)}, stats


def judged(config: ml_collections.ConfigDict, images: Mapping[str, Tree], name: str) -> Tree:
    """Returns what the discriminator gets of one of the images."""
    seen = task.discriminator_input(config, images[name], images["mask"], images["condition"])
    if config.discriminator.name == "vgg":
        return perceptual.judged(config, images["features"][name], seen)
    return seen


def judge(system: System, params: Tree, stats: Tree, images: Mapping[str, Tree], name: str) -> tuple[jax.Array, Tree]:
    """Runs the discriminator on one of the images; returns its logits, and new statistics."""
    params = optim.without_gradients(params, "discriminator", system.frozen_groups)
    return _apply(system.discriminator, params, stats, judged(system.config, images, name))


def generator_only_gradients(
    system: System, state: TrainState, frozen: Tree, example: Batch
) -> tuple[Tree, Tree, dict]:
    """Returns gradients and new statistics of the generator alone, and scalar metrics."""

    def loss(params: Tree) -> tuple[jax.Array, tuple]:
        images, stats = generate(system, params, state.stats["generator"], frozen, example)
        total, parts = losses.generator_loss(system.config.losses, images, None, system.config.task.value_range)
        return total, (stats, {"loss/generator": total, **parts})

    gradients, (stats, scalars) = jax.grad(loss, has_aux=True)(state.params["generator"])
    return {"generator": gradients}, {"generator": stats}, scalars


def simultaneous_gradients(system: System, state: TrainState, frozen: Tree, example: Batch) -> tuple[Tree, Tree, dict]:
    """Returns gradients of both networks at the old parameters from one forward pass, statistics and metrics.

    Two pulls through one `jax.vjp` of (generator loss, discriminator loss). D sees the real images first and the
    generated ones second, in separate applications, its statistics threaded from one to the other.
    """
    sees = system.config.discriminator.sees

    def both(generator: Tree, discriminator: Tree) -> tuple[tuple, tuple]:
        images, stats = generate(system, generator, state.stats["generator"], frozen, example)
        real, d_stats = judge(system, discriminator, state.stats["discriminator"], images, "image")
        fake, d_stats = judge(system, discriminator, d_stats, images, sees)
        g_total, g_parts = losses.generator_loss(system.config.losses, images, fake, system.config.task.value_range)
        d_total, d_parts = losses.discriminator_loss(real, fake, system.config.discriminator.real_label)
        scalars = {"loss/generator": g_total, "loss/discriminator": d_total, **g_parts, **d_parts}
        scalars |= _logit_metrics(real, fake)
        return (g_total, d_total), ({"generator": stats, "discriminator": d_stats}, scalars)

    (g_total, _), pull, (stats, scalars) = jax.vjp(
        both, state.params["generator"], state.params["discriminator"], has_aux=True
    )
    one, zero = jnp.ones_like(g_total), jnp.zeros_like(g_total)
    gradients = {"generator": pull((one, zero))[0], "discriminator": pull((zero, one))[1]}
    return gradients, stats, scalars


def discriminator_gradients(system: System, state: TrainState, frozen: Tree, example: Batch) -> tuple[Tree, Tree, dict]:
    """Returns gradients and new statistics of the discriminator alone, the generator as it is."""
    images, _ = generate(system, state.params["generator"], state.stats["generator"], frozen, example)
    images = jax.lax.stop_gradient(images)

    def loss(params: Tree) -> tuple[jax.Array, tuple]:
        real, stats = judge(system, params, state.stats["discriminator"], images, "image")
        fake, stats = judge(system, params, stats, images, system.config.discriminator.sees)
        total, parts = losses.discriminator_loss(real, fake, system.config.discriminator.real_label)
        return total, (stats, {"loss/discriminator": total, **parts, **_logit_metrics(real, fake)})

    gradients, (stats, scalars) = jax.grad(loss, has_aux=True)(state.params["discriminator"])
    return {"discriminator": gradients}, {"discriminator": stats}, scalars


def adversarial_generator_gradients(
    system: System, state: TrainState, frozen: Tree, example: Batch
) -> tuple[Tree, Tree, dict]:
    """Returns gradients and new statistics of the generator against the discriminator as it is in `state`."""

    def loss(params: Tree) -> tuple[jax.Array, tuple]:
        images, stats = generate(system, params, state.stats["generator"], frozen, example)
        # D's statistics come from its own update alone.
        fake, _ = judge(
            system,
            state.params["discriminator"],
            state.stats["discriminator"],
            images,
            system.config.discriminator.sees,
        )
        total, parts = losses.generator_loss(system.config.losses, images, fake, system.config.task.value_range)
        return total, (stats, {"loss/generator": total, **parts})

    gradients, (stats, scalars) = jax.grad(loss, has_aux=True)(state.params["generator"])
    return {"generator": gradients}, {"generator": stats}, scalars


def _logit_metrics(real: jax.Array, fake: jax.Array) -> dict[str, jax.Array]:
    correct = jnp.mean(real > 0) / 2 + jnp.mean(fake < 0) / 2
    return {
        "discriminator/logit_real": real.mean(),
        "discriminator/logit_fake": fake.mean(),
        "discriminator/accuracy": correct,
    }


Gradients = Callable[[System, TrainState, Tree, Batch], tuple[Tree, Tree, dict]]


def averaged(
    function: Gradients, system: System, state: TrainState, frozen: Tree, batch: Batch
) -> tuple[Tree, Tree, dict]:
    """Averages gradients and metrics over the microbatches of one step and the replicas, as `_mean_over_replicas` does.

    Statistics run through the microbatches in turn. The microbatches are unrolled: convolutions inside a scan are
    many times slower on CPUs.
    """
    parts = system.config.accumulate
    gradients = scalars = None
    for microbatch in microbatches(batch, parts):
        example = task.training_example(system.config, microbatch)
        new_gradients, stats, new_scalars = function(system, state, frozen, example)
        state = state.replace(stats={**state.stats, **stats})
        if gradients is None:
            gradients, scalars = new_gradients, new_scalars
        else:
            gradients = jax.tree.map(jnp.add, gradients, new_gradients)
            scalars = jax.tree.map(jnp.add, scalars, new_scalars)
    gradients, scalars = jax.tree.map(lambda x: x / parts, (gradients, scalars))
    gradients, scalars = _mean_over_replicas(gradients, scalars, system)
    return gradients, {name: state.stats[name] for name in gradients}, scalars


def microbatches(batch: Batch, parts: int) -> list[Batch]:
    """Returns the microbatches of a replica's batch: its example i lies in the one of number i % parts."""
    # Every parts-th example: with contiguous blocks, which examples share batch statistics would depend on the number
    # of replicas.
    return [jax.tree.map(lambda x, i=i: x[i::parts], batch) for i in range(parts)]


def _update(
    system: System,
    state: TrainState,
    gradients: Tree,
    stats: Tree,
    losses: Mapping[str, jax.Array],
) -> tuple[TrainState, dict]:
    """Applies gradients group by group; groups without gradients, or frozen, keep parameters and optimiser state.

    An update that the guard refuses leaves parameters, optimiser states and statistics as they were. So does, for the
    discriminator alone, one whose accuracy is over `config.discriminator.accuracy_limit`.

    Args:
        losses: the scalars that the gradients came with.
    """
    params, opt, scalars = dict(state.params), dict(state.opt), {}
    finite = jnp.isfinite(optax.global_norm(gradients))
    for name in ("loss/generator", "loss/discriminator"):
        finite &= jnp.isfinite(losses.get(name, 0.0))
    for group, optimizer in system.optimizers.items():
        network = group.split("/")[0]
        if network not in gradients or group in system.frozen_groups:
            continue
        own_gradients, own = optim.select(gradients[network], group), optim.select(params[network], group)
        rate = system.schedules[group](optim.update_count(opt[group])) * state.lr_scale[group]
        updates, opt[group] = optimizer.update(own_gradients, opt[group], own, lr_scale=state.lr_scale[group])
        params[network] = {**params[network], **optax.apply_updates(own, updates)}
        scalars[f"learning_rate/{group}"] = jnp.asarray(rate, jnp.float32)
        scalars[f"gradient_norm/{group}"] = optax.global_norm(own_gradients)
        scalars[f"update_norm/{group}"] = optax.global_norm(updates)
        finite &= jnp.isfinite(scalars[f"update_norm/{group}"])
    loss = losses.get("loss/generator") if "generator" in gradients else None
    accepted, watched = guard.judge(system.config.guard, state.guard, state.step, finite, loss)
    new = {"params": params, "opt": opt, "stats": {**state.stats, **stats}}
    held = jnp.asarray(losses.get("discriminator/accuracy", 0.0)) > system.config.discriminator.accuracy_limit
    if "discriminator" in gradients and system.config.discriminator.accuracy_limit < 1.0:
        scalars["discriminator/held"] = jnp.asarray(held, jnp.float32)
    taken = {"generator": accepted, "discriminator": accepted & ~held}
    for name in scalars:
        if name.startswith("update_norm/"):
            scalars[name] = jnp.where(taken[name.split("/")[1]], scalars[name], 0.0)
    kept = {
        room: {name: _choose(taken[name.split("/")[0]], tree, old[name]) for name, tree in new[room].items()}
        for room, old in (("params", state.params), ("opt", state.opt), ("stats", state.stats))
    }
    return state.replace(**kept, guard=watched), scalars


def _choose(condition: jax.Array, new: Tree, old: Tree) -> Tree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _moving_average(config: ml_collections.ConfigDict, state: TrainState) -> TrainState:
    # The warmup lets the average forget the random initial weights within the first hundreds of steps.
    step = state.step.astype(jnp.float32)
    decay = jnp.minimum(config.ema_decay, (1.0 + step) / (10.0 + step)) if config.ema_decay else jnp.float32(0.0)

    def mix(average: jax.Array, new: jax.Array) -> jax.Array:
        return decay * average + (1.0 - decay) * new

    return state.replace(
        ema_params=jax.tree.map(mix, state.ema_params, state.params["generator"]),
        ema_stats=jax.tree.map(mix, state.ema_stats, state.stats["generator"]),
    )


def make_train_step(
    system: System, kind: str, frozen_groups: Sequence[str] = ()
) -> Callable[[TrainState, Tree, Batch], tuple[TrainState, dict]]:
    """Returns `step(state, frozen, batch) -> (state, metrics)` of one static phase.

    Args:
        system: networks, optimisers and config.
        kind: what is trained, one of `regimes.KINDS`; of both networks `config.regime.order` says how.
        frozen_groups: of the System.

    Returns:
        A pure function of one replica. `frozen` holds the pretrained weights that no one trains, those that
        `perceptual.load_frozen` gives.
        `batch` is {image uint8 (B, H, W, 3), slot int32 (B,), mask? uint8 (B, H, W, 1)}; metrics are float32 scalars,
        equal on every replica.

    Raises:
        ValueError: an unknown kind or group.
    """
    if unknown := set(frozen_groups) - set(system.optimizers):
        raise ValueError(f"no parameter group {min(unknown)!r} to freeze: known are {', '.join(system.optimizers)}")
    system = dataclasses.replace(system, frozen_groups=tuple(frozen_groups))
    turns = _turns(system, kind)

    def step(state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, dict]:
        collected: dict[str, jax.Array] = {}
        before = state.guard
        for function in turns:
            gradients, stats, scalars = averaged(function, system, state, frozen, batch)
            state, norms = _update(system, state, gradients, stats, scalars)
            collected |= scalars | norms
        state = state.replace(step=state.step + 1, guard=guard.after_step(before, state.guard))
        collected |= guard.scalars(state.guard)
        # A generator that stays as it is has nothing to average.
        return state if kind == "discriminator" else _moving_average(system.config, state), collected

    return step


def _turns(system: System, kind: str) -> tuple[Gradients, ...]:
    """Returns the updates of one step, in turn."""
    if kind == "reconstruction" or (kind == "generator" and system.discriminator is None):
        return (generator_only_gradients,)
    known = {
        "generator": (adversarial_generator_gradients,),
        "discriminator": (discriminator_gradients,),
        "joint": (simultaneous_gradients,)
        if system.config.regime.order == "simultaneous"
        else (discriminator_gradients, adversarial_generator_gradients),
    }
    if kind not in known:
        raise ValueError(f"unknown kind of phase {kind!r}: known are {', '.join((*known, 'reconstruction'))}")
    return known[kind]
