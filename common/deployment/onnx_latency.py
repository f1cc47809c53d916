"""The latency of what is deployed: the ONNX file of a network, in a runtime on the CPU of this machine."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from common.deployment import onnx_model
from common.deployment.onnx_model import OnnxModel
from common.evaluation import latency
from common.evaluation.latency import Latency
from common.system.errors import UserError

RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
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
    checkpoint: dict,
    build: Callable[[], nn.Module],
    file: Path,
    *,
    batch: int,
    threads: int,
    runtime: str = "onnxruntime",
) -> Latency:
    """Writes a network as ONNX and times it: see `load`.

    Args:
        checkpoint: See `onnx_model.export`.
        build: Gives the model, float or int8; called only if `file` is missing.
        file: Where the ONNX file is written.
        batch: Images in a run.
        threads: Threads of the runtime; the process is pinned to as many cores.
        runtime: Of `RUNTIMES`.

    Returns:
        Milliseconds for one image.

    Raises:
        UserError: The model has no form in ONNX, the runtime cannot run it, or is not installed.
    """
    model, side = load(checkpoint, build, file, threads=threads), checkpoint["image_size"]
    if runtime == "openvino":
        model = OpenVinoModel(file, (batch, 3, side, side), threads)
    return latency.measure(model, side, batch=batch, threads=threads, memory_format=MEMORY_FORMAT)


class OpenVinoModel(nn.Module):
    """An ONNX file that OpenVINO runs on the CPU. It is not among the requirements."""

    def __init__(self, path: Path, shape: tuple[int, ...], threads: int):
        """Opens the file.

        Args:
            path: The file.
            shape: Of the images, [N, 3, S, S]; with a fixed shape OpenVINO is faster.
            threads: Threads of OpenVINO.

        Raises:
            UserError: OpenVINO is not installed, or cannot run the file.
        """
        super().__init__()
        try:
            import openvino
        except ImportError:
            raise UserError("OpenVINO is not installed: pip install openvino") from None
        try:
            core = openvino.Core()
            model = core.read_model(path)
            model.reshape(shape)
            settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
            self.compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"OpenVINO cannot run {path.name}: {reason}") from None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Runs the model.

        Args:
            images: float32 [N, 3, S, S], normalized.

        Returns:
            Logits, float32 [N, C].
        """
        return torch.from_numpy(self.compiled(images.numpy())[0])
