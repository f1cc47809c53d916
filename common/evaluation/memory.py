"""The RAM that activations need while a network processes one image, by the liveness of its tensors.

A value is kept from the operation that computes it to the last one that reads it. The peak is the most that
is kept at once, the image included: what the arena of a runtime on a microcontroller has to hold.
Weights are not counted (they can stay in flash memory), nor the buffers that some kernels need.
"""

import copy
import math
import operator
from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth, stochastic_depth

from common.compression.reparameterization import fuse_branches
from common.integer import plain
from common.integer.graph import Graph
from common.integer.memory import peak_bytes
from common.models import architectures
from common.system.errors import UserError, first_line

BYTES = {"fp32": 4, "int8": 1}  # for one value of an activation
# runtimes compute these in the layer before, where no other operation reads its output
FUSED = (
    *(nn.BatchNorm2d, nn.ReLU, nn.ReLU6),
    *(F.batch_norm, F.relu, F.relu6, torch.relu, torch.relu_, "relu", "relu_"),
)
# these return the memory of their input
ALIASES = (
    *(nn.Identity, nn.Dropout, nn.Flatten, StochasticDepth),
    *(F.dropout, stochastic_depth, torch.flatten, torch.reshape),
    *("flatten", "view", "reshape", "contiguous"),
)


@dataclass(frozen=True)
class LiveTensor:
    """A tensor that is kept while the peak is reached.

    Attributes:
        values: How many numbers it has.
        channels: How many channels.
        layers: The names of the Conv2d and Linear layers whose widths determine its channels; none for the
            image.
    """

    values: int
    channels: int
    layers: frozenset[str]


@dataclass(frozen=True)
class Peak:
    """The moment at which the activations of one image need the most memory.

    Attributes:
        tensors: Those that are kept at that moment.
    """

    tensors: tuple[LiveTensor, ...]

    @property
    def values(self) -> int:
        """How many numbers are kept; see `BYTES`."""
        return sum(tensor.values for tensor in self.tensors)


def peak(model: nn.Module, image_size: int) -> Peak:
    """Finds the peak of the activations of one image.

    The network runs without data, on torch's meta device. A layer of torch.nn that consists of several
    operations, such as attention, counts as one. Branches that export.py fuses count as one convolution.

    Args:
        model: A float model; not changed.
        image_size: Side of the image, in pixels.

    Returns:
        The first of the moments at which the most is kept.

    Raises:
        UserError: The network cannot be traced, or does not accept images of this size.
    """
    try:
        traced = fx.symbolic_trace(copy.deepcopy(fuse_branches(model)).to_empty(device="meta").eval())
        sizes = _Sizes(traced)
        with torch.no_grad():
            sizes.run(torch.zeros(1, 3, image_size, image_size, device="meta"))
    # what the tracer cannot follow: control flow, unsupported calls, assertions of the network's own
    except (TypeError, RuntimeError, AttributeError, AssertionError, ValueError, IndexError) as error:
        reason = first_line(error)
        raise UserError(f"the RAM of {type(model).__name__} is not known: {reason}") from None
    nodes = list(traced.graph.nodes)
    buffers = _buffers(traced, sizes.shapes)
    at_once = [[each for each in buffers if each.first <= time <= each.last] for time in range(len(nodes))]
    most = max(at_once, key=lambda live: sum(each.tensor.values for each in live))
    return Peak(tuple(each.tensor for each in most))


def checkpoint_bytes(content: dict, model: nn.Module | Graph) -> int:
    """The peak of the activations of a checkpoint's model: 1 byte for each value in int8, 4 in float32.

    Args:
        content: That of the checkpoint; its weights are needed where it has a graph of integers.
        model: Its model, float or int8, or the graph of its integers; not changed.

    Returns:
        Bytes for one image.

    Raises:
        UserError: See `peak`; or a part of an int8 model computes in float32.
    """
    if isinstance(model, Graph):
        return peak_bytes(model)
    if int8 := content["int8"]:
        if "graph" in int8:
            return peak_bytes(plain.from_plain(int8["graph"], content["state_dict"]))
        if content["metrics"].get("int8_fraction", 1.0) < 1.0:
            raise UserError(f"the RAM of {content['name']} is not known: a part of it computes in float32")
        model = architectures.rebuild(content["arch"], len(content["classes"]), int8["float_shapes"])
    return BYTES["int8" if int8 else "fp32"] * peak(model, content["image_size"]).values


def as_metric(content: dict, model: nn.Module) -> dict[str, int]:
    """The peak of a checkpoint's model as an entry of its metrics.

    Args:
        content: See `checkpoint_bytes`.
        model: See `checkpoint_bytes`.

    Returns:
        "ram_bytes"; nothing for a network that cannot be traced.
    """
    try:
        return {"ram_bytes": checkpoint_bytes(content, model)}
    except UserError:
        return {}


class _Sizes(fx.Interpreter):
    """Runs a traced model; `shapes` has those of the tensors that each node returns, by the node's name."""

    def __init__(self, traced: fx.GraphModule):
        super().__init__(traced)
        self.shapes: dict[str, list[torch.Size]] = {}

    def run_node(self, node: fx.Node):
        result = super().run_node(node)
        parts = result if isinstance(result, tuple | list) else (result,)
        self.shapes[node.name] = [part.shape for part in parts if torch.is_tensor(part)]
        return result


@dataclass
class _Buffer:
    """Memory that one node fills, and the times (indices of nodes) of its first and its last use."""

    tensor: LiveTensor
    first: int
    last: int = field(default=0)


def _buffers(traced: fx.GraphModule, shapes: dict[str, list[torch.Size]]) -> list[_Buffer]:
    buffers: dict[str, _Buffer] = {}  # by the name of each node whose result is in it
    for time, node in enumerate(traced.graph.nodes):
        inputs = [buffers[source.name] for source in node.all_input_nodes if source.name in buffers]
        for buffer in inputs:
            buffer.last = time
        if node.op in ("output", "get_attr") or not shapes[node.name]:  # weights, and numbers such as a size
            continue
        if inputs and _is_in_place(traced, node, shapes):
            buffers[node.name] = inputs[0]
            continue
        module = traced.get_submodule(node.target) if node.op == "call_module" else None
        layers = frozenset().union(*(buffer.tensor.layers for buffer in inputs))
        if isinstance(module, nn.Conv2d | nn.Linear):
            layers = frozenset([node.target])
        values = sum(map(math.prod, shapes[node.name]))
        shape = shapes[node.name][0]
        channels = 1 if len(shape) < 2 else shape[1 if len(shape) == 4 else -1]
        buffers[node.name] = _Buffer(LiveTensor(values, channels, layers), time, time)
    return list({id(buffer): buffer for buffer in buffers.values()}.values())


def _is_in_place(traced: fx.GraphModule, node: fx.Node, shapes: dict[str, list[torch.Size]]) -> bool:
    """Whether the result of a node needs no memory of its own."""
    operation = type(traced.get_submodule(node.target)) if node.op == "call_module" else node.target
    source = node.all_input_nodes[0]
    if operation is operator.getitem:  # one of several results; a part of one tensor is a copy
        return len(shapes[source.name]) > 1
    return operation in ALIASES or (operation in FUSED and len(source.users) == 1)
