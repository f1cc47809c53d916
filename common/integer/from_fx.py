"""Reads an int8 model of torch's FX graph mode as a graph of integers: the form of each kind of node.

No other module reads torch's quantized modules.
"""

import math
import operator

import numpy as np
import torch
from torch import fx, nn
from torch.ao.nn import intrinsic
from torch.ao.nn import quantized as nnq
from torch.nn import functional as F

from common.integer import operators as ops
from common.integer.fx_reader import Reader, Value, grid_of, image_shape, whole
from common.integer.graph import Graph, Tensor
from common.integer.plain import round_bias

TABLE_MAX = 127  # weight of a batch norm's channel


def read(int8_model: fx.GraphModule, image_size: int) -> Graph:
    """Reads a model.

    Args:
        int8_model: A converted model, on the CPU.
        image_size: Side of the images, in pixels.

    Returns:
        The graph.

    Raises:
        UserError: A part of the model has no integer form; the message names it.
    """
    return Reader(int8_model, _form).graph_of(image_size)


def _form(reader: Reader, node: fx.Node) -> Value | tuple[Value, ...]:
    """The value of a node, whose operators are added to the graph."""
    module = reader.fetch_attr(node.target) if node.op == "call_module" else None
    kind = node.target if module is None else type(module)
    if kind in MOVES:
        value = reader.only(node)
        moved = reader.call(node, lambda each: each.index)
        parts = [Value(value.source, part, value.functions, value.is_float) for part in _parts(moved)]
        return parts[0] if isinstance(moved, torch.Tensor) else tuple(parts)
    if kind in FUNCTIONS:
        value, name, replaced = reader.only(node), FUNCTIONS[kind], SAME_IN_FLOAT.get(kind)
        if name == "leaky_relu":
            name += f" {_slope(module, *node.args[1:], **node.kwargs)}"

        def function(numbers: torch.Tensor) -> torch.Tensor:
            return replaced(module, numbers) if replaced else reader.call(node, lambda _: numbers)

        value = Value(value.source, value.index, (*value.functions, (name, function)), value.is_float)
        return value if value.is_float else reader.tabulate(node, value, grid_of(reader.results[node]))
    if kind in LAYERS:
        args, kwargs = reader.arguments(node)
        return LAYERS[kind](reader, node, *([] if module is None else [module]), *args, **kwargs)
    raise reader.refuse(node)


def _slope(module: nn.Module | None, negative_slope: float = 0.01, *_inplace, **_others) -> float:
    return negative_slope if module is None else module.negative_slope


def _parts(result) -> list:
    return [result] if isinstance(result, torch.Tensor) else list(result)


def _emit(reader: Reader, kind: type, node: fx.Node, inputs, **attributes) -> Value:
    """Adds an operator whose output is the result of a node."""
    result = reader.results[node]
    shape = image_shape(result.shape)
    return whole(reader.emit(kind, node, inputs, shape, grid_of(result), **attributes), result.shape)


def _weights(layer: nn.Module, input_scale: float) -> dict:
    """The integers of a quantized layer (biases: Jacob et al., CVPR 2018, equation 11)."""
    weight, bias = layer.weight(), layer.bias()
    if weight.qscheme() == torch.per_tensor_affine:  # of files of earlier versions
        scales = torch.full(weight.shape[:1], weight.q_scale())
    else:
        scales = weight.q_per_channel_scales()
    bias = torch.zeros(len(weight)) if bias is None else bias
    return {
        "weight": weight.int_repr().numpy(),
        "weight_scales": scales.float().numpy(),
        "bias": round_bias(bias, scales.float(), input_scale).numpy(),
        "relu": isinstance(layer, RELU_LAYERS),
    }


def _conv(reader: Reader, node: fx.Node, layer: nn.Module, value: Value) -> Value:
    source = reader.tensor(node, value)
    weights = _weights(layer, source.scale)
    pairs = {name: _pair(getattr(layer, name)) for name in ("stride", "dilation", "padding")}
    if weights["weight"].ndim == 3:  # of a sequence: an image of one row
        weights["weight"] = weights["weight"][:, :, None]
        pairs = {name: (name != "padding", pair[0]) for name, pair in pairs.items()}
    pairs["padding"] = _padding(
        source, image_shape(reader.results[node].shape), weights["weight"].shape[2:], **pairs
    )
    return _emit(reader, ops.Convolution, node, [source], groups=layer.groups, **pairs, **weights)


def _linear(reader: Reader, node: fx.Node, layer: nn.Module, value: Value) -> Value:
    source = reader.tensor(node, value)
    return _emit(reader, ops.Linear, node, [source], **_weights(layer, source.scale))


def _batch_norm(reader: Reader, node: fx.Node, layer: nn.Module, value: Value) -> Value:
    """A depthwise convolution of 1 x 1 with a weight of 127 or -127 for each channel."""
    source = reader.tensor(node, value)
    factor = layer.weight / torch.sqrt(layer.running_var + layer.eps)
    bias = (layer.bias - layer.running_mean * factor).double()
    scales = (factor.abs() / TABLE_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    weight = (TABLE_MAX * factor.sign()).to(torch.int8).view(-1, 1, 1, 1)
    limit = ops.SUM_MAX // 2
    bias = (bias / (scales.double() * source.scale)).round().clamp(-limit, limit).to(torch.int32)
    return _emit(
        reader, ops.Convolution, node, [source], weight=weight.numpy(), weight_scales=scales.numpy(),
        bias=bias.numpy(), groups=len(factor), relu=isinstance(layer, RELU_LAYERS),
    )  # fmt: skip


def _elementwise(kind: type, relu: bool = False):
    def form(reader: Reader, node: fx.Node, first, second, *_grid) -> Value:
        if not all(isinstance(each, Value | torch.Tensor) for each in (first, second)):
            return _with_number(reader, node, kind, relu)
        inputs = [reader.tensor(node, each) for each in (first, second)]
        return _emit(reader, kind, node, inputs, relu=relu)

    return form


def _with_number(reader: Reader, node: fx.Node, kind: type, relu: bool) -> Value:
    """The sum or the product of a value and a number: a function of one value."""
    value = reader.only(node)
    (number,) = (each for each in node.args[:2] if not isinstance(each, fx.Node))
    name = f"{'add' if kind is ops.Add else 'multiply'} {number}"

    def function(numbers: torch.Tensor) -> torch.Tensor:
        result = numbers + number if kind is ops.Add else numbers * number
        return result.relu() if relu else result

    value = Value(value.source, value.index, (*value.functions, (name, function)), value.is_float)
    return value if value.is_float else reader.tabulate(node, value, grid_of(reader.results[node]))


def _concatenate(reader: Reader, node: fx.Node, tensors, dim: int = 0, *_grid) -> Value:
    result = reader.results[node]
    if dim % result.ndim != 1 or not result.is_quantized:
        raise reader.refuse(node, f" in dimension {dim}" if dim % result.ndim != 1 else " of float32 values")
    parts = [reader.tensor(node, reader.tabulate(node, each, grid_of(result), "_input")) for each in tensors]
    return _emit(reader, ops.Concatenate, node, parts)


def _max_pool_layer(reader: Reader, node: fx.Node, layer: nn.MaxPool2d, value: Value) -> Value:
    return _max_pool(reader, node, value, layer.kernel_size, layer.stride, layer.padding, layer.dilation)


def _max_pool(reader, node, value, kernel_size, stride=None, padding=0, dilation=1, **_ceil_mode) -> Value:
    if _pair(dilation) != (1, 1):
        raise reader.refuse(node, " with dilation")
    return _pool(reader, ops.MaxPool, node, reader.tensor(node, value), kernel_size, stride, padding)


def _average_pool_layer(reader: Reader, node: fx.Node, layer: nn.AvgPool2d, value: Value) -> Value:
    return _average_pool(
        reader, node, value, layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode,
        layer.count_include_pad, layer.divisor_override,
    )  # fmt: skip


def _average_pool(
    reader, node, value, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
    divisor_override=None,
) -> Value:  # fmt: skip
    if divisor_override is not None:
        raise reader.refuse(node, " with divisor_override")
    source = reader.tensor(node, value)
    if count_include_pad and any(_pair(padding)):
        around = tuple(np.repeat(_pair(padding), 2).tolist())
        channels, height, width = source.shape
        shape = (channels, height + sum(around[:2]), width + sum(around[2:]))
        source, padding = (
            reader.emit(ops.Pad, node, [source], shape, source.grid, "_padded", padding=around),
            0,
        )
    return _pool(reader, ops.AveragePool, node, source, kernel_size, stride, padding)


def _pool(reader: Reader, kind: type, node: fx.Node, source: Tensor, kernel, stride, padding) -> Value:
    """Adds a pooling; with ceil_mode the last window may be partly outside of the image."""
    kernel, padding = _pair(kernel), _pair(padding)
    stride, out = _pair(stride or kernel), image_shape(reader.results[node].shape)
    padding, count = _padding(source, out, kernel, stride, padding), math.prod(kernel)
    if kind is ops.AveragePool and count % 2 == 0 and kernel != source.shape[1:] and not any(padding):
        return _means_of_few(reader, node, source, kernel, stride)
    return _emit(reader, kind, node, [source], kernel=kernel, stride=stride, padding=padding)


def _means_of_few(reader: Reader, node: fx.Node, source: Tensor, kernel, stride) -> Value:
    """A depthwise convolution: runtimes round halves of a mean differently, of a convolution alike."""
    channels = source.shape[0]
    return _emit(
        reader, ops.Convolution, node, [source], weight=np.ones((channels, 1, *kernel), np.int8),
        weight_scales=np.full(channels, 1 / math.prod(kernel), np.float32),
        bias=np.zeros(channels, np.int32), stride=stride, groups=channels,
    )  # fmt: skip


def _padding(source: Tensor, out, kernel, stride, padding, dilation=(1, 1)) -> ops.Padding:
    """What the windows cover around an image: below and on the right it may be less than what torch pads."""
    pads = []
    sizes = zip(source.shape[1:], out[1:], kernel, stride, padding, dilation, strict=True)
    for before, after, k, s, p, d in sizes:
        pads += [p, max((after - 1) * s + d * (k - 1) + 1 - before - p, 0)]
    return tuple(pads)


def _adaptive_layer(reader: Reader, node: fx.Node, _layer: nn.Module, value: Value) -> Value:
    return _adaptive_pool(reader, node, value)


def _adaptive_pool(reader: Reader, node: fx.Node, value: Value, *_size, **_output_size) -> Value:
    """Means of windows from floor(i * size / out) to ceil((i + 1) * size / out), as in torch.

    Where they have several sizes, rows and columns are repeated, so that all windows are equally large.
    """
    source, out = reader.tensor(node, value), reader.results[node].shape[2:]
    indices, kernel = [tuple(range(source.shape[0]))], []
    for before, after in zip(source.shape[1:], out, strict=True):
        spans = [(i * before // after, -(-(i + 1) * before // after)) for i in range(after)]
        largest = math.lcm(*(end - start for start, end in spans))
        kernel.append(largest)
        repeats = (np.repeat(np.arange(*span), largest // (span[1] - span[0])) for span in spans)
        indices.append(tuple(np.concatenate(list(repeats)).tolist()))
    if any(chosen != tuple(range(size)) for chosen, size in zip(indices, source.shape, strict=True)):
        shape = tuple(map(len, indices))
        source = reader.emit(ops.Select, node, [source], shape, source.grid, "_input", indices=tuple(indices))
    if kernel == [1, 1]:
        return whole(source, reader.results[node].shape)
    return _pool(reader, ops.AveragePool, node, source, tuple(kernel), None, 0)


def _mean(reader: Reader, node: fx.Node, value: Value, dim=None, keepdim=False, **_dtype) -> Value:
    ndim, result = len(value.shape), reader.results[node]
    axes = {each % ndim for each in ([dim] if isinstance(dim, int) else dim or ())}
    if not axes or min(axes) < 2 or not result.is_quantized:
        raise reader.refuse(node, f" over dimensions {dim}")
    source = reader.tensor(node, value)
    sizes = (1, *source.shape[1:]) if ndim == 3 else source.shape[1:]
    kernel = tuple(size if axis in axes else 1 for axis, size in enumerate(sizes[-2:], start=ndim - 2))
    if ndim == 3:  # a sequence is an image of one row
        kernel = (1, source.shape[2])
    shape = (source.shape[0], source.shape[1] // kernel[0], source.shape[2] // kernel[1])
    pooled = reader.emit(
        ops.AveragePool, node, [source], shape, grid_of(result), kernel=kernel, stride=kernel
    )
    return whole(pooled, result.shape)


def _dequantize(_reader: Reader, _node: fx.Node, value: Value) -> Value:
    return Value(value.source, value.index, value.functions, True)


def _quantize(reader: Reader, node: fx.Node, value: Value, *_grid, **_options) -> Value:
    return reader.tabulate(node, value, grid_of(reader.results[node]))


def _pair(value) -> tuple[int, int]:
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * 2 if len(value) == 1 else value


RELU_LAYERS = (
    *(intrinsic.quantized.ConvReLU1d, intrinsic.quantized.ConvReLU2d),
    *(intrinsic.quantized.LinearReLU, intrinsic.quantized.BNReLU2d),
)
MOVES = {  # what torch runs on positions
    *(
        nn.Identity,
        nn.Flatten,
        nn.Dropout,
        nnq.Dropout,
        nn.ChannelShuffle,
        nn.PixelShuffle,
        nn.PixelUnshuffle,
    ),
    *(nn.Unflatten, nn.UpsamplingNearest2d),
    *(operator.getitem, torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.squeeze),
    *(torch.unsqueeze, torch.chunk, torch.split, torch.narrow, torch.flip, torch.roll, torch.channel_shuffle),
    *(torch.repeat_interleave, torch.tensor_split, torch.unbind, torch.swapaxes),
    *(F.dropout, F.interpolate, F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle),
    *(
        "flatten",
        "view",
        "reshape",
        "transpose",
        "permute",
        "squeeze",
        "unsqueeze",
        "chunk",
        "split",
        "narrow",
    ),
    *("contiguous", "flip", "roll", "unflatten", "clone", "detach", "expand", "repeat", "repeat_interleave"),
    *("unbind", "swapaxes", "to", "float", "view_as", "expand_as"),
}
FUNCTIONS = {  # of one value, with their names in a `Table`
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_"), "relu"),
    **dict.fromkeys((nn.ReLU6, nnq.ReLU6, F.relu6), "relu6"),
    **dict.fromkeys((nn.Sigmoid, nnq.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_"), "sigmoid"),
    **dict.fromkeys((nn.Hardsigmoid, F.hardsigmoid), "hardsigmoid"),
    **dict.fromkeys((nn.Hardswish, nnq.Hardswish, F.hardswish), "hardswish"),
    **dict.fromkeys((nn.SiLU, F.silu), "silu"),
    **dict.fromkeys((nn.GELU, F.gelu), "gelu"),
    **dict.fromkeys((nn.Mish, F.mish), "mish"),
    **dict.fromkeys((nn.ELU, nnq.ELU, F.elu), "elu"),
    **dict.fromkeys((nn.Tanh, torch.tanh, F.tanh, "tanh"), "tanh"),
    **dict.fromkeys((nn.LeakyReLU, nnq.LeakyReLU, F.leaky_relu), "leaky_relu"),
    **dict.fromkeys((nn.Hardtanh, F.hardtanh, torch.clamp, "clamp"), "clamp"),
    **dict.fromkeys((operator.neg, torch.neg), "neg"),
}
SAME_IN_FLOAT = {  # what a quantized module computes
    nnq.ReLU6: lambda _layer, x: F.relu6(x),
    nnq.Sigmoid: lambda _layer, x: torch.sigmoid(x),
    nnq.Hardswish: lambda _layer, x: F.hardswish(x),
    nnq.ELU: lambda layer, x: F.elu(x, layer.alpha),
    nnq.LeakyReLU: lambda layer, x: F.leaky_relu(x, layer.negative_slope),
}
LAYERS = {
    **dict.fromkeys((nnq.Conv1d, nnq.Conv2d, *RELU_LAYERS[:2]), _conv),
    **dict.fromkeys((nnq.Linear, intrinsic.quantized.LinearReLU), _linear),
    **dict.fromkeys((nnq.BatchNorm2d, intrinsic.quantized.BNReLU2d), _batch_norm),
    nn.MaxPool2d: _max_pool_layer,
    nn.AvgPool2d: _average_pool_layer,
    nn.AdaptiveAvgPool2d: _adaptive_layer,
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _max_pool),
    F.avg_pool2d: _average_pool,
    F.adaptive_avg_pool2d: _adaptive_pool,
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((torch.ops.quantized.add, operator.add, torch.add), _elementwise(ops.Add)),
    torch.ops.quantized.add_relu: _elementwise(ops.Add, relu=True),
    **dict.fromkeys((torch.ops.quantized.mul, operator.mul, torch.mul), _elementwise(ops.Multiply)),
    **dict.fromkeys((torch.ops.quantized.cat, torch.cat), _concatenate),
    **dict.fromkeys((torch.dequantize, "dequantize"), _dequantize),
    torch.quantize_per_tensor: _quantize,
}
