"""What has the integers of layers: an int8 checkpoint, a file of export.py, or a folder of dumps."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from common.deployment import dumps, layers
from common.deployment.layers import Layer
from common.deployment.litert_model import LiteRtModel
from common.deployment.onnx_model import OnnxModel
from common.deployment.onnx_writer import INPUT, OUTPUT
from common.models import checkpoint, integers
from common.system.errors import UserError

Values = dict[str, np.ndarray]  # int8 [N, C, H, W] or [N, C] by the name of the layer


@dataclass(frozen=True)
class Source:
    """One of the two that are compared.

    Attributes:
        path: A file or a folder.
        layers: Those that it has, in the order in which they run.
        runtimes: What computes the integers, for each rounding.
        compute: compute(images, rounding): see `layers.of_graph`.
        content: Its "image_size", "mean" and "std", as in a checkpoint; empty for a folder.
        rounding: Of a folder: that of its expected integers; else None.
    """

    path: Path
    layers: dict[str, Layer]
    runtimes: dict[str, str]
    compute: Callable[[Tensor, str], Values]
    content: dict
    rounding: str | None = None


def open_source(reference: str, output_dir: str) -> Source:
    """Opens what a user means.

    Args:
        reference: A folder of dumps, an exported file, or a checkpoint: see `checkpoint.find`.
        output_dir: Where checkpoints are kept.

    Returns:
        The source.

    Raises:
        UserError: It is missing, cannot be read, or is no int8 network.
    """
    path = Path(reference)
    if path.is_dir():
        return _open_folder(path)
    if path.suffix.lower() in (".onnx", ".tflite"):
        return _open_onnx(path) if path.suffix.lower() == ".onnx" else _open_litert(path)
    try:
        path = checkpoint.find(reference, output_dir)
    except UserError as error:
        raise UserError(f"there is no file or folder {reference}, and {error}") from None
    return _open_checkpoint(path)


def _open_checkpoint(path: Path) -> Source:
    content = checkpoint.load(path)
    graph = integers.read(content)
    if graph is None:
        raise _no_integers(path, content["int8"])
    known = {name: layer for name, (_, layer) in layers.in_graph(graph).items()}
    runtimes = {rounding: f"exact reference, rounding {rounding}" for rounding in ("once", "twice")}
    return Source(path, known, runtimes, lambda *how: layers.of_graph(graph, *how), content)


def _open_onnx(path: Path) -> Source:
    content = OnnxModel(path).content
    proto = onnx.load(path)
    known = {name: layer for name, (_, layer) in layers.in_onnx(proto).items()}
    if not known:
        raise _no_integers(path, content["backend"])
    runtimes = dict.fromkeys(("once", "twice"), "ONNX Runtime, rounding once")
    return Source(path, known, runtimes, lambda images, _: layers.of_onnx(proto, images), content)


def _open_litert(path: Path) -> Source:
    content, file = LiteRtModel(path).content, path.read_bytes()
    known = {name: layer for name, (_, layer) in layers.in_litert(file).items()}
    runtimes = {"once": "LiteRT with XNNPACK", "twice": "LiteRT with its reference kernels"}
    return Source(path, known, runtimes, lambda *how: layers.of_litert(file, *how), content)


def _open_folder(path: Path) -> Source:
    manifest = dumps.read_manifest(path)
    values = dumps.read(path, manifest)
    runtimes = dict.fromkeys(("once", "twice"), f"files of {len(values)} of {len(manifest.layers)} layers")
    return Source(path, manifest.layers, runtimes, lambda *_: values, {}, manifest.rounding)


def _no_integers(path: Path, int8) -> UserError:
    why = "a part of it computes in float32" if int8 else "it is a float network"
    return UserError(f"{path} has no integers to compare: {why}")


def check_one_network(first: Source, second: Source) -> None:
    """Checks that two have layers of the same names, with the same scales and zero points.

    Args:
        first: One.
        second: The other.

    Raises:
        UserError: They are not of one network.
    """
    common = [name for name in first.layers if name in second.layers]
    ends = {INPUT, OUTPUT}
    if set(common) <= ends and not set(first.layers) == set(second.layers):
        raise UserError(
            f"{first.path} and {second.path} have no layer in common: they are of two networks, or one is "
            "partly float or of an earlier version (then export it again)"
        )
    for name in common:
        first_grid, second_grid = (
            f"scale {source.layers[name].scale} and zero point {source.layers[name].zero_point}"
            for source in (first, second)
        )
        if first_grid != second_grid:
            raise UserError(
                f"they are of two networks: {name} has {first_grid} in {first.path}, but {second_grid} in "
                f"{second.path}"
            )


def images_of(source: Source) -> Tensor | None:
    """The images of a folder of dumps, which a file can compute too.

    Args:
        source: A folder.

    Returns:
        float32 [N, 3, S, S], normalized.

    Raises:
        UserError: The folder has no images.
    """
    integers = source.compute(None, source.rounding).get(INPUT)
    if integers is None:
        raise UserError(f"{source.path} has no {INPUT}.bin: copy that of export.py --golden into it")
    layer = source.layers[INPUT]
    values = (integers.astype(np.float32) - layer.zero_point) * np.float32(layer.scale)
    return torch.from_numpy(np.ascontiguousarray(values))
