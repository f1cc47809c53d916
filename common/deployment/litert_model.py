"""LiteRT (TensorFlow Lite) files: written from an int8 checkpoint's model, read, and run by LiteRT."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from torch import Tensor, nn

from common.deployment import litert, litert_file, metadata
from common.integer import from_fx, reference
from common.integer.graph import Graph
from common.integer.graph import Tensor as GraphTensor
from common.integer.memory import peak_bytes
from common.system.errors import UserError, in_one_line
from common.system.files import CHECKSUM, atomic_write

METADATA = "classification"  # the name of the JSON in the file
KERNELS = {False: OpResolverType.AUTO, True: OpResolverType.BUILTIN_REF}
NO_CHECKSUM = "0" * 64  # what is in the place of the checksum while it is computed


@contextlib.contextmanager
def export(checkpoint: dict, model: nn.Module | Graph, path: Path):
    """A context that writes a LiteRT file, gives it to be checked, and renames it when the block succeeds.

    See `litert.convert` for inputs and outputs.

    Args:
        checkpoint: Its content goes into the metadata: see `metadata.of`.
        model: The int8 model of the checkpoint, or the graph of its integers.
        path: The file.

    Yields:
        The file under a temporary name, opened as a `LiteRtModel`; with weights of 4 bits, with the kernels
        whose integers are known.

    Raises:
        UserError: The model is not int8 or has no form in LiteRT, or the file cannot be written.
    """
    if not checkpoint["int8"]:
        raise UserError(f"{path} is not written: only int8 checkpoints have a form in LiteRT")
    texts = metadata.of(checkpoint) | {CHECKSUM: NO_CHECKSUM}
    graph = model if isinstance(model, Graph) else from_fx.read(model, checkpoint["image_size"])
    content = litert.convert(graph, {METADATA: json.dumps(texts).encode()})
    _compare_memory(content, graph)
    content = _with_checksum(content, NO_CHECKSUM, hashlib.sha256(content).hexdigest())
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
        yield LiteRtModel(temporary, reference_kernels=graph.has_4_bits)


def _compare_memory(content: bytes, graph: Graph) -> None:
    """Prints a note if the operators of a file keep more than those of its graph: a padding, or a table."""
    kept, counted = litert_file.activation_bytes(content), peak_bytes(graph)
    if kept > counted:
        print(
            f"note: its activations take {kept:,} bytes in TensorFlow Lite for Microcontrollers, not "
            f"{counted:,}: some layers consist of several operators in LiteRT"
        )


def _with_checksum(content: bytes, old: str, new: str) -> bytes:
    """The content of a file whose metadata have another checksum."""
    return content.replace(*(f'"{CHECKSUM}": "{value}"'.encode() for value in (old, new)), 1)


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata of a file whose checksum is correct: the interpreter does not check what it reads, and
    damaged bytes can end the process.
    """
    texts = json.loads(litert_file.read_metadata(content)[METADATA])
    if texts[CHECKSUM] != hashlib.sha256(_with_checksum(content, texts[CHECKSUM], NO_CHECKSUM)).hexdigest():
        raise ValueError("its content does not match its checksum")
    return texts


class LiteRtModel(nn.Module):
    """A LiteRT file that its interpreter runs on the CPU, with the kernels of XNNPACK.

    `content` are its metadata as values, named as in a checkpoint.
    """

    def __init__(self, path: str | Path, threads: int = 0, *, reference_kernels: bool = False):
        """Opens the file, and runs it on one black image.

        Args:
            path: The file.
            threads: Threads of the interpreter; 0 for all cores.
            reference_kernels: Whether it runs with those that TensorFlow Lite for Microcontrollers has too,
                which are slow, in place of those of XNNPACK.

        Raises:
            UserError: The file cannot be read, or was not written by export.py.
        """
        super().__init__()
        self.path = path
        try:
            file = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        with self._in_one_line():
            texts = _metadata(file)
        self.content = metadata.parse(texts, path)
        with self._in_one_line():
            self.interpreter = Interpreter(
                model_content=file,
                num_threads=threads or os.cpu_count(),
                experimental_op_resolver_type=KERNELS[reference_kernels],
            )
            self.interpreter.allocate_tensors()
            (self.input,) = self.interpreter.get_input_details()
            (self.output,) = self.interpreter.get_output_details()
        self._check()

    def _check(self) -> None:
        """Raises UserError unless inputs and outputs have the shapes that follow from the metadata."""
        side, classes = self.content["image_size"], len(self.content["classes"])
        shapes = [list(details["shape"]) for details in (self.input, self.output)]
        if shapes != [[1, side, side, 3], [1, classes]]:
            raise UserError(f"{self.path} maps {shapes[0]} to {shapes[1]}, not as in its metadata")
        with self._in_one_line():
            self.images = GraphTensor("images", (3, side, side), *self.input["quantization"])
            self.logits = GraphTensor("logits", (classes,), *self.output["quantization"])
        self(torch.zeros(1, 3, side, side))

    def forward(self, images: Tensor) -> Tensor:
        """Runs the model.

        Args:
            images: float32 [N, 3, S, S], normalized.

        Returns:
            Logits, float32 [N, C].

        Raises:
            UserError: LiteRT fails.
        """
        with self._in_one_line():
            integers = reference.quantize(images, self.images)
            values = integers.permute(0, 2, 3, 1).contiguous().numpy()
            if list(self.interpreter.get_input_details()[0]["shape"]) != list(values.shape):
                self.interpreter.resize_tensor_input(self.input["index"], values.shape)
                self.interpreter.allocate_tensors()
            self.interpreter.set_tensor(self.input["index"], values)
            self.interpreter.invoke()
            logits = torch.from_numpy(self.interpreter.get_tensor(self.output["index"]))
            return reference.dequantize(logits, self.logits)

    def _in_one_line(self):
        return in_one_line(f"{self.path} is not a file that LiteRT can run")
