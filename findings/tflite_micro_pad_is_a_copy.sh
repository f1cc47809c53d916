#!/usr/bin/env bash
# tflite-micro 0.dev20261023182759: PAD before a convolution is a padded copy in the arena, beside its input. One may
# expect the arena of the same convolution with padding SAME: here both give the same bits.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet tflite-micro==0.dev20261023182759 \
    flatbuffers==25.12.19 numpy==2.4.6 pyyaml==6.0.4; } || { echo "could not install"; exit 2; }
"$folder/venv/bin/python" - "$folder/log" 2>"$folder/log" <<'EOF' || { cat "$folder/log"; exit 1; }
import pathlib, re, sys
import flatbuffers, numpy
from tflite_micro import runtime
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

SIDE, HALF, CHANNELS = 97, 49, 32  # SAME with stride 2 pads an odd image by one pixel on every side, as PAD does below
INT8, INT32, rng = schema.TensorType.INT8, schema.TensorType.INT32, numpy.random.default_rng(0)
image, weights = (rng.integers(-127, 128, (1, n, n, CHANNELS)).astype(numpy.int8) for n in (SIDE, 3))

def run(padded):
    graph, model = schema.SubGraphT(tensors=[], operators=[]), schema.ModelT(version=3, buffers=[schema.BufferT()])
    model.subgraphs, model.operatorCodes = [graph], []

    def tensor(shape, kind, scale, data=None):
        grid = schema.QuantizationParametersT(scale=[scale], zeroPoint=[0])
        model.buffers += [] if data is None else [schema.BufferT(data=data.view(numpy.uint8).ravel())]
        buffer = 0 if data is None else len(model.buffers) - 1
        graph.tensors.append(schema.TensorT(shape=list(shape), type=kind, buffer=buffer, quantization=grid))
        return len(graph.tensors) - 1

    def operator(name, inputs, output, kind, options):
        code = getattr(schema.BuiltinOperator, name)
        model.operatorCodes.append(schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code))
        graph.operators.append(schema.OperatorT(
            opcodeIndex=len(model.operatorCodes) - 1, inputs=inputs, outputs=[output],
            builtinOptionsType=getattr(schema.BuiltinOptions, kind), builtinOptions=options))

    source, result = tensor(image.shape, INT8, 0.05), tensor((1, HALF, HALF, CHANNELS), INT8, 0.05)
    weight = tensor(weights.shape, INT8, 0.01, weights)
    bias = tensor((CHANNELS,), INT32, 0.0005, numpy.zeros(CHANNELS, numpy.int32))
    graph.inputs, graph.outputs = [source], [result]
    if padded:
        pads = tensor((4, 2), INT32, 1.0, numpy.array([[0, 0], [1, 1], [1, 1], [0, 0]], numpy.int32))
        inputs, source = [source, pads], tensor((1, SIDE + 2, SIDE + 2, CHANNELS), INT8, 0.05)
        operator("PAD", inputs, source, "PadOptions", schema.PadOptionsT())
    padding = schema.Padding.VALID if padded else schema.Padding.SAME
    options = schema.DepthwiseConv2DOptionsT(padding=padding, strideW=2, strideH=2, depthMultiplier=1)
    operator("DEPTHWISE_CONV_2D", [source, weight, bias], result, "DepthwiseConv2DOptions", options)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    interpreter = runtime.Interpreter.from_bytes(bytes(builder.Output()), arena_size=2**20)
    interpreter.set_input(image, 0)
    interpreter.invoke()
    interpreter.print_allocations()  # to stderr, which is the log
    head = re.findall(r"allocation head (\d+)", pathlib.Path(sys.argv[1]).read_text())[-1]
    return interpreter.get_output(0), int(head)

(same, small), (valid, large) = run(padded=False), run(padded=True)
print(f"activations in the arena: SAME {small:,} bytes, PAD {large:,}; equal results: {(same == valid).all()}")
sys.exit(not ((same == valid).all() and same.any() and large > 1.6 * small))
EOF
