"""The PyTorch form of a graph of integers, for ExecuTorch: float operators between dequantize and quantize.

ExecuTorch's XNNPACK backend fuses each operator with the pairs around it into its int8 kernel (what the pairs
mean: Jacob et al., CVPR 2018, equations 3 to 7). Its portable kernels compute what XNNPACK has not: tables,
selections, and means that can lie halfway between two integers.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - defines the operators of the next line
from torch.nn import functional as F

from common.integer import operators as ops
from common.integer.graph import HIGH, LOW, Graph, Operator, Tensor
from common.system.errors import UserError

quantized = torch.ops.quantized_decomposed


class Network(nn.Module):
    """Computes a graph with PyTorch's operators for quantized values, which `torch.export` records."""

    def __init__(self, graph: Graph):
        """Stores the constants of the graph.

        Args:
            graph: The network.
        """
        super().__init__()
        self.graph = graph
        for operator in graph.operators:
            for name, values in _constants(operator).items():
                # ExecuTorch refuses strides of 0, which numpy gives to new axes, and weights in channels_last
                values = torch.from_numpy(values).clone(memory_format=torch.contiguous_format)
                self.register_buffer(_buffer(operator, name), values)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Computes the logits.

        Args:
            images: float32 [1, 3, S, S], normalized.

        Returns:
            float32 [1, C].

        Raises:
            UserError: An operator has no form in ExecuTorch; the message names it.
        """
        known = {self.graph.input.name: _quantize(images, self.graph.input)}
        for operator in self.graph.operators:
            inputs = [known[tensor.name] for tensor in operator.inputs]
            known[operator.output.name] = self._integers(operator, inputs)
        return _dequantize(known[self.graph.output.name], self.graph.output)

    def _integers(self, operator: Operator, inputs: list[torch.Tensor]) -> torch.Tensor:
        """The output of an operator in int8."""
        match operator:
            case ops.Constant():
                return self._constant(operator, "values")
            case ops.Table() if not _is_clamp(operator):
                return self._constant(operator, "table")[inputs[0].int() - LOW]
            case ops.Select():
                return self._selected(operator, inputs[0])
            case ops.AveragePool() if not _is_odd_mean(operator):
                return _mean(operator, inputs[0])
        # each reader has its own dequantize: the partitioner finds a cycle where two share one
        values = [_dequantize(each, tensor) for each, tensor in zip(inputs, operator.inputs, strict=True)]
        result = self._values(operator, *values)
        result = F.relu(result) if getattr(operator, "relu", False) else result
        return _quantize(result, operator.output)

    def _values(self, operator: Operator, first: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """The output of an operator in float, before its ReLU."""
        match operator:
            case ops.Convolution():
                padded, padding = _padded(operator, operator.weight.shape[2:], first, 0.0)
                how = operator.stride, padding, operator.dilation, operator.groups
                return F.conv2d(padded, self._weight(operator), self._constant(operator, "bias"), *how)
            case ops.Linear():
                return F.linear(first, self._weight(operator), self._constant(operator, "bias"))
            case ops.Add():
                return first + others[0]
            case ops.Multiply():
                return first * others[0]
            case ops.Requantize():
                return first * _dequantize(self._constant(operator, "one"), Tensor("one", (1,), 1.0, 0))
            case ops.Concatenate():
                return torch.cat([first, *others], 1)
            case ops.MaxPool():
                lowest = (LOW - operator.source.zero_point) * operator.source.scale
                padded, padding = _padded(operator, operator.kernel, first, lowest)
                return F.max_pool2d(padded, operator.kernel, operator.stride, padding)
            case ops.AveragePool():
                return first.mean((2, 3), keepdim=True)
            case ops.Pad():
                return _pad(first, operator.padding, 0.0)
            case ops.Table():
                return F.relu(first)
            case ops.Reshape():
                return first.reshape(1, *operator.output.shape)
        raise UserError(f"{operator.output.name}, {type(operator).__name__}, has no form in ExecuTorch")

    def _selected(self, operator: ops.Select, values: torch.Tensor) -> torch.Tensor:
        for axis, chosen in enumerate(operator.indices, start=1):
            if chosen != tuple(range(operator.source.shape[axis - 1])):
                values = values.index_select(axis, self._constant(operator, f"axis_{axis}"))
        return values

    def _weight(self, operator: ops.Convolution | ops.Linear) -> torch.Tensor:
        arrays = (self._constant(operator, name) for name in ("weight", "scales", "zero_points"))
        return quantized.dequantize_per_channel(*arrays, 0, -HIGH, HIGH, torch.int8)

    def _constant(self, operator: Operator, name: str) -> torch.Tensor:
        return self.get_buffer(_buffer(operator, name))


def _buffer(operator: Operator, name: str) -> str:
    return f"{operator.output.name}_{name}".replace(".", "_")


def _constants(operator: Operator) -> dict[str, np.ndarray]:
    """The arrays of an operator, by their names."""
    match operator:
        case ops.Convolution() | ops.Linear():
            steps = operator.weight_scales.astype(np.float64) * operator.source.scale
            return {
                "weight": operator.weight,
                "scales": operator.weight_scales,
                "zero_points": np.zeros(len(steps), np.int64),
                "bias": (operator.bias * steps).astype(np.float32),
            }
        case ops.Constant():
            return {"values": operator.values[None]}
        case ops.Requantize():
            return {"one": np.ones((1,) * (1 + len(operator.source.shape)), np.int8)}
        case ops.Table():
            return {"table": operator.values}
        case ops.Select():
            return {f"axis_{axis}": np.array(chosen) for axis, chosen in enumerate(operator.indices, start=1)}
    return {}


def _is_clamp(table: ops.Table) -> bool:
    """Whether a ReLU keeps the scale, so that XNNPACK computes it in int8."""
    return table.function == "relu" and table.source.grid == table.output.grid


def _is_odd_mean(pool: ops.AveragePool) -> bool:
    """Whether no mean over the whole image lies halfway between two integers: XNNPACK rounds half to even."""
    whole = pool.kernel == pool.source.shape[1:] and not any(pool.padding)
    return whole and math.prod(pool.kernel) % 2 == 1


def _mean(pool: ops.AveragePool, integers: torch.Tensor) -> torch.Tensor:
    """A mean that rounds halves away from the integer 0: the factor moves them, but nothing else, across."""
    if not _is_native(pool.padding, pool.kernel):
        text = f"average pooling that is padded by {pool.padding}, has no form in ExecuTorch"
        raise UserError(f"{pool.output.name}, {text}")
    how = pool.kernel, pool.stride, pool.padding[::2]
    means = F.avg_pool2d(integers.float(), *how, count_include_pad=False)
    return (means * (1 + 1 / (256 * math.prod(pool.kernel)))).round().to(torch.int8)


def _padded(
    operator: ops.Convolution | ops.MaxPool, kernel: ops.Pair, values: torch.Tensor, outside: float
) -> tuple[torch.Tensor, ops.Pair]:
    """Pads by an operator of its own where PyTorch's cannot; gives the padding that is left to them."""
    if _is_native(operator.padding, kernel):
        return values, operator.padding[::2]
    integers = _quantize(_pad(values, operator.padding, outside), operator.source)
    return _dequantize(integers, operator.source), (0, 0)


def _is_native(padding: ops.Padding, kernel: ops.Pair) -> bool:
    """Whether PyTorch's poolings have a padding: equal on both sides, and at most half of the kernel."""
    above, below, left, right = padding
    return (above, left) == (below, right) and 2 * above <= kernel[0] and 2 * left <= kernel[1]


def _pad(values: torch.Tensor, padding: ops.Padding, outside: float) -> torch.Tensor:
    above, below, left, right = padding
    return F.pad(values, (left, right, above, below), value=outside)


def _quantize(values: torch.Tensor, like: Tensor) -> torch.Tensor:
    return quantized.quantize_per_tensor(values, like.scale, like.zero_point, LOW, HIGH, torch.int8)


def _dequantize(integers: torch.Tensor, like: Tensor) -> torch.Tensor:
    return quantized.dequantize_per_tensor(integers, like.scale, like.zero_point, LOW, HIGH, torch.int8)
