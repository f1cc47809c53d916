"""A network computed row by row: which rows of its inputs an operator reads for one row of its output.

A tensor [C, H, W] has H rows of W * C bytes, in the order columns, channels; a vector has one row.
"""

import math
from dataclasses import dataclass

from common.integer import operators as ops
from common.integer.graph import Graph, Operator, Tensor

IMAGE = -1  # in the place of an operator: a row of the image arrives
Event = tuple[int, int]  # (operator by its index, or IMAGE; the row of its output)


@dataclass(frozen=True, eq=False)
class Recomputed(Operator):
    """A convolution of 1 x 1 and the depthwise one that reads it, as one operator: see `recomputation`.

    Attributes:
        expansion: The first one; its rows are not kept.
        depthwise: The second one.
    """

    expansion: ops.Convolution
    depthwise: ops.Convolution


def height(tensor: Tensor) -> int:
    """Rows of a tensor.

    Args:
        tensor: Of a graph.

    Returns:
        1 for a vector.
    """
    return tensor.shape[1] if len(tensor.shape) == 3 else 1


def row_bytes(tensor: Tensor) -> int:
    """Bytes of one row.

    Args:
        tensor: Of a graph.

    Returns:
        Columns times channels.
    """
    return math.prod(tensor.shape) // height(tensor)


def reads(operator: Operator, index: int, row: int) -> tuple[int, int]:
    """The rows of an input that one row of the output needs.

    Args:
        operator: An operator.
        index: Of its input.
        row: Of its output.

    Returns:
        The first one, and the one after the last; equal where it needs none, as outside of the image.
    """
    rows = height(operator.inputs[index])
    match operator:
        case Recomputed():
            return reads(operator.depthwise, 0, row)
        case ops.Convolution() | ops.AveragePool() | ops.MaxPool():
            kernel, dilation = window(operator)
            top = row * operator.stride[0] - operator.padding[0]
            return min(max(top, 0), rows), min(max(top + (kernel - 1) * dilation + 1, 0), rows)
        case ops.Pad():
            inside = min(max(row - operator.padding[0], 0), rows)
            return inside, min(max(row - operator.padding[0] + 1, 0), rows)
        case ops.Select() if len(operator.indices) == 3:
            return operator.indices[1][row], operator.indices[1][row] + 1
        case ops.Reshape() if not is_view(operator):
            return 0, rows
        case _:
            first = row if rows > 1 else 0  # a single row is broadcast
            return first, first + 1


def window(operator: Operator) -> tuple[int, int]:
    """The kernel of a convolution or a pooling.

    Args:
        operator: A convolution or a pooling.

    Returns:
        Its rows, and their dilation.
    """
    if isinstance(operator, Recomputed):
        return window(operator.depthwise)
    if isinstance(operator, ops.Convolution):
        return operator.weight.shape[2], operator.dilation[0]
    return operator.kernel[0], 1


def is_pixelwise(operator: ops.Convolution) -> bool:
    """Whether a convolution is of 1 x 1 and reads each pixel once.

    Args:
        operator: A convolution.

    Returns:
        See above.
    """
    kernel, padded = operator.weight.shape[2:], any(operator.padding)
    return kernel == (1, 1) and operator.stride == (1, 1) and operator.groups == 1 and not padded


def is_view(operator: Operator) -> bool:
    """Whether an operator leaves all bytes in their place: a reshape of one pixel, or to the same shape.

    Args:
        operator: Any.

    Returns:
        See above.
    """
    if not isinstance(operator, ops.Reshape):
        return False
    source, output = operator.source, operator.output
    return source.shape == output.shape or all(math.prod(t.shape) == t.shape[0] for t in (source, output))


class Network:
    """A graph with what is read of each row.

    Attributes:
        graph: The network.
        tensors: Those that need RAM, by their names, in the order in which they are computed.
        writers: The index of the operator that writes a tensor; IMAGE for the image.
        inputs: For each operator, of each input in RAM: (name, for each row of the output the row after the
            last that it reads, the first row that it and later rows read).
        readers: For each tensor the operators that read it, each with the last part of its `inputs`.
    """

    def __init__(self, graph: Graph):
        """Tabulates `reads`.

        Args:
            graph: The network.
        """
        self.graph = graph
        self.tensors, self.writers = {graph.input.name: graph.input}, {graph.input.name: IMAGE}
        self.readers = {graph.input.name: []}
        self.inputs = []
        for index, operator in enumerate(graph.operators):
            if not isinstance(operator, ops.Constant):
                self.tensors[operator.output.name] = operator.output
                self.writers[operator.output.name] = index
                self.readers[operator.output.name] = []
            self.inputs.append([])
            for position, tensor in enumerate(operator.inputs):
                if tensor.name in self.tensors:
                    self._add(index, operator, position)
        self.names = {index: name for name, index in self.writers.items()}

    def _add(self, index: int, operator: Operator, position: int) -> None:
        spans = [reads(operator, position, row) for row in range(height(operator.output))]
        tensor = operator.inputs[position]
        first = [height(tensor)]
        for low, _ in reversed(spans):
            first.append(min(low, first[-1]))
        first.reverse()
        self.inputs[index].append((tensor.name, [high for _, high in spans], first))
        self.readers[tensor.name].append((index, first))

    def order(self, targets: list[str], present: set[str]) -> list[Event]:
        """Computes each row when it is needed, and not before.

        Args:
            targets: Tensors that are computed whole, one after the other.
            present: Tensors that are there already.

        Returns:
            The rows in the order in which they are computed.
        """
        made = {name: height(tensor) if name in present else 0 for name, tensor in self.tensors.items()}
        events = []
        stack = [(name, height(self.tensors[name])) for name in reversed(targets)]
        while stack:
            name, rows = stack[-1]
            index, row = self.writers[name], made[name]
            if row >= rows:
                stack.pop()
                continue
            inputs = self.inputs[index] if index != IMAGE else ()
            missing = next(((source, end[row]) for source, end, _ in inputs if made[source] < end[row]), None)
            if missing:
                stack.append(missing)
            else:
                events.append((index, row))
                made[name] += 1
        return events

    def cuts(self) -> list[str]:
        """The tensors after which nothing is read that was computed before them."""
        last = {
            name: max((index for index, _ in readers), default=IMAGE)
            for name, readers in self.readers.items()
        }
        found, open_until = [], IMAGE
        for name, index in self.writers.items():
            if index != IMAGE and open_until <= index:
                found.append(name)
            open_until = max(open_until, last[name])
        return found
