"""Whether a network in C fits into RAM: by its schedule, before anything is trained."""

import copy

from torch import nn

from common.compression import quantization
from common.compression.reparameterization import fuse_branches
from common.compression.target_devices import TargetDevice
from common.integer import from_fx, recomputation
from common.integer.graph import Graph
from common.system.errors import UserError

WAYS = (
    ("rows", 0.0),
    ("camera", 0.0),
    ("camera", 0.1),
)  # schedule and extra MACs, in the order of preference


def graph_of(model: nn.Module, target: TargetDevice, image_size: int) -> Graph:
    """The int8 form of a float network, with arbitrary scales.

    Args:
        model: The network, not changed.
        target: The device to quantize for.
        image_size: Side of the images, in pixels.

    Returns:
        A graph with the shapes of the network.

    Raises:
        UserError: A part of the network computes in float32.
    """
    skeleton = quantization.skeleton(fuse_branches(copy.deepcopy(model)), target, image_size)
    return from_fx.read(skeleton, image_size)


def find_way(graph: Graph, ram: int) -> tuple[str, float]:
    """Finds a schedule with which the activations of an int8 network fit.

    Pruning changes them little: most of them are the image, and a few rows of the first layers.

    Args:
        graph: The network.
        ram: Bytes.

    Returns:
        Of `WAYS` the first that fits.

    Raises:
        UserError: None fits.
    """
    needed = {}
    for schedule, extra in WAYS:
        _, plan = recomputation.plan(graph, schedule, extra)
        if plan.arena <= ram:
            return schedule, extra
        needed[schedule, extra] = plan.arena
    least, side = min(needed.values()), graph.input.shape[1]
    raise UserError(f"at {side} pixels the activations need {least:,} bytes of RAM in C, more than {ram:,}")
