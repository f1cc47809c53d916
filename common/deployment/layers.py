"""The integers of every layer of an int8 network, as a runtime or the reference computes them.

Layers have the names of the tensors of `common.integer.graph`, in every file that export.py writes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import Tensor

from common.deployment.onnx_session import open_session
from common.deployment.onnx_writer import INPUT
from common.integer import reference
from common.integer.graph import LOW, Graph


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
    return values


def of_onnx(proto: onnx.ModelProto, images: Tensor, threads: int = 0) -> dict[str, np.ndarray]:
    """What ONNX Runtime computes.

    Args:
        proto: An int8 model of export.py.
        images: See `of_graph`.
        threads: Of ONNX Runtime; 0 for all cores.

    Returns:
        See `of_graph`.
    """
    constants = {each.name for each in proto.graph.initializer}
    names = [node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"]
    names = [name for name in dict.fromkeys(names) if name not in constants]
    observed = onnx.ModelProto()
    observed.CopyFrom(proto)
    kinds = {each.name: each.data_type for each in proto.graph.initializer}
    zero_points = {
        node.output[0]: node.input[2] for node in proto.graph.node if node.op_type == "QuantizeLinear"
    }
    signed = any(kinds.get(name) == TensorProto.INT8 for name in zero_points.values())
    kind = TensorProto.INT8 if signed else TensorProto.UINT8
    observed.graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name in names)
    results = open_session(observed, threads).run(names, {INPUT: images.contiguous().numpy()})
    return {
        name: values if signed else (values.astype(np.int16) + LOW).astype(np.int8)
        for name, values in zip(names, results, strict=True)
    }


def differences(expected: dict[str, np.ndarray], actual: dict[str, np.ndarray]) -> Iterator[Difference]:
    """Compares the layers that two have in common.

    Args:
        expected: int8 by the name of the layer.
        actual: The same.

    Yields:
        Each layer, in the order of the first; with a count of 0 where the two are equal.
    """
    for name, values in expected.items():
        if name in actual and actual[name].shape == values.shape:
            steps = np.abs(values.astype(np.int16) - actual[name])
            yield Difference(name, int(np.count_nonzero(steps)), steps.size, int(steps.max()))
