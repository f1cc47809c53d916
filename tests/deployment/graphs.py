"""A small int8 network of integers, with layers of several kinds."""

from dataclasses import replace

import numpy as np

from common.integer import operators as ops
from common.integer.graph import Graph, Operator, Tensor

SIDE, CLASSES = 14, 5


def weights(rng, *shape: int) -> dict[str, np.ndarray]:
    """A weight, its scales and a bias."""
    return {
        "weight": rng.integers(-127, 128, shape).astype(np.int8),
        "weight_scales": rng.uniform(0.001, 0.002, shape[0]).astype(np.float32),
        "bias": rng.integers(-2000, 2000, shape[0]).astype(np.int32),
    }


def tensor(name: str, shape: tuple[int, ...], scale: float, zero_point: int) -> Tensor:
    return Tensor(name, shape, float(np.float32(scale)), zero_point)


def small_graph() -> Graph:
    """A convolution, a depthwise one, a table, a sum, a mean and a linear layer."""
    rng = np.random.default_rng(0)
    given = tensor("input", (3, SIDE, SIDE), 0.0187, -14)
    stem = tensor("stem", (8, 7, 7), 0.0231, -128)
    depthwise, curved = tensor("depthwise", (8, 7, 7), 0.0173, 5), tensor("curved", (8, 7, 7), 0.0113, -100)
    total = tensor("total", (8, 7, 7), 0.0297, -37)
    mean, flat = replace(total, name="mean", shape=(8, 1, 1)), replace(total, name="flat", shape=(8,))
    table = rng.integers(-128, 128, 256).astype(np.int8)
    convolution = {"stride": (2, 2), "padding": (1, 1, 1, 1), "relu": True}
    return Graph(
        given,
        (
            ops.Convolution((given,), stem, **weights(rng, 8, 3, 3, 3), **convolution),
            ops.Convolution((stem,), depthwise, **weights(rng, 8, 1, 3, 3), padding=(1, 1, 1, 1), groups=8),
            ops.Table((depthwise,), curved, "invented", table),
            ops.Add((stem, curved), total),
            ops.AveragePool((total,), mean, (7, 7), (1, 1)),
            ops.Reshape((mean,), flat),
            ops.Linear((flat,), tensor("last", (CLASSES,), 0.0079, 11), **weights(rng, CLASSES, 8)),
        ),
    )


def with_4_bits(graph: Graph) -> Graph:
    """The graph, with weights from -7 to 7 and larger scales."""

    def changed(operator: Operator) -> Operator:
        if not hasattr(operator, "weight"):
            return operator
        weight = operator.weight % 15 - 7
        return replace(operator, weight=weight, weight_scales=16 * operator.weight_scales, weight_bits=4)

    return Graph(graph.input, tuple(map(changed, graph.operators)))


def with_broken_bias(graph: Graph, name: str, amount: int = 5000) -> Graph:
    """The graph, with another first number in the bias of a layer."""

    def changed(operator: Operator) -> Operator:
        if operator.output.name != name:
            return operator
        bias = operator.bias.copy()
        bias[0] += amount
        return replace(operator, bias=bias)

    return Graph(graph.input, tuple(map(changed, graph.operators)))
