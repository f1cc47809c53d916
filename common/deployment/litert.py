"""The LiteRT (TensorFlow Lite) form of a graph of integers: the same integers, weights and scales.

Source: the "LiteRT 8-bit quantization specification". Its images are [N, H, W, C].
"""

import math

import numpy as np

from common.deployment import litert_padding
from common.deployment.litert_file import LiteRtFile
from common.integer import hard_swish, reference
from common.integer import operators as ops
from common.integer.graph import LOW, Graph, Operator, Tensor
from common.system.errors import UserError

NONE, RELU = 0, 1  # of the schema's ActivationFunctionType
TO_CHANNELS_FIRST, TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
AXES = (3, 1, 2)  # of channels, rows and columns


def convert(graph: Graph, metadata: dict[str, bytes]) -> bytes:
    """Writes a graph as a LiteRT file.

    Input: "images" int8 [N, S, S, 3]. Output: "logits" int8 [N, C]. Their scales and zero points are stored
    in the file. N is 1, until the interpreter changes it.

    Args:
        graph: The network.
        metadata: Stored in the file.

    Returns:
        The content of the file.

    Raises:
        UserError: An operator has no form in LiteRT; the message names it.
    """
    graph, writer = litert_padding.rewrite(graph), _Writer()
    images = writer.result(graph.input)
    for operator in graph.operators:
        writer.write(operator)
    logits = writer.tensors[graph.output.name]
    writer.file.rename(images, "images")
    writer.file.rename(logits, "logits")
    return writer.file.pack([images], [logits], metadata)


class _Writer:
    """A file that is not finished, and the indices of its tensors by their names in the graph."""

    def __init__(self):
        self.file, self.tensors = LiteRtFile(), {}

    def result(self, tensor: Tensor) -> int:
        """Adds a tensor of the graph."""
        self.tensors[tensor.name] = self.between(tensor.name, _shape(tensor), tensor)
        return self.tensors[tensor.name]

    def between(self, name: str, shape: list[int], like: Tensor) -> int:
        """Adds a tensor with the scale of one of the graph."""
        return self.file.tensor(name, shape, "int8", like.grid)

    def integers(self, name: str, values) -> int:
        """Adds a constant of int32."""
        return self.file.constant(name, np.array(values, np.int32))

    def write(self, operator: Operator) -> None:
        """Adds an operator of the graph."""
        sources = [self.tensors[tensor.name] for tensor in operator.inputs]
        match operator:
            case ops.Constant():
                self._constant(operator)
            case ops.Convolution():
                self._convolution(operator, sources[0])
            case ops.Linear():
                self._linear(operator, sources[0])
            case ops.Add() | ops.Multiply():
                name = "ADD" if isinstance(operator, ops.Add) else "MUL"
                self._add(name, operator, sources, **_activation(operator))
            case ops.Concatenate():
                self._add("CONCATENATION", operator, sources, axis=len(_shape(operator.output)) - 1)
            case ops.AveragePool() | ops.MaxPool():
                self._pool(operator, sources[0])
            case ops.Pad():
                pads = self._pads(operator.output.name, operator.padding)
                self._add("PAD", operator, [*sources, pads])
            case ops.Table():
                self._table(operator, sources[0])
            case ops.Requantize():
                # QUANTIZE has a multiplier of 8 bits in XNNPACK
                one = self.file.constant(f"{operator.output.name}_one", np.array([1], np.int8), [1.0])
                self._add("MUL", operator, [*sources, one], **_activation(operator))
            case ops.Select():
                self._select(operator, sources[0])
            case ops.Reshape():
                self._reshape(operator, sources[0])
            case _:
                raise UserError(f"{operator.output.name}, {type(operator).__name__}, has no form in LiteRT")

    def _add(self, name: str, operator: Operator, inputs: list[int], **options) -> None:
        self.file.operator(name, inputs, [self.result(operator.output)], **options)

    def _constant(self, operator: ops.Constant) -> None:
        output, values = operator.output, operator.values[None]
        values = values.transpose(TO_CHANNELS_LAST) if values.ndim == 4 else values
        self.tensors[output.name] = self.file.constant(
            output.name, values, [output.scale], zero_point=output.zero_point
        )

    def _weights(self, operator: ops.Convolution | ops.Linear, weight: np.ndarray, axis: int) -> list[int]:
        """Adds a weight in LiteRT's order, with the output channels in `axis`, and a bias."""
        name = operator.output.name
        steps = operator.weight_scales.astype(np.float64) * operator.inputs[0].scale
        return [
            self.file.constant(
                f"{name}_weight", weight, operator.weight_scales.tolist(), axis, bits=operator.weight_bits
            ),
            self.file.constant(f"{name}_bias", operator.bias, steps.tolist()),
        ]

    def _linear(self, operator: ops.Linear, source: int) -> None:
        """With weights of 4 bits a convolution of one pixel: TensorFlow Lite for Microcontrollers has no
        FULLY_CONNECTED of 4 bits with a scale for each channel.
        """
        if operator.weight_bits == 8:
            weights = self._weights(operator, operator.weight, 0)
            self._add("FULLY_CONNECTED", operator, [source, *weights], **_activation(operator))
            return
        (outputs, values), output = operator.weight.shape, operator.output
        pixel = self.between(f"{output.name}_pixel", [1, 1, 1, values], operator.source)
        self._reshaped(source, pixel, [1, 1, 1, values])
        result = self.between(f"{output.name}_result", [1, 1, 1, outputs], output)
        weights = self._weights(operator, operator.weight.reshape(outputs, 1, 1, values), 0)
        options = {"padding": litert_padding.VALID, "strideH": 1, "strideW": 1} | _activation(operator)
        self.file.operator("CONV_2D", [pixel, *weights], [result], **options)
        self._reshaped(result, self.result(output), [1, outputs])

    def _convolution(self, operator: ops.Convolution, source: int) -> None:
        options = {
            "padding": litert_padding.form(operator),
            "strideH": operator.stride[0],
            "strideW": operator.stride[1],
            "dilationHFactor": operator.dilation[0],
            "dilationWFactor": operator.dilation[1],
        } | _activation(operator)
        if operator.is_depthwise:
            weights = self._weights(operator, operator.weight.transpose(1, 2, 3, 0), 3)
            options["depthMultiplier"] = len(operator.weight) // operator.groups
            self._add("DEPTHWISE_CONV_2D", operator, [source, *weights], **options)
        else:
            weights = self._weights(operator, operator.weight.transpose(TO_CHANNELS_LAST), 0)
            self._add("CONV_2D", operator, [source, *weights], **options)

    def _pool(self, operator: ops.AveragePool | ops.MaxPool, source: int) -> None:
        name = "MAX_POOL_2D" if isinstance(operator, ops.MaxPool) else "AVERAGE_POOL_2D"
        padding = litert_padding.form(operator)
        if padding is None and isinstance(operator, ops.AveragePool):
            text = f"average pooling that is padded by {operator.padding}, has no form in LiteRT"
            raise UserError(f"{operator.output.name}, {text}")
        if padding is None:
            source, padding = self._padded(operator, source), litert_padding.VALID
        self._add(
            name, operator, [source], padding=padding, filterHeight=operator.kernel[0],
            filterWidth=operator.kernel[1], strideH=operator.stride[0], strideW=operator.stride[1],
        )  # fmt: skip

    def _padded(self, operator: ops.MaxPool, source: int) -> int:
        """Pads the input of an operator by itself, with the lowest integer."""
        (tensor,), label = operator.inputs, operator.output.name
        above, below, left, right = operator.padding
        _, height, width, channels = _shape(tensor)
        shape = [1, height + above + below, width + left + right, channels]
        lowest = self.file.constant(
            f"{label}_lowest", np.array([LOW], np.int8), [tensor.scale], zero_point=tensor.zero_point
        )
        output = self.between(f"{label}_padded", shape, tensor)
        self.file.operator("PADV2", [source, self._pads(label, operator.padding), lowest], [output])
        return output

    def _pads(self, label: str, padding: ops.Padding) -> int:
        return self.integers(f"{label}_pads", [(0, 0), padding[:2], padding[2:], (0, 0)])

    def _table(self, operator: ops.Table, source: int) -> None:
        """A built-in operator, or else a lookup: position = integer + 128."""
        name, compute = FUNCTIONS.get(operator.function, ("", None))
        native = compute(operator.source, operator.output) if compute else operator.values
        if name and np.array_equal(native, operator.values):
            self._add(name, operator, [source])
            return
        label, shape = operator.output.name, _shape(operator.output)
        wide, position = (
            self.file.tensor(f"{label}_{each}", shape, "int32") for each in ("wide", "position")
        )
        table = self.file.constant(
            f"{label}_table", operator.values, [operator.output.scale], zero_point=operator.output.zero_point
        )
        self.file.operator("CAST", [source], [wide])
        offset = self.integers(f"{label}_offset", [-LOW])
        self.file.operator("ADD", [wide, offset], [position], **_activation(operator))
        self._add("GATHER", operator, [table, position], axis=0)

    def _select(self, operator: ops.Select, source: int) -> None:
        """A slice where neighbours are chosen in their order, else a gather; one for each axis."""
        (tensor,), shape = operator.inputs, _shape(operator.inputs[0])
        axes = AXES if len(shape) == 4 else (1,)
        changed = [
            (axis, chosen)
            for axis, chosen in zip(axes, operator.indices, strict=True)
            if chosen != tuple(range(shape[axis]))
        ]
        for step, (axis, chosen) in enumerate(changed, start=1):
            label = f"{operator.output.name}_{axis}"
            shape[axis], last = len(chosen), step == len(changed)
            output = self.result(operator.output) if last else self.between(label, list(shape), tensor)
            if chosen == tuple(range(chosen[0], chosen[0] + len(chosen))):
                limits = (chosen[0], chosen[0] + len(chosen), 1)
                inputs = [source]
                for name, value in zip(("begin", "end", "strides"), limits, strict=True):
                    place = [value if each == axis or name == "strides" else 0 for each in range(len(shape))]
                    inputs.append(self.integers(f"{label}_{name}", place))
                others = 2 ** len(shape) - 1 - 2**axis  # bits of the axes that stay whole
                self.file.operator("STRIDED_SLICE", inputs, [output], beginMask=others, endMask=others)
            else:
                inputs = [source, self.integers(f"{label}_indices", chosen)]
                self.file.operator("GATHER", inputs, [output], axis=axis)
            source = output

    def _reshape(self, operator: ops.Reshape, source: int) -> None:
        """The order of the values is that of [C, H, W]."""
        before, after = operator.inputs[0], operator.output
        if _has_two_orders(before):
            first = self.between(f"{after.name}_first", [1, *before.shape], before)
            order = self.integers(f"{after.name}_first_order", TO_CHANNELS_FIRST)
            self.file.operator("TRANSPOSE", [source, order], [first])
            source = first
        if not _has_two_orders(after):
            self._reshaped(source, self.result(after), _shape(after))
            return
        shape = [1, *after.shape]
        middle = self.between(f"{after.name}_shaped", shape, after)
        self._reshaped(source, middle, shape)
        order = self.integers(f"{after.name}_order", TO_CHANNELS_LAST)
        self.file.operator("TRANSPOSE", [middle, order], [self.result(after)])

    def _reshaped(self, source: int, output: int, shape: list[int]) -> None:
        shape = [-1, *shape[1:]]
        wanted = self.integers(f"shape_{'_'.join(map(str, shape))}_{output}", shape)
        self.file.operator("RESHAPE", [source, wanted], [output], newShape=shape)


def _shape(tensor: Tensor) -> list[int]:
    """[1, H, W, C] or [1, C]."""
    return [1, *tensor.shape[1:], tensor.shape[0]]


def _has_two_orders(tensor: Tensor) -> bool:
    """Whether the values of an image are in another order in LiteRT than in the graph."""
    return len(tensor.shape) == 3 and tensor.shape[0] > 1 and math.prod(tensor.shape[1:]) > 1


def _activation(operator: Operator) -> dict[str, int]:
    return {"fusedActivationFunction": RELU if getattr(operator, "relu", False) else NONE}


def _relu_table(before: Tensor, after: Tensor) -> np.ndarray:
    """RELU requantizes first, and rounds twice."""
    return reference.requantize_table(before, after, "twice").clip(min=after.zero_point)


FUNCTIONS = {  # operators of one value, and what they compute where that can differ from a table
    "relu": ("RELU", _relu_table),
    "sigmoid": ("LOGISTIC", None),
    "hardswish": ("HARD_SWISH", hard_swish.table),
}
