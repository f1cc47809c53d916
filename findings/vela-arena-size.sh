#!/usr/bin/env bash
# ethos-u-vela 5.2.0: --arena-cache-size below what is possible is exceeded without an error or a warning.
# Expected: an error, as the network does not fit; or at least a warning that names the size.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || { echo "could not create the environment"; exit 2; }
"$folder/venv/bin/pip" install --quiet ethos-u-vela==5.2.0 ai-edge-litert==2.3.0 flatbuffers==25.12.19 numpy==2.4.6 ||
    { echo "could not install"; exit 2; }
"$folder/venv/bin/python" - "$folder" <<'EOF'
import csv
import pathlib
import subprocess
import sys

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as tfl

# an int8 network: an image of 128 x 128, and four 3x3 convolutions to 32 channels
folder, side, widths = pathlib.Path(sys.argv[1]), 128, [3, 32, 32, 32, 32]
model, graph = tfl.ModelT(version=3, description=b"", buffers=[tfl.BufferT()]), tfl.SubGraphT(tensors=[], operators=[])
model.operatorCodes = [tfl.OperatorCodeT(deprecatedBuiltinCode=3, builtinCode=3, version=3)]  # CONV_2D
model.subgraphs, rng = [graph], np.random.default_rng(0)

def tensor(name, shape, kind, scale, data=None):
    model.buffers += [tfl.BufferT(data=data.view(np.uint8).ravel())] if data is not None else []
    grid = tfl.QuantizationParametersT(scale=[scale], zeroPoint=[0])
    buffer = 0 if data is None else len(model.buffers) - 1
    graph.tensors.append(tfl.TensorT(shape=list(shape), type=kind, buffer=buffer, name=name, quantization=grid))
    return len(graph.tensors) - 1

last = tensor("image", (1, side, side, 3), tfl.TensorType.INT8, 0.05)
graph.inputs = [last]
for i, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
    w = rng.integers(-127, 128, (outputs, 3, 3, inputs)).astype(np.int8)
    weight = tensor(f"w{i}", w.shape, tfl.TensorType.INT8, 0.01, w)
    bias = tensor(f"b{i}", (outputs,), tfl.TensorType.INT32, 0.0005, np.zeros(outputs, np.int32))
    output = tensor(f"x{i}", (1, side, side, outputs), tfl.TensorType.INT8, 0.05)
    options = tfl.Conv2DOptionsT(padding=0, strideW=1, strideH=1, dilationWFactor=1, dilationHFactor=1)
    conv = tfl.OperatorT(inputs=[last, weight, bias], outputs=[output], builtinOptions=options)
    conv.builtinOptionsType, last = tfl.BuiltinOptions.Conv2DOptions, output
    graph.operators.append(conv)
graph.outputs = [last]
builder = flatbuffers.Builder()
builder.Finish(model.Pack(builder), b"TFL3")
(folder / "net.tflite").write_bytes(builder.Output())

def vela(*options):
    command = [folder / "venv/bin/vela", folder / "net.tflite", "--accelerator-config", "ethos-u55-128", *options]
    done = subprocess.run([*command, "--output-dir", folder / "out"], capture_output=True, text=True)
    row = next(csv.DictReader(next((folder / "out").glob("*.csv")).open()))
    used, ms = float(row["sram_memory_used"]), 1000 * float(row["inference_time"])
    about = [line for line in (done.stdout + done.stderr).splitlines() if "arena" in line.lower()]
    print(f"vela 5.2.0 {' '.join(options)}: {used:.0f} KiB of SRAM, {ms:.2f} ms, exit code {done.returncode}, {about}")
    return used, done.returncode, about

size, small = vela("--optimise", "Size"), vela("--arena-cache-size", "32768")
print("expected of the second: an error or a warning, since 32 KiB are not enough")
sys.exit(not (small[0] == size[0] > 32 and small[1:] == size[1:] == (0, [])))
EOF
