"""The integers of every layer, equal in the reference, ONNX Runtime and LiteRT; a broken one is found."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from common.deployment import layers, litert, onnx_writer
from common.integer import reference
from common.system.errors import UserError
from tests.deployment.graphs import SIDE, small_graph, with_broken_bias

NAMES = ["images", "stem", "depthwise", "curved", "total", "mean", "flat", "logits"]
IMAGES = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def different(expected, actual):
    return [(each.layer, each.count) for each in layers.differences(expected, actual) if each.count]


def test_the_reference_names_its_layers():
    graph = small_graph()
    values, known = layers.of_graph(graph, IMAGES), layers.in_graph(graph)
    assert list(values) == list(known) == NAMES
    assert values["stem"].shape == (4, 8, 7, 7) and values["logits"].shape == (4, 5)
    assert np.array_equal(values["images"], reference.quantize(IMAGES, graph.input))
    assert known["stem"] == ("stem", layers.Layer("Convolution", graph.operators[0].output.scale, -128))
    assert known["logits"][0] == "last" and all(len(np.unique(each)) > 5 for each in values.values())


def test_onnx_runtime_has_the_same_integers_in_every_layer():
    graph = small_graph()
    proto = onnx_writer.build(graph)
    expected, actual = layers.of_graph(graph, IMAGES), layers.of_onnx(proto, IMAGES, threads=1)
    assert set(NAMES) <= set(actual) and different(expected, actual) == []
    found = {name: layer for name, (_, layer) in layers.in_onnx(proto).items()}
    for name, (_, layer) in layers.in_graph(graph).items():
        assert found[name].scale == layer.scale and found[name].zero_point == layer.zero_point
    operators = [found[name].operator for name in NAMES]
    assert operators == ["", "Conv", "Conv", "Gather", "Add", "GlobalAveragePool", "Reshape", "Gemm"]


@pytest.mark.parametrize("rounding", reference.ROUNDINGS)
def test_litert_has_the_same_integers_in_every_layer(rounding):
    graph = small_graph()
    content = litert.convert(graph, {})
    expected = layers.of_graph(graph, IMAGES, rounding)
    actual = layers.of_litert(content, IMAGES, rounding, threads=1)
    if rounding == "twice":
        assert different(expected, layers.of_graph(graph, IMAGES, "once"))  # or this shows nothing
        actual["logits"] = expected["logits"]  # LiteRT's reference kernel of FULLY_CONNECTED rounds once
    assert set(NAMES) <= set(actual) and different(expected, actual) == []
    found = {name: layer for name, (_, layer) in layers.in_litert(content).items()}
    for name, (_, layer) in layers.in_graph(graph).items():
        assert found[name].scale == layer.scale and found[name].zero_point == layer.zero_point
    assert found["images"].operator == "" and found["depthwise"].operator == "DEPTHWISE_CONV_2D"


@pytest.mark.parametrize("name", ["stem", "depthwise", "last"])
@pytest.mark.parametrize("form", ["onnx", "litert"])
def test_a_broken_bias_is_found(name, form):
    graph = small_graph()
    expected = layers.of_graph(graph, IMAGES)
    if form == "onnx":
        proto = onnx_writer.build(graph)
        (bias,) = [each for each in proto.graph.initializer if each.name == f"{name}_bias"]
        values = numpy_helper.to_array(bias).copy()
        values[0] += 5000
        bias.CopyFrom(numpy_helper.from_array(values, bias.name))
        actual = layers.of_onnx(proto, IMAGES)
    else:
        actual = layers.of_litert(litert.convert(with_broken_bias(graph, name), {}), IMAGES)
    found = list(layers.differences(expected, actual))
    assert [each.layer for each in found] == NAMES
    first = next(index for index, each in enumerate(found) if each.count)
    assert found[first].layer == {"last": "logits"}.get(name, name)
    channel = np.abs(actual[found[first].layer][:, 0].astype(int) - expected[found[first].layer][:, 0])
    assert found[first].count == np.count_nonzero(channel) and found[first].steps == channel.max() > 1


def test_counts_and_steps_are_those_of_the_images_that_both_have():
    expected = {"a": np.array([[-128, 0], [3, 4], [9, 9]], np.int8), "b": np.zeros((3, 1), np.int8)}
    actual = {"a": np.array([[127, 0], [3, 2]], np.int8), "c": np.zeros((3, 1), np.int8)}
    (found,) = layers.differences(expected, actual)
    assert found == layers.Difference("a", count=2, values=4, steps=255)
    assert str(found) == "a: 2 of 4 values differ, by up to 255"


def test_another_shape_is_another_network():
    with pytest.raises(UserError, match=r"a has the shapes \[2\] and \[3\]"):
        list(layers.differences({"a": np.zeros((1, 2), np.int8)}, {"a": np.zeros((1, 3), np.int8)}))


def test_a_float_onnx_file_has_no_layers():
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["images"], ["logits"])], "g", [], [])
    assert layers.in_onnx(onnx.helper.make_model(graph)) == {}
