"""The float32 ONNX form of a graph of integers: the same layers without quantization, with weights of 0."""

import numpy as np
import onnx

from common.deployment import onnx_writer
from common.integer import operators as ops
from common.integer.graph import Graph, Operator, Tensor
from common.system.errors import UserError


def build(graph: Graph) -> onnx.ModelProto:
    """Writes the layers of a graph in float32, to be timed.

    Args:
        graph: The network.

    Returns:
        A model of "images" float32 [N, 3, S, S] and "logits" float32 [N, C].

    Raises:
        UserError: An operator has no form in float32; the message names it.
    """
    writer = _FloatWriter(graph)
    writer.node("Identity", [onnx_writer.INPUT], graph.input.name)
    for operator in graph.operators:
        writer.write(operator)
    writer.node("Identity", [graph.output.name], onnx_writer.OUTPUT)
    return onnx_writer._model(writer, graph)


class _FloatWriter(onnx_writer._Writer):
    def values(self, tensor: Tensor) -> str:
        """Nothing has to be dequantized."""
        return tensor.name

    def write(self, operator: Operator) -> None:
        """Adds an operator, and its ReLU."""
        name = operator.output.name
        if isinstance(operator, ops.Constant):
            self.constant(name, np.zeros((1, *operator.output.shape), np.float32))
            return
        if isinstance(operator, ops.Requantize):
            self.node("Identity", [operator.source.name], name)
            return
        try:
            result = self.compute(operator, [tensor.name for tensor in operator.inputs])
        except KeyError as error:
            raise UserError(f"{name}, the function {error}, has no form in float32") from None
        self.node("Relu" if getattr(operator, "relu", False) else "Identity", [result], name)

    def _weights(self, operator: ops.Convolution | ops.Linear) -> list[str]:
        """Adds weight and bias."""
        name, outputs = operator.output.name, len(operator.weight)
        shapes = {"weight": operator.weight.shape, "bias": outputs}
        return [self.constant(f"{name}_{key}", np.zeros(each, np.float32)) for key, each in shapes.items()]
