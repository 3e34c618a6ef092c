"""Both networks in words: parameters per block and floating-point operations of an image."""

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping

import flax.linen as nn
import jax
import ml_collections
from clu import parameter_overview

from inpaint_jax import models, perceptual, state, task
from inpaint_jax.models.attention_unet import SelfAttention
from inpaint_jax.models.layers import Conv, ConvTranspose
from inpaint_jax.models.resampling import DoublingConv
from inpaint_jax.models.vgg import VGG16

_EVALUATION = {"train": False}


def forward_gflops(module: nn.Module, shapes: tuple | Mapping[str, tuple], options: Mapping = _EVALUATION) -> float:
    """Returns 10^9 floating-point operations of one image's forward pass.

    Multiply-adds of convolutions, dense layers and attention, x2. Counted of the plain formulation, so that the figure
    does not depend on how a layer is computed.

    Args:
        shapes: (H, W, C) of the module's input, or a mapping of such, as `task.input_shapes` returns them.
        options: further arguments of the module's call.
    """
    return sum(_flops_by_layer(module, shapes, options).values()) / 1e9


def _flops_by_layer(
    module: nn.Module, shapes: tuple | Mapping[str, tuple], options: Mapping = _EVALUATION
) -> Counter[str]:
    """Returns the floating-point operations of one image's forward pass for each outermost layer."""
    total = Counter()

    def count(next_call, args, kwargs, context):
        output = next_call(*args, **kwargs)
        layer = context.module
        if context.method_name != "__call__":
            return output
        multiply_adds = 0
        if isinstance(layer, Conv | ConvTranspose | DoublingConv | nn.Dense):
            kernel = layer.variables["params"]["kernel"]
            # Each kernel element is used once per output position of a convolution or a dense layer, per input
            # position of a transposed one.
            positions = args[0] if isinstance(layer, ConvTranspose) else output
            multiply_adds = kernel.size * math.prod(positions.shape[1:-1])
        elif isinstance(layer, SelfAttention):
            # Beside its convolutions: every position's query with every key, and the sum of the values.
            _, height, width, channels = output.shape
            multiply_adds = (height * width) ** 2 * (max(channels // 8, 1) + channels)
        if multiply_adds:
            total[layer.path[0] if layer.path else ""] += 2 * multiply_adds
        return output

    def initialise() -> None:
        with nn.intercept_methods(count):
            module.init(jax.random.key(0), state.zeros(shapes), **options)

    jax.eval_shape(initialise)
    return total


def step_gflops(config: ml_collections.ConfigDict, kind: str, frozen_groups: Collection[str] = ()) -> float:
    """Returns 10^9 floating-point operations of one training step for each of its images.

    A backward pass costs two forward ones, one towards the weights and one towards the input. Of both networks trained
    at once there are 3 generator passes and 7 discriminator passes: D judges a real and a generated image, and hands
    the generator's gradient back once more, 3 + 3 + 1. One after the other (`config.regime.order`) the generator runs
    twice, and D judges anew for it: 4 and 8. Of a pretrained network that is not trained there is one pass of the real
    image, and one each way of what is generated. Activations, losses and optimisers are not counted.

    Args:
        kind: what the step trains, one of `regimes.KINDS`.
        frozen_groups: parameter groups that stay as they are, for which no weights' gradient is computed.
    """
    shapes, judge = task.input_shapes(config), models.build_discriminator(config)
    forward = _flops_by_layer(models.build_generator(config), shapes["generator"])
    trained = {group: f"generator/{group}" not in frozen_groups for group in ("vgg", "rest")}
    # The layer that takes the mask into a pretrained encoder lies before it, and so does the gradient's way to it.
    enters = trained["rest"] and "mask_entry" in forward
    encoder = forward.pop("vgg", 0) / 1e9
    others = sum(forward.values()) / 1e9
    through = trained["rest"] or (trained["vgg"] and encoder > 0)
    generator = encoder + others
    update = others * (trained["rest"] + through) + encoder * (trained["vgg"] + (trained["vgg"] or enters))
    update += _pretrained_gflops(config)
    if kind == "reconstruction" or judge is None:
        return generator + update
    judging = forward_gflops(judge, shapes["discriminator"])
    d_update = 0.0 if "discriminator" in frozen_groups else 4 * judging
    turns = {
        "generator": generator + update + 2 * judging,
        "discriminator": generator + 2 * judging + d_update + _pretrained_gflops(config, judging_alone=True),
    }
    if kind in turns:
        return turns[kind]
    return sum(turns.values()) if config.regime.order == "sequential" else generator + update + 3 * judging + d_update


def _pretrained_gflops(config: ml_collections.ConfigDict, judging_alone: bool = False) -> float:
    """Returns the operations of the pretrained VGG16 that losses and the discriminator "vgg" look through.

    Args:
        judging_alone: in a step of the discriminator alone: no loss looks, and no gradient is handed back.
    """
    seen, side = perceptual.blocks_seen(config), config.image_size
    if judging_alone:
        judged = ("image", config.discriminator.sees) if config.discriminator.name == "vgg" else ()
        seen = {name: perceptual.JUDGED_BLOCK for name in judged}
    vgg = VGG16(config.vgg.width)
    return sum(
        forward_gflops(vgg, (side, side, 3), {"blocks": blocks}) * (1 if name == "image" or judging_alone else 2)
        for name, blocks in seen.items()
    )


def network_figures(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Returns parameter counts, and operations for one image of a forward pass and of training all that is trained."""
    shapes = jax.eval_shape(lambda: state.initial_variables(config))
    counts = {name: sum(x.size for x in jax.tree.leaves(v["params"])) for name, v in shapes.items()}
    generator = forward_gflops(models.build_generator(config), task.input_shapes(config)["generator"])
    return {
        "generator_parameters": counts["generator"],
        "discriminator_parameters": counts.get("discriminator", 0),
        "generator_gflops_per_image": round(generator, 4),
        "train_gflops_per_image": round(step_gflops(config, "joint"), 4),
    }


def parameter_tables(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Returns, for each network, its parameters block by block and array by array as a plain-text table."""
    tables = {}
    for name, variables in jax.eval_shape(lambda: state.initial_variables(config)).items():
        blocks = Counter()
        for block, tree in variables["params"].items():
            blocks[block] += sum(x.size for x in jax.tree.leaves(tree))
        lines = [f"{name}: {sum(blocks.values()):,} parameters"]
        lines += [f"  {block:20} {count:>12,}" for block, count in blocks.items()]
        lines.append(parameter_overview.get_parameter_overview(variables["params"], include_stats=False))
        tables[name] = "\n".join(lines)
    return tables


def print_networks(config: ml_collections.ConfigDict) -> None:
    """Prints the parameters of both networks, and as the last line one JSON object; the config is a validated one."""
    task.validate_task(config)
    for table in parameter_tables(config).values():
        print(table)
    print(json.dumps(network_figures(config)))
