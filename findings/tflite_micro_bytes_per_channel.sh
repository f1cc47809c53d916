#!/usr/bin/env bash
# tflite-micro 0.dev20261023182759: a convolution keeps 8 bytes of the arena for each output channel (a multiplier and a
# shift), even if one scale holds for all channels. One may expect what FULLY_CONNECTED keeps of the same weights: none.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet tflite-micro==0.dev20261023182759 \
    flatbuffers==25.12.19 numpy==2.4.6 pyyaml==6.0.4; } || { echo "could not install"; exit 2; }
"$folder/venv/bin/python" - "$folder/log" 2>"$folder/log" <<'EOF' || { cat "$folder/log"; exit 1; }
import pathlib, re, sys
import flatbuffers, numpy
from tflite_micro import runtime
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

INPUTS, INT8, INT32 = 4, schema.TensorType.INT8, schema.TensorType.INT32

def arena(name, outputs, space, kind, options):
    graph, model = schema.SubGraphT(tensors=[]), schema.ModelT(version=3, buffers=[schema.BufferT()])
    code = getattr(schema.BuiltinOperator, name)
    model.operatorCodes = [schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code)]
    rng = numpy.random.default_rng(0)
    image = rng.integers(-128, 128, (1, *space, INPUTS)).astype(numpy.int8)
    weights = rng.integers(-127, 128, (outputs, *space, INPUTS)).astype(numpy.int8)
    for shape, type_, scale, data in ((image.shape, INT8, 0.05, None), (weights.shape, INT8, 0.01, weights),
                                      ((outputs,), INT32, 0.0005, numpy.zeros(outputs, numpy.int32)),
                                      ((1, *space, outputs), INT8, 0.05, None)):
        grid = schema.QuantizationParametersT(scale=[scale], zeroPoint=[0])  # one scale for all channels
        model.buffers += [] if data is None else [schema.BufferT(data=data.view(numpy.uint8).ravel())]
        buffer = 0 if data is None else len(model.buffers) - 1
        graph.tensors.append(schema.TensorT(shape=list(shape), type=type_, buffer=buffer, quantization=grid))
    graph.operators = [schema.OperatorT(inputs=[0, 1, 2], outputs=[3], builtinOptions=options,
                                        builtinOptionsType=getattr(schema.BuiltinOptions, kind))]
    model.subgraphs, graph.inputs, graph.outputs = [graph], [0], [3]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    interpreter = runtime.Interpreter.from_bytes(bytes(builder.Output()), arena_size=2**20)
    interpreter.set_input(image, 0)
    interpreter.invoke()
    interpreter.print_allocations()  # to stderr, which is the log: the head are activations, the tail is all else
    head, tail = re.findall(r"allocation (?:head|tail) (\d+)", pathlib.Path(sys.argv[1]).read_text())[-2:]
    return interpreter.get_output(0).ravel(), int(head), int(tail)

kept = {"CONV_2D": [], "FULLY_CONNECTED": []}
for outputs in (256, 512, 1024):
    convolution = schema.Conv2DOptionsT(padding=schema.Padding.VALID, strideW=1, strideH=1)
    conv, *conv_bytes = arena("CONV_2D", outputs, (1, 1), "Conv2DOptions", convolution)
    full, *full_bytes = arena("FULLY_CONNECTED", outputs, (), "FullyConnectedOptions", schema.FullyConnectedOptionsT())
    for name, (head, tail) in (("CONV_2D", conv_bytes), ("FULLY_CONNECTED", full_bytes)):
        print(f"{outputs} channels, {name}: {head:,} bytes of activations, {tail:,} of all else")
        kept[name].append(tail)
    assert (conv == full).all() and conv.any(), "the results differ"
growth = {name: [int(step) for step in numpy.diff(tails)] for name, tails in kept.items()}
print(f"growth from 256 to 512 and 1,024 channels: {growth}; expected: none")
sys.exit(growth != {"CONV_2D": [8 * 256, 8 * 512], "FULLY_CONNECTED": [0, 0]})
EOF
