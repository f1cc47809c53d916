"""The padding of convolutions in LiteRT files.

LiteRT has two: VALID, which is none, and SAME, which adds what ceil(size / stride) outputs need, the smaller
half before the image. For any other one the image is padded by an operator of its own, PAD. An interpreter
that computes operator by operator (TensorFlow Lite for Microcontrollers) keeps the input and the output of it
at once. Zeros around the kernel can make SAME exact instead, and cost multiplications.
"""

import itertools
import math
from dataclasses import replace

import numpy as np

from common.integer.graph import Graph, Operator
from common.integer.memory import peak_bytes
from common.integer.operators import AveragePool, Convolution, MaxPool, Pad, Padding

SAME, VALID = 0, 1  # of the schema's Padding


def rewrite(graph: Graph) -> Graph:
    """Writes the padding of each convolution in a form of LiteRT; the integers stay the same.

    Where that is neither VALID nor SAME, the image is padded by an operator of its own. If that raises the
    peak of the activations, zeros around the kernel make the padding SAME instead, where that is possible.

    Args:
        graph: The network.

    Returns:
        A graph whose convolutions are padded by VALID or SAME.
    """
    kinds = Convolution, MaxPool
    padded = [step for step in graph.operators if isinstance(step, kinds) and form(step) is None]
    peaks = {step: peak_bytes(_replaced(graph, {step: _apart(step)})) for step in padded}
    convolutions = [step for step in padded if isinstance(step, Convolution)]
    can_grow = [step for step in convolutions if _zeros(step)]
    least = max([peak_bytes(graph), *(peaks[step] for step in padded if step not in can_grow)])
    grown = {step: (_grown(step),) for step in can_grow if peaks[step] > least}
    return _replaced(graph, {step: _apart(step) for step in convolutions} | grown)


def _replaced(graph: Graph, others: dict[Operator, tuple[Operator, ...]]) -> Graph:
    """The graph with other operators in the place of some."""
    steps = (others.get(step, (step,)) for step in graph.operators)
    return Graph(graph.input, tuple(itertools.chain.from_iterable(steps)))


def form(operator: Convolution | AveragePool | MaxPool) -> int | None:
    """Finds the padding of the schema that an operator has.

    Args:
        operator: A convolution or a pooling.

    Returns:
        VALID or SAME; None if neither has its rows and columns.
    """
    if not any(operator.padding):
        return VALID
    zeros = _zeros(operator)
    return SAME if zeros is not None and not any(zeros) else None


def _apart(step: Convolution | MaxPool) -> tuple[Operator, Operator]:
    """The padding as an operator, and the layer without it; of a maximum, only the sizes are correct."""
    above, below, left, right = step.padding
    channels, height, width = step.source.shape
    shape = (channels, height + above + below, width + left + right)
    padded = replace(step.source, name=f"{step.output.name}_padded", shape=shape)
    pad = Pad((step.source,), padded, step.padding)
    return pad, replace(step, inputs=(padded,), padding=(0, 0, 0, 0))


def _grown(step: Convolution) -> Convolution:
    """The convolution with zeros around its kernel, and as much more padding."""
    zeros = _zeros(step)
    weight = np.pad(step.weight, ((0, 0), (0, 0), zeros[:2], zeros[2:]))
    padding = tuple(
        pad + count * step.dilation[side // 2]
        for side, (pad, count) in enumerate(zip(step.padding, zeros, strict=True))
    )
    return replace(step, weight=weight, padding=padding)


def _zeros(operator: Convolution | AveragePool | MaxPool) -> Padding | None:
    """The fewest rows and columns around the kernel with which SAME has the positions of the operator."""
    convolution = isinstance(operator, Convolution)
    kernel = operator.weight.shape[2:] if convolution else operator.kernel
    dilation = operator.dilation if convolution else (1, 1)
    sizes = operator.source.shape[1:], operator.output.shape[1:], kernel, operator.stride, dilation
    found = [_zeros_of_axis(*each) for each in zip(*sizes, operator.padding[::2], strict=True)]
    return None if None in found else (*found[0], *found[1])


def _zeros_of_axis(
    size: int, out: int, kernel: int, stride: int, dilation: int, before: int
) -> tuple[int, int] | None:
    """(before, after) the kernel; None if no number of them does it."""
    if out != math.ceil(size / stride):
        return None
    needed = (out - 1) * stride + dilation * (kernel - 1) + 1 - size  # rows of padding, of both sides
    for count in range(abs(2 * before - needed) + 1):
        for zeros in ((0, count), (count, 0)):
            if max(needed + dilation * count, 0) // 2 == before + dilation * zeros[0]:
                return zeros
    return None
