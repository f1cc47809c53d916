"""A LiteRT (TensorFlow Lite) file: tensors and operators in the order in which they run.

Source: the schema `tensorflow/lite/schema/schema.fbs`, whose Python classes ai-edge-litert contains.
"""

import math

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from common.integer import nibbles

BuiltinOperator = schema.BuiltinOperator
ALIGNMENT = 16  # bytes, of constants: what kernels expect
TYPES = {np.dtype(kind): getattr(schema.TensorType, kind.upper()) for kind in ("float32", "int8", "int32")}
Grid = tuple[float, int]  # scale, zero point from -128 to 127


class _Buffer(schema.BufferT):
    """The bytes of a constant, aligned in the file."""

    def Pack(self, builder):
        if self.data is None:
            return super().Pack(builder)
        builder.StartVector(1, len(self.data), ALIGNMENT)
        builder.head = builder.head - len(self.data)
        builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class _Quantization(schema.QuantizationParametersT):
    """Scales and zero points.

    A zero point takes 64 bits, and of weights and biases all are 0. Equal ones are written once: they would
    take a sixth of a small file.
    """

    def __init__(self, scales: list[float], zero_points: list[int], axis: int):
        super().__init__()
        self.scale, self.zeroPoint, self.quantizedDimension = scales, zero_points, axis

    def Pack(self, builder):
        key = tuple(self.zeroPoint)
        if key not in builder.zero_points:
            builder.zero_points[key] = builder.CreateNumpyVector(np.array(key, np.int64))
        scale = builder.CreateNumpyVector(np.array(self.scale, np.float32))
        schema.QuantizationParametersStart(builder)
        schema.QuantizationParametersAddScale(builder, scale)
        schema.QuantizationParametersAddZeroPoint(builder, builder.zero_points[key])
        schema.QuantizationParametersAddQuantizedDimension(builder, self.quantizedDimension)
        return schema.QuantizationParametersEnd(builder)


class _Builder(flatbuffers.Builder):
    """With the positions of the zero points that are written already."""

    def __init__(self):
        super().__init__()
        self.zero_points: dict[tuple[int, ...], int] = {}


class LiteRtFile:
    """Collects the tensors and the operators of a network, and writes them."""

    def __init__(self):
        """Starts with an empty graph."""
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.subgraphs = 3, [self.graph]
        self.model.buffers, self.model.operatorCodes, self.model.metadata = [_Buffer()], [], []
        self.graph.tensors, self.graph.operators = [], []
        self.codes: dict[int, int] = {}

    def tensor(self, name: str, shape: list[int], dtype: str = "int8", grid: Grid | None = None) -> int:
        """Adds a tensor that an operator writes, or that the caller gives.

        Args:
            name: Its name.
            shape: Its shape; images are [N, H, W, C].
            dtype: "int8", "int32" or "float32".
            grid: Of int8 values.

        Returns:
            Its index.
        """
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, shape, TYPES[np.dtype(dtype)], 0
        if grid is not None:
            tensor.quantization = _Quantization([grid[0]], [grid[1]], 0)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def constant(
        self,
        name: str,
        values: np.ndarray,
        scales: list[float] | None = None,
        axis: int = 0,
        zero_point: int = 0,
        bits: int = 8,
    ) -> int:
        """Adds a constant.

        Args:
            name: Its name.
            values: int8, int32 or float32.
            scales: Of quantized values: one, or one for each index of `axis`.
            axis: See `scales`.
            zero_point: Of all of them.
            bits: Of integers from -8 to 7, 4: they are stored two to a byte.

        Returns:
            Its index.
        """
        index = self.tensor(name, list(values.shape), values.dtype.name)
        if scales is not None:
            self.graph.tensors[index].quantization = _Quantization(scales, [zero_point] * len(scales), axis)
        if bits == 4:
            self.graph.tensors[index].type, values = schema.TensorType.INT4, nibbles.pack(values)
        self.graph.tensors[index].buffer = self._buffer(np.ascontiguousarray(values).tobytes())
        return index

    def rename(self, index: int, name: str) -> None:
        """Gives a tensor another name.

        Args:
            index: Of the tensor.
            name: The name.
        """
        self.graph.tensors[index].name = name

    def operator(self, name: str, inputs: list[int], outputs: list[int], **options) -> None:
        """Adds an operator.

        Args:
            name: Of the built-in operator, such as "CONV_2D".
            inputs: Indices of tensors.
            outputs: Indices of tensors.
            **options: Of the operator, as the schema names them.
        """
        operator, code = schema.OperatorT(), getattr(BuiltinOperator, name)
        if code not in self.codes:
            self.codes[code] = len(self.model.operatorCodes)
            entry = schema.OperatorCodeT()
            entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), 1
            self.model.operatorCodes.append(entry)
        operator.opcodeIndex, operator.inputs, operator.outputs = self.codes[code], inputs, outputs
        kind = OPTIONS.get(name)
        if kind:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = getattr(schema, f"{kind}T")()
            for key, value in options.items():
                setattr(operator.builtinOptions, key, value)
        self.graph.operators.append(operator)

    def pack(self, inputs: list[int], outputs: list[int], metadata: dict[str, bytes]) -> bytes:
        """Finishes the file.

        Args:
            inputs: Tensors that the caller gives.
            outputs: Tensors that the caller gets.
            metadata: Bytes by name.

        Returns:
            The content of the file.
        """
        self.graph.inputs, self.graph.outputs = inputs, outputs
        for name, content in metadata.items():
            entry = schema.MetadataT()
            entry.name, entry.buffer = name, self._buffer(content)
            self.model.metadata.append(entry)
        builder = _Builder()
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _buffer(self, content: bytes) -> int:
        buffer = _Buffer()
        buffer.data = content
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1


def read_metadata(content: bytes) -> dict[str, bytes]:
    """Reads the metadata of a file.

    Args:
        content: The file.

    Returns:
        Bytes by name.
    """
    model = schema.Model.GetRootAs(content, 0)
    entries = [model.Metadata(index) for index in range(model.MetadataLength())]
    return {entry.Name().decode(): model.Buffers(entry.Buffer()).DataAsNumpy().tobytes() for entry in entries}


def activation_bytes(content: bytes) -> int:
    """Counts the most bytes that are kept at once, if the operators of a file run in their order.

    TensorFlow Lite for Microcontrollers computes so, and keeps its own structures besides.

    Args:
        content: The file.

    Returns:
        Bytes for one image, the image included; constants are not counted.
    """
    graph = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0)).subgraphs[0]
    first = dict.fromkeys(map(int, graph.inputs), -1)
    last = dict(first)
    for time, operator in enumerate(graph.operators):
        first |= dict.fromkeys(map(int, operator.outputs), time)
        last |= dict.fromkeys(map(int, (*operator.inputs, *operator.outputs)), time)
    sizes = {index: _bytes(graph.tensors[index]) for index in first}
    return max(
        sum(size for index, size in sizes.items() if first[index] <= time <= last[index])
        for time in range(len(graph.operators))
    )


def _bytes(tensor: schema.TensorT) -> int:
    kinds = {number: dtype for dtype, number in TYPES.items()}
    return math.prod(map(int, tensor.shape)) * kinds[tensor.type].itemsize


OPTIONS = {  # of each operator that has any
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "ADD": "AddOptions",
    "MUL": "MulOptions",
    "CONCATENATION": "ConcatenationOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "RESHAPE": "ReshapeOptions",
    "GATHER": "GatherOptions",
    "STRIDED_SLICE": "StridedSliceOptions",
}
