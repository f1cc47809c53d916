"""The ONNX form of a graph of integers: float operators between DequantizeLinear and QuantizeLinear.

A runtime fuses each operator with the pairs around it into its int8 kernel (what the pairs mean: Jacob et
al., CVPR 2018, equations 3 to 7). The quantized values have the names of the graph's tensors.
"""

import math
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from common.integer import nibbles, reference
from common.integer import operators as ops
from common.integer.graph import HIGH, LOW, Graph, Operator, Tensor
from common.system.errors import UserError

INPUT, OUTPUT = "images", "logits"
OPSET, OPSET_OF_4_BITS = 20, 21  # have all operators; what needs less than 20 is relabelled
FUNCTIONS = {  # the operator of a table, by its function
    "relu": ("Relu", {}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6}),
    "hardswish": ("HardSwish", {}),
    "gelu": ("Gelu", {}),
}


def build(graph: Graph) -> onnx.ModelProto:
    """Writes a graph as an ONNX model.

    Input: "images" float32 [N, 3, S, S], normalized. Output: "logits" float32 [N, C]. N is free.

    Args:
        graph: The network.

    Returns:
        The model.

    Raises:
        UserError: An operator has no form in ONNX; the message names it.
    """
    writer = _Writer(graph)
    writer.node("QuantizeLinear", [INPUT, *writer.grid(graph.input)], graph.input.name)
    for operator in graph.operators:
        writer.write(operator)
    writer.node("DequantizeLinear", [graph.output.name, *writer.grid(graph.output)], OUTPUT)
    return _model(writer, graph)


def _model(writer: "_Writer", graph: Graph) -> onnx.ModelProto:
    """The model of the operators that were written."""
    images, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *tensor.shape])
        for name, tensor in ((INPUT, graph.input), (OUTPUT, graph.output))
    )
    body = helper.make_graph(writer.nodes, "network", [images], [logits], writer.constants)
    bits = {getattr(operator, "weight_bits", 8) for operator in graph.operators}
    opset = OPSET_OF_4_BITS if 4 in bits else OPSET
    return helper.make_model_gen_version(body, opset_imports=[helper.make_opsetid("", opset)])


class _Writer:
    """A model that is not finished."""

    def __init__(self, graph: Graph):
        tensors = [graph.input, *(operator.output for operator in graph.operators)]
        # int8 where all zero points are 0, for runtimes that need it; else uint8
        self.lowest = LOW if all(tensor.zero_point == 0 for tensor in tensors) else 0
        self.nodes, self.constants = [], []
        self.dequantized: dict[str, str] = {}

    def constant(self, name: str, values) -> str:
        """Adds a constant."""
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes) -> str:
        """Adds an operator."""
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def stored(self, integers) -> np.ndarray:
        """Integers from -128 to 127 as the file stores them."""
        kind = np.int8 if self.lowest == LOW else np.uint8
        return (np.asarray(integers, np.int16) - LOW + self.lowest).astype(kind)

    def grid(self, tensor: Tensor) -> list[str]:
        """The scale and the zero point of a tensor."""
        names = [f"{tensor.name}_scale", f"{tensor.name}_zero_point"]
        if tensor.name not in self.dequantized:
            self.constant(names[0], np.float32(tensor.scale))
            self.constant(names[1], self.stored(tensor.zero_point))
            self.dequantized[tensor.name] = ""
        return names

    def values(self, tensor: Tensor) -> str:
        """The dequantized values of a tensor."""
        grid = self.grid(tensor)
        if not self.dequantized[tensor.name]:
            name = self.node("DequantizeLinear", [tensor.name, *grid], f"{tensor.name}_values")
            self.dequantized[tensor.name] = name
        return self.dequantized[tensor.name]

    def write(self, operator: Operator) -> None:
        """Adds an operator of the graph, and the QuantizeLinear of its output."""
        output, name = operator.output, operator.output.name
        grid = self.grid(output)
        if isinstance(operator, ops.Constant):
            self.constant(name, self.stored(operator.values))
            return
        if isinstance(operator, ops.Requantize):
            # ONNX Runtime makes one pair of two that follow one another, with a third scale
            self._lookup(operator, reference.requantize_table(operator.source, output))
            return
        if isinstance(operator, ops.Table) and not self._is_native(operator):
            self._lookup(operator, operator.values)
            return
        if isinstance(operator, ops.AveragePool) and (
            math.prod(operator.kernel) % 2 == 0 or any(operator.padding)
        ):
            self._mean(operator)
            return
        result = self.compute(operator, [self.values(tensor) for tensor in operator.inputs])
        if not getattr(operator, "relu", False) or output.zero_point == LOW:
            self.node("QuantizeLinear", [result, *grid], name)  # which clips at the lowest integer
            return
        # a ReLU between the operator and its QuantizeLinear would keep it from becoming an int8 kernel
        before = self.node("QuantizeLinear", [result, *grid], f"{name}_before_relu")
        values = self.node("DequantizeLinear", [before, *grid], f"{before}_values")
        self.node("QuantizeLinear", [self.node("Relu", [values], f"{name}_relu"), *grid], name)

    def compute(self, operator: Operator, inputs: list[str]) -> str:
        """Adds the operators that compute one of the graph in float; gives the name of the result."""
        name = f"{operator.output.name}_float"
        match operator:
            case ops.Convolution():
                above, below, left, right = operator.padding
                return self.node(
                    "Conv", [*inputs, *self._weights(operator)], name, kernel_shape=operator.weight.shape[2:],
                    strides=operator.stride, pads=(above, left, below, right), dilations=operator.dilation,
                    group=operator.groups,
                )  # fmt: skip
            case ops.Linear():
                return self.node("Gemm", [*inputs, *self._weights(operator)], name, transB=1)
            case ops.Add():
                return self.node("Add", inputs, name)
            case ops.Multiply():
                return self.node("Mul", inputs, name)
            case ops.Concatenate():
                return self.node("Concat", inputs, name, axis=1)
            case ops.AveragePool() | ops.MaxPool():
                return self._pool(operator, inputs, name)
            case ops.Pad():
                above, below, left, right = operator.padding
                pads = self.constant(f"{name}_pads", np.array([0, 0, above, left, 0, 0, below, right]))
                return self.node("Pad", [*inputs, pads], name)
            case ops.Table():
                return self._functions(operator, inputs[0], name)
            case ops.Select():
                return self._select(operator, inputs[0], name)
            case ops.Reshape():
                shape = self.constant(f"{name}_shape", np.array([-1, *operator.output.shape]))
                return self.node("Reshape", [*inputs, shape], name)
        raise UserError(f"{operator.output.name}, {type(operator).__name__}, has no form in ONNX")

    def _weights(self, operator: ops.Convolution | ops.Linear) -> list[str]:
        """Adds an int8 weight and an int32 bias, each behind a DequantizeLinear.

        Each weight has its own zero points: ONNX Runtime changes them where it needs exact sums.
        """
        name, scales = operator.output.name, operator.weight_scales
        weight = [
            self._weight(f"{name}_weight", operator),
            self.constant(f"{name}_weight_scales", scales),
            self.constant(f"{name}_weight_zero_points", np.zeros(len(scales), np.int8)),
        ]
        bias = [
            self.constant(f"{name}_bias", operator.bias),
            self.constant(f"{name}_bias_scales", scales * np.float32(operator.inputs[0].scale)),
        ]
        return [
            self.node("DequantizeLinear", inputs, f"{inputs[0]}_values", axis=0) for inputs in (weight, bias)
        ]

    def _weight(self, name: str, operator: ops.Convolution | ops.Linear) -> str:
        """Adds an int8 weight; one of 4 bits is cast: ONNX Runtime does so once, and has int8 kernels."""
        if operator.weight_bits == 8:
            return self.constant(name, operator.weight)
        packed, shape = nibbles.pack(operator.weight).tobytes(), operator.weight.shape
        stored = helper.make_tensor(f"{name}_4_bits", TensorProto.INT4, shape, packed, raw=True)
        self.constants.append(stored)
        return self.node("Cast", [stored.name], name, to=TensorProto.INT8)

    def _pool(self, operator: ops.AveragePool | ops.MaxPool, inputs: list[str], name: str) -> str:
        kind = "MaxPool" if isinstance(operator, ops.MaxPool) else "AveragePool"
        whole = operator.kernel == operator.inputs[0].shape[1:] and not any(operator.padding)
        if kind == "AveragePool" and whole:
            return self.node("GlobalAveragePool", inputs, name)
        above, below, left, right = operator.padding
        return self.node(
            kind, inputs, name, kernel_shape=operator.kernel, strides=operator.stride,
            pads=(above, left, below, right),
        )  # fmt: skip

    def _mean(self, operator: ops.AveragePool) -> None:
        """Adds a mean that rounds halves away from the integer 0, as all kernels of TensorFlow Lite do.

        Runtimes round half to even, relative to a zero point. Both pairs get that of the integer 0, which
        does not change the mean, and the second a scale that is smaller by so little that only halves move.
        """
        (source,), name = operator.inputs, operator.output.name
        scales = source.scale, source.scale * (1 - 1 / (256 * math.prod(operator.kernel)))
        zero = self.constant(f"{name}_zero", self.stored(0))
        grids = [
            [self.constant(f"{name}_scale_{each}", np.float32(scale)), zero]
            for each, scale in enumerate(scales)
        ]
        values = self.node("DequantizeLinear", [source.name, *grids[0]], f"{name}_centred")
        self.node("QuantizeLinear", [self._pool(operator, [values], f"{name}_float"), *grids[1]], name)

    def _functions(self, operator: ops.Table, values: str, name: str) -> str:
        for step, part in enumerate(operator.function.split(", ")):
            function, *number = part.split()
            label = f"{name}_{step}"
            if function in ("add", "multiply"):
                constant = self.constant(f"{label}_number", np.float32(number[0]))
                values = self.node("Add" if function == "add" else "Mul", [values, constant], label)
            elif function == "leaky_relu":
                values = self.node("LeakyRelu", [values], label, alpha=float(number[0]))
            elif function == "silu":
                gate = self.node("Sigmoid", [values], f"{label}_gate")
                values = self.node("Mul", [values, gate], label)
            else:
                kind, attributes = FUNCTIONS[function]
                values = self.node(kind, [values], label, **attributes)
        return values

    def _lookup(self, operator: ops.Table | ops.Requantize, outputs: np.ndarray) -> None:
        """Adds a table of 256 integers, and reads it at each value."""
        (source,), name = operator.inputs, operator.output.name
        table = self.stored(outputs)
        if self.lowest == LOW:  # a negative index counts from the end
            table = np.roll(table, LOW)
        position = self.node("Cast", [source.name], f"{name}_position", to=TensorProto.INT32)
        self.node("Gather", [self.constant(f"{name}_table", table), position], name)

    def _select(self, operator: ops.Select, values: str, name: str) -> str:
        for axis, (chosen, size) in enumerate(
            zip(operator.indices, operator.inputs[0].shape, strict=True), 1
        ):
            if chosen != tuple(range(size)):
                indices = self.constant(f"{name}_{axis}_indices", np.array(chosen))
                values = self.node("Gather", [values, indices], f"{name}_{axis}", axis=axis)
        return values

    def _is_native(self, operator: ops.Table) -> bool:
        """Whether ONNX Runtime's own operators give the integers of a table."""
        functions = {part.split()[0] for part in operator.function.split(", ")}
        if not functions <= {*FUNCTIONS, "add", "multiply", "leaky_relu", "silu"}:
            return False
        (source,) = operator.inputs
        before, after = (replace(each, shape=(HIGH - LOW + 1,)) for each in (source, operator.output))
        trial = _Writer(Graph(before, (replace(operator, inputs=(before,), output=after),)))
        trial.lowest = self.lowest
        trial.grid(before)
        result = trial.compute(operator, [trial.values(before)])
        trial.node("QuantizeLinear", [result, *trial.grid(after)], after.name)
        kind = TensorProto.INT8 if trial.lowest == LOW else TensorProto.UINT8
        source, output = (
            helper.make_tensor_value_info(each.name, kind, each.shape) for each in (before, after)
        )
        body = helper.make_graph(trial.nodes, "trial", [source], [output], trial.constants)
        proto = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        integers = trial.stored(np.arange(LOW, HIGH + 1))
        return bool((session.run(None, {before.name: integers})[0] == trial.stored(operator.values)).all())
