#!/usr/bin/env bash
# ai-edge-litert 2.3.0: the reference kernels of QUANTIZE, MUL and LEAKY_RELU round int8 values twice, with no bits between:
# where the scales make a factor 1/3, -1 becomes -1, and a third of the integers is one step off without a tie. One may expect
# round(q / 3), as the default kernels give but for one integer.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet ai-edge-litert==2.3.0 flatbuffers==25.12.19 \
    numpy==2.4.6; } || exit 2
"$folder/venv/bin/python" - <<'EOF'
import importlib.metadata, sys
import flatbuffers, numpy
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

def run(kind, resolver):
    model, graph, code, operator = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT(), schema.OperatorT()
    one = schema.BufferT()
    one.data = b"\1"
    name = {"LeakyRelu": "LEAKY_RELU"}.get(kind, kind.upper())
    code.builtinCode, code.version = getattr(schema.BuiltinOperator, name), 2  # version 2: int8
    code.deprecatedBuiltinCode = code.builtinCode
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT(), one]
    graph.tensors, graph.inputs, graph.outputs, graph.operators = [], [0], [1], [operator]
    tensors = (("values", 0.1, [1, 256]), ("result", 0.1 if kind == "LeakyRelu" else 0.3, [1, 256]), ("one", 1, [1]))
    for name, scale, shape in tensors[: 3 if kind == "Mul" else 2]:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, shape, schema.TensorType.INT8, int(name == "one")
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [0]
        graph.tensors.append(tensor)
    operator.inputs, operator.outputs = [0, 2] if kind == "Mul" else [0], [1]
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, f"{kind}Options")
    operator.builtinOptions = getattr(schema, f"{kind}OptionsT")()
    operator.builtinOptions.alpha = 1 / 3  # only LEAKY_RELU writes it
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    interpreter = Interpreter(model_content=bytes(builder.Output()), experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], integers[None])
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0].astype(int)

integers, good = numpy.arange(-128, 128).astype(numpy.int8), True
thirds, first = numpy.rint(integers / 3), numpy.rint(integers * (2 / 3))  # without ties
twice = numpy.sign(first) * ((abs(first) + 1) // 2)  # halves away from 0
print(f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}: the integers below 0, times 1/3")
for kind in ("Quantize", "Mul", "LeakyRelu"):
    reference, default = (run(kind, each)[:128] for each in (OpResolverType.BUILTIN_REF, OpResolverType.AUTO))
    wrong = [int((each != thirds[:128]).sum()) for each in (reference, default)]
    print(f"{kind}: -1, -4, -7 become {reference[[127, 124, 121]]}, expected [0 -1 -2]; of 128 are one step off: "
          f"{wrong[0]} with reference kernels, {wrong[1]} with default ones")
    good &= (reference == twice[:128]).all() and wrong[0] > 40 and wrong[1] < 4
sys.exit(not good)
EOF
