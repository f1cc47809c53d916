"""How long one layer takes in ONNX Runtime on the CPU of this machine, by its profiler.

A layer is run in a network of its own, in the memory format that it has in a larger one, and the shortest of
many runs counts: other programs make a run longer, never shorter.
"""

import functools
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime

from common.deployment import onnx_float, onnx_writer
from common.deployment.onnx_session import open_session
from common.integer import operators as ops
from common.integer.graph import Graph, Operator, Tensor
from common.system.errors import UserError

RUNS = 50  # of a layer
CHAIN = 32  # layers of the network that tells what the profiler adds to each
FORMATS = ("Transpose", "ReorderInput", "ReorderOutput")  # change the memory format, at the ends of a network
Node = tuple[str, float]  # its kind, and the microseconds of its shortest run
WRITERS = {"int8": onnx_writer.build, "fp32": onnx_float.build}


def milliseconds(parts: Sequence[Operator | Tensor], precision: str, threads: int) -> list[float]:
    """Times parts of networks.

    Args:
        parts: Layers, with any weights; or images, which are quantized, and whose memory format is changed.
        precision: "fp32" or "int8".
        threads: Of ONNX Runtime.

    Returns:
        Milliseconds of each for one image.

    Raises:
        UserError: A layer has no form in ONNX, or cannot be timed alone.
    """
    added, results = profiler_microseconds(precision, threads), []
    for part in parts:
        nodes = (
            _image(part, precision, threads) if isinstance(part, Tensor) else _layer(part, precision, threads)
        )
        results.append(sum(max(0.0, shortest - added) for _, shortest in nodes) / 1000)
    return results


@functools.cache
def profiler_microseconds(precision: str, threads: int) -> float:
    """Measures what the profiler adds to each layer: a chain of small layers is run with it and without.

    Args:
        precision: "fp32" or "int8".
        threads: Of ONNX Runtime.

    Returns:
        Microseconds.
    """
    layers = [_convolution(Tensor("input", (16, 4, 4), 1.0, 0), 16, "layer0")]
    for index in range(1, CHAIN):
        layers.append(_convolution(layers[-1].output, 16, f"layer{index}"))
    graph = Graph(layers[0].source, tuple(layers))
    nodes = _profile(graph, precision, threads)
    shortest = 1e6 * _shortest_run(open_session(WRITERS[precision](graph), threads), graph)
    return max(0.0, (sum(each for _, each in nodes) - shortest) / len(nodes))


def _image(image: Tensor, precision: str, threads: int) -> list[Node]:
    nodes = _profile(Graph(image, (_convolution(image, 16, "first"),)), precision, threads)
    return nodes[: next(index for index, (kind, _) in enumerate(nodes) if "Conv" in kind)]


def _layer(operator: Operator, precision: str, threads: int) -> list[Node]:
    graph, before = _alone(operator)
    nodes = [each for each in _profile(graph, precision, threads) if each[0] not in FORMATS]
    if precision == "int8":
        nodes = nodes[1:-1]  # without QuantizeLinear and DequantizeLinear
    convolutions = [index for index, (kind, _) in enumerate(nodes, start=1) if "Conv" in kind]
    return nodes[convolutions[before - 1] if before else 0 :]


def _convolution(source: Tensor, outputs: int, name: str) -> ops.Convolution:
    return ops.Convolution(
        (source,), replace(source, name=name, shape=(outputs, *source.shape[1:])),
        weight=np.zeros((outputs, source.shape[0], 1, 1), np.int8),
        weight_scales=np.full(outputs, 2**-10, np.float32), bias=np.zeros(outputs, np.int32),
    )  # fmt: skip


def _alone(operator: Operator) -> tuple[Graph, int]:
    """A network that ends with the operator, and how many convolutions are before it.

    They set the memory format. In float32 the runtime may compute the operator in one of them: then it costs
    nothing.
    """
    image = replace(max(operator.inputs, key=lambda each: math.prod(each.shape)), name="input")
    if isinstance(operator, ops.Convolution) or len(image.shape) == 1:
        return Graph(image, (replace(operator, inputs=(image,) * len(operator.inputs)),)), 0
    before, sources = [], {}
    for tensor in operator.inputs:
        source, shape, number = image, tensor.shape, len(before)
        if shape[1:] == (1, 1) != image.shape[1:]:  # such as a factor for each channel
            source = replace(image, name=f"mean{number}", shape=(image.shape[0], 1, 1))
            before.append(ops.AveragePool((image,), source, image.shape[1:], (1, 1)))
        before.append(_convolution(source, shape[0], f"before{number}"))
        sources[tensor.name] = before[-1].output
        if sources[tensor.name].shape != shape:
            raise UserError(f"{operator.output.name}, with inputs of two sizes, cannot be timed alone")
    last = replace(operator, inputs=tuple(sources[tensor.name] for tensor in operator.inputs))
    return Graph(image, (*before, last)), len(sources)


def _profile(graph: Graph, precision: str, threads: int) -> list[Node]:
    """The nodes, in order."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(WRITERS[precision](graph), threads, Path(folder, "profile"))
        _shortest_run(session, graph)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[str, list] = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"], [event["args"]["op_name"]]).append(event["dur"])
    return [(kind, min(each)) for kind, *each in times.values()]


def _shortest_run(session: onnxruntime.InferenceSession, graph: Graph) -> float:
    """Seconds."""
    inputs = {onnx_writer.INPUT: np.zeros((1, *graph.input.shape), np.float32)}
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        session.run(None, inputs)
        times.append(time.perf_counter() - start)
    return min(times)
