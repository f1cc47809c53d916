#!/usr/bin/env bash
# tflite-micro 0.dev20261023182759: FULLY_CONNECTED with int8 weights has a scale for each output channel, and with int4
# weights one scale for all. One may expect that int4 weights with a scale for each channel run too, as in CONV_2D.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet tflite-micro==0.dev20261023182759 \
    flatbuffers==25.12.19 numpy==2.4.6 pyyaml==6.0.4; } || { echo "could not install"; exit 2; }
"$folder/venv/bin/python" - 2>"$folder/log" <<'EOF' || { cat "$folder/log"; exit 1; }
import sys
import flatbuffers, numpy
from tflite_micro import runtime
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

INPUTS, OUTPUTS, INT8, INT32 = 8, 4, schema.TensorType.INT8, schema.TensorType.INT32

def runs(name, bits, scales, kind, options, space):
    graph, model = schema.SubGraphT(tensors=[]), schema.ModelT(version=3, buffers=[schema.BufferT()])
    code = getattr(schema.BuiltinOperator, name)
    model.operatorCodes = [schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code)]
    weights = (numpy.arange(OUTPUTS * INPUTS) % 15 - 7).astype(numpy.int8)
    if bits == 4:
        weights = ((weights[::2] & 15) | (weights[1::2] << 4)).astype(numpy.int8)
    kind_of_weights = schema.TensorType.INT4 if bits == 4 else INT8
    scale = [0.01 * (1 + each) for each in range(scales)]
    for shape, type_, grid, data in (((1, *space, INPUTS), INT8, [0.5], None),
                                     ((OUTPUTS, *space, INPUTS), kind_of_weights, scale, weights),
                                     ((OUTPUTS,), INT32, [0.5 * each for each in scale],
                                      numpy.zeros(OUTPUTS, numpy.int32)),
                                     ((1, *space, OUTPUTS), INT8, [0.5], None)):
        model.buffers += [] if data is None else [schema.BufferT(data=data.view(numpy.uint8).ravel())]
        grid = schema.QuantizationParametersT(scale=grid, zeroPoint=[0] * len(grid))
        buffer = 0 if data is None else len(model.buffers) - 1
        graph.tensors.append(schema.TensorT(shape=list(shape), type=type_, buffer=buffer, quantization=grid))
    graph.operators = [schema.OperatorT(inputs=[0, 1, 2], outputs=[3], builtinOptions=options,
                                        builtinOptionsType=getattr(schema.BuiltinOptions, kind))]
    model.subgraphs, graph.inputs, graph.outputs = [graph], [0], [3]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    try:
        interpreter = runtime.Interpreter.from_bytes(bytes(builder.Output()), arena_size=2**16)
        interpreter.set_input(numpy.full((1, *space, INPUTS), 9, numpy.int8), 0)
        interpreter.invoke()
    except RuntimeError as error:
        print(f"{name}, {bits} bits, {scales} scales: {error}")
        return False
    print(f"{name}, {bits} bits, {scales} scales: {interpreter.get_output(0).ravel().tolist()}")
    return True

seen = []
for name, kind, options, space in (
    ("CONV_2D", "Conv2DOptions", schema.Conv2DOptionsT(padding=1, strideW=1, strideH=1), (1, 1)),
    ("FULLY_CONNECTED", "FullyConnectedOptions", schema.FullyConnectedOptionsT(), ()),
):
    seen += [runs(name, bits, scales, kind, options, space) for bits in (8, 4) for scales in (1, OUTPUTS)]
print("expected: all run")
sys.exit(seen != [True] * 7 + [False])
EOF
