#!/usr/bin/env bash
# The tables of firmware/README.md: the RAM of each schedule, and runs on the boards of QEMU. 3 minutes a checkpoint.
#
#     bash benchmarks/firmware.sh DATA CHECKPOINT...
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

for checkpoint; do
    for schedule in layers rows camera "camera --extra-macs 0.1"; do
        rm -rf "$folder/golden"
        # shellcheck disable=SC2086
        .venv/bin/python export.py "$checkpoint" --output "$folder/net.c" --golden "$folder/golden" \
            --schedule $schedule --no-check --images 1 --data-dir "$data" >/dev/null
        echo "$checkpoint, $schedule"
        [[ $schedule = camera* ]] && boards="mps2-an386 mps2-an500 mps3-an524 mps3-an547" || boards=mps2-an500
        for board in $boards; do
            make -s -C firmware run BOARD="$board" NET="$folder/net.c" GOLDEN="$folder/golden"
        done
    done
done
