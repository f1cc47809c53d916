"""ONNX files: written from a checkpoint's model, read, and run by ONNX Runtime."""

import contextlib
import itertools
import logging
import warnings
from pathlib import Path

import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from common.compression.reparameterization import fuse_branches
from common.deployment import metadata, onnx_graph, onnx_writer, qdq
from common.deployment.onnx_session import open_session
from common.deployment.onnx_writer import INPUT, OUTPUT
from common.integer import from_fx
from common.integer.graph import Graph
from common.system.errors import UserError, first_line, in_one_line
from common.system.files import atomic_write


@contextlib.contextmanager
def export(checkpoint: dict, model: nn.Module | Graph, path: Path):
    """A context that writes a model as ONNX, gives it to be checked, and renames it when the block succeeds.

    Input: "images" float32 [N, 3, S, S], normalized. Output: "logits" float32 [N, C]. N is free. An int8
    model is written with int8 weights between QuantizeLinear and DequantizeLinear.

    Args:
        checkpoint: Its content goes into the metadata: see `metadata`.
        model: The model of the checkpoint, float or int8; or the graph of its integers.
        path: The file.

    Yields:
        The file under a temporary name, opened as an `OnnxModel`.

    Raises:
        UserError: The model has no form in ONNX, or the file cannot be written or is not valid.
    """
    proto = (
        _of_integers(model, checkpoint) if checkpoint["int8"] else _export(fuse_branches(model), checkpoint)
    )
    helper.set_model_props(proto, metadata.of(checkpoint))
    with atomic_write(path) as temporary:
        onnx.save(proto, temporary)
        try:
            onnx.checker.check_model(str(temporary), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise UserError(f"{path} is not valid ONNX, nothing was written: {error}") from None
        yield OnnxModel(temporary)


def check(checkpoint: dict, int8_model: nn.Module) -> None:
    """Writes an int8 model as ONNX in memory and runs it, so that what cannot be exported fails early.

    Args:
        checkpoint: What the model was created from: its "arch" and "image_size", in pixels.
        int8_model: A converted model; not changed.

    Raises:
        UserError: The model has no form in ONNX, or ONNX Runtime cannot run it.
    """
    side, proto = checkpoint["image_size"], _of_integers(int8_model, checkpoint)
    try:
        session = open_session(proto, threads=1)
        session.run([OUTPUT], {INPUT: torch.zeros(1, 3, side, side).numpy()})
    # ONNX Runtime's errors have no common class that is public
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{checkpoint['arch']} in int8 cannot run in ONNX Runtime: {reason}") from None


def _of_integers(model: nn.Module | Graph, checkpoint: dict) -> onnx.ModelProto:
    """An int8 model; where a part of it computes in float32, torch's exporter writes it."""
    try:
        graph = model if isinstance(model, Graph) else from_fx.read(model, checkpoint["image_size"])
    except UserError:
        return _export(qdq.to_qdq(model, checkpoint["image_size"]), checkpoint)
    proto = onnx_writer.build(graph)
    onnx_graph.lower_versions(proto)
    return proto


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
        # where nothing is padded this changes nothing, but ONNX Runtime's int8 kernel would count the places
        # beyond the border of a last window that is not full (ceil_mode)
        for entry in node.attribute if _pools_unpadded(node) else ():
            if entry.name == "count_include_pad":
                entry.i = 0
    _separate_constants(graph)
    onnx_graph.lower_versions(proto)
    return proto


def _pools_unpadded(node: onnx.NodeProto) -> bool:
    pads = [entry.ints for entry in node.attribute if entry.name == "pads"]
    return node.op_type == "AveragePool" and not any(itertools.chain(*pads))


def _separate_constants(graph: onnx.GraphProto) -> None:
    """Gives each layer its own weight and zero points: the exporter writes equal ones once.

    ONNX Runtime can convert to uint8, see `EXACT_SUMS`, only what one layer reads.
    """
    constants = {each.name: each for each in graph.initializer}
    weights = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    others = [node for node in graph.node if not weights.keys() & set(node.output)]
    names, nodes = {*constants, *weights}, []
    used = {name for node in others for name in node.input if name in constants}

    def own(name: str) -> str:
        """The name itself for its first reader, then others, which are free."""
        free = name
        while free in used or (free != name and free in names):
            free += "_own"
        if free != name and name in constants:
            graph.initializer.add().CopyFrom(constants[name])
            graph.initializer[-1].name = free
        used.add(free)
        return free

    for node in others:
        for index, name in enumerate(node.input):
            if name in weights:
                weight = onnx.NodeProto.FromString(weights[name].SerializeToString())
                weight.output[0] = node.input[index] = own(name)
                weight.input[0] = own(weight.input[0])
                if len(weight.input) == 3:
                    weight.input[2] = own(weight.input[2])
                nodes.append(weight)
        nodes.append(node)
    graph.ClearField("node")
    graph.node.extend(nodes)


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
        try:
            Path(path).open("rb").close()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        with self._in_one_line():
            proto = onnx.load(path)
            _separate_constants(proto.graph)  # a file of an earlier version
            self.session = open_session(proto, threads)
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

    def _in_one_line(self):
        return in_one_line(f"{self.path} is not an ONNX file that ONNX Runtime can run")
