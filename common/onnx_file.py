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
from common.validity import IMAGE_SIZES

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
        # a class is named by its folder, which may hold bytes that are no text: they are escaped as in JSON
        "classes": json.dumps(checkpoint["classes"], ensure_ascii=False)
        .encode(errors="backslashreplace")
        .decode(),
        "mean": json.dumps(checkpoint["mean"]),
        "std": json.dumps(checkpoint["std"]),
        "resize": str(batches.resized_side(checkpoint["image_size"])),
        "image_size": str(checkpoint["image_size"]),
    }


def _values(said: dict[str, str]) -> dict:
    """What `metadata` wrote, with the types of a checkpoint and its names, without the file's own name.

    Raises KeyError, ValueError or RecursionError for text that `metadata` does not write.
    """
    values = {key: said[key] for key in ("stage", "arch", "backend")}
    values |= {key: json.loads(said[key]) for key in ("classes", "image_size", "mean", "std")}
    counts = {key: json.loads(said.get(key, "null")) for key in ("params", "macs")}
    names, side = values["classes"], values["image_size"]
    right = {key: count is None or _is_count(count) for key, count in counts.items()} | {
        "classes": type(names) is list and all(type(name) is str for name in names),
        "image_size": _is_count(side) and side in IMAGE_SIZES,
        "mean": _are_three(values["mean"], -10, 10),  # of pixels from 0 to 1
        "std": _are_three(values["std"], 0.0001, 10),
    }
    for key in right:
        if not right[key]:
            raise ValueError(f"{key} cannot be {said[key]:.60}")
    return values | {"metrics": counts}


def _is_count(value) -> bool:
    return type(value) is int and 0 <= value < 2**63  # no bool, which is an int too


def _are_three(values, low: float, high: float) -> bool:
    return (
        type(values) is list
        and len(values) == 3
        and all(type(value) in (int, float) and low <= value <= high for value in values)
    )


class OnnxModel(nn.Module):
    """An ONNX file, run by ONNX Runtime on the CPU with `threads` threads (0: all cores).

    `metadata` is what it says of itself; `content` the same as values, named as in a checkpoint. Raises
    UserError for a file that cannot be read or is no network of this project: its metadata are read, and it
    is run on one blank picture.
    """

    def __init__(self, path: str | Path, threads: int = 0):
        super().__init__()
        self.path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4  # 4: errors come as exceptions
        try:
            Path(path).open("rb").close()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        with self._in_one_line():
            self.session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
            self.metadata = self.session.get_modelmeta().custom_metadata_map
        try:
            self.content = _values(self.metadata)
        except KeyError as error:
            raise UserError(f"{path} was not written by export.py: its metadata have no {error}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} was not written by export.py: in its metadata, {error}") from None
        self._check()

    def _check(self) -> None:
        """Raises UserError unless it takes pictures as its metadata say and gives a number for each class."""
        side, classes = self.content["image_size"], len(self.content["classes"])
        with self._in_one_line():
            taken = self.session.get_inputs()[0].shape[1:]
        if taken != [3, side, side]:
            raise UserError(f"{self.path} takes pictures of {taken}, not of [3, {side}, {side}] as it says")
        logits = self(torch.zeros(1, 3, side, side))
        if logits.shape != (1, classes) or logits.dtype != torch.float32 or not logits.isfinite().all():
            raise UserError(f"{self.path} does not answer with {classes} finite numbers, one for each class")

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 [N, classes] of images float32 [N, 3, S, S]. Raises UserError where it fails."""
        with self._in_one_line():
            (logits,) = self.session.run([OUTPUT], {INPUT: images.contiguous().numpy()})
            return torch.from_numpy(logits)

    @contextlib.contextmanager
    def _in_one_line(self):
        try:
            yield
        # ONNX Runtime's errors have no common class that is public
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path} is not an ONNX file that ONNX Runtime can run: {reason}") from None
