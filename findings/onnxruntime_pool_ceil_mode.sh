#!/usr/bin/env bash
# onnxruntime 1.32.0: AveragePool with ceil_mode and count_include_pad=1 divides a last window that is not full by the
# size of the full window once it is fused with QuantizeLinear and DequantizeLinear. In float it does not.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6; } || exit 2
"$folder/venv/bin/python" - <<'EOF'
import sys
import numpy, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper

def pooled(optimize, counted):
    grid = ["scale", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *grid], ["a"]), helper.make_node("DequantizeLinear", ["a", *grid], ["b"]),
        helper.make_node("AveragePool", ["b"], ["c"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, count_include_pad=counted),
        helper.make_node("QuantizeLinear", ["c", *grid], ["d"]), helper.make_node("DequantizeLinear", ["d", *grid], ["y"]),
    ]
    constants = [numpy_helper.from_array(numpy.array(0.02, numpy.float32), "scale"),
                 numpy_helper.from_array(numpy.array(0, numpy.uint8), "zero")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, side, side]) for name, side in (("x", 8), ("y", 4))]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], constants),
                              opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": numpy.ones((1, 1, 8, 8), numpy.float32)})[0][0, 0]

print(f"onnxruntime {onnxruntime.__version__}: an image of ones; all means are 1")
seen = {(optimize, counted): pooled(optimize, counted)[-1].round(2).tolist() for optimize in (0, 1) for counted in (0, 1)}
for (optimize, counted), row in seen.items():
    print(f"{'optimized' if optimize else 'not optimized'}, count_include_pad={counted}: the last row is {row}")
ones = [1.0] * 4
sys.exit(not (seen[0, 1] == seen[0, 0] == seen[1, 0] == ones and seen[1, 1] != ones))
EOF
