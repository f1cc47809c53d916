#!/usr/bin/env bash
# onnxruntime 1.32.0: an int8 addition or multiplication, fused to QLinearAdd or QLinearMul, adds the output's zero point
# before it rounds half to even: an odd one moves halves to the odd neighbor. One may expect what the same file gives without
# graph optimization: QuantizeLinear rounds, then adds (https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html).
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 \
    numpy==2.4.6; } || exit 2
"$folder/venv/bin/python" - "$folder" <<'EOF'
import sys
import numpy, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper

levels = onnxruntime.GraphOptimizationLevel
halves = numpy.arange(-7, 8, 2).astype(numpy.int8)  # times 0.5: -3.5, -2.5, ..., 3.5

def run(kind, zero_point, level):
    other = int(kind == "Mul")  # x + 0 or x * 1
    arrays = {"half": numpy.float32(0.5), "one": numpy.float32(1), "zero": numpy.int8(0), "new_zero": numpy.int8(zero_point)}
    nodes = [
        helper.make_node("DequantizeLinear", ["a", "half", "zero"], ["c"]),
        helper.make_node("DequantizeLinear", ["b", "one", "zero"], ["d"]),
        helper.make_node(kind, ["c", "d"], ["e"]),
        helper.make_node("QuantizeLinear", ["e", "one", "new_zero"], ["y"]),
    ]
    a, b, y = (helper.make_tensor_value_info(name, TensorProto.INT8, [8]) for name in "aby")
    constants = [numpy_helper.from_array(numpy.asarray(value), name) for name, value in arrays.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", [a, b], [y], constants),
                              opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.graph_optimization_level = 3, level
    options.optimized_model_filepath = f"{sys.argv[1]}/optimized.onnx"
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result = session.run(None, {"a": halves, "b": numpy.full(8, other, numpy.int8)})[0]
    fused = len(onnx.load(options.optimized_model_filepath).graph.node) == 1
    return (result.astype(int) - zero_point).tolist(), fused

print(f"onnxruntime {onnxruntime.__version__}: {(halves / 2).tolist()}; the result less the zero point")
to_even, to_odd, good = [-4, -2, -2, 0, 0, 2, 2, 4], [-3, -3, -1, -1, 1, 1, 3, 3], True
for kind in ("Add", "Mul"):
    for zero_point in (0, 1, 2, -3):
        plain, _ = run(kind, zero_point, levels.ORT_DISABLE_ALL)
        result, fused = run(kind, zero_point, levels.ORT_ENABLE_ALL)
        print(f"{kind}, zero point {zero_point:2}: not optimized {plain}, {'fused' if fused else 'not fused'} {result}")
        good &= fused and plain == to_even and result == (to_odd if zero_point % 2 else to_even)
sys.exit(not good)
EOF
