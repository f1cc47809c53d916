#!/usr/bin/env bash
# The commands behind docs/RESULTS.md: the whole chain on real photos. About 35 minutes on 2 CPU cores.
#
#     bash benchmarks/pet37_mini.sh DATA PRETRAINED OUTPUT
#
# DATA holds oxford-iiit-pet/; PRETRAINED torchvision's mobilenet_v2.pth and squeezenet1_1.pth (ImageNet, 1000 classes).
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1 pretrained=$2 output=$3
options=(--data-dir "$data" --output-dir "$output" --seed 0)
run() { .venv/bin/python "$@" "${options[@]}"; }

run train_teacher.py --teacher mobilenet_v2 --pretrained "$pretrained/mobilenet_v2.pth"
run train_quantization.py --weights teacher_mobilenet_v2 --target-device embedded
run train_pruning.py --weights teacher_mobilenet_v2 --pruning-ratio 0.5 --pruning-steps 5 --epochs 30
run train_quantization.py --weights pruned_mobilenet_v2 --target-device embedded

run train_student.py --teacher mobilenet_v2 --student squeezenet1_1 --pretrained "$pretrained/squeezenet1_1.pth" \
    --lr 0.0002
run train_pruning.py --weights kd_squeezenet1_1 --pruning-ratio 0.7 --pruning-steps 4
run train_quantization.py --weights pruned_kd_squeezenet1_1 --target-device embedded

.venv/bin/python evaluate.py --output-dir "$output" --latency
