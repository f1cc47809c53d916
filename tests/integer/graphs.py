"""Graphs of one or two operators for the tests of this folder."""

import numpy as np
import torch

from common.integer import operators as ops
from common.integer import reference
from common.integer.graph import Graph, Tensor


def values(shape, scale=1.0, zero_point=0, name="x"):
    """A tensor of a graph; a single number is the length of a vector."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return Tensor(name, shape, float(np.float32(scale)), zero_point)


def weighted(weight, scales=1.0, bias=0):
    """The integers of a convolution or a linear layer."""
    weight = np.asarray(weight, np.int8)
    return {
        "weight": weight,
        "weight_scales": np.full(len(weight), scales, np.float32),
        "bias": np.broadcast_to(np.asarray(bias, np.int32), (len(weight),)).copy(),
    }


def constant(integers, scale=1.0, zero_point=0, name="constant"):
    integers = np.asarray(integers, np.int8)
    return ops.Constant((), values(integers.shape, scale, zero_point, name), integers)


def computed(integers, *operators, rounding="once"):
    """What the reference computes for one image, as nested lists."""
    source = next(operator.inputs[0] for operator in operators if operator.inputs)
    images = torch.tensor(integers, dtype=torch.int8)[None]
    return reference.run(Graph(source, operators), images, rounding)[0].tolist()
