"""The RAM that the activations of an int8 network need while it processes one image."""

import math

from common.integer.graph import Graph, Operator
from common.integer.operators import Constant, Reshape, Table


def peak_bytes(graph: Graph) -> int:
    """Counts the most bytes that are kept at once, if the operators run in their order.

    A tensor is kept from the operator that writes it to the last one that reads it. A reshape stays in its
    input's memory, and a ReLU whose input no other operator reads: runtimes compute it in the layer before.
    Constants are not counted, since they can stay in flash memory.

    Args:
        graph: The network.

    Returns:
        Bytes for one image, the image included; 1 for each value.
    """
    memory = {graph.input.name: graph.input.name}  # the tensor in whose memory each one is
    sizes, last = {graph.input.name: math.prod(graph.input.shape)}, {graph.input.name: -1}
    first = dict(last)
    for time, operator in enumerate(graph.operators):
        for tensor in operator.inputs:
            last[memory[tensor.name]] = time
        output = operator.output
        if isinstance(operator, Reshape) or _is_fused(operator, graph):
            memory[output.name] = memory[operator.inputs[0].name]
            continue
        memory[output.name] = output.name
        sizes[output.name] = 0 if isinstance(operator, Constant) else math.prod(output.shape)
        first[output.name] = last[output.name] = time
    return max(
        sum(size for name, size in sizes.items() if first[name] <= time <= last[name])
        for time in range(len(graph.operators))
    )


def _is_fused(operator: Operator, graph: Graph) -> bool:
    if not isinstance(operator, Table) or operator.function != "relu":
        return False
    (source,) = operator.inputs
    return sum(source in each.inputs for each in graph.operators) == 1
