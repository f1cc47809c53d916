"""Reads an int8 model of torch's FX graph mode as a graph of integers: the form of each kind of node.

Of the modules that read int8 models no other knows torch's quantized layers.
"""

import operator
from dataclasses import replace

import torch
from torch import fx, nn
from torch.ao.nn import intrinsic
from torch.ao.nn import quantized as nnq
from torch.nn import functional as F

from common.integer import nibbles
from common.integer import operators as ops
from common.integer.fx_grids import QUANTIZED, PlainLayer
from common.integer.fx_pooling import POOLINGS, padding_of, pair
from common.integer.fx_reader import Reader
from common.integer.fx_values import Value, image_shape, selection, whole
from common.integer.graph import Graph, Tensor
from common.integer.plain import round_bias

NORM_WEIGHT = 127  # of a batch norm's channel


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
        return _moved(reader, node)
    if kind in FUNCTIONS:
        return _function(reader, node, kind, module)
    if kind in LAYERS:
        args, kwargs = reader.arguments(node)
        return LAYERS[kind](reader, node, *([] if module is None else [module]), *args, **kwargs)
    raise reader.refuse(node)


def _moved(reader: Reader, node: fx.Node) -> Value | tuple[Value, ...]:
    """Runs a move on the positions, and a second time on other numbers, which it must move alike."""
    value = reader.only(node)
    moved, others = (
        _parts(reader.call(node, convert))
        for convert in (lambda each: each.index, lambda each: _scramble(each.index))
    )
    before = {
        reader.results[each].dtype for each in node.all_input_nodes if torch.is_tensor(reader.results[each])
    }
    after = {part.dtype for part in _parts(reader.results[node])}
    alike = all(torch.equal(_scramble(part), other) for part, other in zip(moved, others, strict=True))
    if not alike or (before and before != after):
        raise reader.refuse(node, ", which changes values")
    parts = [replace(value, index=part) for part in moved]
    has_operator = value.is_whole or selection(value) is not None
    single = has_operator and len(image_shape(value.shape)) in (1, 3)
    if single and any(selection(part) is None for part in parts):
        # two moves that no operator has in one: the first becomes an operator of its own
        source = reader.tensor(node, replace(value, functions=(), is_float=False))
        value = replace(value, source=source, index=whole(source, value.shape).index)
        moved = _parts(reader.call(node, lambda _: value.index))
        parts = [replace(value, index=part) for part in moved]
    return parts[0] if torch.is_tensor(reader.results[node]) else tuple(parts)


def _scramble(positions: torch.Tensor) -> torch.Tensor:
    """Numbers for positions: a mean of two positions has not the mean of their numbers."""
    return (positions + 1) * 40503 % 65521


def _function(reader: Reader, node: fx.Node, kind, module: nn.Module | None) -> Value:
    value, name = reader.only(node), FUNCTIONS[kind]
    others = [each for each in node.args[1:] if not isinstance(each, fx.Node)]
    named = {key: each for key, each in node.kwargs.items() if not isinstance(each, fx.Node)}
    if name == "leaky_relu":
        name += f" {_slope(module, *others, **named)}"

    def function(numbers: torch.Tensor) -> torch.Tensor:
        if kind in SAME_IN_FLOAT:
            return SAME_IN_FLOAT[kind](module, numbers, *others, **named)
        return reader.call(node, lambda _: numbers)

    return _applied(reader, node, value, name, function)


def _applied(reader: Reader, node: fx.Node, value: Value, name: str, function) -> Value:
    """A function of each value: a table, or in float32 a part of the table that quantizes it."""
    value = replace(value, functions=(*value.functions, (name, function)))
    return value if value.is_float else reader.tabulate(node, value, reader.grids[node])


def _slope(module: nn.Module | None, negative_slope: float = 0.01, *_others, **_named) -> float:
    return negative_slope if module is None else module.negative_slope


def _parts(result) -> list:
    return [result] if isinstance(result, torch.Tensor) else list(result)


def _weights(layer: nn.Module, input_scale: float) -> dict:
    """The integers of a quantized layer (biases: Jacob et al., CVPR 2018, equation 11)."""
    weight, scales, bias = layer.integers if isinstance(layer, PlainLayer) else _unpacked(layer)
    return {
        "weight": weight.numpy(),
        "weight_bits": 4 if nibbles.fit(weight.numpy()) else 8,
        "weight_scales": scales.numpy(),
        "bias": round_bias(bias, scales, input_scale).numpy(),
        "relu": layer.relu if isinstance(layer, PlainLayer) else isinstance(layer, RELU_LAYERS),
    }


def _unpacked(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """int8 weight, float32 scales and bias of one of torch's layers."""
    weight, bias = layer.weight(), layer.bias()
    scales = weight.q_per_channel_scales().float()
    return weight.int_repr(), scales, torch.zeros(len(weight)) if bias is None else bias


def _conv(reader: Reader, node: fx.Node, layer: nn.Module, value: Value) -> Value:
    if layer.padding_mode != "zeros":
        raise reader.refuse(node, f" with {layer.padding_mode} padding")
    source = reader.tensor(node, value)
    weights = _weights(layer, source.scale)
    pairs = {name: pair(getattr(layer, name)) for name in ("stride", "dilation", "padding")}
    if weights["weight"].ndim == 3:  # of a sequence: an image of one row
        weights["weight"] = weights["weight"][:, :, None]
        pairs = {name: (int(name != "padding"), both[0]) for name, both in pairs.items()}
    out = image_shape(reader.results[node].shape)
    pairs["padding"] = padding_of(source, out, weights["weight"].shape[2:], **pairs)
    return reader.result(ops.Convolution, node, [source], groups=layer.groups, **pairs, **weights)


def _linear(reader: Reader, node: fx.Node, layer: nn.Module, value: Value) -> Value:
    source = reader.tensor(node, value)
    return reader.result(ops.Linear, node, [source], **_weights(layer, source.scale))


def _batch_norm(reader: Reader, node: fx.Node, layer: nn.Module, value: Value) -> Value:
    """A depthwise convolution of 1 x 1 with a weight of 127 or -127 for each channel."""
    source = reader.tensor(node, value)
    factor = layer.weight / torch.sqrt(layer.running_var + layer.eps)
    bias = (layer.bias - layer.running_mean * factor).double()
    scales = (factor.abs() / NORM_WEIGHT).clamp(min=torch.finfo(torch.float32).tiny)
    weight = (NORM_WEIGHT * factor.sign()).to(torch.int8).view(-1, 1, 1, 1)
    limit = ops.SUM_MAX // 2
    bias = (bias / (scales.double() * source.scale)).round().clamp(-limit, limit).to(torch.int32)
    return reader.result(
        ops.Convolution, node, [source], weight=weight.numpy(), weight_scales=scales.numpy(),
        bias=bias.numpy(), groups=len(factor), relu=isinstance(layer, RELU_LAYERS),
    )  # fmt: skip


def _plain(reader: Reader, node: fx.Node, layer: PlainLayer, value: Value) -> Value:
    return (_conv if layer.kernel_size else _linear)(reader, node, layer, value)


def _elementwise(kind: type, relu: bool = False):
    def form(reader: Reader, node: fx.Node, first, second, *_grid) -> Value:
        numbers = [each for each in (first, second) if isinstance(each, int | float)]
        if numbers:
            return _with_number(reader, node, kind, numbers[0], relu)
        inputs = [
            reader.tensor(node, each) if isinstance(each, Value) else _constant(reader, node, source)
            for each, source in zip((first, second), node.args, strict=False)
        ]
        return reader.result(kind, node, inputs, relu=relu)

    return form


def _constant(reader: Reader, node: fx.Node, source: fx.Node) -> Tensor:
    """A quantized parameter that a node reads, with as many dimensions as its result."""
    numbers, (scale, zero_point) = reader.results[source], reader.grids[source]
    shape = image_shape((1,) * (reader.results[node].ndim - numbers.ndim) + numbers.shape)
    integers = (torch.round(numbers / scale) + zero_point).to(torch.int8).numpy().reshape(shape)
    return reader.emit(ops.Constant, node, (), shape, (scale, zero_point), "_input", values=integers)


def _with_number(reader: Reader, node: fx.Node, kind: type, number: float, relu: bool) -> Value:
    """The sum or the product of a value and a number: a function of one value."""
    name = f"{'add' if kind is ops.Add else 'multiply'} {number}" + relu * ", relu"

    def function(numbers: torch.Tensor) -> torch.Tensor:
        result = numbers + number if kind is ops.Add else numbers * number
        return result.relu() if relu else result

    return _applied(reader, node, reader.only(node), name, function)


def _concatenate(reader: Reader, node: fx.Node, tensors, dim: int = 0, *_grid) -> Value:
    others, grid = dim % reader.results[node].ndim != 1, reader.grids.get(node)
    if others or grid is None:
        raise reader.refuse(node, f" in dimension {dim}" if others else " of float32 values")
    if not all(isinstance(each, Value) for each in tensors):
        raise reader.refuse(node, " with a parameter")
    parts = [reader.tensor(node, reader.tabulate(node, each, grid, "_input")) for each in tensors]
    return reader.result(ops.Concatenate, node, parts)


def _dequantize(_reader: Reader, _node: fx.Node, value: Value) -> Value:
    return replace(value, is_float=True)


def _quantize(reader: Reader, node: fx.Node, value: Value, *_grid, **_options) -> Value:
    return reader.tabulate(node, value, reader.grids[node])


RELU_LAYERS = (
    *(intrinsic.quantized.ConvReLU1d, intrinsic.quantized.ConvReLU2d),
    *(intrinsic.quantized.LinearReLU, intrinsic.quantized.BNReLU2d),
)
MOVES = {  # what torch runs on positions
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nnq.Dropout, nn.UpsamplingNearest2d),
    *(nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle),
    *(operator.getitem, torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.squeeze),
    *(torch.unsqueeze, torch.chunk, torch.split, torch.narrow, torch.flip, torch.roll, torch.channel_shuffle),
    *(torch.repeat_interleave, torch.tensor_split, torch.unbind, torch.swapaxes),
    *(F.dropout, F.interpolate, F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle),
    *("flatten", "view", "reshape", "transpose", "permute", "squeeze", "unsqueeze", "chunk", "split"),
    *("narrow", "contiguous", "flip", "roll", "unflatten", "clone", "detach", "expand", "repeat"),
    *("repeat_interleave", "unbind", "swapaxes", "to", "float", "view_as", "expand_as"),
}
FUNCTIONS = {  # of one value, with their names in a `Table`
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_"), "relu"),
    **dict.fromkeys((nn.ReLU6, nnq.ReLU6, F.relu6), "relu6"),
    **dict.fromkeys((nn.Sigmoid, nnq.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_"), "sigmoid"),
    **dict.fromkeys((nn.Hardsigmoid, F.hardsigmoid), "hardsigmoid"),
    **dict.fromkeys((nn.Hardswish, nnq.Hardswish, F.hardswish, QUANTIZED.hardswish), "hardswish"),
    **dict.fromkeys((nn.SiLU, F.silu), "silu"),
    **dict.fromkeys((nn.GELU, F.gelu), "gelu"),
    **dict.fromkeys((nn.Mish, F.mish), "mish"),
    **dict.fromkeys((nn.ELU, nnq.ELU, F.elu, QUANTIZED.elu), "elu"),
    **dict.fromkeys((nn.Tanh, torch.tanh, F.tanh, "tanh"), "tanh"),
    **dict.fromkeys((nn.LeakyReLU, nnq.LeakyReLU, F.leaky_relu, QUANTIZED.leaky_relu), "leaky_relu"),
    **dict.fromkeys((nn.Hardtanh, F.hardtanh, torch.clamp, "clamp"), "clamp"),
    **dict.fromkeys((operator.neg, torch.neg), "neg"),
}
SAME_IN_FLOAT = {  # what torch's quantized layers and functions compute
    nnq.ReLU6: lambda _layer, x: F.relu6(x),
    nnq.Sigmoid: lambda _layer, x: torch.sigmoid(x),
    nnq.Hardswish: lambda _layer, x: F.hardswish(x),
    nnq.ELU: lambda layer, x: F.elu(x, layer.alpha),
    nnq.LeakyReLU: lambda layer, x: F.leaky_relu(x, layer.negative_slope),
    QUANTIZED.hardswish: lambda _layer, x, *_, **__: F.hardswish(x),
    QUANTIZED.elu: lambda _layer, x, alpha=1.0, *_, **__: F.elu(x, alpha),
    QUANTIZED.leaky_relu: lambda _layer, x, negative_slope=0.01, *_, **__: F.leaky_relu(x, negative_slope),
}
LAYERS = {
    **dict.fromkeys((nnq.Conv1d, nnq.Conv2d, *RELU_LAYERS[:2]), _conv),
    **dict.fromkeys((nnq.Linear, intrinsic.quantized.LinearReLU), _linear),
    **dict.fromkeys((nnq.BatchNorm2d, intrinsic.quantized.BNReLU2d), _batch_norm),
    PlainLayer: _plain,
    **POOLINGS,
    **dict.fromkeys((QUANTIZED.add, operator.add, torch.add), _elementwise(ops.Add)),
    QUANTIZED.add_relu: _elementwise(ops.Add, relu=True),
    **dict.fromkeys((QUANTIZED.mul, operator.mul, torch.mul), _elementwise(ops.Multiply)),
    QUANTIZED.mul_relu: _elementwise(ops.Multiply, relu=True),
    **dict.fromkeys((QUANTIZED.cat, torch.cat), _concatenate),
    QUANTIZED.dropout: lambda _reader, _node, value, *_, **__: value,
    **dict.fromkeys((torch.dequantize, "dequantize"), _dequantize),
    torch.quantize_per_tensor: _quantize,
}
