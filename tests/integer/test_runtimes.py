"""Random graphs of one or two operators: the integers of each runtime are those of the reference.

ONNX Runtime and LiteRT's XNNPACK round once, LiteRT's reference kernels twice. What differs is tested too.
"""

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from common.deployment import litert, onnx_writer
from common.deployment.onnx_session import open_session
from common.integer import reference

SEEDS = range(6)
SCALES = (1e-6, 1e-3, 0.02, 0.5, 1.0, 1e6)


def onnx_runtime(graph, integers):
    """What ONNX Runtime computes: int8 [N, ...]."""
    session = open_session(onnx_writer.build(graph), 1)
    (logits,) = session.run(None, {onnx_writer.INPUT: reference.dequantize(integers, graph.input).numpy()})
    steps = np.round(logits.astype(np.float64) / graph.output.scale) + graph.output.zero_point
    return torch.from_numpy(steps).to(torch.int8)


def lite_rt(graph, integers, resolver=OpResolverType.AUTO):
    """What LiteRT computes, with XNNPACK unless another resolver is given: int8 [N, ...]."""
    interpreter = Interpreter(
        model_content=litert.convert(graph, {}), experimental_op_resolver_type=resolver, num_threads=1
    )
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    images = integers.movedim(1, -1).contiguous()
    interpreter.resize_tensor_input(given["index"], list(images.shape))
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], images.numpy())
    interpreter.invoke()
    return torch.from_numpy(interpreter.get_tensor(result["index"])).movedim(-1, 1)


def reference_kernels(graph, integers):
    """What LiteRT's reference kernels compute."""
    return lite_rt(graph, integers, OpResolverType.BUILTIN_REF)


def once(graph, integers):
    return reference.run(graph, integers, "once")


def twice(graph, integers):
    return reference.run(graph, integers, "twice")
