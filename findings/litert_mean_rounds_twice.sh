#!/usr/bin/env bash
# ai-edge-litert 2.3.0: the reference kernel of MEAN, in int8 with equal scales, is off by one without a tie: it rounds
# the scale of the sum, and then the result. One may expect what AVERAGE_POOL_2D over the whole image gives.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet ai-edge-litert==2.3.0 flatbuffers==25.12.19 \
    numpy==2.4.6; } || exit 2
"$folder/venv/bin/python" - <<'EOF'
import sys
import flatbuffers, numpy
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

SIDE, CHANNELS, KIND = 7, 4096, schema.BuiltinOperator

def add(graph, name, shape, kind, buffer=0):
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name, shape, kind, buffer
    if kind == schema.TensorType.INT8:
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = [0.05], [-128]
    graph.tensors.append(tensor)

def run(kind, options_kind, images, resolver, **settings):
    model, graph, code, operator = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT(), schema.OperatorT()
    axes = schema.BufferT()
    axes.data = numpy.array([1, 2], numpy.int32).tobytes()
    code.builtinCode = code.deprecatedBuiltinCode = kind
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers, graph.tensors = [schema.BufferT(), axes], []
    add(graph, "images", images.shape, schema.TensorType.INT8)
    add(graph, "means", (1, 1, 1, CHANNELS), schema.TensorType.INT8)
    add(graph, "axes", (2,), schema.TensorType.INT32, 1)
    operator.inputs, operator.outputs = [0, 2] if kind == KIND.MEAN else [0], [1]
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, options_kind)
    operator.builtinOptions = getattr(schema, f"{options_kind}T")()
    for name, value in settings.items():
        setattr(operator.builtinOptions, name, value)
    graph.inputs, graph.outputs, graph.operators = [0], [1], [operator]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    interpreter = Interpreter(model_content=bytes(builder.Output()), experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

images = numpy.random.default_rng(0).integers(-128, 128, (1, SIDE, SIDE, CHANNELS)).astype(numpy.int8)
exact = numpy.rint(images.astype(numpy.int64).mean((1, 2), keepdims=True))  # 49 values: there are no ties
size = {"padding": 1, "filterHeight": SIDE, "filterWidth": SIDE, "strideH": SIDE, "strideW": SIDE}
wrong = {}
for name, resolver in (("reference", OpResolverType.BUILTIN_REF), ("default", OpResolverType.AUTO)):
    mean = run(KIND.MEAN, "ReducerOptions", images, resolver, keepDims=True)
    pool = run(KIND.AVERAGE_POOL_2D, "Pool2DOptions", images, resolver, **size)
    wrong[name] = [float((each != exact).mean()) for each in (mean, pool)]
    print(f"{name} kernels: MEAN differs from the mean in {wrong[name][0]:.1%}, AVERAGE_POOL_2D in {wrong[name][1]:.1%}")
sys.exit(not (wrong["reference"][0] > 0.01 and wrong["reference"][1] == wrong["default"][0] == 0))
EOF
