#!/usr/bin/env bash
# onnxruntime 1.32.0: a quantized convolution with a ReLU is computed in integers only if the output's zero point is the
# lowest integer. One may expect it with any zero point, as it is without the ReLU. With a larger one, which branches have
# that share a grid with negative values, it stays a float convolution.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 \
    numpy==2.4.6; } || exit 2
"$folder/venv/bin/python" - "$folder" <<'EOF'
import sys, timeit
import numpy, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper

random, shape = numpy.random.default_rng(0), [1, 64, 28, 28]
images = random.integers(0, 256, shape).astype(numpy.uint8)
weights = random.integers(-127, 128, (64, 64, 3, 3)).astype(numpy.int8)

def optimized(zero_point, relu):
    arrays = {"scale": numpy.float32(0.02), "zero": numpy.uint8(0), "weights": weights, "zeros": numpy.zeros(64, numpy.int8),
              "scales": numpy.full(64, 0.01, numpy.float32), "new": numpy.float32(0.5), "new_zero": numpy.uint8(zero_point)}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["weights", "scales", "zeros"], ["w"], axis=0),
        helper.make_node("Conv", ["a", "w"], ["b"], pads=[1, 1, 1, 1]),
        *([helper.make_node("Relu", ["b"], ["c"])] if relu else []),
        helper.make_node("QuantizeLinear", ["c" if relu else "b", "new", "new_zero"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.UINT8, shape) for name in "xy")
    constants = [numpy_helper.from_array(numpy.asarray(value), name) for name, value in arrays.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], constants),
                              opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.optimized_model_filepath = f"{sys.argv[1]}/optimized.onnx"
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    time = 1000 * min(timeit.repeat(lambda: session.run(None, {"x": images}), number=5, repeat=5)) / 5
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node], time

print(f"onnxruntime {onnxruntime.__version__}; one thread; expected: QLinearConv each time")
integers = {}
for zero_point in (0, 30):
    for relu in (False, True):
        kinds, time = optimized(zero_point, relu)
        integers[zero_point, relu] = "QLinearConv" in kinds
        print(f"zero point {zero_point}, {'with' if relu else 'without'} ReLU: {', '.join(kinds)} ({time:.2f} ms)")
sys.exit([key for key, value in integers.items() if not value] != [(30, True)])
EOF
