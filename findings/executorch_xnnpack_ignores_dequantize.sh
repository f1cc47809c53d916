#!/usr/bin/env bash
# executorch 1.5.1: where int8 values are dequantized with another scale or zero point than they were quantized with,
# XNNPACK computes with those of the quantize, without an error. One may expect what torch and the portable kernels
# compute: the int8 values are the same, and the dequantize says what they stand for.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet executorch==1.5.1 torch==2.14.1 \
    numpy==2.4.6; } || { echo "could not install"; exit 2; }
"$folder/venv/bin/python" - 2>"$folder/log" <<'EOF' || { cat "$folder/log"; exit 1; }
import importlib.metadata, sys
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.kernels import quantized
from executorch.runtime import Runtime
from torch.ao.quantization.fx import _decomposed  # defines the operators

operators = torch.ops.quantized_decomposed

def quantize(values, scale, zero_point):
    return operators.quantize_per_tensor(values, scale, zero_point, -128, 127, torch.int8)

def dequantize(integers, scale, zero_point):
    return operators.dequantize_per_tensor(integers, scale, zero_point, -128, 127, torch.int8)

class Doubled(torch.nn.Module):
    def forward(self, values):
        integers = quantize(values, 1.0, 0)
        values = dequantize(integers, 1.0, 10)  # 10 less, and 10 more below
        return dequantize(quantize(values + values, 1.0, 10), 1.0, 0)

def run(partitioners):
    program = to_edge_transform_and_lower(torch.export.export(model, (values,)), partitioner=partitioners)
    loaded = Runtime.get().load_program(program.to_executorch().buffer)
    return loaded.load_method("forward").execute([values])[0].tolist()

model, values = Doubled().eval(), torch.tensor([-3.0, 0.0, 1.0, 50.0])
torch_values, portable, xnnpack = model(values).tolist(), run([]), run([XnnpackPartitioner()])
print(f"executorch {importlib.metadata.version('executorch')}, torch {torch.__version__}: {values.tolist()}")
print(f"torch {torch_values}, portable kernels {portable}, XNNPACK {xnnpack}; expected three times the same")
sys.exit(not (torch_values == portable == [-16.0, -10.0, -8.0, 90.0] and xnnpack == [-6.0, 0.0, 2.0, 100.0]))
EOF
