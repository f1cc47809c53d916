#!/usr/bin/env bash
# The commands behind the int8 part of docs/RESULTS.md and the table of runtimes in docs/PERFORMANCE.md, after
# benchmarks/pet37_mini.sh. Several hours on one CPU core. OpenVINO and NNCF are optional.
#
#     bash benchmarks/int8.sh DATA OUTPUT
#
# DATA holds oxford-iiit-pet/; OUTPUT the checkpoints of pet37_mini.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1 output=$2
export OMP_NUM_THREADS=1 # the order of float sums, and with it the last digits, depend on the threads
where=(--data-dir "$data" --output-dir "$output" --workers 0)
all=(--val-fraction 0 "${where[@]}")
run() { .venv/bin/python "$@"; }

for parent in teacher_mobilenet_v2 kd_squeezenet1_1; do
    loss=$([ "${parent%%_*}" = kd ] && echo "--standardize-logits --temperature 2" || true)
    for target in embedded server; do
        for epochs in 0 3; do
            run train_quantization.py --weights $parent --teacher teacher_mobilenet_v2 --mixup $loss \
                --target-device $target --epochs $epochs --model-name "$target${epochs}_${parent#*_}" "${all[@]}"
        done
    done
    run train_quantization.py --weights $parent --target-device symmetric --epochs 0 \
        --model-name "symmetric0_${parent#*_}" "${all[@]}"
done
for name in embedded0_mobilenet_v2 server0_mobilenet_v2 server3_mobilenet_v2 symmetric0_mobilenet_v2 \
    kd_server0_squeezenet1_1 kd_server3_squeezenet1_1; do
    run export.py quantized_$name --output "$output/$name.onnx" --images 906 "${where[@]}"
done

# for the latency: networks without pretrained weights train for one epoch. Pruned ones are not fine-tuned,
# except for one epoch where int8 and fake quantization would disagree on too many images.
for arch in resnet18 resnet50; do
    batch=$([ $arch = resnet50 ] && echo 16 || echo 32)
    run train_teacher.py --teacher $arch --pretrained none --epochs 1 --batch-size "$batch" "${all[@]}"
    # the logits of ResNet-50 are so close to each other that int8 changes 11 % of its predictions
    run -c 'import sys, train_quantization as stage; from common.cli import launch
from common.evaluation import int8_agreement; int8_agreement.MIN_AGREEMENT = 0.8
launch.run(stage.main, stage.parse_args)' --weights teacher_$arch --target-device server --epochs 0 \
        --model-name server0_$arch "${all[@]}"
done
for parent in teacher_mobilenet_v2 kd_squeezenet1_1 teacher_resnet18 teacher_resnet50; do
    arch=${parent#*_} kd=$([ "${parent%%_*}" = kd ] && echo kd_ || true)
    training=$([ $arch = resnet50 ] && echo "--epochs 1 --batch-size 16" || echo "--epochs 0")
    run train_pruning.py --weights $parent --target-macs 0.5 $training --model-name half_$arch "${all[@]}"
    run train_quantization.py --weights pruned_${kd}half_$arch --target-device server --epochs 0 "${all[@]}"
    run -m benchmarks.runtimes --weights $parent quantized_${kd}server0_$arch pruned_${kd}half_$arch \
        quantized_pruned_${kd}half_$arch "${where[@]}"
done
