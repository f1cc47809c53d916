"""ONNX files: written from a checkpoint's model, read, and run by ONNX Runtime."""

import contextlib
import json
import logging
import warnings
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from common import batches, qdq
from common.errors import UserError
from common.files import written_whole

INPUT, OUTPUT = "images", "logits"


@contextlib.contextmanager
def written(checkpoint: dict, model: nn.Module, path: Path):
    """Writes `model`, which `checkpoint` was rebuilt to, as ONNX; gives it as an `OnnxModel` to be checked.

    `path` comes into being once the block has ended well. Input "images" float32 [N, 3, S, S], normalised;
    output "logits" float32 [N, classes]; N is free. An int8 model is written with int8 weights between
    QuantizeLinear and DequantizeLinear. The metadata say how to prepare a picture: see `metadata`. Raises
    UserError where the model has no form in ONNX, and where the file cannot be written or fails onnx's check.
    """
    proto = _export(
        qdq.float_twin(model, checkpoint["image_size"]) if checkpoint["int8"] else model, checkpoint
    )
    onnx.helper.set_model_props(proto, metadata(checkpoint))
    with written_whole(path) as temporary:
        onnx.save(proto, temporary)
        try:
            onnx.checker.check_model(str(temporary), full_check=True)
        except onnx.checker.ValidationError as error:
            raise UserError(f"{path} is not valid ONNX, nothing was written: {error}") from None
        yield OnnxModel(temporary)


def _export(model: nn.Module, checkpoint: dict) -> onnx.ModelProto:
    side = checkpoint["image_size"]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                model.eval(),
                (torch.zeros(2, 3, side, side),),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise UserError(f"{checkpoint['arch']} cannot be written as ONNX: {reason}") from None
    proto = program.model_proto
    for node in proto.graph.node:  # where in the source each comes from: a quarter of a small network's file
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    return proto


def metadata(checkpoint: dict) -> dict[str, str]:
    """What an ONNX file says of itself, all of it text.

    name, stage, arch, backend ("" for float) · params, macs: of the float model, for one picture · classes,
    mean, std: JSON lists · resize: the short side, in pixels, that a picture is resized to · image_size: the
    side of the square that is then cut from its middle
    """
    return {
        "name": checkpoint["name"],
        "stage": checkpoint["stage"],
        "arch": checkpoint["arch"],
        "backend": checkpoint["int8"]["backend"] if checkpoint["int8"] else "",
        "params": str(checkpoint["metrics"]["params"]),
        "macs": str(checkpoint["metrics"]["macs"]),
        "classes": json.dumps(checkpoint["classes"], ensure_ascii=False),
        "mean": json.dumps(checkpoint["mean"]),
        "std": json.dumps(checkpoint["std"]),
        "resize": str(batches.resized_side(checkpoint["image_size"])),
        "image_size": str(checkpoint["image_size"]),
    }


class OnnxModel(nn.Module):
    """An ONNX file and its `metadata`, run by ONNX Runtime on the CPU with `threads` threads (0: all cores).

    Raises UserError for a file that is missing or no network of this project.
    """

    def __init__(self, path: str | Path, threads: int = 0):
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        # ONNX Runtime's errors have no common class that is public
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{path} is not an ONNX file that ONNX Runtime can run: {reason}") from None
        self.metadata = self.session.get_modelmeta().custom_metadata_map
        if "image_size" not in self.metadata:
            raise UserError(f"{path} was not written by export.py: its metadata do not say the image size")

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 [N, classes] of images float32 [N, 3, S, S]."""
        (logits,) = self.session.run([OUTPUT], {INPUT: images.contiguous().numpy()})
        return torch.from_numpy(logits)
