"""A network as a graph of its blocks, traced from one forward pass."""

import inspect
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.extend.core import Literal

Blocks = dict[str, dict]
Edge = tuple[str, str]
Edges = list[Edge]
Example = jax.ShapeDtypeStruct | dict[str, jax.ShapeDtypeStruct]

# With fewer blocks than the first, what they consist of is shown, unless that were more than the second: a
# discriminator of two branches would be three boxes otherwise.
FEW_BLOCKS, MANY_BLOCKS = 4, 24

_MARK = "block_of_the_graph_"
_OPERATIONS = {"concatenate": "concat", "add_any": "add", "dot_general": "matmul", "select_n": "select"}


def block_graph(module: nn.Module, shapes: tuple | Mapping[str, tuple]) -> tuple[Blocks, Edges]:
    """Returns the blocks of a network and the flow of data between them, as one evaluation pass really runs.

    Blocks are the modules directly below `module` (their own ones where there are fewer than FEW_BLOCKS), "input" and
    "output", and each operation outside of modules in which several of them meet. A normalisation layer belongs to the
    block before it. Nothing is computed or compiled.

    Args:
        module: takes float32 (1, H, W, C), or a mapping of such, and train=False where it has such an argument.
        shapes: (H, W, C) of its input, or a mapping of such.

    Returns:
        blocks: in the order of the pass, name -> label, a short name; kind, its class, or input | output | operation |
            parameter; shape of the output without the batch, such as (height, width, channels); parameters, a count
            that a block used twice has only once.
        edges: pairs of names, source first.
    """
    keywords = {"train": False} if "train" in inspect.signature(type(module).__call__).parameters else {}
    several = shapes if isinstance(shapes, Mapping) else {"": shapes}
    examples = {name: jax.ShapeDtypeStruct((1, *shape), np.float32) for name, shape in several.items()}
    example = examples if isinstance(shapes, Mapping) else examples[""]
    modules = []

    def record(call, args, kwargs, context):
        modules.append(context.module.path)
        return call(*args, **kwargs)

    def initialise(example: Example) -> dict:
        with nn.intercept_methods(record):
            return module.init(jax.random.key(0), example, **keywords)

    variables = jax.eval_shape(initialise, example)
    calls, jaxpr = _trace(module, _block_paths(modules), variables, example, keywords)
    blocks, edges = {}, []
    # JAX orders the leaves of a mapping by name.
    sources = {
        variable: _add(blocks, f"input {name}".strip(), "input", several[name])
        for variable, name in zip(jaxpr.invars[-len(several) :], sorted(several), strict=True)
    }
    sources |= _count_parameters(jaxpr.invars[: -len(several)], variables, calls, blocks)
    _follow(jaxpr, sources, calls, blocks, edges)
    for call in calls:
        if call["parameters"]:
            _name_of_call(call, blocks)
    several = len(jaxpr.outvars) > 1
    output = _add(blocks, "output", "output", () if several else jaxpr.outvars[0].aval.shape[1:])
    if several:
        blocks[output]["label"] = f"{len(jaxpr.outvars)} outputs"
    ends = [None if isinstance(v, Literal) else sources.get(v) for v in jaxpr.outvars]
    edges += [(end, output) for end in ends if end is not None]
    return _join_normalisations(_in_order(blocks, edges), list(dict.fromkeys(edges)))


def _add(blocks: Blocks, label: str, kind: str, shape: Sequence[int], parameters: int = 0) -> str:
    """Adds a block and returns its name: the label, with a number where there is one of that name already."""
    name, number = label, 1
    while name in blocks:
        number += 1
        name = f"{label} ({number})"
    label = label if kind == "operation" else name
    blocks[name] = {"label": label, "kind": kind, "shape": tuple(shape), "parameters": parameters}
    return name


def _block_paths(modules: Sequence[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Returns the modules to show as blocks, from the paths of all modules that were called."""
    paths, opened = set(), {()}
    while opened != paths and len(paths) < FEW_BLOCKS and (paths <= {()} or len(opened) <= MANY_BLOCKS):
        paths, opened = opened, set()
        for path in paths:
            opened |= {m[: len(path) + 1] for m in modules if m[: len(path)] == path != m} or {path}
    return paths


def _trace(
    module: nn.Module, paths: set[tuple[str, ...]], variables: dict, example: Example, keywords: dict
) -> tuple[list[dict], jax.extend.core.Jaxpr]:
    """Returns the calls of blocks, in order, and the pass in whose name stacks the number of the call stands."""
    calls, inside = [], []

    def mark(call, args, kwargs, context):
        path = context.module.path
        if path not in paths or context.method_name == "setup" or inside:
            return call(*args, **kwargs)
        inside.append(path)
        with jax.named_scope(f"{_MARK}{len(calls)}"):
            result = call(*args, **kwargs)
        inside.pop()
        shape = next((x.shape[1:] for x in jax.tree.leaves(result) if hasattr(x, "shape")), ())
        kind = type(context.module).__name__
        calls.append({"path": path, "kind": kind, "parameters": 0, "shape": shape, "name": None})
        return result

    def forward(variables: dict, example: Example) -> jax.Array:
        with nn.intercept_methods(mark):
            return module.apply(variables, example, **keywords)

    return calls, _plain(jax.make_jaxpr(forward)(variables, example))


def _count_parameters(arguments: Sequence, variables: dict, calls: list[dict], blocks: Blocks) -> dict:
    """Counts each parameter in the first call of the block it is in; those of no block become blocks of their own."""
    sources = {}
    for argument, (path, leaf) in zip(arguments, jax.tree_util.tree_leaves_with_path(variables), strict=True):
        collection, *names = (entry.key for entry in path)
        if collection == "params":
            owner = next((call for call in calls if tuple(names[: len(call["path"])]) == call["path"]), None)
            if owner is None:
                sources[argument] = _add(blocks, "/".join(names), "parameter", leaf.shape, leaf.size)
            else:
                owner["parameters"] += leaf.size
    return sources


def _plain(jaxpr):
    return getattr(jaxpr, "jaxpr", jaxpr)


def _follow(jaxpr, sources: dict, calls: list[dict], blocks: Blocks, edges: Edges) -> None:
    """Adds blocks and edges to the graph; sources: variable -> the block that its value comes from."""
    for equation in jaxpr.eqns:
        inputs = [None if isinstance(v, Literal) else sources.get(v) for v in equation.invars]
        mark = re.search(_MARK + r"(\d+)", str(equation.source_info.name_stack))
        body = _plain(equation.params.get("jaxpr", equation.params.get("call_jaxpr")))
        if mark is None and body is not None and len(body.invars) == len(inputs):
            # Compiled or rematerialised: blocks may be inside.
            inner = dict(zip(body.invars, inputs, strict=True))
            _follow(body, inner, calls, blocks, edges)
            results = [None if isinstance(v, Literal) else inner.get(v) for v in body.outvars]
        else:
            names = list(dict.fromkeys(name for name in inputs if name is not None))
            if mark is not None:
                result = _name_of_call(calls[int(mark[1])], blocks)
            elif len(names) > 1 and equation.outvars:  # jax.debug.print gives nothing
                operation = equation.primitive.name
                shape = equation.outvars[0].aval.shape[1:]
                result = _add(blocks, _OPERATIONS.get(operation, operation), "operation", shape)
            else:
                result = names[0] if names else None
            edges += [(name, result) for name in names if name != result]
            results = [result] * len(equation.outvars)
        sources.update(zip(equation.outvars, results, strict=True))


def _name_of_call(call: dict, blocks: Blocks) -> str:
    if call["name"] is None:
        label = "/".join(call["path"]) or call["kind"]
        call["name"] = _add(blocks, label, call["kind"], call["shape"], call["parameters"])
    return call["name"]


def neighbours(edges: Edges) -> tuple[Mapping[str, list[str]], Mapping[str, list[str]]]:
    """Returns the blocks right before and right after each block."""
    before, after = defaultdict(list), defaultdict(list)
    for source, target in edges:
        before[target].append(source)
        after[source].append(target)
    return before, after


def _in_order(blocks: Blocks, edges: Edges) -> Blocks:
    """Returns the blocks in the order of the pass, parameters right before the first block that uses them."""
    after = neighbours(edges)[1]
    position = {name: 2 * number + 1 for number, name in enumerate(blocks)}
    for name, block in blocks.items():
        if block["kind"] == "parameter":
            position[name] = min((position[user] for user in after[name]), default=2 * len(blocks)) - 1
    return {name: blocks[name] for name in sorted(blocks, key=position.get)}


def _join_normalisations(blocks: Blocks, edges: Edges) -> tuple[Blocks, Edges]:
    """Joins a layer that normalises nothing but the block before it to that block."""
    for name, block in list(blocks.items()):
        before, after = neighbours(edges)
        # Layers of these names normalise the weights of another layer, which they hold.
        if not block["kind"].endswith("Norm") or block["kind"] in ("SpectralNorm", "WeightNorm"):
            continue
        if len(before[name]) != 1:
            continue
        previous = before[name][0]
        kept = blocks[previous]
        alone = after[previous] == [name] and kept["shape"] == block["shape"]
        if alone and kept["kind"] not in ("input", "operation", "parameter"):
            kept["kind"] += f" + {block['kind']}"
            kept["parameters"] += block["parameters"]
            del blocks[name]
            edges = [(previous if a == name else a, b) for a, b in edges if b != name]
    return blocks, edges
