"""What a training step says between devices, counted in its traced program: neither devices nor compiling are needed.

XLA leaves out of a program what nothing depends on, and computes once what stands in it twice; so does the count.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from inpaint_jax import parallel, perceptual, state, step
from inpaint_jax.models.vgg import VGG16

REPLICAS = 8  # of the traced program; the counts are the same for any number over 1


class AllReduce(NamedTuple):
    """One all-reduce of a program.

    Attributes:
        values: numbers that each replica gives and gets.
        dtype: their type.
        of_gradients: whether they are gradients, or what comes with them, and not batch statistics.
    """

    values: int
    dtype: str
    of_gradients: bool

    @property
    def bytes(self) -> int:
        return self.values * jax.numpy.dtype(self.dtype).itemsize


def of_step(config: ml_collections.ConfigDict, kind: str, frozen_groups: Collection[str] = ()) -> list[AllReduce]:
    """Returns the all-reduces of one training step, in the order of the program.

    Args:
        config: a validated one.
        kind: what the step trains, one of `regimes.KINDS`.
        frozen_groups: parameter groups that stay as they are.
    """
    system = step.make_system(config, total_steps=1)
    trained = jax.eval_shape(lambda: state.create_state(config, system.optimizers))
    # How many examples there are changes no all-reduce, but each microbatch has its own.
    examples, side = REPLICAS * config.accumulate, config.image_size
    batch = {
        "image": jax.ShapeDtypeStruct((examples, side, side, 3), np.uint8),
        "slot": jax.ShapeDtypeStruct((examples,), np.int32),
    }
    if config.mask.name == "files":
        batch["mask"] = jax.ShapeDtypeStruct((examples, side, side, 1), np.uint8)
    function = step.make_train_step(system, kind, tuple(frozen_groups))
    return of_program(parallel.trace(function, REPLICAS, trained, _frozen_shapes(config), batch))


def applications(found: Sequence[AllReduce]) -> list[int]:
    """Returns the bytes of each application of synchronised batch normalisation, there and back.

    An application averages two moments, of equal size and at the same time: XLA makes one all-reduce of them.
    """
    moments = [one.bytes for one in found if not one.of_gradients]
    return [2 * size for size in moments[::2]]


def _frozen_shapes(config: ml_collections.ConfigDict) -> Mapping[str, Any]:
    """Returns the shapes of the pretrained weights that a step takes."""
    if "vgg16" not in perceptual.needed_weights(config):
        return {}
    picture = state.zeros((config.image_size, config.image_size, 3))
    variables = jax.eval_shape(lambda: VGG16(config.vgg.width).init(jax.random.key(0), picture))
    return {"vgg16": variables["params"]}


def of_program(program: jax.extend.core.ClosedJaxpr) -> list[AllReduce]:
    """Returns the all-reduces on which the results of a program depend, equal ones once.

    Raises:
        ValueError: there are collectives of other kinds, or some inside of a loop or a branch, which are not counted.
    """
    graph = _Graph()
    return graph.needed_for(graph.walk(program, [graph.new() for _ in program.jaxpr.invars]))


class _Graph:
    """The values of a program, each with a number, and which others it is computed from.

    Equal operations on equal values have the same numbers: value numbering, as compilers do.
    """

    def __init__(self):
        self._sources: list[tuple[int, ...]] = []  # of each value
        self._known: dict[Hashable, list[int]] = {}  # operation -> its results
        self._all_reduces: dict[int, AllReduce] = {}  # result -> what it comes from

    def new(self, sources: tuple[int, ...] = ()) -> int:
        """Returns the number of a new value."""
        self._sources.append(sources)
        return len(self._sources) - 1

    def walk(self, program: jax.extend.core.ClosedJaxpr, given: list[int]) -> list[int]:
        """Takes in a program and returns the numbers of its results."""
        numbers = dict(zip(program.jaxpr.invars, given, strict=True))
        for variable, constant in zip(program.jaxpr.constvars, program.consts, strict=True):
            numbers[variable] = self._constant(variable.aval, constant)

        def number(value: Any) -> int:
            literal = isinstance(value, jax.extend.core.Literal)
            return self._constant(value.aval, value.val) if literal else numbers[value]

        for equation in program.eqns:
            results = self._apply(equation, [number(value) for value in equation.invars])
            numbers.update(zip(equation.outvars, results, strict=True))
        return [number(value) for value in program.jaxpr.outvars]

    def _constant(self, kind: Any, value: Any) -> int:
        return self._result(("constant", str(kind), np.asarray(value).tobytes()), (), 1)[0]

    def _result(self, operation: Hashable, sources: tuple[int, ...], count: int) -> list[int]:
        if operation not in self._known:
            self._known[operation] = [self.new(sources) for _ in range(count)]
        return self._known[operation]

    def _apply(self, equation: Any, sources: list[int]) -> list[int]:
        name, parameters = equation.primitive.name, equation.params
        inner = [program for value in parameters.values() if (program := _program(value)) is not None]
        if len(inner) == 1 and len(inner[0].jaxpr.invars) == len(sources) and name not in ("scan", "while"):
            return self.walk(inner[0], sources)
        if name == "select_n" and len(set(sources[1:])) == 1:
            return sources[1:2]  # a network that the turn leaves as it is
        if any(_communicates(program) for program in inner) or name in _OTHERS:
            raise ValueError(f"the program has {name} between devices, or collectives inside of it: not counted")
        written = tuple(sorted((key, repr(value)) for key, value in parameters.items()))
        results = self._result((name, tuple(sources), written), tuple(sources), len(equation.outvars))
        if name in _ALL_REDUCES:
            of_gradients = step.AVERAGING in str(equation.source_info.name_stack)
            for value, result in zip(equation.invars, results, strict=True):
                self._all_reduces[result] = AllReduce(value.aval.size, str(value.aval.dtype), of_gradients)
        return results

    def needed_for(self, results: list[int]) -> list[AllReduce]:
        """Returns the all-reduces that results are computed from, in the order of the program."""
        left, needed = list(results), set()
        while left:
            value = left.pop()
            if value not in needed:
                needed.add(value)
                left += self._sources[value]
        return [self._all_reduces[value] for value in sorted(needed & self._all_reduces.keys())]


_ALL_REDUCES = ("psum", "psum2", "psum_invariant")
_OTHERS = ("all_gather", "all_to_all", "ppermute", "reduce_scatter", "pmax", "pmin", "pgather")


def _program(value: Any) -> jax.extend.core.ClosedJaxpr | None:
    if isinstance(value, jax.extend.core.Jaxpr):
        return jax.extend.core.ClosedJaxpr(value, ())
    return value if isinstance(value, jax.extend.core.ClosedJaxpr) else None


def _communicates(program: jax.extend.core.ClosedJaxpr) -> bool:
    return any(
        equation.primitive.name in (*_ALL_REDUCES, *_OTHERS)
        or any(_communicates(inner) for value in equation.params.values() if (inner := _program(value)) is not None)
        for equation in program.eqns
    )
