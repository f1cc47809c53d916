"""The cost of a network as the sum over its layers, by a table of what each layer costs."""

import copy
from collections.abc import Callable

from torch import nn

from common.budget.layer_table import LayerTable
from common.compression import quantization
from common.compression.reparameterization import fuse_branches
from common.compression.target_devices import TARGET_DEVICES, TargetDevice
from common.integer import from_fx, resizing
from common.integer import operators as ops
from common.integer.graph import Graph
from common.models import architectures
from common.system.errors import UserError


def costs_of(
    model: nn.Module, image_size: int, target: TargetDevice | None, table: LayerTable
) -> tuple[Callable[[nn.Module], float], Callable[[dict[str, int]], float] | None]:
    """The costs of a network and of its pruned forms: one network is quantized, and its graph is resized.

    Args:
        model: A float model; not changed.
        image_size: Side of the images, in pixels.
        target: The device to quantize for; None for any.
        table: Of the runtime.

    Returns:
        (of_model, of_widths): the cost of a pruned form, and that of widths, by the name of the layer. The
        second is None where the widths do not determine the graph.

    Raises:
        UserError: A part of the network computes in float32, or a layer cannot be measured.
    """
    graph, layers = layers_of(model, image_size, target)
    orders = any(isinstance(operator, ops.Select | ops.Constant) for operator in graph.operators)

    def of_widths(widths: dict[str, int]) -> float:
        known = {name: widths[layer] for name, layer in layers.items() if layer in widths}
        return table.total(resizing.resize(graph, known))

    def of_model(model: nn.Module) -> float:
        if orders:  # of channels, as of a channel shuffle: they follow from no width
            return table.total(resizing.resize(layers_of(model, image_size, target)[0], {}))
        shapes = architectures.shapes(fuse_branches(model))
        return of_widths({key.removesuffix(".weight"): shape[0] for key, shape in shapes.items() if shape})

    return of_model, None if orders or fuse_branches(model) is not model else of_widths


def layers_of(model: nn.Module, image_size: int, target: TargetDevice | None) -> tuple[Graph, dict[str, str]]:
    """Finds the layers of a network: in float32 too those of its int8 form.

    Args:
        model: A float model; not changed.
        image_size: Side of the images, in pixels.
        target: The device to quantize for; None for any.

    Returns:
        (graph, names): the graph, with arbitrary weights; the names in torch of the layers with weights, by
        those of their outputs in the graph.

    Raises:
        UserError: A part of the network computes in float32.
    """
    fused = copy.deepcopy(fuse_branches(model)).cpu()
    skeleton = quantization.skeleton(fused, target or TARGET_DEVICES["embedded"], image_size)
    try:
        graph = from_fx.read(skeleton, image_size)
    except UserError as error:
        name = type(model).__name__
        raise UserError(f"the latency of {name} is not known, layer by layer: {error}") from None
    calls = (node for node in skeleton.graph.nodes if node.op == "call_module")
    return graph, {node.name: node.target for node in calls}
