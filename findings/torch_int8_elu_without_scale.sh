#!/usr/bin/env bash
# torch 2.14.1: the state dict of a quantized ELU (nn.quantized.ELU) lacks its scale and zero point, those of other layers
# have them. One may expect that a model computes the same once its state dict is loaded into another of its kind.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6; } || exit 2
"$folder/venv/bin/python" -W ignore - <<'EOF'
import sys
import torch
from torch.ao.nn import quantized

print("torch", torch.__version__)
values = torch.quantize_per_tensor(torch.linspace(-2, 2, 9), 0.02, 128, torch.quint8)
differs = {}
for kind in (quantized.Hardswish, quantized.LeakyReLU, quantized.ELU):
    trained, other = kind(0.02, 50), kind(1.0, 0)
    missing, unexpected = other.load_state_dict(trained.state_dict())
    assert not missing and not unexpected
    differs[kind.__name__] = not torch.equal(trained(values).dequantize(), other(values).dequantize())
    print(f"{kind.__name__}: stores {sorted(trained.state_dict())}; loaded, it {'differs' if differs[kind.__name__] else 'is equal'}")
sys.exit(differs != {"Hardswish": False, "LeakyReLU": False, "ELU": True})
EOF
