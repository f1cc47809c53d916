#!/usr/bin/env bash
# ONNX Runtime computes a quantized global pooling in integers if it is GlobalAveragePool, in float if ReduceMean.
#
# torch.onnx (2.14) writes AdaptiveAvgPool2d(1) as ReduceMean. Expected: between DequantizeLinear and
# QuantizeLinear with equal scales, both operators give the same integers. Observed: the float sums of ReduceMean
# move means that lie halfway between two integers to either side: 3 % of the means of 2 x 2 random values are one
# step off. GlobalAveragePool becomes QLinearGlobalAveragePool, which rounds all of them half to even.
#
# Exit code: 0 as described, 1 the behavior is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import numpy as np, onnxruntime
from onnx import TensorProto, helper, numpy_helper

count, zero_point = 100_000, 3
pixels = np.random.default_rng(0).integers(0, 256, (1, count, 2, 2)).astype(np.uint8)
constants = {"scale": np.float32(0.0235), "zero": np.uint8(zero_point), "axes": np.array([2, 3])}
tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
x = helper.make_tensor_value_info("x", TensorProto.UINT8, pixels.shape)
y = helper.make_tensor_value_info("y", TensorProto.UINT8, (1, count, 1, 1))
correct = np.round((pixels.sum((2, 3), dtype=int) - 4 * zero_point) / 4) + zero_point
print(f"ONNX Runtime {onnxruntime.__version__}, means of 2 x 2 values between DequantizeLinear and QuantizeLinear")
wrong = {}
for operator, axes in (("ReduceMean", ["axes"]), ("GlobalAveragePool", [])):
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["values"]),
        helper.make_node(operator, ["values", *axes], ["mean"]),
        helper.make_node("QuantizeLinear", ["mean", "scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "pooling", [x], [y], tensors[: 2 + len(axes)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result = session.run(None, {"x": pixels})[0].reshape(1, count)
    wrong[operator] = float((result != correct).mean())
    print(f"{operator}: {wrong[operator]:.2%} of the means are not rounded half to even")
print("expected: the same for both")
sys.exit(not (wrong["ReduceMean"] > 0.02 and wrong["GlobalAveragePool"] == 0))
PYTHON
