"""ExecuTorch files: written from an int8 checkpoint's model, read, and run by ExecuTorch with XNNPACK."""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import re
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from common.deployment import metadata
from common.deployment.executorch_network import Network
from common.integer import from_fx
from common.integer.graph import Graph
from common.system.errors import UserError, in_one_line
from common.system.files import CHECKSUM, atomic_write

VERSION = "1.5.1"  # of executorch, with which this was tested
METADATA = "metadata"  # the method of the file that returns them as JSON
NO_CHECKSUM = "0" * 64  # what is in the place of the checksum while it is computed
STORED_CHECKSUM = re.compile(rf'"{CHECKSUM}": "([0-9a-f]{{64}})"'.encode())


@contextlib.contextmanager
def export(checkpoint: dict, model: nn.Module | Graph, path: Path):
    """A context that writes an ExecuTorch file, gives it to be checked, and renames it on success.

    Method "forward": float32 [1, 3, S, S], normalized, to logits, float32 [1, C].

    Args:
        checkpoint: Its content goes into the metadata: see `metadata.of`.
        model: The int8 model of the checkpoint, or the graph of its integers.
        path: The file.

    Yields:
        The file under a temporary name, opened as an `ExecuTorchModel`.

    Raises:
        UserError: The model is not int8 or has no form in ExecuTorch, executorch is not installed, or the
            file cannot be written.
    """
    if not checkpoint["int8"]:
        raise UserError(f"{path} is not written: only int8 checkpoints have a form in ExecuTorch")
    _require_executorch(path)
    graph = model if isinstance(model, Graph) else from_fx.read(model, checkpoint["image_size"])
    content = lower(graph, json.dumps(metadata.of(checkpoint) | {CHECKSUM: NO_CHECKSUM}))
    checksum = hashlib.sha256(content).hexdigest()
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.replace(NO_CHECKSUM.encode(), checksum.encode(), 1))
        yield ExecuTorchModel(temporary)


def lower(graph: Graph, texts: str) -> bytes:
    """Writes a graph as an ExecuTorch program; a note names what XNNPACK does not compute.

    Args:
        graph: The network.
        texts: What the method "metadata" returns.

    Returns:
        The content of the file.

    Raises:
        UserError: An operator has no form in ExecuTorch; the message names it.
    """
    for name in ("torch.utils._pytree", "torch.export"):  # what executorch's own imports are warned of
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        exported = torch.export.export(Network(graph).eval(), (torch.zeros(1, *graph.input.shape),))
        edge = to_edge_transform_and_lower(
            exported, partitioner=[XnnpackPartitioner()], constant_methods={METADATA: texts}
        )
        targets = [node.target for node in edge.exported_program().graph.nodes]
        content = bytes(edge.to_executorch().buffer)
    counts = Counter(str(each._op) for each in targets if hasattr(each, "_op"))
    if counts:
        names = ", ".join(f"{count} x {name}" for name, count in sorted(counts.items()))
        print(f"note: ExecuTorch's portable kernels compute what XNNPACK has not, which is slower: {names}")
    return content


def _require_executorch(path: str | Path) -> None:
    if not importlib.util.find_spec("executorch"):
        raise UserError(f"{path} needs the package executorch: pip install executorch=={VERSION}")


class ExecuTorchModel(nn.Module):
    """An ExecuTorch file that its runtime runs on the CPU.

    `content` are its metadata as values, named as in a checkpoint.
    """

    def __init__(self, path: str | Path, threads: int = 0):
        """Opens the file, and runs it on one black image.

        Args:
            path: The file.
            threads: Of ExecuTorch, in the whole process; 0 for all cores.

        Raises:
            UserError: The file cannot be read, was not written by export.py, or executorch is not installed.
        """
        super().__init__()
        self.path = path
        try:
            file = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        _check(file, path)
        _require_executorch(path)
        with self._in_one_line(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this interface is experimental
            from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
            from executorch.kernels import quantized  # noqa: F401 - adds kernels
            from executorch.runtime import Runtime

            _unsafe_reset_threadpool(threads or os.cpu_count())
            self.program = Runtime.get().load_program(file)
            (texts,) = self.program.load_method(METADATA).execute([])
            self.method = self.program.load_method("forward")
        self.content = metadata.parse(json.loads(texts), path)
        side, classes = self.content["image_size"], len(self.content["classes"])
        if (shape := self(torch.zeros(1, 3, side, side)).shape) != (1, classes):
            raise UserError(f"{path} returns {list(shape)}, not one logit for each of {classes} classes")

    def forward(self, images: Tensor) -> Tensor:
        """Runs the model, image by image.

        Args:
            images: float32 [N, 3, S, S], normalized.

        Returns:
            Logits, float32 [N, C].

        Raises:
            UserError: ExecuTorch fails.
        """
        with self._in_one_line():
            return torch.cat([self.method.execute([image.contiguous()])[0] for image in images.split(1)])

    def _in_one_line(self):
        return in_one_line(f"{self.path} is not a file that ExecuTorch can run")


def _check(file: bytes, path: str | Path) -> None:
    """Compares the checksum: ExecuTorch does not check all that it reads."""
    found = STORED_CHECKSUM.search(file)
    if not found:
        raise UserError(f"{path} was not written by export.py: it has no metadata")
    content = file.replace(found[1], NO_CHECKSUM.encode(), 1)
    if hashlib.sha256(content).hexdigest().encode() != found[1]:
        raise UserError(f"{path} was changed: its content does not match its checksum")
