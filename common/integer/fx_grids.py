"""Runs a traced int8 model in float32, without torch's quantized kernels and dtypes.

Beside each value stand the scale and the zero point that torch would store in it. Values that depend on the
image only have the correct shape; parameters have their quantized values.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

ZERO_POINT = 128  # of torch's uint8 values, where that of int8 is 0
HIGHEST = 255  # of uint8
QUANTIZED = torch.ops.quantized
IN_FLOAT = {  # torch's quantized functions; the others keep the shape
    **dict.fromkeys((QUANTIZED.add, QUANTIZED.add_relu), lambda a, b, *_grid: a + b),
    **dict.fromkeys((QUANTIZED.mul, QUANTIZED.mul_relu), lambda a, b, *_grid: a * b),
    QUANTIZED.matmul: lambda a, b, *_grid: a @ b,
}
FIXED = {  # the grids that torch gives the results of functions with a known range
    **dict.fromkeys((nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_"), (1 / 256, -128)),
    **dict.fromkeys((nn.Hardsigmoid, F.hardsigmoid), (1 / 256, -128)),
    **dict.fromkeys((nn.Tanh, torch.tanh, F.tanh, "tanh"), (2 / 256, 0)),
}
Grid = tuple[float, int]  # scale of float32, zero point from -128 to 127


class PlainLayer(nn.Module):
    """A convolution or a Linear of an int8 model, its weight in plain tensors; it cannot run.

    Attributes:
        relu: Whether a ReLU is part of it.
        integers: int8 weight, float32 scales [O], float32 bias [O].
        scale: Of its output.
        zero_point: Of its output, from 0 to 255.
    """

    def __init__(self, layer: nn.Module, relu: bool):
        """Takes the attributes of a layer, not its weight.

        Args:
            layer: A convolution or a Linear.
            relu: See there.
        """
        super().__init__()
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            setattr(self, name, getattr(layer, name, None))
        self.padding_mode = getattr(layer, "padding_mode", None)
        self.out_features = getattr(layer, "out_features", None)
        self.relu, self.integers, self.scale, self.zero_point = relu, None, None, None


class GridRunner(fx.Interpreter):
    """Runs a model and keeps what each node returns.

    Attributes:
        results: What each node returns: float32 where torch's value is quantized.
        grids: Scale and zero point of each node that returns quantized values.
    """

    def __init__(self, model: fx.GraphModule):
        """Starts without values.

        Args:
            model: A converted model, on the CPU.
        """
        super().__init__(model)
        self.results: dict[fx.Node, object] = {}
        self.grids: dict[fx.Node, Grid] = {}

    def run_node(self, node: fx.Node):
        """Runs one node; called by `run`.

        Args:
            node: The node.

        Returns:
            What the node returns.
        """
        function = self._in_float(node)
        if function is None:
            result = super().run_node(node)
        else:
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            result = function(*args, **kwargs)
        self.results[node] = result
        if grid := self._grid(node):
            self.grids[node] = grid
        return result

    def _in_float(self, node: fx.Node) -> Callable | None:
        """What takes the place of a quantized kernel; None for what runs in float32 as it is."""
        if node.target is torch.quantize_per_tensor:
            return _fake_quantize
        if node.target in (torch.dequantize, "dequantize"):
            return _first
        if str(node.target).startswith("quantized."):
            return IN_FLOAT.get(node.target, _first)
        layer = self.fetch_attr(node.target) if node.op == "call_module" else None
        return partial(_of_the_shape, layer) if _is_quantized(layer) else None

    def _grid(self, node: fx.Node) -> Grid | None:
        """Scale and zero point of what a node returns; None where it is in float32."""
        layer = self.fetch_attr(node.target) if node.op == "call_module" else None
        kind, before = node.target if layer is None else type(layer), None
        for each in node.all_input_nodes:
            before = before or self.grids.get(each)
        if kind is torch.quantize_per_tensor:
            return _of_int8(*(self.results[each] for each in node.args[1:3]))
        if _is_quantized(layer) and hasattr(layer, "scale"):
            return _of_int8(layer.scale, layer.zero_point)
        if str(kind).startswith("quantized.") and kind is not QUANTIZED.dropout:  # which keeps the grid
            given = node.args[2:] or [node.kwargs.get(f"output_{name}") for name in ("scale", "zero_point")]
            if len(given) == 2 and all(isinstance(each, fx.Node) for each in given):
                return _of_int8(*(self.results[each] for each in given))
            numbers = [each for each in node.args[:2] if isinstance(each, int | float)]
            return _with_number(kind, before, numbers[0]) if numbers and kind in IN_FLOAT else before
        if before is None or kind in ("dequantize", torch.dequantize):
            return None
        return FIXED.get(kind, before)


def _is_quantized(layer: nn.Module | None) -> bool:
    return isinstance(layer, PlainLayer) or type(layer).__module__.startswith("torch.ao.")


def _fake_quantize(values: torch.Tensor, scale, zero_point, _dtype) -> torch.Tensor:
    return torch.fake_quantize_per_tensor_affine(values, float(scale), int(zero_point), 0, HIGHEST)


def _first(values, *_args, **_kwargs):
    return values


def _of_the_shape(layer: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Zeros of the shape that a quantized layer returns."""
    if getattr(layer, "kernel_size", None):
        weight = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(layer.kernel_size) - 1]
        how = layer.stride, layer.padding, layer.dilation, layer.groups
        shape = convolve(values.to("meta"), torch.empty(weight, device="meta"), None, *how).shape
        return values.new_zeros(shape)
    features = getattr(layer, "out_features", None)
    return values.new_zeros(*values.shape[:-1], features) if features else values


def _of_int8(scale, zero_point) -> Grid:
    return float(np.float32(scale)), int(zero_point) - ZERO_POINT


def _with_number(function, before: Grid, number: float) -> Grid:
    """The grid of a sum or a product with a number, as torch chooses it: the integers stay the same.

    Source: `qadd_scalar` and `qmul_scalar` of torch, in aten/src/ATen/native/quantized/cpu.
    """
    scale, zero_point = before
    if function in (QUANTIZED.mul, QUANTIZED.mul_relu):
        if number == 0:
            return 1.0, -ZERO_POINT
        return float(np.float32(scale * abs(number))), zero_point if number > 0 else -1 - zero_point
    zero_point = zero_point + ZERO_POINT - round(number / scale)
    if zero_point < 0:
        scale *= (HIGHEST - zero_point) / HIGHEST
    elif zero_point > HIGHEST:
        scale *= zero_point / HIGHEST
    return float(np.float32(scale)), min(max(zero_point, 0), HIGHEST) - ZERO_POINT
