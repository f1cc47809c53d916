"""The latency of what is deployed: the ONNX file of a network, in ONNX Runtime on the CPU of this machine."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from common.deployment import onnx_model
from common.evaluation import latency
from common.evaluation.latency import Latency


def measure(
    checkpoint: dict, build: Callable[[], nn.Module], file: Path, *, batch: int, threads: int
) -> Latency:
    """Writes a network as ONNX, as export.py does, and times it.

    Args:
        checkpoint: See `onnx_model.export`.
        build: Gives the model, float or int8; called only if `file` is missing.
        file: Where the ONNX file is written. One that exists is timed as it is: to export a network takes
            far longer than to time it.
        batch: Images in a run.
        threads: Threads of ONNX Runtime; the process is pinned to as many cores.

    Returns:
        Milliseconds for one image.

    Raises:
        UserError: The model has no form in ONNX, or ONNX Runtime cannot run it.
    """
    if not file.exists():
        with onnx_model.export(checkpoint, build(), file):
            pass  # it is opened again below, with `threads`
    model, side = onnx_model.OnnxModel(file, threads), checkpoint["image_size"]
    plain = torch.contiguous_format
    return latency.measure(model, side, batch=batch, threads=threads, memory_format=plain)
