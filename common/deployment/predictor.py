"""Opens a file to classify images with: a checkpoint, float or int8, or a file of export.py."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from common.compression.reparameterization import fuse_branches
from common.data.transforms import eval_transform
from common.deployment import c_model, executorch_model, litert_model, onnx_model
from common.deployment.integer_model import IntegerModel
from common.evaluation import metrics
from common.models import checkpoint, integers

EXPORTED = {
    ".onnx": ("ONNX Runtime", onnx_model.OnnxModel),
    ".tflite": ("LiteRT", litert_model.LiteRtModel),
    ".c": ("C", c_model.CModel),
    ".pte": ("ExecuTorch", executorch_model.ExecuTorchModel),
}


@dataclass(frozen=True)
class Classifier:
    """A model that is ready to run.

    torch has one engine at a time: of several int8 models only the last that was opened may run.

    Attributes:
        path: Its file.
        model: On the CPU, in eval mode.
        runtime: "torch", "ONNX Runtime", "LiteRT", "C" or "ExecuTorch"; "integers" of an int8 checkpoint.
        kind: What runs it, such as "int8 onednn".
        memory_format: That of its images.
        content: That of the checkpoint without the weights; of an exported file what its metadata contain.
    """

    path: Path
    model: nn.Module
    runtime: str
    kind: str
    memory_format: torch.memory_format
    content: dict

    @property
    def engine(self) -> str:
        """What runs it, such as "int8 ONNX Runtime"; integers once they have been run."""
        return f"int8 {self.model.engine}" if isinstance(self.model, IntegerModel) else self.kind


def find(reference: str, folder: str) -> Path:
    """Finds the file that a user means.

    Args:
        reference: The path of an exported file, or a checkpoint: see `checkpoint.find`.
        folder: Where checkpoints are kept.

    Returns:
        The file.

    Raises:
        UserError: There is no such checkpoint.
    """
    exported = Path(reference).suffix.lower() in EXPORTED
    return Path(reference) if exported else checkpoint.find(reference, folder)


def load(path: Path, engine: str | None, threads: int) -> Classifier:
    """Opens a file.

    Args:
        path: A checkpoint or an exported file.
        engine: Of torch, see `int8_engines.use`; None for the integers themselves.
        threads: Threads of ONNX Runtime or LiteRT; 0 for all cores.

    Returns:
        The model and its content.

    Raises:
        UserError: The file cannot be read or run.
    """
    if path.suffix.lower() in EXPORTED:
        runtime, open_file = EXPORTED[path.suffix.lower()]
        model = open_file(path, threads)
        content = model.content | {"name": path.stem, "lineage": []}
        kind = f"{'int8' if content['backend'] else 'fp32'} {runtime}"
        return Classifier(path, model, runtime, kind, torch.contiguous_format, content)
    content = checkpoint.load(path)
    if engine is None and (graph := integers.read(content)):
        del content["state_dict"]
        return Classifier(
            path, IntegerModel(graph, threads), "integers", "", torch.contiguous_format, content
        )
    model = fuse_branches(checkpoint.rebuild(content, engine)).eval()
    del content["state_dict"]  # the model has its own
    kind = f"int8 {torch.backends.quantized.engine}" if content["int8"] else "fp32 torch"
    return Classifier(path, model, "torch", kind, torch.channels_last, content)


@torch.inference_mode()
def top_k(classifier: Classifier, image: Image.Image, k: int) -> list[tuple[str, float]]:
    """Classifies one image.

    Args:
        classifier: The result of `load`.
        image: RGB, of any size.
        k: How many classes are returned, at most.

    Returns:
        (class name, probability from 0 to 1) of the k most probable classes, the highest first.
    """
    images = eval_transform(image, classifier.content).contiguous(memory_format=classifier.memory_format)
    logits = classifier.model(images)[0]
    probabilities = logits.softmax(0)  # these can be equal where the logits are not
    best = metrics.top_k(logits, k).tolist()
    return [(classifier.content["classes"][index], float(probabilities[index])) for index in best]
