"""Computes an int8 network exactly, with integers: what every runtime should return, bit for bit.

Two roundings exist. `once`: a sum is multiplied by one float32 number and rounded half to even, as in
ONNX Runtime and in XNNPACK, the kernels of LiteRT on CPUs. `twice`: it is multiplied by an integer of 31 bits
and shifted, and both steps round, as in TensorFlow Lite for Microcontrollers and CMSIS-NN (gemmlowp's
fixed-point arithmetic; Jacob et al., CVPR 2018, section 2.2).
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.integer import operators as ops
from common.integer.graph import HIGH, LOW, Graph, Operator
from common.integer.graph import Tensor as Values
from common.integer.rescaling import scaled_once, scaled_twice

ROUNDINGS = ("once", "twice")
FLOAT32_EXACT = 2**24  # float32 represents all integers up to it
ADD_SHIFT = 20  # bits by which TensorFlow Lite shifts the summands of an addition


def quantize(images: Tensor, values: Values) -> Tensor:
    """Turns normalized images into integers: clamp(round(x / scale) + zero point), half to even.

    Args:
        images: float32 [N, 3, S, S].
        values: The input of a graph.

    Returns:
        int8 [N, 3, S, S].
    """
    return _int8(torch.round(images / np.float32(values.scale)) + values.zero_point)


def dequantize(integers: Tensor, values: Values) -> Tensor:
    """Turns integers into what they stand for: scale * (integer - zero point).

    Args:
        integers: int8 [N, ...].
        values: The tensor of the graph that they belong to.

    Returns:
        float32 [N, ...].
    """
    return (integers.float() - values.zero_point) * np.float32(values.scale)


def run(graph: Graph, integers: Tensor, rounding: str = "once") -> Tensor:
    """Computes a network.

    Args:
        graph: The network.
        integers: int8 [N, 3, S, S]: see `quantize`.
        rounding: Of `ROUNDINGS`.

    Returns:
        The logits, int8 [N, C]: see `dequantize`.
    """
    return [output for _, output in steps(graph, integers, rounding)][-1]


def requantize_table(before: Values, after: Values, rounding: str = "once") -> np.ndarray:
    """What `operators.Requantize` gives for each integer.

    Args:
        before: Its input; the shape does not count.
        after: Its output.
        rounding: Of `ROUNDINGS`.

    Returns:
        int8 [256], for the inputs -128 to 127.
    """
    integers = torch.arange(LOW, HIGH + 1, dtype=torch.int8)
    before, after = (replace(each, shape=(len(integers),)) for each in (before, after))
    step = ops.Requantize((before,), replace(after, name=f"{before.name}_after"))
    return run(Graph(before, (step,)), integers[None], rounding)[0].numpy()


@torch.inference_mode()
def steps(graph: Graph, integers: Tensor, rounding: str = "once") -> Iterator[tuple[Operator, Tensor]]:
    """Computes a network operator by operator, and keeps only what is still read.

    Args:
        graph: The network.
        integers: int8 [N, 3, S, S].
        rounding: Of `ROUNDINGS`.

    Yields:
        (operator, its output: int8 [N, C, H, W] or [N, C]).
    """
    scaled, add = {"once": (scaled_once, _add_once), "twice": (scaled_twice, _add_twice)}[rounding]
    last = {tensor.name: operator for operator in graph.operators for tensor in operator.inputs}
    known = {graph.input.name: integers}
    for operator in graph.operators:
        inputs = [known[tensor.name] for tensor in operator.inputs]
        centred = [
            values.to(torch.int32) - tensor.zero_point
            for values, tensor in zip(inputs, operator.inputs, strict=True)
        ]
        zero = operator.output.zero_point
        match operator:
            case ops.Convolution() | ops.Linear():
                sums = _sums(operator, centred[0])
                shape = (-1, *[1] * (sums.ndim - 2))
                factors = (operator.inputs[0].scale, torch.from_numpy(operator.weight_scales).view(shape))
                output = scaled(sums, *factors, operator.output.scale) + zero
            case ops.Add():
                output = add(operator, *centred) + zero
            case ops.Multiply():
                first, second = (tensor.scale for tensor in operator.inputs)
                output = scaled(centred[0] * centred[1], first, second, operator.output.scale) + zero
            case ops.Requantize():
                output = scaled(centred[0], operator.inputs[0].scale, 1.0, operator.output.scale) + zero
            case ops.AveragePool():
                output = _mean(operator, inputs[0])
            case _:
                output = _moved(operator, inputs, len(integers))
        if getattr(operator, "relu", False):
            output = output.clamp(min=zero)
        known[operator.output.name] = _int8(output)
        yield operator, known[operator.output.name]
        for tensor in operator.inputs:
            if last[tensor.name] is operator:
                known.pop(tensor.name, None)


def _moved(operator: Operator, inputs: list[Tensor], count: int) -> Tensor:
    """The operators that compute nothing: their outputs are among their inputs, or in a table."""
    match operator:
        case ops.MaxPool():
            windows = _windows(operator, inputs[0].float(), LOW)
            return windows.amax(2)
        case ops.Concatenate():
            return torch.cat(inputs, 1)
        case ops.Table():
            return torch.from_numpy(operator.values)[inputs[0].long() - LOW]
        case ops.Pad():
            above, below, left, right = operator.padding
            return F.pad(inputs[0].float(), (left, right, above, below), value=operator.output.zero_point)
        case ops.Select():
            for axis, chosen in enumerate(operator.indices, start=1):
                inputs[0] = inputs[0].index_select(axis, torch.tensor(chosen))
            return inputs[0]
        case ops.Reshape():
            return inputs[0].reshape(-1, *operator.output.shape)
        case ops.Constant():
            return torch.from_numpy(operator.values).expand(count, *operator.output.shape)
    raise TypeError(f"{type(operator).__name__} has no formula")


def _sums(operator: ops.Convolution | ops.Linear, inputs: Tensor) -> Tensor:
    """Sums of products and the bias (Jacob et al., CVPR 2018, equations 7 and 11), as int64: exact."""
    weight = torch.from_numpy(operator.weight)
    largest = weight.to(torch.int64).abs().flatten(1).sum(1).max() * (HIGH - LOW)
    dtype = torch.float32 if largest < FLOAT32_EXACT else torch.float64
    if isinstance(operator, ops.Linear):
        sums = F.linear(inputs.to(dtype), weight.to(dtype))
    else:
        above, below, left, right = operator.padding
        padded = F.pad(inputs.to(dtype), (left, right, above, below))
        how = operator.stride, 0, operator.dilation, operator.groups
        sums = F.conv2d(padded, weight.to(dtype), None, *how)
    bias = torch.from_numpy(operator.bias).long()
    return sums.long() + bias.view(-1, *[1] * (sums.ndim - 2))


def _add_once(operator: ops.Add, first: Tensor, second: Tensor) -> Tensor:
    """round((a * scale of a + b * scale of b) / scale of the sum), half to even, in float64."""
    scales = [tensor.scale for tensor in operator.inputs]
    return torch.round((first.double() * scales[0] + second.double() * scales[1]) / operator.output.scale)


def _add_twice(operator: ops.Add, first: Tensor, second: Tensor) -> Tensor:
    """The summands times 2^20 are scaled to twice the larger scale, added, and scaled to the output.

    Source: `AddElementwise` and its `Prepare` in TensorFlow Lite.
    """
    scales = [tensor.scale for tensor in operator.inputs]
    common = 2 * max(scales)
    summands = [
        scaled_twice(values << ADD_SHIFT, scale, 1.0, common)
        for values, scale in zip((first, second), scales, strict=True)
    ]
    return scaled_twice(summands[0] + summands[1], common, 2.0**-ADD_SHIFT, operator.output.scale)


def _windows(pool: ops.AveragePool | ops.MaxPool, values: Tensor, outside: float) -> Tensor:
    """What each window covers: float [N, C, values of a window, H, W]."""
    above, below, left, right = pool.padding
    padded = F.pad(values, (left, right, above, below), value=outside)
    columns = F.unfold(padded, pool.kernel, stride=pool.stride)
    return columns.view(len(values), pool.output.shape[0], -1, *pool.output.shape[1:])


def _mean(pool: ops.AveragePool, values: Tensor) -> Tensor:
    """round(sum of q / count), half away from 0: `AveragePool` of TensorFlow Lite, in all its kernels."""
    sums = _windows(pool, values.double(), 0).sum(2)
    means = sums / _windows(pool, torch.ones_like(values[:1], dtype=torch.float64), 0).sum(2)
    return torch.sign(means) * torch.floor(means.abs() + 0.5)


def _int8(values: Tensor) -> Tensor:
    return values.clamp(LOW, HIGH).to(torch.int8)
