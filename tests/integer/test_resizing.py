import numpy as np
import pytest

from common.integer import operators as ops
from common.integer import resizing
from common.integer.graph import Graph
from common.system.errors import UserError
from tests.integer.graphs import values, weighted


def convolution(source, outputs, name, groups=1, kernel=1):
    weight = np.ones((outputs, source.shape[0] // groups, kernel, kernel))
    output = values((outputs, *source.shape[1:]), name=name)
    padding = (kernel // 2,) * 4
    return ops.Convolution((source,), output, groups=groups, padding=padding, **weighted(weight))


def shapes_of(graph):
    return {each.output.name: each.output.shape for each in graph.operators}


def test_what_follows_from_new_widths_is_adapted():
    image = values((3, 4, 4))
    first = convolution(image, 16, "first")
    depthwise = convolution(first.output, 16, "depthwise", groups=16, kernel=3)
    last = convolution(depthwise.output, 16, "last")
    total = ops.Add((first.output, last.output), values((16, 4, 4), name="total"))
    both = ops.Concatenate((total.output, first.output), values((32, 4, 4), name="both"))
    mean = ops.AveragePool((both.output,), values((32, 1, 1), name="mean"), (4, 4), (1, 1))
    vector = ops.Reshape((mean.output,), values(32, name="vector"))
    linear = ops.Linear((vector.output,), values(5, name="linear"), **weighted(np.ones((5, 32))))
    graph = Graph(image, (first, depthwise, last, total, both, mean, vector, linear))

    resized = resizing.resize(graph, {"first": 8, "depthwise": 8, "last": 8})
    assert shapes_of(resized) == {
        "first": (8, 4, 4), "depthwise": (8, 4, 4), "last": (8, 4, 4), "total": (8, 4, 4),
        "both": (16, 4, 4), "mean": (16, 1, 1), "vector": (16,), "linear": (5,),
    }  # fmt: skip
    weights = [each.weight.shape for each in resized.operators if hasattr(each, "weight")]
    assert weights == [(8, 3, 1, 1), (8, 1, 3, 3), (8, 8, 1, 1), (5, 16)]
    assert resized.operators[1].groups == 8 and not resized.operators[0].weight.any()
    assert shapes_of(resizing.resize(graph, {})) == shapes_of(graph)


def test_channels_in_an_order_of_their_own_are_refused_only_where_their_number_changes():
    first = convolution(values((3, 2, 2)), 16, "first")
    order = tuple(reversed(range(16))), (0, 1), (0, 1)
    select = ops.Select((first.output,), values((16, 2, 2), name="reversed"), order)
    graph = Graph(first.source, (first, select))
    assert shapes_of(resizing.resize(graph, {"first": 16})) == shapes_of(graph)
    with pytest.raises(UserError, match=r"^reversed cannot be resized: its channels are in an order"):
        resizing.resize(graph, {"first": 8})


def test_chosen_rows_of_all_channels_are_kept():
    first = convolution(values((3, 2, 2)), 16, "first")
    chosen = tuple(range(16)), (1,), (0, 1)
    select = ops.Select((first.output,), values((16, 1, 2), name="row"), chosen)
    resized = resizing.resize(Graph(first.source, (first, select)), {"first": 8})
    assert resized.output.shape == (8, 1, 2) and resized.operators[1].indices == (
        tuple(range(8)),
        (1,),
        (0, 1),
    )


def test_widths_that_do_not_fit_together_are_refused():
    image = values((3, 2, 2))
    first, second = convolution(image, 16, "first"), convolution(image, 16, "second")
    total = ops.Add((first.output, second.output), values((16, 2, 2), name="total"))
    with pytest.raises(UserError, match=r"^total cannot be resized"):
        resizing.resize(Graph(image, (first, second, total)), {"first": 8})
