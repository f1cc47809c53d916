#!/usr/bin/env bash
# The commands behind the int8 part of docs/RESULTS.md, after benchmarks/pet37_mini.sh. About 35 minutes on 2 CPU cores.
#
#     bash benchmarks/int8.sh DATA OUTPUT
#
# DATA holds oxford-iiit-pet/; OUTPUT the checkpoints of pet37_mini.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1 output=$2
export OMP_NUM_THREADS=1 # the order of float sums, and with it the last digits, depend on the threads
where=(--data-dir "$data" --output-dir "$output" --workers 1)
run() { .venv/bin/python "$@"; }

for parent in teacher_mobilenet_v2 kd_squeezenet1_1; do
    for target in embedded server; do
        for epochs in 0 3; do
            run train_quantization.py --weights $parent --target-device $target --epochs $epochs \
                --model-name "$target${epochs}_$parent" "${where[@]}"
        done
    done
done
for target in embedded0 embedded3 server0 server3; do
    run export.py quantized_${target}_teacher_mobilenet_v2 --output "$output/$target.onnx" --images 906 "${where[@]}"
done
run -m benchmarks.onnx_peer --weights teacher_mobilenet_v2 quantized_{server0,server3,embedded3}_teacher_mobilenet_v2 \
    "${where[@]}"

# one epoch from scratch, for the latency alone
for arch in resnet18 resnet50; do
    batch=$([ $arch = resnet50 ] && echo 16 || echo 32)
    run train_teacher.py --teacher $arch --pretrained none --epochs 1 --batch-size "$batch" "${where[@]}"
    run train_quantization.py --weights teacher_$arch --target-device server --epochs 0 "${where[@]}"
    run evaluate.py teacher_$arch quantized_$arch "${where[@]}"
done
run evaluate.py teacher_mobilenet_v2 quantized_{server3,embedded3}_teacher_mobilenet_v2 \
    "$output/server3.onnx" "$output/embedded3.onnx" "${where[@]}"
