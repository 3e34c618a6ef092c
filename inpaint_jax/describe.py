"""Both networks in words: parameters per block and floating-point operations of an image."""

import json
import math
from collections import Counter
from collections.abc import Mapping

import flax.linen as nn
import jax
import ml_collections
from clu import parameter_overview

from inpaint_jax import models, perceptual, state, task
from inpaint_jax.models.layers import Conv, ConvTranspose
from inpaint_jax.models.vgg import VGG16

_EVALUATION = {"train": False}


def forward_gflops(module: nn.Module, shapes: tuple | Mapping[str, tuple], options: Mapping = _EVALUATION) -> float:
    """Returns 10^9 floating-point operations of one image's forward pass: multiply-adds of convolutions and dense, x2.

    Counted of the plain formulation, so that the figure does not depend on how a layer is computed.

    Args:
        shapes: (H, W, C) of the module's input, or a mapping of such, as `task.input_shapes` returns them.
        options: further arguments of the module's call.
    """
    total = Counter()

    def count(next_call, args, kwargs, context):
        output = next_call(*args, **kwargs)
        layer = context.module
        if context.method_name == "__call__" and isinstance(layer, Conv | ConvTranspose | nn.Dense):
            kernel = layer.variables["params"]["kernel"]
            # Each kernel element is used once per output position of a convolution or a dense layer, per input
            # position of a transposed one.
            positions = args[0] if isinstance(layer, ConvTranspose) else output
            total["flops"] += 2 * kernel.size * math.prod(positions.shape[1:-1])
        return output

    def initialise() -> None:
        with nn.intercept_methods(count):
            module.init(jax.random.key(0), state.zeros(shapes), **options)

    jax.eval_shape(initialise)
    return total["flops"] / 1e9


def network_figures(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Returns parameter counts and operations; train = 3 generator passes and 7 discriminator passes for one image.

    A backward pass costs two forward ones. D judges a real and a generated image, and hands the generator's
    gradient back once more: 3 + 3 + 1. Of a pretrained network that is not trained there is one pass of the real image,
    and one each way of what is generated.
    """
    shapes = jax.eval_shape(lambda: state.initial_variables(config))
    counts = {name: sum(x.size for x in jax.tree.leaves(v["params"])) for name, v in shapes.items()}
    shapes = task.input_shapes(config)
    generator = forward_gflops(models.build_generator(config), shapes["generator"])
    discriminator = 0.0
    if (module := models.build_discriminator(config)) is not None:
        discriminator = forward_gflops(module, shapes["discriminator"])
    pretrained = sum(
        forward_gflops(VGG16(config.vgg.width), (config.image_size, config.image_size, 3), {"blocks": blocks})
        * (1 if name == "image" else 2)
        for name, blocks in perceptual.blocks_seen(config).items()
    )
    return {
        "generator_parameters": counts["generator"],
        "discriminator_parameters": counts.get("discriminator", 0),
        "generator_gflops_per_image": round(generator, 4),
        "train_gflops_per_image": round(3 * generator + 7 * discriminator + pretrained, 4),
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
