"""The integers of layers in a folder, in the layout of devices: what a board should compute, or has computed.

A file for each layer, NAME.bin: int8 [N, H, W, C] or [N, C], without a header. `MANIFEST` describes them.
"""

import json
import math
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from common.deployment import layers
from common.deployment.layers import Layer
from common.deployment.litert import TO_CHANNELS_LAST
from common.integer import reference
from common.integer.graph import Graph
from common.integer.graph import Tensor as GraphTensor
from common.system.errors import UserError
from common.system.files import UNFINISHED

MANIFEST = "manifest.json"
NAME = re.compile(r"\w{1,200}", re.ASCII)  # of a layer, which becomes the name of a file


@dataclass(frozen=True)
class Manifest:
    """What a folder says of its network.

    Attributes:
        network: Its name.
        rounding: That of the expected integers: see `reference`.
        layers: Each layer by its name, in the order in which they run.
        shapes: Those of one image, [H, W, C] or [C], by the name of the layer.
    """

    network: str
    rounding: str
    layers: dict[str, Layer]
    shapes: dict[str, tuple[int, ...]]


def write(folder: Path, network: str, graph: Graph, images: Tensor, rounding: str) -> int:
    """Writes what the reference computes, all of it or nothing.

    Args:
        folder: A new folder.
        network: The name of the network.
        graph: The network.
        images: float32 [N, 3, S, S], normalized.
        rounding: See `reference`.

    Returns:
        The bytes of all files together.

    Raises:
        UserError: The folder exists or cannot be written, or a layer has a name that no file can have.
    """
    if folder.exists():  # a rename would replace an empty one
        raise UserError(f"{folder} exists: remove it, or name another folder")
    known, rows = layers.in_graph(graph), []
    if wrong := [name for name in known if not NAME.fullmatch(name)]:
        raise UserError(f"the layer {wrong[0]!r} has a name that no file can have")
    try:
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder.parent) as temporary:
            unfinished = Path(temporary, "dumps")
            unfinished.mkdir()
            for name, values in layers.of_graph(graph, images, rounding).items():
                values = values.transpose(TO_CHANNELS_LAST) if values.ndim == 4 else values
                (unfinished / f"{name}.bin").write_bytes(values.tobytes())
                layer = known[name][1]
                rows.append(
                    {
                        "name": name,
                        "operator": layer.operator,
                        "shape": values.shape[1:],
                        "scale": layer.scale,
                        "zero_point": layer.zero_point,
                        "file": f"{name}.bin",
                    }
                )
            manifest = {"network": network, "rounding": rounding, "images": len(images), "layers": rows}
            (unfinished / MANIFEST).write_text(_to_json(manifest), encoding="utf-8")
            size = sum(file.stat().st_size for file in unfinished.iterdir())
            os.rename(unfinished, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    return size


def _to_json(manifest: dict) -> str:
    """JSON with a line for each layer."""
    rows = ",\n".join(f"    {json.dumps(row)}" for row in manifest["layers"])
    head = json.dumps(manifest | {"layers": []}, indent=2)
    return head.replace('"layers": []', f'"layers": [\n{rows}\n  ]') + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Reads the description of a folder.

    Args:
        folder: The folder.

    Returns:
        Its content.

    Raises:
        UserError: There is none, or it is not valid.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = content["layers"]
        known = {row["name"]: Layer(row["operator"], row["scale"], row["zero_point"]) for row in rows}
        shapes = {row["name"]: tuple(row["shape"]) for row in rows}
        for name, layer in known.items():
            GraphTensor(name, shapes[name], layer.scale, layer.zero_point)  # refuses wrong values
        texts = [content["network"], *(layer.operator for layer in known.values())]
        valid = content["rounding"] in reference.ROUNDINGS and all(map(NAME.fullmatch, known)) and rows
        valid = valid and all(isinstance(each, str) for each in texts)
        valid = valid and all(isinstance(each, int) for shape in shapes.values() for each in shape)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{folder} has no {MANIFEST}: copy that of export.py --golden into it") from None
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        valid = False
    if not valid:
        raise UserError(f"{path} is not a manifest of export.py --golden")
    return Manifest(content["network"], content["rounding"], known, shapes)


def read(folder: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """Reads the integers of the layers that a folder has.

    Args:
        folder: The folder.
        manifest: Its description.

    Returns:
        int8 [N, C, H, W] or [N, C] by the name of the layer; N may differ.

    Raises:
        UserError: There is none, or a file cannot be read or has another size.
    """
    found, files = {}, {path.stem for path in folder.glob("*.bin")}
    if foreign := sorted(files - manifest.layers.keys()):
        print(f"note: no layer of {manifest.network} has the name of {folder / foreign[0]}.bin")
    for name, shape in manifest.shapes.items():
        if name not in files:
            continue
        path = folder / f"{name}.bin"
        try:
            values = np.fromfile(path, np.int8)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        one = math.prod(shape)
        if not len(values) or len(values) % one:
            raise UserError(
                f"{path} has {len(values):,} bytes, not {one:,} for each image: int8 {list(shape)}"
            )
        found[name] = layers.to_channels_first(values.reshape(-1, *shape))
    if not found:
        raise UserError(f"{folder} has no file of a layer, such as {next(iter(manifest.layers))}.bin")
    return found
