#!/usr/bin/env bash
# torch-pruning 1.6.1: where channels are flipped (or rolled) before an addition, the channels with the same numbers are
# removed from both branches, not those that are added, without an error or a warning. One may expect that the pruned network
# computes what the original does with the removed channels set to zero.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet torch-pruning==1.6.1 torch==2.14.1 \
    numpy==2.4.6; } || exit 2
"$folder/venv/bin/python" -W error::UserWarning - <<'EOF'
import copy, importlib.metadata, sys
import torch, torch_pruning
from torch import nn

class Branches(nn.Module):
    def __init__(self, move):
        super().__init__()
        self.left, self.right, self.head, self.move = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Linear(8, 3), move

    def forward(self, images):
        return self.head((self.left(images) + self.move(self.right(images))).relu().mean((2, 3)))

moves = {"nothing": (lambda x: x, [0, 1]), "flip": (lambda x: torch.flip(x, [1]), [6, 7]),
         "roll by 2": (lambda x: torch.roll(x, 2, 1), [6, 7])}
print(f"torch-pruning {importlib.metadata.version('torch-pruning')}, torch {torch.__version__}, float64")
good = True
for name, (move, partners) in moves.items():
    torch.manual_seed(0)
    model, images = Branches(move).double(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    graph = torch_pruning.DependencyGraph().build_dependency(pruned, images)
    group = graph.get_pruning_group(pruned.left, torch_pruning.prune_conv_out_channels, idxs=[0, 1])
    removed = {part.dep.target.name.split(" ")[0]: sorted(part.idxs) for part in group}
    group.prune()
    with torch.no_grad():
        for branch in ("left", "right"):
            convolution = getattr(masked, branch)
            convolution.weight[removed[branch]] = convolution.bias[removed[branch]] = 0
        difference = float((pruned(images) - masked(images)).abs().max())
    print(f"{name}: removes {removed['left']} of the left branch and {removed['right']} of the right (expected {partners}); "
          f"the outputs differ by {difference:.1e}")
    good &= difference < 1e-12 if name == "nothing" else difference > 1e-3 and removed["right"] == [0, 1]
sys.exit(not good)
EOF
