#!/usr/bin/env bash
# onnxruntime 1.32.0: two DequantizeLinear may read one int8 weight with different scales, and torch.onnx writes equal
# small weights so. With session.x64quantprecision=1 the valid file is refused. One may expect the same results.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6; } || exit 2
"$folder/venv/bin/python" - <<'EOF'
import sys
import numpy, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper

def pair(value, name):
    return [helper.make_node("QuantizeLinear", [value, "one", "zero"], [f"{name}_int"]),
            helper.make_node("DequantizeLinear", [f"{name}_int", "one", "zero"], [name])]

nodes = pair("x", "a")
for before, after, scale in (("a", "b", "scale_1"), ("b", "y", "scale_2")):
    nodes += [helper.make_node("DequantizeLinear", ["weight", scale, "weight_zero"], [f"{after}_weight"], axis=0),
              helper.make_node("Conv", [before, f"{after}_weight"], [f"{after}_conv"]), *pair(f"{after}_conv", after)]
arrays = {"weight": numpy.full((4, 4, 1, 1), 100, numpy.int8), "weight_zero": numpy.zeros(4, numpy.int8),
          "scale_1": numpy.full(4, 0.01, numpy.float32), "scale_2": numpy.full(4, 0.02, numpy.float32),
          "one": numpy.array(1, numpy.float32), "zero": numpy.array(0, numpy.uint8)}
values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 2, 2]) for name in "xy"]
constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], constants),
                          opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
onnx.checker.check_model(model, full_check=True)
print(f"onnxruntime {onnxruntime.__version__}; onnx {onnx.__version__} finds no fault in the file")
loaded = {}
for setting in ("0", "1"):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", setting)
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        result = session.run(None, {"x": numpy.ones((1, 4, 2, 2), numpy.float32)})[0]
        loaded[setting] = True
        print(f"session.x64quantprecision={setting}: runs, each value is {result.flat[0]}")
    except Exception as error:
        loaded[setting] = False
        print(f"session.x64quantprecision={setting}: refused: {' '.join(str(error).split())[-80:]}")
sys.exit(not (loaded["0"] and not loaded["1"]))
EOF
