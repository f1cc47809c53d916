"""Poolings of a traced int8 model: the forms of torch's layers, functions and methods."""

import math

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from common.integer import operators as ops
from common.integer.fx_reader import Reader
from common.integer.fx_values import Value, image_shape, whole
from common.integer.graph import Tensor


def pair(value) -> tuple[int, int]:
    """Height and width of a window, a stride or a padding.

    Args:
        value: As torch takes it: a number for both, or a sequence of one or two.

    Returns:
        Both.
    """
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * 2 if len(value) == 1 else value


def padding_of(source: Tensor, out, kernel, stride, padding, dilation=(1, 1)) -> ops.Padding:
    """What the windows cover around an image: below and on the right it may differ from what torch pads.

    Args:
        source: The image.
        out: Shape of the result, [C, H, W].
        kernel: Height and width of the window.
        stride: Vertical, horizontal.
        padding: What torch pads: vertical, horizontal.
        dilation: Vertical, horizontal.

    Returns:
        Rows above and below, columns left and right.
    """
    pads = []
    sizes = zip(source.shape[1:], out[1:], kernel, stride, padding, dilation, strict=True)
    for before, after, k, s, p, d in sizes:
        pads += [p, max((after - 1) * s + d * (k - 1) + 1 - before - p, 0)]
    return tuple(pads)


def _max_pool_layer(reader: Reader, node: fx.Node, layer: nn.MaxPool2d, value: Value) -> Value:
    return _max_pool(reader, node, value, layer.kernel_size, layer.stride, layer.padding, layer.dilation)


def _max_pool(reader, node, input, kernel_size, stride=None, padding=0, dilation=1, *_, **_others) -> Value:
    if pair(dilation) != (1, 1):
        raise reader.refuse(node, " with dilation")
    return _pool(reader, ops.MaxPool, node, reader.tensor(node, input), kernel_size, stride, padding)


def _average_pool_layer(reader: Reader, node: fx.Node, layer: nn.AvgPool2d, value: Value) -> Value:
    return _average_pool(
        reader, node, value, layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode,
        layer.count_include_pad, layer.divisor_override,
    )  # fmt: skip


def _average_pool(
    reader, node, input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
    divisor_override=None,
) -> Value:  # fmt: skip
    if divisor_override is not None:
        raise reader.refuse(node, " with divisor_override")
    source = reader.tensor(node, input)
    if count_include_pad and any(pair(padding)):
        around = tuple(np.repeat(pair(padding), 2).tolist())
        channels, height, width = source.shape
        shape = (channels, height + sum(around[:2]), width + sum(around[2:]))
        source = reader.emit(ops.Pad, node, [source], shape, source.grid, "_padded", padding=around)
        padding = 0
    return _pool(reader, ops.AveragePool, node, source, kernel_size, stride, padding)


def _pool(reader: Reader, kind: type, node: fx.Node, source: Tensor, kernel, stride, padding) -> Value:
    """Adds a pooling; with ceil_mode the last window may be partly outside of the image."""
    kernel, padding = pair(kernel), pair(padding)
    stride, out = pair(stride or kernel), image_shape(reader.results[node].shape)
    padding, count = padding_of(source, out, kernel, stride, padding), math.prod(kernel)
    if kind is ops.AveragePool and count % 2 == 0 and kernel != source.shape[1:] and not any(padding):
        return _means_of_few(reader, node, source, kernel, stride)
    return reader.result(kind, node, [source], kernel=kernel, stride=stride, padding=padding)


def _means_of_few(reader: Reader, node: fx.Node, source: Tensor, kernel, stride) -> Value:
    """A depthwise convolution: runtimes round halves of a mean differently, of a convolution alike."""
    channels = source.shape[0]
    return reader.result(
        ops.Convolution, node, [source], weight=np.ones((channels, 1, *kernel), np.int8),
        weight_scales=np.full(channels, 1 / math.prod(kernel), np.float32),
        bias=np.zeros(channels, np.int32), stride=stride, groups=channels,
    )  # fmt: skip


def _adaptive_layer(reader: Reader, node: fx.Node, _layer: nn.Module, value: Value) -> Value:
    return _adaptive_pool(reader, node, value)


def _adaptive_pool(reader: Reader, node: fx.Node, input: Value, *_size, **_output_size) -> Value:
    """Means of windows from floor(i * size / out) to ceil((i + 1) * size / out), as in torch.

    Where they have several sizes, rows and columns are repeated, so that all windows are equally large.
    """
    source, out = reader.tensor(node, input), reader.results[node].shape[2:]
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


def _mean(reader: Reader, node: fx.Node, input: Value, dim=None, keepdim=False, **_dtype) -> Value:
    ndim, result = len(input.shape), reader.results[node]
    axes = {each % ndim for each in ([dim] if isinstance(dim, int) else dim or ())}
    if not axes or min(axes) < 2 or node not in reader.grids:
        raise reader.refuse(node, f" over dimensions {dim}")
    source = reader.tensor(node, input)
    # a sequence [1, C, L] is an image of one row
    kernel = tuple(
        size if axis in axes else 1 for axis, size in zip((ndim - 2, ndim - 1), source.shape[1:], strict=True)
    )
    shape = (source.shape[0], source.shape[1] // kernel[0], source.shape[2] // kernel[1])
    pooled = reader.emit(
        ops.AveragePool, node, [source], shape, reader.grids[node], kernel=kernel, stride=kernel
    )
    return whole(pooled, result.shape)


POOLINGS = {
    nn.MaxPool2d: _max_pool_layer,
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _max_pool),
    nn.AvgPool2d: _average_pool_layer,
    F.avg_pool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _adaptive_layer,
    F.adaptive_avg_pool2d: _adaptive_pool,
    **dict.fromkeys((torch.mean, "mean"), _mean),
}
