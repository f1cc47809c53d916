"""The LiteRT (TensorFlow Lite) form of an int8 model: the same integers, weights and scales.

Source: Jacob et al., CVPR 2018, section 2; the operators are those of the specification "LiteRT 8-bit
quantization". Our uint8 values minus 128 are its int8 values. Images are [N, H, W, C] there.
"""

import itertools
import math
import operator
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.ao.nn import intrinsic
from torch.ao.nn import quantized as nnq
from torch.nn import functional as F

from common.compression.quantization import Recorder
from common.deployment.litert_file import Grid, LiteRtFile
from common.system.errors import UserError

NONE, RELU, RELU6 = 0, 1, 3  # of the schema's ActivationFunctionType
SAME, VALID = 0, 1  # of its Padding
LOWEST = -128
NCHW = (0, 3, 1, 2)


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
    return _Converter(int8_model, image_size).run(metadata)


class _Converter:
    """Walks through the graph of an int8 model; `tensors` has the tensor of each node that was converted."""

    def __init__(self, model: fx.GraphModule, image_size: int):
        self.model, self.file, self.tensors = model, LiteRtFile(), {}
        recorder = Recorder(model)
        with torch.inference_mode():
            recorder.run(torch.zeros(1, 3, image_size, image_size))
        self.values = recorder.values

    def run(self, metadata: dict[str, bytes]) -> bytes:
        inputs, outputs = [], []
        for node in self.model.graph.nodes:
            if node.op == "output":
                outputs = [self.tensors[node.args[0]]]
                self.file.rename(outputs[0], "logits")
            elif self._is_input(node):
                inputs = [self._result(node)]
                self.file.rename(inputs[0], "images")
            elif node.op.startswith("call_") and node.name in self.values:
                self._call(node)
        return self.file.pack(inputs, outputs, metadata)

    def _is_input(self, node: fx.Node) -> bool:
        return node.target is torch.quantize_per_tensor and node.args[0].op == "placeholder"

    def _call(self, node: fx.Node) -> None:
        module = self.model.get_submodule(node.target) if node.op == "call_module" else None
        build = LAYERS.get(type(module)) if module is not None else FUNCTIONS.get(node.target)
        name = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
        if build is None:
            raise UserError(f"{node.name}, the operator {name}, has no form in LiteRT")
        args = [module] if module is not None else node.args[1:]
        self.tensors[node] = build(self, node, *args, **(node.kwargs if module is None else {}))

    def grid(self, node: fx.Node) -> Grid | None:
        """Scale and zero point of a node's value in int8; None for float."""
        value = self.values[node.name]
        return (value.q_scale(), value.q_zero_point() + LOWEST) if value.is_quantized else None

    def shape(self, node: fx.Node) -> list[int]:
        """The shape of a node's value, of images [N, H, W, C]."""
        shape = list(self.values[node.name].shape)
        return [shape[0], *shape[2:], shape[1]] if len(shape) == 4 else shape

    def _result(self, node: fx.Node) -> int:
        """A new tensor for the value of a node."""
        self.tensors[node] = self.tensor(node.name, self.shape(node), self.grid(node))
        return self.tensors[node]

    def tensor(self, name: str, shape: list[int], grid: Grid | None) -> int:
        return self.file.tensor(name, shape, "float32" if grid is None else "int8", grid)

    def add(self, name: str, node: fx.Node, inputs: list[int], **options) -> int:
        """Adds an operator that writes the value of a node."""
        output = self._result(node)
        self.file.operator(name, inputs, [output], **options)
        return output

    def between(self, name: str, label: str, shape: list[int], grid: Grid | None, inputs: list[int], **options):
        """Adds an operator that writes a new tensor."""
        output = self.tensor(label, shape, grid)
        self.file.operator(name, inputs, [output], **options)
        return output

    def integers(self, name: str, values) -> int:
        return self.file.constant(name, np.array(values, np.int32))

    def padded(
        self, node: fx.Node, kernel: tuple[int, int], stride, padding, dilation=(1, 1), lowest: bool = False
    ) -> tuple[int, int]:
        """The input of a window operator, and SAME or VALID: LiteRT's padding is not symmetric.

        lowest: Whether the smallest value is added, and not 0.
        """
        source = node.args[0]
        height_width, result = self.shape(source)[1:3], self.shape(node)[1:3]
        pads, same = [], True
        for size, out, k, s, p, d in zip(
            height_width, result, kernel, stride, padding, dilation, strict=True
        ):
            total = max((out - 1) * s + d * (k - 1) + 1 - size, 0)
            pads.append((p, max(total - p, 0)))
            same &= out == math.ceil(size / s) and p == total // 2
        if not any(itertools.chain(*pads)):
            return self.tensors[source], VALID
        if same:
            return self.tensors[source], SAME
        batch, height, width, channels = self.shape(source)
        shape = [batch, height + sum(pads[0]), width + sum(pads[1]), channels]
        amounts = self.integers(f"{node.name}_pads", [(0, 0), *pads, (0, 0)])
        grid, inputs = self.grid(source), [self.tensors[source], amounts]
        if lowest:
            value = np.array([LOWEST], np.int8)
            inputs.append(self.file.constant(f"{node.name}_lowest", value, [grid[0]], 0, grid[1]))
        name = "PADV2" if lowest else "PAD"
        return self.between(name, f"{node.name}_padded", shape, grid, inputs), VALID

    def weights(self, node: fx.Node, layer: nn.Module, order: Callable[[np.ndarray], np.ndarray], axis: int):
        """The weight and the int32 bias of a layer, as constants."""
        weight, bias = layer.weight(), layer.bias()
        if weight.qscheme() == torch.per_tensor_affine:
            scales = torch.tensor([weight.q_scale()])
        else:
            scales = weight.q_per_channel_scales()
        bias = torch.zeros(len(weight)) if bias is None else bias.detach()
        return self.weighted(node, order(weight.int_repr().numpy()), bias, scales, axis)

    def weighted(self, node: fx.Node, integers: np.ndarray, bias: Tensor, scales: Tensor, axis: int):
        steps = scales.double() * self.grid(node.args[0])[0]
        rounded = (bias.double() / steps).round().to(torch.int32).numpy()
        return [
            self.file.constant(f"{node.name}_weight", integers, scales.tolist(), axis),
            self.file.constant(f"{node.name}_bias", rounded, steps.tolist()),
        ]


def _conv(to: _Converter, node: fx.Node, layer: nn.Module) -> int:
    source, padding = to.padded(node, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    options = {
        "padding": padding,
        "strideH": layer.stride[0],
        "strideW": layer.stride[1],
        "dilationHFactor": layer.dilation[0],
        "dilationWFactor": layer.dilation[1],
        "fusedActivationFunction": _activation(layer),
    }
    if layer.groups == layer.in_channels > 1:
        weights = to.weights(node, layer, lambda weight: weight.transpose(1, 2, 3, 0), 3)
        options["depthMultiplier"] = layer.out_channels // layer.groups
        return to.add("DEPTHWISE_CONV_2D", node, [source, *weights], **options)
    weights = to.weights(node, layer, lambda weight: weight.transpose(0, 2, 3, 1), 0)
    return to.add("CONV_2D", node, [source, *weights], **options)


def _activation(layer: nn.Module) -> int:
    relu = (intrinsic.quantized.ConvReLU2d, intrinsic.quantized.LinearReLU, intrinsic.quantized.BNReLU2d)
    return RELU if isinstance(layer, relu) else NONE


def _linear(to: _Converter, node: fx.Node, layer: nn.Module) -> int:
    weights = to.weights(node, layer, lambda weight: weight, 0)
    inputs = [to.tensors[node.args[0]], *weights]
    return to.add("FULLY_CONNECTED", node, inputs, fusedActivationFunction=_activation(layer))


def _batch_norm(to: _Converter, node: fx.Node, layer: nn.Module) -> int:
    """A depthwise convolution of 1 x 1 with a weight of 127 or -127 for each channel."""
    factor = layer.weight / torch.sqrt(layer.running_var + layer.eps)
    bias = (layer.bias - layer.running_mean * factor).detach()
    scales = (factor.abs() / 127).clamp(min=torch.finfo(torch.float32).tiny).detach()
    integers = (127 * factor.sign()).detach().numpy().astype(np.int8).reshape(1, 1, 1, -1)
    inputs = [to.tensors[node.args[0]], *to.weighted(node, integers, bias, scales, 3)]
    one = dict.fromkeys(("strideH", "strideW", "depthMultiplier"), 1)
    return to.add(
        "DEPTHWISE_CONV_2D", node, inputs, padding=VALID, fusedActivationFunction=_activation(layer), **one
    )


def _max_pool(to: _Converter, node: fx.Node, kernel, stride=None, padding=0, dilation=1, **_ceil_mode) -> int:
    kernel, stride, padding = _pair(kernel), _pair(stride or kernel), _pair(padding)
    source, padding = to.padded(node, kernel, stride, padding, _pair(dilation), lowest=True)
    return _pool(to, "MAX_POOL_2D", node, source, kernel, stride, padding)


def _average_pool(to: _Converter, node: fx.Node, kernel, stride=None, padding=0, *_ceil_mode) -> int:
    if _pair(padding) != (0, 0):
        raise UserError(f"{node.name}, average pooling with padding, has no form in LiteRT")
    kernel = _pair(kernel)
    return _pool(to, "AVERAGE_POOL_2D", node, to.tensors[node.args[0]], kernel, _pair(stride or kernel), VALID)


def _adaptive_pool(to: _Converter, node: fx.Node, *_size, **_options) -> int:
    before, after = to.shape(node.args[0])[1:3], to.shape(node)[1:3]
    if before == after:
        return to.tensors[node.args[0]]
    if any(size % out for size, out in zip(before, after, strict=True)):
        raise UserError(f"{node.name}, adaptive pooling from {before} to {after}, has no form in LiteRT")
    kernel = tuple(size // out for size, out in zip(before, after, strict=True))
    return _pool(to, "AVERAGE_POOL_2D", node, to.tensors[node.args[0]], kernel, kernel, VALID)


def _pool(to: _Converter, name: str, node: fx.Node, source: int, kernel, stride, padding: int) -> int:
    return to.add(
        name, node, [source], padding=padding, filterHeight=kernel[0], filterWidth=kernel[1],
        strideH=stride[0], strideW=stride[1],
    )  # fmt: skip


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _mean(to: _Converter, node: fx.Node, dim, keepdim: bool = False, **_dtype) -> int:
    axes = {2: 1, 3: 2, -2: 1, -1: 2}
    if to.values[node.args[0].name].ndim != 4 or not set(dim) <= set(axes):
        raise UserError(f"{node.name}, the mean over dimensions {dim}, has no form in LiteRT")
    inputs = [to.tensors[node.args[0]], to.integers(f"{node.name}_axes", [axes[each] for each in dim])]
    return to.add("MEAN", node, inputs, keepDims=keepdim)


def _flatten(to: _Converter, node: fx.Node, *_shape, **_dims) -> int:
    source, shape = node.args[0], to.shape(node)
    if len(shape) != 2:
        raise UserError(f"{node.name}, a change to the shape {shape}, has no form in LiteRT")
    tensor, before = to.tensors[source], to.shape(source)
    if len(before) == 4 and before[1] * before[2] > 1:  # our order of the values is that of [N, C, H, W]
        turned = [before[axis] for axis in NCHW]
        order = to.integers(f"{node.name}_order", NCHW)
        tensor = to.between("TRANSPOSE", f"{node.name}_turned", turned, to.grid(source), [tensor, order])
    wanted = [-1, shape[1]]
    return to.add("RESHAPE", node, [tensor, to.integers(f"{node.name}_shape", wanted)], newShape=wanted)


def _binary(name: str, activation: int = NONE) -> Callable:
    def build(to: _Converter, node: fx.Node, other: fx.Node, *_grid) -> int:
        if not isinstance(other, fx.Node):
            raise UserError(f"{node.name}, {name} with a constant, has no form in LiteRT")
        inputs = [to.tensors[node.args[0]], to.tensors[other]]
        return to.add(name, node, inputs, fusedActivationFunction=activation)

    return build


def _concatenate(to: _Converter, node: fx.Node, dim: int = 0, *_grid) -> int:
    """All parts must have the scale of the result."""
    if dim != 1 or to.values[node.name].ndim != 4:
        raise UserError(f"{node.name}, a concatenation in dimension {dim}, has no form in LiteRT")
    grid, parts = to.grid(node), []
    for part in node.args[0]:
        tensor = to.tensors[part]
        if to.grid(part) != grid:
            label = f"{node.name}_{part.name}"
            tensor = to.between("QUANTIZE", label, to.shape(part), grid, [tensor])
        parts.append(tensor)
    return to.add("CONCATENATION", node, parts, axis=3)


def _unary(name: str) -> Callable:
    return lambda to, node, *_module, **_options: to.add(name, node, [to.tensors[node.args[0]]])


def _hard_sigmoid(to: _Converter, node: fx.Node, *_module, **_options) -> int:
    """min(max(x + 3, 0), 6) / 6: the integers of the first part are those of the result."""
    source, (scale, zero_point) = node.args[0], to.grid(node)
    three = to.file.constant(f"{node.name}_three", np.array([1], np.int8), [3.0])
    sixth = to.file.constant(f"{node.name}_sixth", np.array([1], np.int8), [1 / 6])
    inner = to.between(
        "ADD", f"{node.name}_inner", to.shape(node), (6 * scale, zero_point), [to.tensors[source], three],
        fusedActivationFunction=RELU6,
    )  # fmt: skip
    return to.add("MUL", node, [inner, sixth], fusedActivationFunction=NONE)


def _silu(to: _Converter, node: fx.Node, *_module, **_options) -> int:
    source, shape, grid = node.args[0], to.shape(node), to.grid(node)
    if grid is not None:
        raise UserError(f"{node.name}, the operator SiLU in int8, has no form in LiteRT")
    gate = to.between("LOGISTIC", f"{node.name}_gate", shape, None, [to.tensors[source]])
    return to.add("MUL", node, [to.tensors[source], gate], fusedActivationFunction=NONE)


def _same(to: _Converter, node: fx.Node, *_arguments, **_options) -> int:
    return to.tensors[node.args[0]]


def _dequantize(to: _Converter, node: fx.Node, *_arguments) -> int:
    if all(user.op == "output" for user in node.users):
        return to.tensors[node.args[0]]
    return to.add("DEQUANTIZE", node, [to.tensors[node.args[0]]])


def _quantize(to: _Converter, node: fx.Node, *_arguments, **_options) -> int:
    return to.add("QUANTIZE", node, [to.tensors[node.args[0]]])


LAYERS = {
    nnq.Conv2d: _conv,
    nnq.Linear: _linear,
    nnq.BatchNorm2d: _batch_norm,
    nnq.Hardswish: _unary("HARD_SWISH"),
    intrinsic.quantized.ConvReLU2d: _conv,
    intrinsic.quantized.LinearReLU: _linear,
    intrinsic.quantized.BNReLU2d: _batch_norm,
    nn.ReLU: _unary("RELU"),
    nn.Sigmoid: _unary("LOGISTIC"),
    nn.Hardsigmoid: _hard_sigmoid,
    nn.SiLU: _silu,
    nn.MaxPool2d: lambda to, node, pool: _max_pool(
        to, node, pool.kernel_size, pool.stride, pool.padding, pool.dilation
    ),
    nn.AvgPool2d: lambda to, node, pool: _average_pool(to, node, pool.kernel_size, pool.stride, pool.padding),
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.Flatten: _flatten,
    nn.Identity: _same,
    nn.Dropout: _same,
}
FUNCTIONS = {
    torch.ops.quantized.add: _binary("ADD"),
    torch.ops.quantized.add_relu: _binary("ADD", RELU),
    torch.ops.quantized.mul: _binary("MUL"),
    torch.ops.quantized.cat: _concatenate,
    torch.cat: _concatenate,
    operator.mul: _binary("MUL"),
    operator.add: _binary("ADD"),
    F.relu: _unary("RELU"),
    torch.relu: _unary("RELU"),
    torch.sigmoid: _unary("LOGISTIC"),
    F.hardsigmoid: _hard_sigmoid,
    F.silu: _silu,
    F.max_pool2d: _max_pool,
    torch.max_pool2d: _max_pool,
    F.avg_pool2d: _average_pool,
    F.adaptive_avg_pool2d: _adaptive_pool,
    torch.mean: _mean,
    "mean": _mean,
    torch.flatten: _flatten,
    "flatten": _flatten,
    "view": _flatten,
    "reshape": _flatten,
    F.dropout: _same,
    "contiguous": _same,
    "dequantize": _dequantize,
    torch.quantize_per_tensor: _quantize,
}
