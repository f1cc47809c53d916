"""Whether a network in C fits into RAM: by its schedule, before anything is trained."""

import copy

from torch import nn

from common.compression import quantization
from common.compression.reparameterization import fuse_branches
from common.compression.target_devices import TargetDevice
from common.deployment import c_writer
from common.integer import from_fx
from common.integer.graph import Graph
from common.system.errors import UserError

STATISTICS = [0.5] * 3, [0.5] * 3  # mean and standard deviation, which change no size
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
    """Finds a schedule with which an int8 network in C fits.

    Pruning changes the RAM little: most of it is the image, and a few rows of the first layers.

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
        written = c_writer.write(graph, "network", schedule, "twice", [], *STATISTICS, extra)
        if written.ram <= ram:
            return schedule, extra
        needed[schedule, extra] = written.ram
    least, side = min(needed.values()), graph.input.shape[1]
    raise UserError(f"at {side} pixels the network needs {least:,} bytes of RAM in C, more than {ram:,}")
