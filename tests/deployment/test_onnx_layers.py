import numpy as np
import pytest

from common.deployment import onnx_layers
from common.integer import operators as ops
from common.integer.graph import Tensor
from common.system.errors import UserError
from tests.integer.graphs import values, weighted

LOW = {"zero_point": -128}
IMAGE, VECTOR = values((8, 4, 4), **LOW), values(8, **LOW)
LAYERS = {
    "convolution": ops.Convolution(
        (IMAGE,), values((16, 4, 4), name="y", **LOW), **weighted(np.ones((16, 8, 1, 1)))
    ),
    "linear": ops.Linear((VECTOR,), values(4, name="y", **LOW), **weighted(np.ones((4, 8)))),
    "sum": ops.Add((IMAGE, values((8, 4, 4), name="b", **LOW)), values((8, 4, 4), name="y", **LOW)),
    "gate": ops.Multiply((values((8, 1, 1), name="gate", **LOW), IMAGE), values((8, 4, 4), name="y", **LOW)),
    "join": ops.Concatenate(
        (IMAGE, values((16, 4, 4), name="b", **LOW)), values((24, 4, 4), name="y", **LOW)
    ),
    "maximum": ops.MaxPool((IMAGE,), values((8, 2, 2), name="y", **LOW), (2, 2), (2, 2)),
    "mean": ops.AveragePool((IMAGE,), values((8, 1, 1), name="y", **LOW), (4, 4), (1, 1)),
    "function": ops.Table(
        (IMAGE,), values((8, 4, 4), name="y", **LOW), "hardswish", np.zeros(256, np.int8)
    ),
    "vector": ops.Reshape((values((8, 1, 1), **LOW),), values(8, name="y", **LOW)),
}  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
    """One run of each layer, and a profiler that adds nothing."""
    monkeypatch.setattr(onnx_layers, "RUNS", 1)
    monkeypatch.setattr(onnx_layers, "profiler_microseconds", lambda *_: 0.0)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_each_kind_of_layer_runs_alone_in_its_own_kernel(layer, precision, quick, monkeypatch):
    found, profile = [], onnx_layers._profile

    def seen(*args):
        found.extend(profile(*args))
        return found

    monkeypatch.setattr(onnx_layers, "_profile", seen)
    (cost,) = onnx_layers.milliseconds([layer], precision, 1)
    assert cost >= 0
    kinds = [kind for kind, _ in found if kind not in onnx_layers.FORMATS]
    own = {
        ops.Convolution: "Conv", ops.Linear: "Gemm", ops.Add: "Add", ops.Multiply: "Mul",
        ops.Concatenate: "Concat", ops.MaxPool: "MaxPool", ops.AveragePool: "GlobalAveragePool",
        ops.Table: "", ops.Reshape: "Reshape",
    }[type(layer)]  # fmt: skip
    last = kinds[-2] if precision == "int8" else kinds[-1]
    fused = precision == "fp32" and isinstance(layer, ops.Add)  # into the convolution before it
    assert ("Conv" if fused else own) in last and not (fused and cost)


def test_only_the_nodes_of_the_layer_count(monkeypatch):
    before = [("QuantizeLinear", 100.0), ("Transpose", 100.0)]
    before += [("QLinearConv", 100.0)] * 2
    own, after = [("QLinearAdd", 7.0), ("Sigmoid", 5.0)], [("Transpose", 100.0), ("DequantizeLinear", 100.0)]
    monkeypatch.setattr(onnx_layers, "_profile", lambda *_: before + own + after)
    monkeypatch.setattr(onnx_layers, "profiler_microseconds", lambda *_: 2.0)
    assert onnx_layers.milliseconds([LAYERS["sum"]], "int8", 1) == [0.008]
    # of an image, what is done before the first convolution
    assert onnx_layers.milliseconds([IMAGE], "int8", 1) == [0.196]


def test_a_function_without_a_form_in_float32_is_an_error_in_one_line(quick):
    layer = ops.Table((IMAGE,), values((8, 4, 4), name="y", **LOW), "mish", np.zeros(256, np.int8))
    with pytest.raises(UserError, match=r"^y, the function 'mish', has no form in float32"):
        onnx_layers.milliseconds([layer], "fp32", 1)


def test_inputs_that_are_not_possible_behind_one_image_are_an_error(quick):
    row = Tensor("row", (8, 1, 4), 1.0, -128)
    layer = ops.Add((IMAGE, row), values((8, 4, 4), name="y", **LOW))
    with pytest.raises(UserError, match=r"^y, with inputs of two sizes, cannot be timed alone"):
        onnx_layers.milliseconds([layer], "int8", 1)


def test_what_the_profiler_adds_is_not_negative(monkeypatch):
    onnx_layers.profiler_microseconds.cache_clear()
    monkeypatch.setattr(onnx_layers, "_profile", lambda *_: [("QLinearConv", 5.0)] * 10)
    monkeypatch.setattr(onnx_layers, "_shortest_run", lambda *_: 30e-6)
    assert onnx_layers.profiler_microseconds("int8", 1) == pytest.approx(2)
    onnx_layers.profiler_microseconds.cache_clear()
    monkeypatch.setattr(onnx_layers, "_shortest_run", lambda *_: 1.0)
    assert onnx_layers.profiler_microseconds("int8", 1) == 0
    onnx_layers.profiler_microseconds.cache_clear()
