#!/usr/bin/env bash
# fasterai 0.4.1: pruning_ratio is a fraction of the filters of each layer. One may expect a fraction of the weights: its README
# describes it as the percentage of weights to remove. With 50, three quarters of them are removed.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet fasterai==0.4.1 fastai==2.8.12 \
    torch-pruning==1.6.1 torch==2.14.1 numpy==2.4.6; } || exit 2
"$folder/venv/bin/python" -W ignore - <<'EOF'
import contextlib, importlib.metadata, io, sys

import torch
from fasterai.core.all import large_final
from fasterai.prune.pruner import Pruner
from torch import nn

metadata = importlib.metadata.metadata("fasterai")
print(f"fasterai {metadata['Version']}, torch-pruning {importlib.metadata.version('torch-pruning')}")
text = metadata["Description"] or metadata.get_payload()
print("README:", next(line for line in text.splitlines() if line.startswith("|`pruning_ratio`")))
removed = {}
for ratio in (30, 50, 70):
    torch.manual_seed(0)
    layers = [layer for _ in range(8) for layer in (nn.Conv2d(100, 100, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(nn.Conv2d(3, 100, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(100, 10))
    before = sum(parameter.numel() for parameter in model.parameters())
    with contextlib.redirect_stdout(io.StringIO()):
        Pruner(model, ratio, "local", large_final, example_inputs=torch.randn(1, 3, 8, 8)).prune_model()
    removed[ratio] = 100 - 100 * sum(parameter.numel() for parameter in model.parameters()) / before
    print(f"pruning_ratio={ratio}: expected {ratio} % of the weights removed, observed {removed[ratio]:.1f} %")
sys.exit([round(value) for value in removed.values()] != [51, 75, 91])
EOF
