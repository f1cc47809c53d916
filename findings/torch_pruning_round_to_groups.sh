#!/usr/bin/env bash
# torch-pruning 1.6.1: round_to is a divisor of the channels in each group of a grouped convolution, not of the layer's. So
# twice what is asked is removed, or nothing, without a warning. One may expect the nearest multiple of round_to channels, as
# the documentation of the pruners says: of 32 channels in 4 groups, 24.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet torch-pruning==1.6.1 torch==2.14.1 \
    numpy==2.4.6; } || exit 2
"$folder/venv/bin/python" -W error::UserWarning - <<'EOF'
import importlib.metadata, sys
import torch, torch_pruning
from torch import nn

print(f"torch-pruning {importlib.metadata.version('torch-pruning')}, torch {torch.__version__}: 25 % of the channels")
removed = {}
for channels, groups in ((32, 1), (32, 2), (32, 4), (64, 4), (128, 4)):
    for round_to in (None, 8):
        torch.manual_seed(0)
        grouped, last = nn.Conv2d(channels, channels, 3, padding=1, groups=groups), nn.Conv2d(channels, 16, 1)
        model, images = nn.Sequential(nn.Conv2d(3, channels, 1), grouped, last), torch.randn(1, 3, 8, 8)
        importance = torch_pruning.importance.MagnitudeImportance()
        torch_pruning.pruner.BasePruner(
            model, images, importance, pruning_ratio=0.25, round_to=round_to, ignored_layers=[last]
        ).step()
        model(images)
        removed[channels, groups, round_to] = channels - grouped.out_channels
        print(f"{channels} channels in {groups} groups, round_to={round_to}: "
              f"asked {channels // 4}, removed {channels - grouped.out_channels}")
asked = [key[0] // 4 for key in removed]
assert asked[::2] == list(removed.values())[::2]  # without round_to
sys.exit([removed[key] for key in removed if key[2]] != [8, 16, 0, 32, 32])
EOF
