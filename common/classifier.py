"""A file that classifies pictures, opened to run: a checkpoint, float or int8, or an ONNX file."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from common import checkpoint
from common.onnx_file import OnnxModel


@dataclass(frozen=True)
class Classifier:
    """`model` on the CPU, what to feed it, and what its file says of itself.

    `engine` is what runs it, such as "int8 onednn". `content` is a checkpoint's without the weights, or of an
    ONNX file as much of it as the metadata hold. torch has one engine at a time: of several int8 models only
    the last that was opened may run.
    """

    path: Path
    model: nn.Module
    engine: str
    memory_format: torch.memory_format
    content: dict


def find(reference: str, folder: str) -> Path:
    """The file that `reference` means: an ONNX file's path, or a checkpoint as in `checkpoint.find`."""
    return Path(reference) if reference.endswith(".onnx") else checkpoint.find(reference, folder)


def load(path: Path, engine: str | None, threads: int) -> Classifier:
    """Opens the file. `engine`: see `engines.use`; `threads`: those of ONNX Runtime, 0 for all cores.

    Raises UserError.
    """
    if path.suffix == ".onnx":
        model = OnnxModel(path, threads)
        content = model.content | {"name": path.stem, "lineage": []}
        kind = f"{'int8' if content['backend'] else 'fp32'} ONNX Runtime"
        return Classifier(path, model, kind, torch.contiguous_format, content)
    content = checkpoint.load(path)
    model = checkpoint.rebuild(content, engine).eval()
    del content["state_dict"]  # the model has its own
    kind = f"int8 {torch.backends.quantized.engine}" if content["int8"] else "fp32 torch"
    return Classifier(path, model, kind, torch.channels_last, content)
