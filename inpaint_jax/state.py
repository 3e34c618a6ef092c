"""All that training needs to go on: `TrainState` on the devices, `RegimeState` on the host."""

import dataclasses
from collections.abc import Mapping

import flax
import jax
import jax.numpy as jnp
import ml_collections
import optax

from inpaint_jax import guard, keys, models, optim, task

Tree = dict


@flax.struct.dataclass
class TrainState:
    """Saved unreplicated; every array that one more step depends on.

    Attributes:
        step: optimiser steps done, int32.
        params, stats: `{"generator": …, "discriminator": …}`, parameters and batch statistics, float32.
        opt: optax state of each parameter group.
        ema_params, ema_stats: moving averages of the generator's; they are evaluated, exported and used.
        lr_scale: factor on the learning rate of each group, float32, changed by rate reactions.
        guard: what the divergence guard counts; see `guard.first_guard`.
    """

    step: jax.Array
    params: dict[str, Tree]
    stats: dict[str, Tree]
    opt: dict[str, optax.OptState]
    ema_params: Tree
    ema_stats: Tree
    lr_scale: dict[str, jax.Array]
    guard: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class RegimeState:
    """Where the training regime stands; JSON in the same checkpoint.

    Attributes:
        phase: name of the phase, in `config.regime.phases`; without any, what is trained.
        phase_index, phase_start: how many phases came before, and the step at which it began.
        phase_best, phase_found_best: best value of what the phase watches; whether `best` is of this phase.
        best, best_step: best value of `config.regime.monitor` in the run, None before the generator learns, and its
            step.
        waited_epochs, validated_epoch: epochs since the phase's best; the epoch of the last validation.
        reactions: rate reactions so far.
        stopped: the regime has ended the run.
    """

    phase: str
    phase_index: int = 0
    phase_start: int = 0
    phase_best: float | None = None
    phase_found_best: bool = False
    best: float | None = None
    best_step: int = 0
    waited_epochs: int = 0
    validated_epoch: int = 0
    reactions: int = 0
    stopped: bool = False

    def to_json(self) -> dict:
        """Returns plain values for a JSON file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping) -> "RegimeState":
        """Reads what `to_json` wrote."""
        return cls(**values)


def zeros(shapes: tuple | Mapping[str, tuple]) -> jax.Array | dict[str, jax.Array]:
    """Returns an example of a network's input, float32 (1, H, W, C), from a shape of `task.input_shapes`."""
    if isinstance(shapes, Mapping):
        return {view: zeros(shape) for view, shape in shapes.items()}
    return jnp.zeros((1, *shapes), jnp.float32)


def initial_variables(
    config: ml_collections.ConfigDict, frozen: Mapping[str, Tree] | None = None
) -> dict[str, dict[str, Tree]]:
    """Returns `{"generator": {"params", "batch_stats"}, …}`, drawn from `config.seed`; jit-compatible.

    Args:
        frozen: the pretrained weights of `perceptual.load_frozen`, from which a generator's VGG16 begins. Without them
            it is not a number, and only the shapes are of use.
    """
    networks = {"generator": models.build_generator(config)}
    if (discriminator := models.build_discriminator(config)) is not None:
        networks["discriminator"] = discriminator
    variables, shapes = {}, task.input_shapes(config)
    for name, module in networks.items():
        drawn = module.init(keys.purpose_key(config.seed, name), zeros(shapes[name]), train=False)
        params = drawn["params"]
        if "vgg" in params and frozen:
            params = {**params, "vgg": jax.tree.map(jnp.asarray, frozen["vgg16"])}
        variables[name] = {"params": params, "batch_stats": drawn.get("batch_stats", {})}
    return variables


def create_state(
    config: ml_collections.ConfigDict,
    optimizers: Mapping[str, optax.GradientTransformation],
    frozen: Mapping[str, Tree] | None = None,
) -> TrainState:
    """Returns the state before the first step; jit-compatible.

    A function of `config.seed` and, where the generator has a VGG16, of the pretrained weights; see
    `initial_variables`.
    """
    variables = initial_variables(config, frozen)
    params = {name: v["params"] for name, v in variables.items()}
    stats = {name: v["batch_stats"] for name, v in variables.items()}
    return TrainState(
        step=jnp.int32(0),
        params=params,
        stats=stats,
        opt={g: o.init(optim.select(params[g.split("/")[0]], g)) for g, o in optimizers.items()},
        ema_params=jax.tree.map(jnp.copy, params["generator"]),
        ema_stats=jax.tree.map(jnp.copy, stats["generator"]),
        lr_scale={group: jnp.float32(1.0) for group in optimizers},
        guard=guard.first_guard(),
    )
