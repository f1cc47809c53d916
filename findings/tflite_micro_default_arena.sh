#!/usr/bin/env bash
# tflite-micro 0.dev20261023182759: without arena_size, the arena has 10 times the bytes of the file (so its docstring).
# One may expect that a file which runs with an image of 8 x 8 runs with a larger one. It does not: the file has no
# byte more, the activations have. The exception names no size (a line on stderr does), and nothing names arena_size.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet tflite-micro==0.dev20261023182759 \
    flatbuffers==25.12.19 numpy==2.4.6 pyyaml==6.0.4; } || { echo "could not install"; exit 2; }
"$folder/venv/bin/python" - <<'EOF'
import sys
import flatbuffers, numpy
from tflite_micro import runtime
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

CHANNELS, INT8, INT32 = 32, schema.TensorType.INT8, schema.TensorType.INT32
weights = numpy.random.default_rng(0).integers(-127, 128, (1, 3, 3, CHANNELS)).astype(numpy.int8)

def depthwise(side):
    graph, model = schema.SubGraphT(tensors=[]), schema.ModelT(version=3, buffers=[schema.BufferT()])
    code, shape = schema.BuiltinOperator.DEPTHWISE_CONV_2D, (1, side, side, CHANNELS)
    model.operatorCodes = [schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code)]
    for shape_, type_, scale, data in ((shape, INT8, 0.05, None), (weights.shape, INT8, 0.01, weights),
                                       ((CHANNELS,), INT32, 0.0005, numpy.zeros(CHANNELS, numpy.int32)),
                                       (shape, INT8, 0.05, None)):
        grid = schema.QuantizationParametersT(scale=[scale], zeroPoint=[0])
        model.buffers += [] if data is None else [schema.BufferT(data=data.view(numpy.uint8).ravel())]
        buffer = 0 if data is None else len(model.buffers) - 1
        graph.tensors.append(schema.TensorT(shape=list(shape_), type=type_, buffer=buffer, quantization=grid))
    options = schema.DepthwiseConv2DOptionsT(padding=schema.Padding.SAME, strideW=1, strideH=1, depthMultiplier=1)
    graph.operators = [schema.OperatorT(inputs=[0, 1, 2], outputs=[3], builtinOptions=options,
                                        builtinOptionsType=schema.BuiltinOptions.DepthwiseConv2DOptions)]
    model.subgraphs, graph.inputs, graph.outputs = [graph], [0], [3]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())

def run(side, **settings):
    content = depthwise(side)
    try:
        interpreter = runtime.Interpreter.from_bytes(content, **settings)
        interpreter.set_input(numpy.ones((1, side, side, CHANNELS), numpy.int8), 0)
        interpreter.invoke()
        done = "runs" if interpreter.get_output(0).any() else "gives zeros only"
    except RuntimeError as error:
        done = str(error)
    print(f"{side} x {side}, file of {len(content):,} bytes, {settings or 'default'}: {done}", flush=True)
    return len(content), done

small, large, given = run(8), run(96), run(96, arena_size=2**20)
print("expected of the second: it runs, or the exception names arena_size")
refused = large[1] == "TFLM failed to allocate tensors"
sys.exit(not (small[0] == large[0] and small[1] == given[1] == "runs" and refused))
EOF
