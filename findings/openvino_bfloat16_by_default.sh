#!/usr/bin/env bash
# OpenVINO computes a float32 model in bfloat16 by default, on a CPU that has it.
#
# Expected: a float32 model gives float32 results, off by about 1e-6. Observed: they are off by about 1e-3 of the
# largest value, and take less time. Latencies and accuracies of "float" models can so be those of bfloat16. With
# INFERENCE_PRECISION_HINT=f32 they are those of float32.
#
# Exit code: 0 as described, 1 the behavior is another one, 2 this CPU has no bfloat16.
set -euo pipefail
grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo || { echo "this CPU has no bfloat16"; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q openvino==2026.4.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys, timeit
import numpy as np, openvino
from openvino import opset13 as ops

random = np.random.default_rng(0)
weights, images = (random.standard_normal(shape, np.float32) for shape in ((64, 64, 3, 3), (1, 64, 56, 56)))
x = ops.parameter([1, 64, 56, 56], np.float32)
model = openvino.Model([ops.convolution(x, ops.constant(weights), [1, 1], [1, 1], [1, 1], [1, 1])], [x])
padded = np.pad(images.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
exact = np.einsum("nchwij,ocij->nohw", windows, weights.astype(np.float64), optimize=True)
print(f"OpenVINO {openvino.__version__}, a float32 convolution")
errors = {}
for name, settings in (("default", {}), ("f32", {"INFERENCE_PRECISION_HINT": "f32"})):
    compiled = openvino.Core().compile_model(model, "CPU", settings | {"INFERENCE_NUM_THREADS": 1})
    errors[name] = float(np.abs(compiled(images)[0] - exact).max() / np.abs(exact).max())
    time = 1000 * min(timeit.repeat(lambda: compiled(images), number=5, repeat=10)) / 5
    print(f"{name}: {compiled.get_property('INFERENCE_PRECISION_HINT')}, largest error {errors[name]:.1e} of the "
          f"largest value, {time:.2f} ms")
print("expected: the same error twice")
sys.exit(not (errors["default"] > 1e-4 > 1e-5 > errors["f32"]))
PYTHON
