"""The graph of a pruned network, from that of the unpruned one: new widths, and weights of 0.

To quantize a network anew for each candidate of a search takes seconds, this milliseconds. What an int8
network costs follows from the shapes: its weights and scales do not matter.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from common.integer import operators as ops
from common.integer.graph import Graph, Operator, Tensor
from common.system.errors import UserError

WEIGHT_SCALE = np.float32(2**-10)  # as in a trained network, the scales of sums are below those of outputs


def resize(graph: Graph, widths: Mapping[str, int]) -> Graph:
    """Gives the layers of a graph other widths; what follows from them is adapted.

    Args:
        graph: The network.
        widths: The output channels of convolutions and linear layers, by the name of the output; layers
            without an entry keep theirs, depthwise ones have those of their input.

    Returns:
        The graph, with weights and biases of 0.

    Raises:
        UserError: An operator has no form with other widths; the message names it.
    """
    tensors, operators = {graph.input.name: graph.input}, []
    for operator in graph.operators:
        inputs = tuple(tensors[tensor.name] for tensor in operator.inputs)
        changed = any(new.shape != old.shape for new, old in zip(inputs, operator.inputs, strict=True))
        try:
            operators.append(_resized(operator, inputs, changed, widths))
        except ValueError as error:
            raise UserError(f"{operator.output.name} cannot be resized: {error}") from None
        tensors[operator.output.name] = operators[-1].output
    return Graph(graph.input, tuple(operators))


def _resized(
    operator: Operator, inputs: tuple[Tensor, ...], changed: bool, widths: Mapping[str, int]
) -> Operator:
    if isinstance(operator, ops.Convolution | ops.Linear):
        return _weighted(operator, inputs, widths)
    if not changed:
        return replace(operator, inputs=inputs)
    shape, first = operator.output.shape, inputs[0].shape
    if isinstance(operator, ops.Reshape) and len(shape) == 1:
        shape = (math.prod(first),)
    elif isinstance(operator, ops.Select) and operator.indices[0] == tuple(range(operator.source.shape[0])):
        channels = tuple(range(first[0]))
        shape = (first[0], *shape[1:])
        operator = replace(
            operator, indices=(channels, *operator.indices[1:]), **_both(operator, inputs, shape)
        )
    elif isinstance(operator, ops.Concatenate):
        shape = (sum(tensor.shape[0] for tensor in inputs), *shape[1:])
    elif isinstance(operator, ops.Reshape | ops.Select | ops.Constant):
        raise ValueError("its channels are in an order of their own")
    else:
        shape = (max(tensor.shape[0] for tensor in inputs), *shape[1:])
    return replace(operator, **_both(operator, inputs, shape))


def _both(operator: Operator, inputs: tuple[Tensor, ...], shape: tuple[int, ...]) -> dict:
    return {"inputs": inputs, "output": replace(operator.output, shape=shape)}


def _weighted(
    operator: ops.Convolution | ops.Linear, inputs: tuple[Tensor, ...], widths: Mapping[str, int]
) -> ops.Convolution | ops.Linear:
    channels = inputs[0].shape[0]
    outputs, more = widths.get(operator.output.name, operator.output.shape[0]), {}
    per_group = channels
    if isinstance(operator, ops.Convolution) and operator.is_depthwise:
        outputs = channels * (len(operator.weight) // operator.groups)
        per_group, more = 1, {"groups": channels}
    elif isinstance(operator, ops.Convolution):
        per_group = channels // operator.groups
    shape = outputs, per_group, *operator.weight.shape[2:]
    more |= _both(operator, inputs, (outputs, *operator.output.shape[1:]))
    return replace(
        operator, weight=np.zeros(shape, np.int8), weight_scales=np.full(outputs, WEIGHT_SCALE),
        bias=np.zeros(outputs, np.int32), **more,
    )  # fmt: skip
