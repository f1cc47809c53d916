"""C files of an int8 network: written, and run after this machine's C compiler has translated them."""

import contextlib
import ctypes
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common.deployment import c_writer, metadata
from common.integer import from_fx, reference
from common.integer.graph import Graph
from common.integer.graph import Tensor as GraphTensor
from common.system.errors import UserError
from common.system.files import CHECKSUM, atomic_write

FLAGS = ("-std=c99", "-O3", "-shared", "-fPIC")
NO_CHECKSUM = "0" * 64  # what is in the place of the checksum while it is computed
METADATA = re.compile(r"^/\* metadata (\{.*\}) \*/$", re.MULTILINE)


class CModel(nn.Module):
    """A C file of export.py, compiled and loaded into this process.

    Attributes:
        path: The file.
        content: Its metadata as values, named as in a checkpoint.
        rounding: Of `reference.ROUNDINGS`.
        ram: Bytes of its static array.
        flash: Bytes of its constants.
    """

    def __init__(self, path: str | Path, threads: int = 0):
        """Compiles the file.

        Args:
            path: NAME.c, with NAME.h beside it.
            threads: Not used: the code has one thread.

        Raises:
            UserError: A file cannot be read, was not written by export.py, or there is no C compiler.
        """
        path = Path(path)
        try:
            texts = [each.read_text(encoding="utf-8") for each in (path, path.with_suffix(".h"))]
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UserError(f"{path} was not written by export.py: it is no text") from None
        self._open(path, *texts)

    @classmethod
    def of(cls, path: Path, source: str, header: str) -> "CModel":
        """Compiles what is not written yet.

        Args:
            path: NAME.c, which need not exist.
            source: Its content.
            header: That of NAME.h.

        Returns:
            The model.
        """
        model = cls.__new__(cls)
        model._open(path, source, header)
        return model

    def _open(self, path: Path, source: str, header: str) -> None:
        super().__init__()
        self.path = path
        texts = self._metadata(source, header)
        self.content = metadata.parse(texts, path)
        self.rounding, self.ram, self.flash = texts["rounding"], int(texts["ram"]), int(texts["flash"])
        side, classes = self.content["image_size"], len(self.content["classes"])
        self.images = GraphTensor("images", (3, side, side), *json.loads(texts["input"]))
        self.logits = GraphTensor("logits", (classes,), *json.loads(texts["logits"]))
        self._run = getattr(_compiled(path, source, header), f"{path.stem}_run")

    def _metadata(self, source: str, header: str) -> dict[str, str]:
        """The metadata of files whose checksum is correct."""
        found = METADATA.search(source)
        if not found:
            raise UserError(f"{self.path} was not written by export.py: it has no metadata")
        try:
            texts = json.loads(found[1])
            correct = _checksum(source.replace(texts[CHECKSUM], NO_CHECKSUM, 1), header) == texts[CHECKSUM]
        except (ValueError, KeyError, TypeError):  # no JSON, or without a checksum
            correct = False
        if not correct:
            raise UserError(f"{self.path} or its header was changed: its content does not match its checksum")
        return texts

    def forward(self, images: Tensor) -> Tensor:
        """Runs the network.

        Args:
            images: float32 [N, 3, S, S], normalized.

        Returns:
            Logits, float32 [N, C].
        """
        values = reference.quantize(images, self.images).permute(0, 2, 3, 1).contiguous().numpy()
        logits = np.empty((len(values), *self.logits.shape), np.int8)
        for image, row in zip(values, logits, strict=True):
            self._run(*(ctypes.c_void_p(each.ctypes.data) for each in (image, row)))
        return reference.dequantize(torch.from_numpy(logits), self.logits)


@contextlib.contextmanager
def export(
    checkpoint: dict, model: nn.Module | Graph, path: Path, schedule: str, rounding: str,
    extra_macs: float = 0.0, *, check: bool = True,
):  # fmt: skip
    """A context that writes NAME.c and NAME.h, and gives them to be checked before it puts them in place.

    Args:
        checkpoint: Its content goes into the metadata: see `metadata.of`.
        model: The int8 model of the checkpoint, or the graph of its integers.
        path: NAME.c; NAME becomes the beginning of its identifiers.
        schedule: Of `planner.SCHEDULES`.
        rounding: Of `reference.ROUNDINGS`.
        extra_macs: See `recomputation.plan`.
        check: Whether the files are compiled.

    Yields:
        The network as a `CModel`; None without `check`.

    Raises:
        UserError: The model is not int8, an operator has no form in C, NAME is no identifier, a file cannot
            be written, or there is no C compiler.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", path.stem):
        raise UserError(
            f"{path}: its name becomes a part of C identifiers: use a-z, 0-9 and _, such as net.c"
        )
    if not checkpoint["int8"]:
        raise UserError(f"{path} is not written: only int8 checkpoints have a form in C")
    graph = model if isinstance(model, Graph) else from_fx.read(model, checkpoint["image_size"])
    written = c_writer.write(
        graph,
        path.stem,
        schedule,
        rounding,
        checkpoint["classes"],
        checkpoint["mean"],
        checkpoint["std"],
        extra_macs,
    )
    grids = {"input": graph.input.grid, "logits": graph.output.grid}
    texts = metadata.of(checkpoint) | {name: json.dumps(grid) for name, grid in grids.items()}
    texts |= {
        "rounding": rounding,
        "schedule": schedule,
        "ram": str(written.ram),
        "flash": str(written.flash),
        CHECKSUM: NO_CHECKSUM,
    }
    comment = json.dumps(texts).replace("/", r"\/")  # which cannot end the comment
    source = f"/* metadata {comment} */\n{written.source}"
    source = source.replace(NO_CHECKSUM, _checksum(source, written.header), 1)
    with atomic_write(path.with_suffix(".h")) as header, atomic_write(path) as temporary:
        header.write_text(written.header, encoding="utf-8")
        temporary.write_text(source, encoding="utf-8")
        yield CModel.of(path, source, written.header) if check else None


def _checksum(source: str, header: str) -> str:
    return hashlib.sha256((source + header).encode()).hexdigest()


def _compiled(path: Path, source: str, header: str) -> ctypes.CDLL:
    """Compiles a source into a library, and loads it."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or not shutil.which(compiler[0]):
        name = " ".join(compiler) or "CC"
        raise UserError(
            f"{path} needs a C compiler to run: there is no {name} on PATH; export.py --no-check needs none"
        )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        library, file = Path(folder, "network.so"), Path(folder, path.name)
        file.write_text(source, encoding="utf-8")
        file.with_suffix(".h").write_text(header, encoding="utf-8")
        command = [*compiler, *FLAGS, "-o", str(library), str(file)]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if result.returncode:
            lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
            raise UserError(f"{' '.join(compiler)} cannot compile {path}: {lines[0]}")
        return ctypes.CDLL(str(library))
