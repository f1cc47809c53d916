"""The integers of every layer that a C file of export.py computes, for the tests."""

import ctypes
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from torch import Tensor

from common.deployment import layers
from common.integer import reference
from common.integer.graph import Graph
from common.integer.rows import Network, row_bytes

COMPILER = shlex.split(os.environ.get("CC", "cc"))
FLAGS = ("-std=c99", "-O1", "-shared", "-fPIC")
CALL = "compute(operator, y);"
KEEP = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_int8))


def of_c(path: Path, graph: Graph, images: Tensor, expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a file computes: each row is copied when it is there, since others take its place.

    Args:
        path: NAME.c, with NAME.h beside it.
        graph: The network of which it was written, without rows that are computed again.
        images: float32 [N, 3, S, S], normalized.
        expected: What `layers.of_graph` returns; rows that no layer reads are not computed, and are these.

    Returns:
        int8 [N, C, H, W] or [N, C] by the name of the layer.
    """
    library, names = _compiled(path, graph), layers.in_graph(graph)
    found = {name: expected[layer].copy() for layer, (name, _) in names.items()}
    integers = reference.quantize(images, graph.input).numpy()

    @KEEP
    def keep(operator, row, values):
        output = graph.operators[operator].output
        content = np.ctypeslib.as_array(values, (row_bytes(output),))
        place = found[output.name][number]  # [C, H, W] or [C]
        place = place[:, row] if place.ndim == 3 else place[:, None]
        place[:] = content.reshape(place.shape[::-1]).T

    ctypes.c_void_p.in_dll(library, "keep").value = ctypes.cast(keep, ctypes.c_void_p).value
    run, logits = getattr(library, f"{path.stem}_run"), np.empty(graph.output.shape, np.int8)
    for number in range(len(integers)):
        channels_last = np.ascontiguousarray(integers[number].transpose(1, 2, 0))
        run(*(ctypes.c_void_p(each.ctypes.data) for each in (channels_last, logits)))
    return {layer: found[name] for layer, (name, _) in names.items()}


def _compiled(path: Path, graph: Graph) -> ctypes.CDLL:
    """The library of a file that calls `keep` after each row."""
    source = path.read_text(encoding="utf-8")
    assert source.count(CALL) == 1
    numbers = {name: index for index, name in enumerate(Network(graph).tensors)}
    outputs = ", ".join(str(numbers.get(step.output.name, 0)) for step in graph.operators)
    start = f"int {path.stem}_run_rows("
    declared = f"void (*keep)(int, int, const int8_t *);\nstatic const int outputs[] = {{{outputs}}};\n"
    source = source.replace(CALL, f"{CALL} keep(operator, y, row(outputs[operator], y));")
    source = source.replace(start, declared + start, 1)
    with tempfile.TemporaryDirectory() as folder:
        file, library = Path(folder, path.name), Path(folder, "network.so")
        file.write_text(source, encoding="utf-8")
        file.with_suffix(".h").write_bytes(path.with_suffix(".h").read_bytes())
        subprocess.run([*COMPILER, *FLAGS, "-o", str(library), str(file)], check=True)
        return ctypes.CDLL(str(library))
