#!/usr/bin/env bash
# ONNX Runtime makes one pair of two QuantizeLinear / DequantizeLinear pairs that follow one another.
#
# Expected: a value is rounded to the first scale, and then to the second, as without graph optimization.
# Observed: it is rounded once, to a third scale, which the file does not have (that of the range that both pairs
# have). So most results differ from those without optimization, although no value is outside of the ranges.
#
# Exit code: 0 as described, 1 the behavior is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
"$folder/venv/bin/python" - "$folder" <<'P'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

grids = {"first": (0.04, 100), "second": (0.05, 50)}  # from -4 to 6.2, from -2.5 to 10.25
nodes, constants, source = [], [], "x"
for name, (scale, zero_point) in grids.items():
    constants += [numpy_helper.from_array(np.float32(scale), f"{name}_scale"),
                  numpy_helper.from_array(np.uint8(zero_point), f"{name}_zero_point")]
    grid = [f"{name}_scale", f"{name}_zero_point"]
    nodes += [helper.make_node("QuantizeLinear", [source, *grid], [f"{name}_q"]),
              helper.make_node("DequantizeLinear", [f"{name}_q", *grid], [f"{name}_dq"])]
    source = f"{name}_dq"
values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", source)]
graph = helper.make_graph(nodes, "pairs", values[:1], values[1:], constants)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
onnx.checker.check_model(model)

x = np.linspace(-2.4, 6.1, 1001, dtype=np.float32)  # inside of both ranges
results, levels = {}, onnxruntime.GraphOptimizationLevel
for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(levels, level)
    options.optimized_model_filepath = f"{sys.argv[1]}/{level}.onnx"
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (results[level],) = session.run(None, {"x": x})
    optimized = onnx.load(options.optimized_model_filepath).graph
    scales = {each.name: numpy_helper.to_array(each) for each in optimized.initializer}
    used = sorted({round(float(scales[node.input[1]]), 6) for node in optimized.node})
    print(f"{level}: {len(optimized.node)} operators, scales {used}")

expected = x
for scale, zero_point in grids.values():
    integers = np.clip(np.rint(expected / np.float32(scale)) + zero_point, 0, 255)
    expected = ((integers - zero_point) * np.float32(scale)).astype(np.float32)
print("onnxruntime", onnxruntime.__version__)
wrong = {level: int((np.abs(result - expected) > 1e-4).sum()) for level, result in results.items()}
print(f"of {len(x)} values differ from the definition:", wrong)
third = not {round(scale, 6) for scale, _ in grids.values()} & set(used)
sys.exit(not (wrong["ORT_DISABLE_ALL"] == 0 and wrong["ORT_ENABLE_ALL"] > 500 and third))
P
