"""The operators of an int8 network; `reference` has their formulas."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.integer import nibbles
from common.integer.graph import HIGH, LOW, Operator, require

SUM_MAX = 2**31 - 1  # a sum of products, with its bias, is int32
Pair = tuple[int, int]  # vertical, horizontal
Padding = tuple[int, int, int, int]  # rows above and below, columns left and right


@dataclass(frozen=True, eq=False)
class _Weighted(Operator):
    """Sums of products: see `Convolution` and `Linear`.

    Attributes:
        weight: int8, output channels first.
        weight_scales: float32 [O], one for each output channel; the zero points are 0.
        bias: int32 [O], in steps of input scale * weight scale.
        relu: Whether the output is at least its zero point.
        weight_bits: 8, or 4 for weights from -7 to 7, which files store two to a byte.
    """

    weight: np.ndarray
    weight_scales: np.ndarray
    bias: np.ndarray
    relu: bool = False
    weight_bits: int = 8

    def __post_init__(self):
        outputs = self.weight.shape[0]
        limit = {4: nibbles.LARGEST, 8: -LOW}.get(self.weight_bits, -1)
        fits = np.abs(self.weight.astype(np.int16)).max() <= limit
        require(bool(fits), self.output, f"weights that do not fit {self.weight_bits} bits")
        kinds = (self.weight.dtype, self.weight_scales.dtype, self.bias.dtype)
        require(kinds == (np.int8, np.float32, np.int32), self.output, f"weights of {kinds}")
        shapes = self.weight_scales.shape == self.bias.shape == (outputs,)
        require(shapes, self.output, f"not {outputs} scales and biases")
        scales = np.isfinite(self.weight_scales).all() and (self.weight_scales > 0).all()
        require(bool(scales), self.output, "scales of weights that are not positive")
        largest = np.abs(self.weight.astype(np.int64)).reshape(outputs, -1).sum(1) * (HIGH - LOW)
        largest += np.abs(self.bias.astype(np.int64))
        require(largest.max() <= SUM_MAX, self.output, "sums that do not fit into int32")


@dataclass(frozen=True, eq=False)
class Convolution(_Weighted):
    """A convolution in two dimensions; the image is padded with its zero point.

    Attributes:
        weight: int8 [O, C / groups, kernel height, kernel width].
        stride: Of the kernel.
        padding: Of the image.
        dilation: Of the kernel.
        groups: Of channels.
    """

    stride: Pair = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def __post_init__(self):
        super().__post_init__()
        channels = self.source.shape[0]
        outputs, per_group, *kernel = self.weight.shape
        fits = per_group * self.groups == channels and outputs % self.groups == 0
        require(fits, self.output, f"a weight of {self.weight.shape} for {channels} channels")
        self.require_output((outputs, *_window_positions(self, kernel, self.dilation)))

    @property
    def is_depthwise(self) -> bool:
        """Whether each output channel reads one input channel."""
        return self.groups == self.source.shape[0] > 1


@dataclass(frozen=True, eq=False)
class Linear(_Weighted):
    """A fully connected layer; its weight is int8 [O, C]."""

    def __post_init__(self):
        super().__post_init__()
        fits = self.weight.ndim == 2 and self.weight.shape[1:] == self.source.shape
        require(fits, self.output, f"a weight of {self.weight.shape} for inputs of {self.source.shape}")
        self.require_output(self.weight.shape[:1])


@dataclass(frozen=True)
class _Elementwise(Operator):
    """Two images or two vectors; an axis that has one value in one of them is repeated (broadcasting).

    Attributes:
        relu: Whether the output is at least its zero point.
    """

    relu: bool = False

    def __post_init__(self):
        require(len(self.inputs) == 2, self.output, f"{len(self.inputs)} inputs")
        first, second = (tensor.shape for tensor in self.inputs)
        fits = len(first) == len(second) and all(
            a == b or 1 in (a, b) for a, b in zip(first, second, strict=False)
        )
        require(fits, self.output, f"inputs of {first} and {second}")
        self.require_output(np.broadcast_shapes(first, second))


class Add(_Elementwise):
    """a + b."""


class Multiply(_Elementwise):
    """a * b."""


@dataclass(frozen=True, eq=False)
class Constant(Operator):
    """Integers that do not depend on the image.

    Attributes:
        values: int8, of the shape of the output.
    """

    values: np.ndarray

    def __post_init__(self):
        require(not self.inputs and self.values.dtype == np.int8, self.output, "inputs, or no int8 values")
        self.require_output(self.values.shape)


@dataclass(frozen=True)
class Concatenate(Operator):
    """The channels of the inputs, one after the other, which all have the scale of the output."""

    def __post_init__(self):
        require(bool(self.inputs), self.output, "0 inputs")
        channels = sum(tensor.shape[0] for tensor in self.inputs)
        self.require_output((channels, *self.inputs[0].shape[1:]), same_grid=True)
        require(len({tensor.shape[1:] for tensor in self.inputs}) == 1, self.output, "inputs of two sizes")


@dataclass(frozen=True)
class _Pooling(Operator):
    """A window that moves over the image; what it covers outside of the image does not count.

    Attributes:
        kernel: Size of the window.
        stride: Of the window.
        padding: Of the image.
    """

    kernel: Pair
    stride: Pair
    padding: Padding = (0, 0, 0, 0)

    def __post_init__(self):
        size = _window_positions(self, self.kernel)
        self.require_output((self.source.shape[0], *size), same_grid=True)
        inside = all(pad < self.kernel[index // 2] for index, pad in enumerate(self.padding))
        require(inside, self.output, "windows outside of the image")


class AveragePool(_Pooling):
    """The mean of each window."""


class MaxPool(_Pooling):
    """The maximum of each window."""


@dataclass(frozen=True)
class Pad(Operator):
    """The image with its zero point around it.

    Attributes:
        padding: How much.
    """

    padding: Padding

    def __post_init__(self):
        channels, height, width = self.source.shape
        above, below, left, right = self.padding
        require(min(self.padding) >= 0, self.output, f"a padding of {self.padding}")
        self.require_output((channels, height + above + below, width + left + right), same_grid=True)


@dataclass(frozen=True, eq=False)
class Table(Operator):
    """A function of one value: the output for each of the 256 integers.

    Attributes:
        function: What was tabulated, such as "sigmoid", "leaky_relu 0.1" or "multiply 0.5, add 1.0".
        values: int8 [256], for the inputs -128 to 127.
    """

    function: str
    values: np.ndarray

    def __post_init__(self):
        fits = self.values.dtype == np.int8 and self.values.shape == (HIGH - LOW + 1,)
        require(fits, self.output, "a table that is not int8 [256]")
        self.require_output(self.source.shape)


@dataclass(frozen=True)
class Requantize(Operator):
    """The same values with another scale or zero point."""

    def __post_init__(self):
        self.require_output(self.source.shape)


@dataclass(frozen=True)
class Select(Operator):
    """Chosen channels, rows and columns, in a chosen order; any of them several times.

    Attributes:
        indices: Of an image three tuples: of its channels, rows and columns. Of a vector one.
    """

    indices: tuple[tuple[int, ...], ...]

    def __post_init__(self):
        self.require_output(tuple(map(len, self.indices)), same_grid=True)
        shape = self.source.shape
        require(len(self.indices) == len(shape), self.output, f"indices of {len(self.indices)} axes")
        for chosen, size in zip(self.indices, shape, strict=True):
            require(min(chosen) >= 0 and max(chosen) < size, self.output, f"an index outside of {size}")


@dataclass(frozen=True)
class Reshape(Operator):
    """The same integers in the order of [C, H, W], in another shape."""

    def __post_init__(self):
        equal = math.prod(self.source.shape) == math.prod(self.output.shape)
        require(equal, self.output, "another number of values than its input")
        self.require_output(self.output.shape, same_grid=True)


def _window_positions(
    operator: Convolution | _Pooling, kernel: Sequence[int], dilation: Pair = (1, 1)
) -> Pair:
    """Rows and columns of the output of a convolution or a pooling."""
    sizes = (*kernel, *operator.stride, *dilation)
    valid = len(sizes) == 6 and min(sizes) > 0 and min(operator.padding) >= 0
    shape = operator.source.shape
    require(valid and len(shape) == 3, operator.output, f"a window of {tuple(kernel)} for inputs of {shape}")
    return windows(shape[1:], kernel, operator.stride, operator.padding, dilation)


def windows(size, kernel, stride, padding: Padding, dilation: Pair = (1, 1)) -> Pair:
    """How many positions a window has in an image.

    Args:
        size: Height and width of the image.
        kernel: Height and width of the window.
        stride: Vertical, horizontal.
        padding: Of the image.
        dilation: Vertical, horizontal.

    Returns:
        Rows and columns of the output.
    """
    padded = [each + sum(pads) for each, pads in zip(size, (padding[:2], padding[2:]), strict=True)]
    return tuple(
        (each - d * (k - 1) - 1) // s + 1
        for each, k, s, d in zip(padded, kernel, stride, dilation, strict=True)
    )
