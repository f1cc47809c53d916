#!/usr/bin/env bash
# The commands behind weights/README.md: the chains on real images.
#
#     bash benchmarks/pet37_mini.sh
#
# data/ holds Pet37-mini (see docs/pet37-mini/), this folder mobilenet_v2.pth, squeezenet1_1.pth (torchvision)
# and tf_efficientnet_lite1.pth (timm), ImageNet weights. The command of each recipe is its first line.
set -euo pipefail
cd "$(dirname "$0")/.."
run() { .venv/bin/python "$@"; }

for recipe in teacher lite1 pruned quantized pruned_quantized 8th 8th_quantized 16th 16th_quantized 16th_4bit \
    16th_4bit_quantized student student_pruned student_quantized; do
    read -r _ _ script options < "configs/pet37_mini_$recipe.yaml"
    run "$script" $options
done
run evaluate.py --markdown results.md --plot docs/pet37-mini/tradeoffs.png
