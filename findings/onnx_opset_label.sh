#!/usr/bin/env bash
# An old ONNX Runtime refuses a file for the number of its opset, though it has every operator in it.
#
# torch.onnx (2.14) labels its files opset 20 and IR version 10, whatever is in them. Expected: a quantized
# convolution, whose operators have not changed for uint8 and int8 since opset 13, runs in ONNX Runtime 1.16.3.
# Observed: it is refused. With another label (opset 13, IR version 7) the same nodes pass the checker, run, and give the
# same bits in 1.16.3 and in 1.32.0.
#
# Exit code: 0 as described, 1 the behavior is another one. Needs Python 3.11, the newest with a package of 1.16.3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv old
old/bin/pip install -q onnxruntime==1.16.3 numpy==1.26.4
python3 -m venv new
new/bin/pip install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
new/bin/python - <<'PYTHON'
import numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper

random, scales = np.random.default_rng(0), np.linspace(0.01, 0.02, 8, dtype=np.float32)
constants = {
    "scale": np.float32(0.02), "zero": np.uint8(128), "scales": scales, "zeros": np.zeros(8, np.int8),
    "weights": random.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8), "coarse": np.float32(0.2),
}
nodes = [
    helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
    helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
    helper.make_node("DequantizeLinear", ["weights", "scales", "zeros"], ["w"], axis=0),
    helper.make_node("Conv", ["d", "w"], ["c"]),
    helper.make_node("QuantizeLinear", ["c", "coarse", "zero"], ["p"]),
    helper.make_node("DequantizeLinear", ["p", "coarse", "zero"], ["y"]),
]
x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])
y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 30, 30])
tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
graph = helper.make_graph(nodes, "convolution", [x], [y], tensors)
for opset, ir_version in ((20, 10), (13, 7)):
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, f"{opset}.onnx")
np.save("x.npy", random.standard_normal((1, 3, 32, 32)).astype(np.float32))
PYTHON
cat >run.py <<'PYTHON'
import hashlib, sys
import numpy as np, onnxruntime
try:
    session = onnxruntime.InferenceSession(f"{sys.argv[1]}.onnx", providers=["CPUExecutionProvider"])
    print(hashlib.sha256(session.run(None, {"x": np.load("x.npy")})[0].tobytes()).hexdigest()[:16])
except Exception as error:
    print("refused:", str(error)[:110])
PYTHON
for opset in 20 13; do for version in old new; do "$version/bin/python" run.py $opset 2>/dev/null >"$version$opset"; done; done
echo "opset 20, IR version 10: ONNX Runtime 1.16.3 $(cat old20); 1.32.0 $(cat new20)"
echo "opset 13, IR version 7:  ONNX Runtime 1.16.3 $(cat old13); 1.32.0 $(cat new13)"
grep -q '^refused' old20 && cmp -s old13 new13 && cmp -s new13 new20
