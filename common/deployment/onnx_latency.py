"""The latency of what is deployed: the ONNX file of a network, in ONNX Runtime on the CPU of this machine."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from common.deployment import onnx_model
from common.deployment.onnx_model import OnnxModel
from common.evaluation import latency
from common.evaluation.latency import Latency

MEMORY_FORMAT = torch.contiguous_format  # images in another would be copied in each run


def load(checkpoint: dict, build: Callable[[], nn.Module], file: Path, *, threads: int) -> OnnxModel:
    """Writes a network as ONNX, as export.py does, and opens the file.

    Args:
        checkpoint: See `onnx_model.export`.
        build: Gives the model, float or int8; called only if `file` is missing.
        file: Where the ONNX file is written. One that exists is opened as it is: to export a network takes
            far longer than to time it.
        threads: Threads of ONNX Runtime.

    Returns:
        The file, for `latency.measure` and `latency.ratio` with `MEMORY_FORMAT`.

    Raises:
        UserError: The model has no form in ONNX, or ONNX Runtime cannot run it.
    """
    if not file.exists():
        with onnx_model.export(checkpoint, build(), file):
            pass  # it is opened again below, with `threads`
    return OnnxModel(file, threads)


def measure(
    checkpoint: dict, build: Callable[[], nn.Module], file: Path, *, batch: int, threads: int
) -> Latency:
    """Writes a network as ONNX and times it: see `load`.

    Args:
        checkpoint: See `onnx_model.export`.
        build: Gives the model, float or int8; called only if `file` is missing.
        file: Where the ONNX file is written.
        batch: Images in a run.
        threads: Threads of ONNX Runtime; the process is pinned to as many cores.

    Returns:
        Milliseconds for one image.

    Raises:
        UserError: The model has no form in ONNX, or ONNX Runtime cannot run it.
    """
    model, side = load(checkpoint, build, file, threads=threads), checkpoint["image_size"]
    return latency.measure(model, side, batch=batch, threads=threads, memory_format=MEMORY_FORMAT)
