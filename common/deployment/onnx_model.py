"""ONNX files: written from a checkpoint's model, read, and run by ONNX Runtime."""

import contextlib
import functools
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from torch import Tensor, nn

from common.compression.reparameterization import fuse_branches
from common.deployment import metadata, onnx_graph, qdq
from common.system.errors import UserError, first_line
from common.system.files import atomic_write

INPUT, OUTPUT = "images", "logits"
# On x86 without VNNI, ONNX Runtime adds products of uint8 and int8 in 16 bits, which overflow. With this
# entry it converts weights to uint8, and the sums are exact. It can do so if weights share no zero points.
# It does so with VNNI too, where sums are exact anyway, and then takes twice the time.
EXACT_SUMS = "session.x64quantprecision"


@contextlib.contextmanager
def export(checkpoint: dict, model: nn.Module, path: Path):
    """A context that writes a model as ONNX, gives it to be checked, and renames it when the block succeeds.

    Input: "images" float32 [N, 3, S, S], normalized. Output: "logits" float32 [N, C]. N is free. An int8
    model is written with int8 weights between QuantizeLinear and DequantizeLinear.

    Args:
        checkpoint: Its content goes into the metadata: see `metadata`.
        model: The model of the checkpoint.
        path: The file.

    Yields:
        The file under a temporary name, opened as an `OnnxModel`.

    Raises:
        UserError: The model has no form in ONNX, or the file cannot be written or is not valid.
    """
    proto = _export(
        qdq.to_qdq(model, checkpoint["image_size"]) if checkpoint["int8"] else fuse_branches(model),
        checkpoint,
    )
    helper.set_model_props(proto, metadata.of(checkpoint))
    with atomic_write(path) as temporary:
        onnx.save(proto, temporary)
        try:
            onnx.checker.check_model(str(temporary), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
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
            reason = first_line(error.__cause__ or error)
            raise UserError(f"{checkpoint['arch']} cannot be written as ONNX: {reason}") from None
    proto = program.model_proto
    graph = proto.graph
    onnx_graph.pool_globally(graph)
    # places in the source code, and what runtimes infer themselves: a third of a small network's file
    del graph.value_info[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for node in graph.node:
        node.ClearField("name")
    _separate_zero_points(graph)
    onnx_graph.lower_versions(proto)
    return proto


def _separate_zero_points(graph: onnx.GraphProto) -> None:
    """Gives each int8 weight its own zero points: the exporter shares equal ones, but see `EXACT_SUMS`."""
    constants = {each.name: each for each in graph.initializer}
    own = {}  # zero points by their weight, which several nodes may read
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants and len(node.input) == 3:
            weight, _, zero_point = node.input
            if weight not in own and zero_point in own.values():
                name = f"{weight}_zero_point"
                name += "_own" * (name in constants)  # the exporter may have given it to others
                graph.initializer.add().CopyFrom(constants[zero_point])
                graph.initializer[-1].name = zero_point = name
            node.input[2] = own.setdefault(weight, zero_point)


@functools.cache
def sums_overflow() -> bool:
    """Tries whether ONNX Runtime needs `EXACT_SUMS` on this CPU.

    A convolution of the largest values says more than the flags of the CPU, which not every system shows.

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


class OnnxModel(nn.Module):
    """An ONNX file that ONNX Runtime runs on the CPU.

    `metadata` is its metadata as text; `content` the same as values, named as in a checkpoint.
    """

    def __init__(self, path: str | Path, threads: int = 0):
        """Opens the file, and runs it on one black image.

        Args:
            path: The file.
            threads: Threads of ONNX Runtime; 0 for all cores.

        Raises:
            UserError: The file cannot be read, or was not written by export.py.
        """
        super().__init__()
        self.path = path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4  # 4: errors come as exceptions
        try:
            Path(path).open("rb").close()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        if sums_overflow():
            options.add_session_config_entry(EXACT_SUMS, "1")
        with self._in_one_line():
            proto = onnx.load(path)
            _separate_zero_points(proto.graph)  # a file of an earlier version
            self.session = onnxruntime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
            self.metadata = self.session.get_modelmeta().custom_metadata_map
        self.content = metadata.parse(self.metadata, path)
        self._check()

    def _check(self) -> None:
        """Raises UserError unless inputs and outputs have the shapes that follow from the metadata."""
        side, classes = self.content["image_size"], len(self.content["classes"])
        with self._in_one_line():
            shape = self.session.get_inputs()[0].shape[1:]
        if shape != [3, side, side]:
            raise UserError(
                f"{self.path} takes images of {shape}, not [3, {side}, {side}] as in its metadata"
            )
        logits = self(torch.zeros(1, 3, side, side))
        if logits.shape != (1, classes) or logits.dtype != torch.float32 or not logits.isfinite().all():
            raise UserError(f"{self.path} does not return {classes} finite logits, one for each class")

    def forward(self, images: Tensor) -> Tensor:
        """Runs the model.

        Args:
            images: float32 [N, 3, S, S], normalized.

        Returns:
            Logits, float32 [N, C].

        Raises:
            UserError: ONNX Runtime fails.
        """
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
