#!/usr/bin/env bash
# torch 2.14.1: the qnnpack engine ignores count_include_pad=False in avg_pool2d of quantized values, without an error. One
# may expect that a border of ones stays a border of ones, as with the other engines.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6; } || exit 2
"$folder/venv/bin/python" -W ignore - <<'EOF'
import sys
import torch

print("torch", torch.__version__)
ones = torch.quantize_per_tensor(torch.ones(1, 1, 4, 4), 0.01, 0, torch.quint8)
corners = {}
for engine in torch.backends.quantized.supported_engines:
    if engine != "none":
        torch.backends.quantized.engine = engine
        pooled = torch.nn.functional.avg_pool2d(ones, 3, stride=1, padding=1, count_include_pad=False)
        corners[engine] = round(float(pooled.dequantize()[0, 0, 0, 0]), 2)
        print(f"{engine}: the mean of a corner of ones is {corners[engine]}; expected 1.0")
others = [value for engine, value in corners.items() if engine != "qnnpack"]
sys.exit(not (corners.get("qnnpack", 1) < 0.5 and all(value == 1 for value in others)))
EOF
