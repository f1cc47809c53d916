"""Sessions of ONNX Runtime on the CPU, whose sums of integers are exact."""

import functools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

# On x86 without VNNI, ONNX Runtime adds products of uint8 and int8 in 16 bits, which overflow. With this
# entry it converts weights to uint8, and the sums are exact. It can do so if weights share no zero points.
# It does so with VNNI too, where sums are exact anyway, and then takes twice the time.
EXACT_SUMS = "session.x64quantprecision"


def open_session(
    proto: onnx.ModelProto, threads: int, profile: Path | None = None
) -> onnxruntime.InferenceSession:
    """Opens a model.

    Args:
        proto: The model.
        threads: Threads of ONNX Runtime; 0 for all cores.
        profile: The beginning of the name of a file, in which each node's time in each run is written.

    Returns:
        The session.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4  # 4: errors come as exceptions
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if sums_overflow():
        options.add_session_config_entry(EXACT_SUMS, "1")
    content = proto.SerializeToString()
    return onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"], enable_fallback=0
    )


@functools.cache
def sums_overflow() -> bool:
    """Tries whether ONNX Runtime needs `EXACT_SUMS` on this CPU.

    A convolution with the largest products tells more than the flags of the CPU, which some systems hide.

    Returns:
        Whether the sums of products of uint8 and int8 overflow in ONNX Runtime's usual kernels.
    """
    side, channels, correct = 4, 16, 200
    weights = np.full((channels, channels, 1, 1), 127, np.int8)
    scale = np.float32(255 * 127 * channels / correct)  # of the output; those of input and weights are 1
    grids = {"one": np.float32(1), "zero": np.uint8(0), "zeros": np.int8(0), "scale": scale}
    node = helper.make_node(
        "QLinearConv", ["x", "one", "zero", "weights", "one", "zeros", "scale", "zero"], ["y"]
    )
    constants = [onnx.numpy_helper.from_array(np.asarray(each), name)
                 for name, each in (grids | {"weights": weights}).items()]  # fmt: skip
    shape = [1, channels, side, side]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, shape) for name in "xy"]
    graph = helper.make_graph([node], "trial", values[:1], values[1:], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (sums,) = session.run(None, {"x": np.full(shape, 255, np.uint8)})
    return bool((sums != correct).any())
