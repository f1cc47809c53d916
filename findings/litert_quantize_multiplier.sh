#!/usr/bin/env bash
# ai-edge-litert 2.3.0: the default kernel of QUANTIZE from int8 to int8 has a multiplier with 8 fractional bits. If the
# scales are nearly equal, up to a third of the integers is one step off. One may expect round(q * scale / new scale), as
# the reference kernels give, and as a MUL by a constant 1 gives with the default kernels too.
set -euo pipefail
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet ai-edge-litert==2.3.0 flatbuffers==25.12.19 \
    numpy==2.4.6; } || exit 2
"$folder/venv/bin/python" - <<'EOF'
import importlib.metadata, sys
import flatbuffers, numpy
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

def run(kind, scale, resolver):
    model, graph, code, operator = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT(), schema.OperatorT()
    one = schema.BufferT()
    one.data = b"\1"
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, kind.upper())
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT(), one]
    code.version = 2  # of QUANTIZE and MUL with int8
    graph.tensors, graph.inputs, graph.outputs, graph.operators = [], [0], [1], [operator]
    tensors = (("values", scale, [1, 256]), ("result", 1, [1, 256]), ("one", 1, [1]))
    for name, size, shape in tensors[: 3 if kind == "Mul" else 2]:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, shape, schema.TensorType.INT8, int(name == "one")
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = [size], [0]
        graph.tensors.append(tensor)
    operator.inputs, operator.outputs = [0, 2] if kind == "Mul" else [0], [1]
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, f"{kind}Options")
    operator.builtinOptions = getattr(schema, f"{kind}OptionsT")()
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    interpreter = Interpreter(model_content=bytes(builder.Output()), experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], integers[None])
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]

integers = numpy.arange(-128, 128).astype(numpy.int8)
kernels = {"default": OpResolverType.AUTO, "reference": OpResolverType.BUILTIN_REF}
print(f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}: the 256 integers, scales with a ratio near 1")
asserted = []
for scale in (1.003, 1.005, 1.0058):
    exact = numpy.clip(numpy.rint(integers * numpy.float64(scale)), -128, 127)  # there are no ties
    eight_bits = numpy.clip((integers.astype(int) * round(256 * scale) + 128) >> 8, -128, 127)
    seen = {(kind, name): run(kind, scale, kernel) for kind in ("Quantize", "Mul") for name, kernel in kernels.items()}
    wrong = {" ".join(key): int((value != exact).sum()) for key, value in seen.items()}
    asserted.append(wrong.pop("Quantize default") == (eight_bits != exact).sum() and not any(wrong.values()))
    asserted.append((seen["Quantize", "default"] == eight_bits).all())
    print(f"ratio {scale}: default QUANTIZE is one step off for {(eight_bits != exact).sum()} of 256; others off: {wrong}")
sys.exit(not (all(asserted) and (eight_bits != exact).sum() > 60))
EOF
