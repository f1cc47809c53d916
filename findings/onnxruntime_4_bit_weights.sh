#!/usr/bin/env bash
# onnxruntime 1.32.0: a convolution between QuantizeLinear and DequantizeLinear is computed in integers if its weights
# are int8, in float if they are int4 behind their own DequantizeLinear. One may expect integers for both. Stored as int4
# and cast to int8, with an int8 DequantizeLinear behind, the same weights give the integer kernel.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 \
    numpy==2.4.6; } || { echo "could not install"; exit 2; }
"$folder/venv/bin/python" - "$folder/optimized.onnx" <<'EOF'
import sys
import numpy, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper

weights = (numpy.arange(64).reshape(4, 16, 1, 1) % 15 - 7).astype(numpy.int8)
halves = weights.ravel().astype(numpy.uint8) & 15
packed = (halves[::2] | (halves[1::2] << 4)).astype(numpy.uint8).tobytes()

def operators(form):
    narrow = form == "int4"
    constants = {"s": numpy.float32(0.1), "z": numpy.uint8(128), "ws": numpy.full(4, 0.01, numpy.float32)}
    tensors = [numpy_helper.from_array(numpy.asarray(value), name) for name, value in constants.items()]
    if form == "int8":
        tensors.append(numpy_helper.from_array(weights, "w"))
    else:
        name = "w" if narrow else "stored"
        tensors.append(helper.make_tensor(name, TensorProto.INT4, weights.shape, packed, raw=True))
    nodes = [helper.make_node("Cast", ["stored"], ["w"], to=TensorProto.INT8)] if form == "int4, cast to int8" else []
    nodes += [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
              helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xv"]),
              helper.make_node("DequantizeLinear", ["w", "ws"], ["wv"], axis=0),
              helper.make_node("Conv", ["xv", "wv"], ["c"]),
              helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
              helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 8, 8])
              for name, channels in (("x", 16), ("y", 4))]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, sys.argv[1]
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(sys.argv[1]).graph.node]

print(f"onnxruntime {onnxruntime.__version__}")
found = {}
for form in ("int8", "int4", "int4, cast to int8"):
    kinds = operators(form)
    found[form] = any("QLinearConv" in kind for kind in kinds)
    print(f"{form}: {', '.join(kinds)}")
print("expected: QLinearConv for all")
sys.exit(found != {"int8": True, "int4": False, "int4, cast to int8": True})
EOF
