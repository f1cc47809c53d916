"""The values of a traced int8 model: where each of them lies in a tensor of the graph."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from common.integer.graph import Tensor


@dataclass(frozen=True)
class Value:
    """What a node returns.

    Attributes:
        source: The tensor of the graph that it comes from.
        index: float64 [1, ...]: for each of its values the position in `source`.
        functions: (name, function) of what is applied to each value in float32, in this order.
        is_float: Whether it is dequantized.
    """

    source: Tensor
    index: torch.Tensor
    functions: tuple[tuple[str, Callable], ...] = ()
    is_float: bool = False

    @property
    def shape(self) -> torch.Size:
        """Its shape in torch, [1, ...]."""
        return self.index.shape

    @property
    def is_whole(self) -> bool:
        """Whether it has all values of its source, in their order."""
        return np.array_equal(self.index.flatten(), np.arange(np.prod(self.source.shape)))


def whole(tensor: Tensor, shape) -> Value:
    """All values of a tensor, in their order.

    Args:
        tensor: The tensor.
        shape: In torch, [1, ...].

    Returns:
        The value.
    """
    return Value(tensor, torch.arange(np.prod(shape), dtype=torch.float64).reshape(tuple(shape)))


def image_shape(shape) -> tuple[int, ...]:
    """The shape in a graph of a value of torch.

    Args:
        shape: [1, ...].

    Returns:
        [C] or [C, H, W]; a sequence [1, C, L] is an image of one row.
    """
    shape = tuple(shape)[1:]
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


def selection(value: Value) -> tuple[tuple[int, ...], ...] | None:
    """The indices with which an `operators.Select` gives a value; it may need another shape after it.

    Args:
        value: The value.

    Returns:
        Those of each axis of its source; None if the values are in another order than any of them gives.
    """
    size, shape = value.source.shape, image_shape(value.shape)
    positions = value.index.numpy().astype(np.int64)
    if len(shape) == len(size):
        positions = positions.reshape(shape)
    elif positions.size % np.prod(size[1:]) == 0:
        positions = positions.reshape(-1, *size[1:])
    else:
        return None
    chosen = [
        np.moveaxis(places, axis, 0).reshape(places.shape[axis], -1)[:, 0]
        for axis, places in enumerate(np.unravel_index(positions, size))
    ]
    if (np.ravel_multi_index(np.ix_(*chosen), size) != positions).any():
        return None
    return tuple(tuple(each.tolist()) for each in chosen)
