"""A model of weak scaling: what a step costs on many chips, from the step of one chip and what is said between them.

Weak scaling: every chip keeps its batch, so that computing takes as long as on one chip, and what is added is talk:

    efficiency = T(1) / (T(1) + gradients + batch statistics)

An all-reduce of B bytes over n chips that send w bytes a second each takes 2 (n - 1) / n * B / w, whichever algorithm
is best: that is the least that must be sent (P. Patarasuk, X. Yuan, "Bandwidth optimal all-reduce algorithms for
clusters of workstations", J. Parallel Distrib. Comput. 69(2), 2009). To it comes the latency of the hops that follow
one another. A ring has 2 (n - 1) of them, halving and doubling 2 log2(n) (R. Thakur, R. Rabenseifner, W. Gropp,
"Optimization of Collective Communication Operations in MPICH", Int. J. High Perform. Comput. Appl. 19(1), 2005), as
NCCL's trees have; libraries take what is faster, so behind a switch the model takes the logarithm. In a torus of d
dimensions whose axes are rings in both directions there are d n^(1/d) hops (https://jax-ml.github.io/scaling-book,
chapter 3). Over several nodes or slices: a reduce-scatter inside, an all-reduce between those that hold the same part,
a gather inside. NCCL does the three at once, piece by piece, and the slowest counts; on TPUs they follow one another.

Where the model ends:
 - The step is that of the chip in question: one that was measured on a GPU says nothing of TPUs.
 - All chips are equally fast. One late chip delays all; how late chips are can only be measured.
 - Nobody else uses the network, and every node reaches every other at full bandwidth. With more than some hundred
   nodes that is what networks promise and seldom hold.
 - Nothing is hidden: XLA could send while it computes. The gradients go as one vector, which is complete only after
   the whole backward pass, so there is nothing left to hide them behind; `Prediction.overlapped` says what the best
   possible overlap would give. Batch statistics cannot be hidden: the next layer waits for them.
 - The axes of a torus are rings only where they are whole, on a TPU v5e with 16 chips: 8 of them take twice as long.
 - Latencies are assumptions, see LINKS. Small all-reduces take up to twice what the model says, where that was looked
   up (16 H100 over InfiniBand: 1 MB 0.088 ms, 100 MB 0.65 ms, 1 GB 4.5 ms, measured by others; here 0.04, 0.54 and
   5.1). It was not checked on a cluster by us.
 - The host must read that many times more pictures (`host_images_per_s`).
"""

import bisect
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from inpaint_jax import json_files

CHIPS = (8, 64, 512, 4096)
ENOUGH = 0.9  # efficiency under which scaling counts as broken
MOST_CHIPS = 2**17  # for which it is asked where that is
BACKWARD = 2 / 3  # share of a step in which gradients come about: two of three passes through a network


@dataclasses.dataclass(frozen=True)
class Link:
    """Two networks: one inside a node or slice, and one between those.

    Attributes:
        chips: how many the network inside joins; the GPUs of a node, or the chips of a TPU pod.
        chips_per_host: how many one machine feeds with pictures.
        inside_gb_s, between_gb_s: 10^9 bytes a second that each chip sends in one direction, as published; between
            nodes, its share.
        inside_us, between_us: microseconds of one hop.
        begin_us: microseconds of an all-reduce, whatever its size and the number of chips.
        torus: dimensions of the network inside, 0 for a switch.
        pipelined: all-reduces go through both networks at once, piece by piece.
        attained: share of the published bandwidth that all-reduces reach.
    """

    chips: int
    chips_per_host: int
    inside_gb_s: float
    inside_us: float
    between_gb_s: float
    between_us: float
    begin_us: float
    torus: int = 0
    pipelined: bool = True
    attained: float = 0.8


# Bandwidths are published. Latencies, what an all-reduce takes to begin, and the share that is attained, are
# assumptions, and come from the following:
#  - 0.6 us a hop of NVLink and 5 us of a network card are the constants by which NCCL chooses its algorithms
#    (NVIDIA/nccl, src/graph/tuning.cc, trees with the LL protocol). With 20 us to begin, two machines need 30 us for
#    8 KB, as measured (NVIDIA/dgx-spark-playbooks, pull request 103).
#  - Over TCP, without RDMA: 16 H100 in two machines of Google Cloud need 123 us for 8 bytes
#    (lessizzmore/create-a3mega-ztan-fork), which is 50 us a hop. Of the network between TPU pods nothing was found.
#  - 1 us a hop of TPUs, and 8 us for what the hops alone would do in 3 (scaling-book, chapter 3).
#  - 80%: NCCL's authors name 370 of NVLink's 450 GB/s (NVIDIA/nccl-tests, issue 212); 560 us became 680 on a TPU v5e
#    (scaling-book, chapter 3).
LINKS = {
    # Eight GPUs by NVLink 4, 900 GB/s in both directions (NVIDIA's own description of the machine, H200-SXM-141GBx8 in
    # mlcommons/inference_results_v4.1), and eight network cards of 400 Gb/s: Google Cloud's A3 Ultra,
    # https://cloud.google.com/compute/docs/gpus/gpu-network-bandwidth.
    "h200_infiniband": Link(8, 8, 450.0, 0.6, 400 / 8, 5.0, 20.0),
    # The same nodes, with 100 Gb/s of Ethernet for all eight GPUs, as Google Cloud's A2 has, on the same page.
    "h200_ethernet_100g": Link(8, 8, 450.0, 0.6, 100 / 8 / 8, 50.0, 20.0),
    # 400 GB/s in both directions, 256 chips in a 2D torus, 8 chips and two cards of 100 Gb/s a host,
    # https://cloud.google.com/tpu/docs/v5e.
    "tpu_v5e": Link(256, 8, 200.0, 1.0, 200 / 8 / 8, 50.0, 5.0, torus=2, pipelined=False),
    # 1200 GB/s in both directions, 8960 chips in a 3D torus (6144 in one job), 4 chips a host, 50 Gb/s a chip between
    # slices, https://cloud.google.com/tpu/docs/v5p.
    "tpu_v5p": Link(6144, 4, 600.0, 1.0, 50 / 8, 50.0, 5.0, torus=3, pipelined=False),
}


def read_link(name: str) -> Link:
    """Returns a link of LINKS, or of a JSON file with all fields of `Link`.

    Raises:
        ValueError: it is neither, or a field is missing, unknown, or no number over 0.
    """
    if name in LINKS:
        return LINKS[name]
    if not name.endswith(".json"):
        raise ValueError(f"--link={name}: use one of {', '.join(LINKS)}, or a .json file with fields as --json prints")
    found, fields = json_files.read(Path(name)), {field.name: field.type for field in dataclasses.fields(Link)}
    if not isinstance(found, dict) or found.keys() != fields.keys():
        raise ValueError(f"{name!r} describes no link: give an object with the fields {', '.join(fields)}")
    for field, kind in fields.items():
        value, least = found[field], 0 if field == "torus" or field.endswith("_us") else 1e-9
        right = isinstance(value, bool) if kind is bool else _is_number(value, kind) and least <= value <= 1e12
        if not right or (field == "attained" and value > 1):
            raise ValueError(f"{name!r}: {field} = {value!r}: use a number as in {json.dumps(_first_link())}")
    return Link(**found)


def _first_link() -> dict:
    return dataclasses.asdict(next(iter(LINKS.values())))


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)


def all_reduce_ms(size: float, chips: int, link: Link) -> float:
    """Returns the milliseconds of an all-reduce; 0 for a single chip.

    Args:
        size: bytes of the array, which every chip has.
    """
    if chips <= 1:
        return 0.0
    inside, between = min(chips, link.chips), math.ceil(chips / link.chips)
    hops_inside = link.torus * inside ** (1 / link.torus) if link.torus else 2 * math.ceil(math.log2(inside))
    latency = link.begin_us + hops_inside * link.inside_us + 2 * math.ceil(math.log2(between)) * link.between_us
    sending = (
        _sending_ms(size, inside, link.inside_gb_s * link.attained),
        _sending_ms(size / inside, between, link.between_gb_s * link.attained),
    )
    return latency / 1e3 + (max(sending) if link.pipelined else sum(sending))


def _sending_ms(size: float, parties: int, gb_s: float) -> float:
    return 2 * (parties - 1) / parties * size / gb_s / 1e6


class Prediction(NamedTuple):
    """What the model says of one number of chips.

    Attributes:
        gradients_ms, statistics_ms: milliseconds added to a step.
        efficiency: the step of one chip / the step of so many.
        overlapped: the efficiency if all of the gradients' talk that fits went on beside the backward pass.
    """

    chips: int
    gradients_ms: float
    statistics_ms: float
    efficiency: float
    overlapped: float


def predict(step_ms: float, gradients: Sequence[int], statistics: Sequence[int], chips: int, link: Link) -> Prediction:
    """Returns the prediction for one number of chips.

    Args:
        step_ms: milliseconds of a step of one chip.
        gradients, statistics: bytes of each all-reduce in a step.
    """
    gradients_ms = sum(all_reduce_ms(size, chips, link) for size in gradients)
    statistics_ms = sum(all_reduce_ms(size, chips, link) for size in statistics)
    left = max(0.0, gradients_ms - BACKWARD * step_ms)
    return Prediction(
        chips,
        gradients_ms,
        statistics_ms,
        step_ms / (step_ms + gradients_ms + statistics_ms),
        step_ms / (step_ms + left + statistics_ms),
    )


def breaks_at(step_ms: float, gradients: Sequence[int], statistics: Sequence[int], link: Link) -> Prediction | None:
    """Returns the prediction for the fewest chips whose efficiency is below ENOUGH; None up to MOST_CHIPS."""

    def broken(chips: int) -> bool:
        return predict(step_ms, gradients, statistics, chips, link).efficiency < ENOUGH

    # More chips are never more efficient.
    first = bisect.bisect_left(range(2, MOST_CHIPS + 1), True, key=broken) + 2
    return predict(step_ms, gradients, statistics, first, link) if first <= MOST_CHIPS else None


def host_images_per_s(step_ms: float, images: int, link: Link) -> float:
    """Returns how many pictures a second a host must read for its chips, if nothing else delays them.

    Args:
        images: of one chip in a step.
    """
    return link.chips_per_host * images / step_ms * 1e3
