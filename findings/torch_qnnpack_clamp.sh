#!/usr/bin/env bash
# torch 2.14.1: with the qnnpack engine, clamp, hardtanh and relu6 of quantized values in channels_last put values at the
# wrong places, without an error. One may expect the same values for each memory format, as with the other engines. The
# outputs of quantized convolutions are in channels_last.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6; } || exit 2
"$folder/venv/bin/python" -W ignore - <<'EOF'
import sys
import torch

print("torch", torch.__version__)
images = torch.quantize_per_tensor(torch.arange(48.0).reshape(1, 3, 4, 4) / 4 - 3, 0.05, 60, torch.quint8)
last = images.contiguous(memory_format=torch.channels_last)
assert torch.equal(images.dequantize(), last.dequantize())
operators = {"clamp": lambda x: torch.clamp(x, 0, 6), "hardtanh": lambda x: torch.nn.functional.hardtanh(x, 0, 6),
             "relu6": torch.ops.quantized.relu6, "relu": torch.relu}
wrong = {}
for engine in torch.backends.quantized.supported_engines:
    if engine != "none":
        torch.backends.quantized.engine = engine
        for name, operator in operators.items():
            expected = images.dequantize().clamp(0, None if name == "relu" else 6)
            seen = [int(((operator(each).dequantize() - expected).abs() > 1e-4).sum()) for each in (images, last)]
            wrong[engine, name] = seen
            print(f"{engine}, {name}: of 48 values are wrong {seen[0]} if contiguous, {seen[1]} in channels_last")
faulty = [key for key, (contiguous, channels_last) in wrong.items() if contiguous == 0 and channels_last > 0]
right = [key for key, counts in wrong.items() if counts == [0, 0]]
sys.exit(not (faulty == [("qnnpack", name) for name in ("clamp", "hardtanh", "relu6")] and len(faulty + right) == len(wrong)))
EOF
