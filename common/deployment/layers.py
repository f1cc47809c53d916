"""The integers of every layer of an int8 network, as the reference and the runtimes compute them.

Layers have the names of the tensors of `common.integer.graph`, as in every file that export.py writes; but
the input is "images" and the output "logits".
"""

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from common.deployment.litert import TO_CHANNELS_FIRST, TO_CHANNELS_LAST
from common.deployment.onnx_session import open_session
from common.deployment.onnx_writer import INPUT, OUTPUT
from common.integer import operators as ops
from common.integer import reference
from common.integer.graph import LOW, Graph
from common.integer.graph import Tensor as GraphTensor
from common.system.errors import UserError

KERNELS = {"once": OpResolverType.AUTO, "twice": OpResolverType.BUILTIN_REF}  # AUTO: those of XNNPACK


@dataclass(frozen=True)
class Layer:
    """What is known of a layer without its values.

    Attributes:
        operator: What computes it, as the source names it; "" for the input.
        scale: Of its integers.
        zero_point: From -128 to 127.
    """

    operator: str
    scale: float
    zero_point: int


@dataclass(frozen=True)
class Difference:
    """How one layer differs between two.

    Attributes:
        layer: Its name.
        count: How many values differ.
        values: How many there are.
        steps: The largest difference, in integers.
    """

    layer: str
    count: int
    values: int
    steps: int

    def __str__(self) -> str:
        return f"{self.layer}: {self.count:,} of {self.values:,} values differ, by up to {self.steps}"


def in_graph(graph: Graph) -> dict[str, tuple[str, Layer]]:
    """The values that depend on the image.

    Args:
        graph: The network.

    Returns:
        (name in the graph, layer) by the name of the layer, in the order in which they run.
    """
    found = {graph.input.name: Layer("", *graph.input.grid)}
    for step in graph.operators:
        if not isinstance(step, ops.Constant):
            found[step.output.name] = Layer(type(step).__name__, *step.output.grid)
    ends = {graph.input.name: INPUT, graph.output.name: OUTPUT}
    return {ends.get(name, name): (name, layer) for name, layer in found.items()}


def of_graph(graph: Graph, images: Tensor, rounding: str = "once") -> dict[str, np.ndarray]:
    """What the reference computes.

    Args:
        graph: The network.
        images: float32 [N, 3, S, S], normalized.
        rounding: See `reference`.

    Returns:
        int8 [N, C, H, W] or [N, C] by the name of the layer, in the order in which they run.
    """
    integers = reference.quantize(images, graph.input)
    values = {graph.input.name: integers.numpy()}
    values |= {step.output.name: each.numpy() for step, each in reference.steps(graph, integers, rounding)}
    return {layer: values[name] for layer, (name, _) in in_graph(graph).items()}


def in_onnx(proto: onnx.ModelProto) -> dict[str, tuple[str, Layer]]:
    """Finds the quantized values between QuantizeLinear and DequantizeLinear.

    Args:
        proto: A model.

    Returns:
        (name in the file, layer) by the name of the layer, in the order in which they run.
    """
    nodes, found, ends = proto.graph.node, {}, {}
    constants = {each.name: each for each in proto.graph.initializer}
    producers = {name: node for node in nodes for name in node.output}
    for node in nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        stored = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
        grid = [constants[name] for name in node.input[1:3] if name in constants]
        if stored in constants or len(grid) < 2:
            continue
        scale, zero_point = map(numpy_helper.to_array, grid)
        if scale.size == 1 and zero_point.dtype in (np.int8, np.uint8):
            above = zero_point.item() - np.iinfo(zero_point.dtype).min
            found.setdefault(stored, Layer(_operator(stored, producers), scale.item(), above + LOW))
        if node.input[0] == INPUT or node.output[0] == OUTPUT:
            ends[stored] = node.input[0] if node.input[0] == INPUT else OUTPUT
    return {ends.get(name, name): (name, layer) for name, layer in found.items()}


def _operator(stored: str, producers: dict[str, onnx.NodeProto]) -> str:
    """The type of the node that computes quantized values, or what their QuantizeLinear reads."""
    node = producers[stored]
    node = producers.get(node.input[0]) if node.op_type == "QuantizeLinear" else node
    return node.op_type if node else ""


def of_onnx(proto: onnx.ModelProto, images: Tensor, threads: int = 0) -> dict[str, np.ndarray]:
    """What ONNX Runtime computes.

    Args:
        proto: An int8 model of export.py.
        images: See `of_graph`.
        threads: Of ONNX Runtime; 0 for all cores.

    Returns:
        See `of_graph`.
    """
    names = {layer: name for layer, (name, _) in in_onnx(proto).items()}
    observed = onnx.ModelProto()
    observed.CopyFrom(proto)
    kinds = {each.name: each.data_type for each in proto.graph.initializer}
    quantizers = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    signed = any(kinds.get(node.input[2]) == TensorProto.INT8 for node in quantizers)
    kind = TensorProto.INT8 if signed else TensorProto.UINT8
    observed.graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name in names.values())
    feed = {INPUT: images.contiguous().numpy()}
    results = open_session(observed, threads).run(list(names.values()), feed)
    return {
        name: values if signed else (values.astype(np.int16) + LOW).astype(np.int8)
        for name, values in zip(names, results, strict=True)
    }


def in_litert(content: bytes) -> dict[str, tuple[int, Layer]]:
    """Finds the int8 values that the operators write.

    Args:
        content: A file of export.py, whose checksum is correct.

    Returns:
        (index of the tensor, layer) by the name of the layer, in the order in which they run.
    """
    model = schema.Model.GetRootAs(content, 0)
    graph, found = model.Subgraphs(0), {}
    kinds = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    written = {graph.Inputs(0): ""}
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        written[operator.Outputs(0)] = kinds[model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode()]
    for index, kind in written.items():
        tensor = graph.Tensors(index)
        if tensor.Type() == schema.TensorType.INT8:
            grid = tensor.Quantization()
            found[tensor.Name().decode()] = index, Layer(kind, grid.Scale(0), grid.ZeroPoint(0))
    return found


def of_litert(
    content: bytes, images: Tensor, rounding: str = "once", threads: int = 0
) -> dict[str, np.ndarray]:
    """What LiteRT computes.

    Args:
        content: A file of export.py, whose checksum is correct.
        images: See `of_graph`.
        rounding: "once": with the kernels of XNNPACK; "twice": with LiteRT's reference kernels.
        threads: Of the interpreter; 0 for all cores.

    Returns:
        See `of_graph`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that keeping all tensors takes memory
        interpreter = Interpreter(
            model_content=content, num_threads=threads or os.cpu_count(),
            experimental_op_resolver_type=KERNELS[rounding], experimental_preserve_all_tensors=True,
        )  # fmt: skip
    (given,) = interpreter.get_input_details()
    integers = reference.quantize(images, GraphTensor(INPUT, images.shape[1:], *given["quantization"]))
    integers = np.ascontiguousarray(integers.numpy().transpose(TO_CHANNELS_LAST))
    interpreter.resize_tensor_input(given["index"], integers.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], integers)
    interpreter.invoke()
    values = {name: interpreter.get_tensor(index) for name, (index, _) in in_litert(content).items()}
    return {name: to_channels_first(each) for name, each in values.items()}


def to_channels_first(values: np.ndarray) -> np.ndarray:
    """Changes the layout of devices into that of torch.

    Args:
        values: [N, H, W, C] or [N, C].

    Returns:
        [N, C, H, W] or [N, C].
    """
    return values.transpose(TO_CHANNELS_FIRST) if values.ndim == 4 else values


def differences(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> Iterator[Difference]:
    """Compares the layers that two have in common, on the images that both have.

    Args:
        expected: int8 by the name of the layer.
        actual: The same.

    Yields:
        Each layer, in the order of the first; with a count of 0 where the two are equal.

    Raises:
        UserError: A layer has two shapes.
    """
    for name in (name for name in expected if name in actual):
        shapes = [list(each[name].shape[1:]) for each in (expected, actual)]
        if shapes[0] != shapes[1]:
            raise UserError(f"they are of two networks: {name} has the shapes {shapes[0]} and {shapes[1]}")
        first, second = (each[name].astype(np.int16) for each in (expected, actual))
        count = min(len(first), len(second))
        steps = np.abs(first[:count] - second[:count])
        yield Difference(name, int(np.count_nonzero(steps)), steps.size, int(steps.max()))
