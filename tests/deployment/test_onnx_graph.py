import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from common.deployment import onnx_graph

SIDE, CHANNELS = 2, 1021  # of a map, whose sums are 0 to 1020
FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8


def model(nodes, constants=(), shape=(1, 4, 2, 2), dtype=FLOAT, opset=20) -> onnx.ModelProto:
    """A model that computes y from x and `constants`."""
    results = UINT8 if nodes[-1].op_type == "QuantizeLinear" else dtype
    ends = [
        helper.make_tensor_value_info("x", dtype, shape),
        helper.make_tensor_value_info("y", results, None),
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(constants).items()]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(proto)


@pytest.mark.parametrize("zero_point", [0, 3, 128])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_quantized_mean_is_rounded_as_in_torch(keepdims, zero_point):
    sums = np.arange(CHANNELS)
    pixels = np.stack([(sums + place) // 4 for place in range(4)], 1).astype(np.uint8)  # they add up to sums
    pair = ["scale", "zero"]
    nodes = [
        helper.make_node("DequantizeLinear", ["x", *pair], ["values"]),
        helper.make_node("ReduceMean", ["values", "axes"], ["mean"], keepdims=keepdims),
        helper.make_node("QuantizeLinear", ["mean", *pair], ["y"]),
    ]
    constants = {"scale": np.float32(0.0235), "zero": np.uint8(zero_point), "axes": np.array([-1, -2])}
    proto = model(nodes, constants, (1, CHANNELS, SIDE, SIDE), UINT8)
    onnx_graph.pool_globally(proto.graph)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {"x": pixels.reshape(1, CHANNELS, SIDE, SIDE)})
    assert actual.shape == ((1, CHANNELS, 1, 1) if keepdims else (1, CHANNELS))
    # the distance to the zero point is rounded, a half to the even neighbor
    assert np.array_equal(actual.ravel(), np.round((sums - 4 * zero_point) / 4) + zero_point)


@pytest.mark.parametrize(
    ("shape", "axes", "pooled"),
    [
        ((1, 4, 2, 2), [2, 3], True),
        ((1, 4, 2, 2), [1, 2], False),  # channels last
        ((1, 4, 2, 2), [3], False),
        ((4, 2, 2), [-1, -2], False),
    ],
)
def test_only_means_over_height_and_width_are_pooled(shape, axes, pooled):
    proto = model([helper.make_node("ReduceMean", ["x", "axes"], ["y"])], {"axes": axes}, shape)
    proto.graph.value_info.extend(proto.graph.input)
    onnx_graph.pool_globally(proto.graph)
    (node,) = proto.graph.node
    assert (node.op_type == "GlobalAveragePool") == pooled
    assert len(proto.graph.initializer) == (not pooled)  # the axes are needed no more


def test_a_mean_of_all_values_stays():
    proto = model([helper.make_node("ReduceMean", ["x"], ["y"])])
    onnx_graph.pool_globally(proto.graph)
    assert proto.graph.node[0].op_type == "ReduceMean"


ALL, SCALE = {"axes": [2, 3]}, {"scale": np.ones(4, np.float32), "zero": np.zeros(4, np.uint8)}


@pytest.mark.parametrize(
    ("operator", "constants", "attributes", "dtype", "versions"),
    [
        ("Relu", {}, {}, FLOAT, (13, 7)),
        ("QuantizeLinear", SCALE, {"axis": 1}, FLOAT, (13, 7)),  # 19 added types only
        ("HardSwish", {}, {}, FLOAT, (14, 7)),
        ("Reshape", {"shape": [4, 4]}, {"allowzero": 1}, FLOAT, (14, 7)),
        ("Add", {"two": np.uint8(2)}, {}, UINT8, (14, 7)),  # the same operator as in 13, but for integers
        ("LayerNormalization", {"gamma": np.ones(2, np.float32)}, {}, FLOAT, (17, 8)),
        ("ReduceMean", ALL, {}, FLOAT, (18, 8)),  # until 17 the axes were an attribute
        ("AveragePool", {}, {"kernel_shape": [2, 2], "ceil_mode": 1}, FLOAT, (19, 9)),
        ("Gelu", {}, {}, FLOAT, (20, 9)),
    ],
)
def test_the_lowest_versions_follow_from_the_operators(operator, constants, attributes, dtype, versions):
    node = helper.make_node(operator, ["x", *constants], ["y"], **attributes)
    proto = model([node], constants, dtype=dtype)
    onnx_graph.lower_versions(proto)
    assert (proto.opset_import[0].version, proto.ir_version) == versions
    onnx.checker.check_model(proto, full_check=True)
