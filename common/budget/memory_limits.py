"""The RAM of a float network once it is in C, by its schedule, before anything is trained."""

import copy
from collections.abc import Callable
from dataclasses import replace

from torch import fx, nn

from common.compression import quantization
from common.compression.reparameterization import fuse_branches
from common.compression.target_devices import TargetDevice
from common.deployment import c_memory, c_writer
from common.evaluation import memory
from common.evaluation.memory import LiveTensor
from common.integer import from_fx, planner, recomputation
from common.integer.arena import Block
from common.integer.graph import Graph
from common.integer.planner import Plan
from common.models import integers
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
    return from_fx.read(_skeleton(model, target, image_size), image_size)


def peak(
    model: nn.Module, target: TargetDevice, image_size: int, schedule: str
) -> tuple[int, tuple[LiveTensor, ...]]:
    """Finds the RAM of a float network in C once it is quantized, and what takes it.

    Args:
        model: The network, not changed.
        target: The device to quantize for.
        image_size: Side of the images, in pixels.
        schedule: Of `planner.SCHEDULES`.

    Returns:
        Bytes of the static array; the blocks of memory at the moment at which the most bytes are in use, and
        what the largest layer needs besides.

    Raises:
        UserError: A part of the network computes in float32, or has no form in C.
    """
    skeleton = _skeleton(model, target, image_size)
    graph = from_fx.read(skeleton, image_size)
    modules = fuse_branches(model).named_modules()
    widths = {name for name, module in modules if isinstance(module, nn.Conv2d | nn.Linear)}
    called = {node.name: node.target for node in skeleton.graph.nodes if node.target in widths}
    plan, layers = planner.plan(graph, schedule), _layers_by_tensor(graph, called)
    shapes = {each.name: each.shape for each in (graph.input, *(one.output for one in graph.operators))}
    tensors = []
    for block in _at_the_peak(plan):
        name = next(iter(block.tensors))
        tensors.append(LiveTensor(block.size, shapes[name][0], layers[name]))
    scratch, operator = c_memory.largest_scratch(graph)
    channels, owners = operator.inputs[0].shape[0], layers[operator.inputs[0].name]
    tensors.append(LiveTensor(scratch, channels, owners))
    return c_memory.array_bytes(graph, plan), tuple(tensors)


def peak_function(
    image_size: int, precision: str, target: TargetDevice | None, schedule: str
) -> Callable[[nn.Module], tuple[float, tuple[LiveTensor, ...]]]:
    """What a budget of RAM measures.

    Args:
        image_size: Side of the images, in pixels.
        precision: "fp32" or "int8".
        target: The device to quantize for, with another schedule than "layers".
        schedule: "layers" for the peak of the activations; another for `peak`.

    Returns:
        A function of a float network: see `Budget.peak`.
    """
    if schedule != "layers":
        return lambda model: peak(model, target, image_size, schedule)

    def layer_by_layer(model: nn.Module) -> tuple[int, tuple[LiveTensor, ...]]:
        size = memory.BYTES[precision]
        tensors = memory.peak(model, image_size).tensors
        tensors = tuple(replace(each, values=size * each.values) for each in tensors)
        return sum(each.values for each in tensors), tensors

    return layer_by_layer


def describe(schedule: str, image_size: int) -> tuple[str, str]:
    """Describes a budget of RAM.

    Args:
        schedule: Of `planner.SCHEDULES`.
        image_size: Side of the images, in pixels.

    Returns:
        `conditions` and `hint` of a `Budget`.
    """
    smaller = "a smaller --image-size takes less"
    if schedule == "layers":
        return "", f"; {smaller}"
    conditions = f"int8 in C, schedule {schedule}"
    if schedule == "camera":
        return conditions, f"; {smaller}"
    image = f"the image alone takes {3 * image_size**2:,} bytes, which arrive"
    return conditions, f"; {image} row by row with --ram-schedule camera; {smaller}"


def find_way(graph: Graph, ram: int) -> tuple[str, float]:
    """Finds a schedule with which an int8 network in C fits.

    Args:
        graph: The network.
        ram: Bytes.

    Returns:
        Of `WAYS` the first that fits.

    Raises:
        UserError: None fits.
    """
    least, schedule, extra = _best_way(graph, ram)
    if least > ram:
        side = graph.input.shape[1]
        raise UserError(f"at {side} pixels the network needs {least:,} bytes of RAM in C, more than {ram:,}")
    return schedule, extra


def size_in_c(content: dict, ram: int) -> tuple[int, int]:
    """Measures a finished network in C, by the schedule of `find_way`, or by that with the least RAM.

    Args:
        content: That of an int8 checkpoint.
        ram: Bytes.

    Returns:
        Bytes of RAM, and of flash for constants.

    Raises:
        UserError: An operator has no form in C.
    """
    graph = integers.read(content)
    _, schedule, extra = _best_way(graph, ram)
    images = content["classes"], content["mean"], content["std"]
    written = c_writer.write(graph, "network", schedule, "twice", *images, extra)
    return written.ram, written.flash


def _best_way(graph: Graph, ram: int) -> tuple[int, str, float]:
    """Bytes of RAM, schedule and extra MACs of the first of `WAYS` that fits, else of that with the least."""
    found = []
    for way in WAYS:
        found.append((c_memory.array_bytes(*recomputation.plan(graph, *way)), *way))
        if found[-1][0] <= ram:
            return found[-1]
    return min(found)


def _skeleton(model: nn.Module, target: TargetDevice, image_size: int) -> fx.GraphModule:
    return quantization.skeleton(copy.deepcopy(fuse_branches(model)).cpu(), target, image_size)


def _layers_by_tensor(graph: Graph, called: dict[str, str]) -> dict[str, frozenset[str]]:
    """The layers whose widths determine the channels of each tensor; `called` has those that write one."""
    found = {graph.input.name: frozenset()}
    for operator in graph.operators:
        name = operator.output.name
        inputs = frozenset().union(*(found[each.name] for each in operator.inputs))
        found[name] = frozenset([called[name]]) if name in called else inputs
    return found


def _at_the_peak(plan: Plan) -> list[Block]:
    """The blocks that are there at the moment at which the most bytes of the arena are in use."""

    def at(time: int) -> list[int]:
        return [index for index, each in enumerate(plan.blocks) if each.birth <= time <= each.death]

    def used(time: int) -> int:
        """Blocks may overlap: an output grows into rows of its input."""
        total = end = 0
        for offset, size in sorted((plan.offsets[index], plan.blocks[index].size) for index in at(time)):
            total += max(offset + size - max(offset, end), 0)
            end = max(end, offset + size)
        return total

    return [plan.blocks[index] for index in at(max((each.birth for each in plan.blocks), key=used))]
