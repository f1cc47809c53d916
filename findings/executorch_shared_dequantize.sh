#!/usr/bin/env bash
# executorch 1.5.1: two operators may read one dequantize. If a kernel that XNNPACK has not lies between them, lowering
# fails. One may expect what happens where each operator has a dequantize of its own, which computes the same.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet executorch==1.5.1 torch==2.14.1 \
    numpy==2.4.6; } || { echo "could not install"; exit 2; }
"$folder/venv/bin/python" - 2>"$folder/log" <<'EOF' || { cat "$folder/log"; exit 1; }
import importlib.metadata, sys
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch.ao.quantization.fx import _decomposed  # defines the operators

GRID = 1.0, 0, -128, 127, torch.int8
quantize = lambda values: torch.ops.quantized_decomposed.quantize_per_tensor(values, *GRID)
dequantize = lambda integers: torch.ops.quantized_decomposed.dequantize_per_tensor(integers, *GRID)

class Sum(torch.nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.shared = shared

    def forward(self, values):
        integers = quantize(values)
        first = dequantize(integers)
        swapped = quantize(torch.relu(first)).index_select(1, torch.tensor([1, 0]))  # a portable kernel
        second = first if self.shared else dequantize(integers)
        return dequantize(quantize(second + dequantize(swapped)))

values, seen = torch.tensor([[5.0, -7.0]]), {}
print(f"executorch {importlib.metadata.version('executorch')}, torch {torch.__version__}")
for shared in (False, True):
    model = Sum(shared).eval()
    try:
        edge = to_edge_transform_and_lower(torch.export.export(model, (values,)), partitioner=[XnnpackPartitioner()])
        program = Runtime.get().load_program(edge.to_executorch().buffer)
        seen[shared] = program.load_method("forward").execute([values])[0].tolist()
    except AssertionError as error:
        seen[shared] = str(error)
    print(f"shared dequantize: {shared}; torch {model(values).tolist()}, ExecuTorch {seen[shared]}")
sys.exit(not (seen[False] == [[5.0, -2.0]] and "cycle" in seen[True]))
EOF
