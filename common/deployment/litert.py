"""The LiteRT (TensorFlow Lite) form of an int8 model: the same integers, weights and scales.

Source: Jacob et al., CVPR 2018, section 2; the operators are those of the "LiteRT 8-bit quantization
specification". Our uint8 values minus 128 are its int8 values. Its images are [N, H, W, C].
"""

import copy

import torch
from torch import fx

from common.deployment.litert_graph import Graph
from common.deployment.litert_operators import FUNCTIONS, LAYERS, SHAPES
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
    int8_model = _normalized(int8_model)
    graph, inputs, outputs = Graph(int8_model, image_size), [], []
    for node in int8_model.graph.nodes:
        if node.op == "output":
            logits = node.args[0]
            if logits.target != "dequantize":
                raise UserError(f"{logits.name}, logits that are not int8, has no form in LiteRT")
            outputs = [graph.tensors[logits]]
            graph.file.rename(outputs[0], "logits")
        elif node.target is torch.quantize_per_tensor and node.args[0].op == "placeholder":
            inputs = [graph.result(node)]
            graph.file.rename(inputs[0], "images")
        elif node.op == "get_attr":
            graph.add_operand(node)
        elif node.op.startswith("call_") and node.name in graph.values:
            _add(graph, node)
    return graph.file.pack(inputs, outputs, metadata)


def _normalized(int8_model: fx.GraphModule) -> fx.GraphModule:
    """A copy in which each node has its input as the first argument, and the logits are int8 to the end."""
    copied = copy.deepcopy(int8_model)
    for node in list(copied.graph.nodes):
        if node.op.startswith("call_") and not node.args:
            first, *_ = node.kwargs
            node.args = (node.kwargs[first],)
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != first}
    (output,) = (node for node in copied.graph.nodes if node.op == "output")
    chain = [output.args[0]]
    while _target(copied, chain[-1]) in SHAPES and len(chain[-1].users) == 1:
        chain.append(chain[-1].args[0])
    last, *shapes = reversed(chain)
    if shapes and last.target == "dequantize" and len(last.users) == 1:
        shapes[0].replace_input_with(last, last.args[0])
        shapes[-1].replace_all_uses_with(last)
        shapes[-1].append(last)
        last.args = (shapes[-1],)
    copied.recompile()
    return copied


def _target(model: fx.GraphModule, node: fx.Node):
    return type(model.get_submodule(node.target)) if node.op == "call_module" else node.target


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
    try:
        graph.tensors[node] = build(graph, node, *args, **options)
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):
        raise UserError(f"{node.name}, this form of the operator {name}, has no form in LiteRT") from None
