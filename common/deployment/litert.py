"""The LiteRT (TensorFlow Lite) form of an int8 model: the same integers, weights and scales.

Source: Jacob et al., CVPR 2018, section 2; the operators are those of the "LiteRT 8-bit quantization
specification". Our uint8 values minus 128 are its int8 values. Its images are [N, H, W, C].
"""

import torch
from torch import fx

from common.deployment.litert_graph import Graph
from common.deployment.litert_operators import FUNCTIONS, LAYERS
from common.system.errors import UserError


def convert(int8_model: fx.GraphModule, image_size: int, metadata: dict[str, bytes]) -> bytes:
    """Writes an int8 model as a LiteRT file.

    Input: "images" int8 [N, S, S, 3]. Output: "logits" int8 [N, C]. Their scales and zero points are stored
    in the file. N is 1, until the interpreter changes it.

    Args:
        int8_model: A converted model.
        image_size: Side of the images, in pixels.
        metadata: Stored in the file.

    Returns:
        The content of the file.

    Raises:
        UserError: A layer has no form in LiteRT; the message names it.
    """
    graph, inputs, outputs = Graph(int8_model, image_size), [], []
    for node in int8_model.graph.nodes:
        if node.op == "output":
            outputs = [graph.tensors[node.args[0]]]
            graph.file.rename(outputs[0], "logits")
        elif node.target is torch.quantize_per_tensor and node.args[0].op == "placeholder":
            inputs = [graph.result(node)]
            graph.file.rename(inputs[0], "images")
        elif node.op.startswith("call_") and node.name in graph.values:
            _add(graph, node)
    return graph.file.pack(inputs, outputs, metadata)


def _add(graph: Graph, node: fx.Node) -> None:
    """Adds the operators of a node."""
    if node.op == "call_module":
        module = graph.model.get_submodule(node.target)
        build, name, args, options = LAYERS.get(type(module)), type(module).__name__, [module], {}
    else:
        build, args, options = FUNCTIONS.get(node.target), node.args[1:], node.kwargs
        name = getattr(node.target, "__name__", node.target)
    if build is None:
        raise UserError(f"{node.name}, the operator {name}, has no form in LiteRT")
    graph.tensors[node] = build(graph, node, *args, **options)
