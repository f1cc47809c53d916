"""The operators of LiteRT that a node of an int8 model becomes: one function for each kind of node."""

import operator
from collections.abc import Callable

import numpy as np
import torch
from torch import fx, nn
from torch.ao.nn import intrinsic
from torch.ao.nn import quantized as nnq
from torch.nn import functional as F

from common.deployment.litert_graph import VALID, Graph
from common.system.errors import UserError

NONE, RELU, RELU6 = 0, 1, 3  # of the schema's ActivationFunctionType
NCHW = (0, 3, 1, 2)


def _conv(to: Graph, node: fx.Node, layer: nn.Module) -> int:
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


def _linear(to: Graph, node: fx.Node, layer: nn.Module) -> int:
    weights = to.weights(node, layer, lambda weight: weight, 0)
    inputs = [to.tensors[node.args[0]], *weights]
    return to.add("FULLY_CONNECTED", node, inputs, fusedActivationFunction=_activation(layer))


def _batch_norm(to: Graph, node: fx.Node, layer: nn.Module) -> int:
    """A depthwise convolution of 1 x 1 with a weight of 127 or -127 for each channel."""
    factor = layer.weight / torch.sqrt(layer.running_var + layer.eps)
    bias = (layer.bias - layer.running_mean * factor).detach()
    scales = (factor.abs() / 127).clamp(min=torch.finfo(torch.float32).tiny).detach()
    integers = (127 * factor.sign()).detach().numpy().astype(np.int8).reshape(1, 1, 1, -1)
    inputs = [to.tensors[node.args[0]], *to.constants(node, integers, bias, scales, 3)]
    one = dict.fromkeys(("strideH", "strideW", "depthMultiplier"), 1)
    return to.add(
        "DEPTHWISE_CONV_2D", node, inputs, padding=VALID, fusedActivationFunction=_activation(layer), **one
    )


def _max_pool(
    to: Graph, node: fx.Node, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, **_options
) -> int:
    kernel, stride, padding = _pair(kernel_size), _pair(stride or kernel_size), _pair(padding)
    source, padding = to.padded(node, kernel, stride, padding, _pair(dilation), lowest=True)
    return _pool(to, "MAX_POOL_2D", node, source, kernel, stride, padding)


def _average_pool(
    to: Graph, node: fx.Node, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
    divisor_override=None,
) -> int:  # fmt: skip
    """LiteRT's divides by the number of places inside the image, as torch's does beyond the padding."""
    kernel, stride, padding = _pair(kernel_size), _pair(stride or kernel_size), _pair(padding)
    counted = any(padding) and count_include_pad
    source, mode = to.padded(node, kernel, stride, padding, (1, 1), may_add=False)
    if counted or divisor_override or source is None:
        raise UserError(f"{node.name}, average pooling with such padding, has no form in LiteRT")
    return _pool(to, "AVERAGE_POOL_2D", node, source, kernel, stride, mode)


def _adaptive_pool(to: Graph, node: fx.Node, *_size, **_options) -> int:
    before, after = to.shape(node.args[0])[1:3], to.shape(node)[1:3]
    if before == after:
        return to.tensors[node.args[0]]
    if any(size % out for size, out in zip(before, after, strict=True)):
        raise UserError(f"{node.name}, adaptive pooling from {before} to {after}, has no form in LiteRT")
    kernel = tuple(size // out for size, out in zip(before, after, strict=True))
    return _pool(to, "AVERAGE_POOL_2D", node, to.tensors[node.args[0]], kernel, kernel, VALID)


def _pool(to: Graph, name: str, node: fx.Node, source: int, kernel, stride, padding: int) -> int:
    return to.add(
        name, node, [source], padding=padding, filterHeight=kernel[0], filterWidth=kernel[1],
        strideH=stride[0], strideW=stride[1],
    )  # fmt: skip


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _mean(to: Graph, node: fx.Node, dim, keepdim: bool = False, **_dtype) -> int:
    """An average pooling: LiteRT's MEAN rounds twice in its reference kernel and on microcontrollers."""
    source, dims = node.args[0], {each % 4 for each in ([dim] if isinstance(dim, int) else dim)}
    before = to.shape(source)
    if len(before) != 4 or not dims <= {2, 3} or not (keepdim or dims == {2, 3}):
        raise UserError(f"{node.name}, the mean over dimensions {dim}, has no form in LiteRT")
    kernel = (before[1] if 2 in dims else 1, before[2] if 3 in dims else 1)
    after = [before[0], before[1] // kernel[0], before[2] // kernel[1], before[3]]
    options = {
        "padding": VALID, "filterHeight": kernel[0], "filterWidth": kernel[1],
        "strideH": kernel[0], "strideW": kernel[1],
    }  # fmt: skip
    if keepdim:
        return to.add("AVERAGE_POOL_2D", node, [to.tensors[source]], **options)
    label, grid, inputs = f"{node.name}_pooled", to.grid(source), [to.tensors[source]]
    pooled = to.add_between("AVERAGE_POOL_2D", label, after, grid, inputs, **options)
    wanted = [-1, before[3]]
    return to.add("RESHAPE", node, [pooled, to.integers(f"{node.name}_shape", wanted)], newShape=wanted)


def _flatten(to: Graph, node: fx.Node, *_shape, **_dims) -> int:
    source, shape = node.args[0], to.shape(node)
    if len(shape) != 2:
        raise UserError(f"{node.name}, a change to the shape {shape}, has no form in LiteRT")
    tensor, before = to.tensors[source], to.shape(source)
    if len(before) == 4 and before[1] * before[2] > 1:  # our order of the values is that of [N, C, H, W]
        turned = [before[axis] for axis in NCHW]
        order = to.integers(f"{node.name}_order", NCHW)
        tensor = to.add_between("TRANSPOSE", f"{node.name}_turned", turned, to.grid(source), [tensor, order])
    wanted = [-1, shape[1]]
    return to.add("RESHAPE", node, [tensor, to.integers(f"{node.name}_shape", wanted)], newShape=wanted)


def _binary(name: str, activation: int = NONE) -> Callable:
    def build(to: Graph, node: fx.Node, other: fx.Node, *_grid) -> int:
        if not isinstance(other, fx.Node):
            raise UserError(f"{node.name}, {name} with a constant, has no form in LiteRT")
        inputs = [to.tensors[node.args[0]], to.tensors[other]]
        return to.add(name, node, inputs, fusedActivationFunction=activation)

    return build


def _concatenate(to: Graph, node: fx.Node, dim: int = 0, *_grid) -> int:
    """All parts must have the scale of the result."""
    if dim != 1 or to.values[node.name].ndim != 4:
        raise UserError(f"{node.name}, a concatenation in dimension {dim}, has no form in LiteRT")
    grid, parts = to.grid(node), []
    for part in node.args[0]:
        tensor = to.tensors[part]
        if to.grid(part) != grid:
            label = f"{node.name}_{part.name}"
            tensor = to.add_between("QUANTIZE", label, to.shape(part), grid, [tensor])
        parts.append(tensor)
    return to.add("CONCATENATION", node, parts, axis=3)


def _unary(name: str) -> Callable:
    return lambda to, node, *_module, **_options: to.add(name, node, [to.tensors[node.args[0]]])


def _leaky_relu(to: Graph, node: fx.Node, negative_slope: float = 0.01, **_options) -> int:
    return to.add("LEAKY_RELU", node, [to.tensors[node.args[0]]], alpha=negative_slope)


def _hard_sigmoid(to: Graph, node: fx.Node, *_module, **_options) -> int:
    """min(max(x + 3, 0), 6) / 6: the integers of the first part are those of the result."""
    source, (scale, zero_point) = node.args[0], to.grid(node)
    three = to.file.constant(f"{node.name}_three", np.array([1], np.int8), [3.0])
    sixth = to.file.constant(f"{node.name}_sixth", np.array([1], np.int8), [1 / 6])
    inner = to.add_between(
        "ADD", f"{node.name}_inner", to.shape(node), (6 * scale, zero_point), [to.tensors[source], three],
        fusedActivationFunction=RELU6,
    )  # fmt: skip
    return to.add("MUL", node, [inner, sixth], fusedActivationFunction=NONE)


def _silu(to: Graph, node: fx.Node, *_module, **_options) -> int:
    source, shape, grid = node.args[0], to.shape(node), to.grid(node)
    if grid is not None:
        raise UserError(f"{node.name}, the operator SiLU in int8, has no form in LiteRT")
    gate = to.add_between("LOGISTIC", f"{node.name}_gate", shape, None, [to.tensors[source]])
    return to.add("MUL", node, [to.tensors[source], gate], fusedActivationFunction=NONE)


def _same(to: Graph, node: fx.Node, *_arguments, **_options) -> int:
    return to.tensors[node.args[0]]


def _dequantize(to: Graph, node: fx.Node, *_arguments) -> int:
    if all(user.op == "output" for user in node.users):
        return to.tensors[node.args[0]]
    return to.add("DEQUANTIZE", node, [to.tensors[node.args[0]]])


def _quantize(to: Graph, node: fx.Node, *_arguments, **_options) -> int:
    if node.args[0].op == "get_attr":
        to.add_operand(node)
        return to.tensors[node]
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
    nnq.LeakyReLU: lambda to, node, layer: _leaky_relu(to, node, layer.negative_slope),
    nn.MaxPool2d: lambda to, node, pool: _max_pool(
        to, node, pool.kernel_size, pool.stride, pool.padding, pool.dilation
    ),
    nn.AvgPool2d: lambda to, node, pool: _average_pool(
        to,
        node,
        pool.kernel_size,
        pool.stride,
        pool.padding,
        pool.ceil_mode,
        pool.count_include_pad,
        pool.divisor_override,
    ),
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.Flatten: _flatten,
    nn.Identity: _same,
    nn.Dropout: _same,
}
FUNCTIONS = {
    torch.ops.quantized.add: _binary("ADD"),
    torch.ops.quantized.add_relu: _binary("ADD", RELU),
    torch.ops.quantized.mul: _binary("MUL"),
    torch.ops.quantized.mul_relu: _binary("MUL", RELU),
    torch.ops.quantized.cat: _concatenate,
    torch.cat: _concatenate,
    operator.mul: _binary("MUL"),
    operator.add: _binary("ADD"),
    "add": _binary("ADD"),
    "mul": _binary("MUL"),
    **dict.fromkeys((F.relu, torch.relu, "relu", "relu_"), _unary("RELU")),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, "sigmoid", "sigmoid_"), _unary("LOGISTIC")),
    torch.ops.quantized.hardswish: _unary("HARD_SWISH"),
    torch.ops.quantized.leaky_relu: _leaky_relu,
    F.hardsigmoid: _hard_sigmoid,
    F.silu: _silu,
    F.max_pool2d: _max_pool,
    torch.max_pool2d: _max_pool,
    F.avg_pool2d: _average_pool,
    F.adaptive_avg_pool2d: _adaptive_pool,
    torch.mean: _mean,
    "mean": _mean,
    **dict.fromkeys((torch.flatten, "flatten", "view", "reshape"), _flatten),
    F.dropout: _same,
    "contiguous": _same,
    "dequantize": _dequantize,
    torch.quantize_per_tensor: _quantize,
}
SHAPES = {torch.flatten, "flatten", "view", "reshape", nn.Flatten, nn.Identity, nn.Dropout}
