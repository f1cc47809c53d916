"""The latency of what is deployed: the ONNX file of a network, in a runtime on the CPU of this machine."""

import contextlib
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


def load(
    checkpoint: dict,
    build: Callable[[], nn.Module],
    file: Path,
    *,
    threads: int,
    runtime: str = "onnxruntime",
) -> nn.Module:
    """Writes a network as ONNX, as export.py does, and opens the file.

    Args:
        checkpoint: See `onnx_model.export`.
        build: Gives the model, float or int8; called only if `file` is missing.
        file: Where the ONNX file is written. One that exists is opened as it is: to export a network takes
            far longer than to time it.
        threads: Threads of the runtime.
        runtime: Of `RUNTIMES`.

    Returns:
        An `OnnxModel` or `OpenVinoModel`, for `measure`.

    Raises:
        UserError: The model has no form in ONNX, the runtime cannot run it, or is not installed.
    """
    if not file.exists():
        with onnx_model.export(checkpoint, build(), file):
            pass  # it is opened again below, with `threads`
    return OpenVinoModel(file, threads) if runtime == "openvino" else OnnxModel(file, threads)


def measure(model: nn.Module, image_size: int, *, batch: int, threads: int) -> Latency:
    """Times a network that `load` has opened.

    Args:
        model: The network.
        image_size: Side of the images, in pixels.
        batch: Images in a run.
        threads: As for `load`; the process is pinned to as many cores.

    Returns:
        Milliseconds for one image.

    Raises:
        UserError: The runtime cannot run it.
    """
    return latency.measure(model, image_size, batch=batch, threads=threads, memory_format=MEMORY_FORMAT)


class OpenVinoModel(nn.Module):
    """An ONNX file that OpenVINO runs on the CPU. It is not among the requirements.

    What is not int8 computes in float32: by default, OpenVINO uses bfloat16 on a CPU that has it.
    """

    def __init__(self, path: Path, threads: int):
        """Opens the file.

        Args:
            path: The file.
            threads: Threads of OpenVINO.

        Raises:
            UserError: OpenVINO is not installed, or cannot read the file.
        """
        super().__init__()
        try:
            import openvino
        except ImportError:
            raise UserError("OpenVINO is not installed: pip install openvino") from None
        self.path, self.core, self.compiled = path, openvino.Core(), {}
        self.settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        with self._in_one_line():
            self.core.read_model(path)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Runs the model. For each shape of the images it is compiled once: with a fixed shape it is faster.

        Args:
            images: float32 [N, 3, S, S], normalized.

        Returns:
            Logits, float32 [N, C].

        Raises:
            UserError: OpenVINO cannot run the file.
        """
        with self._in_one_line():
            if images.shape not in self.compiled:
                model = self.core.read_model(self.path)
                model.reshape(tuple(images.shape))
                self.compiled[images.shape] = self.core.compile_model(model, "CPU", self.settings)
            return torch.from_numpy(self.compiled[images.shape](images.contiguous().numpy())[0])

    @contextlib.contextmanager
    def _in_one_line(self):
        try:
            yield
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"OpenVINO cannot run {self.path.name}: {reason}") from None
