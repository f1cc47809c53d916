"""What each layer costs in a runtime: measured once for each shape, and kept in a file.

The cost of a network is the sum over its layers. So it is the same each time, and known for any widths, the
fast and the slow ones.
"""

import functools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime

from common.cli.targets import INSTRUCTIONS
from common.deployment import instructions, onnx_layers
from common.evaluation import latency, results
from common.integer.graph import Graph, Operator, Tensor

Part = Operator | Tensor  # a layer, or the image, which is converted before the first layer
Measure = Callable[[Graph, Sequence[Part]], list[float]]  # gets parts of a graph, gives the cost of each


def open_table(runtime: str, precision: str, threads: int, folder: Path) -> "LayerTable":
    """Opens the table of a runtime on this machine.

    Args:
        runtime: See `targets.add_conditions`.
        precision: "fp32" or "int8".
        threads: Of ONNX Runtime.
        folder: Where it is kept.

    Returns:
        The table, in milliseconds or in instructions.
    """
    if runtime.startswith(INSTRUCTIONS):
        core = runtime.removeprefix(INSTRUCTIONS)
        measure = functools.partial(instructions.count, core=core)
        return LayerTable(folder, instructions.conditions(core), measure, instructions.compiler())
    conditions = f"{precision} ONNX Runtime {onnxruntime.__version__} on {latency.cpu()}, {threads} thread(s)"
    return LayerTable(
        folder, conditions, lambda _, parts: onnx_layers.milliseconds(parts, precision, threads)
    )


class LayerTable:
    """The table of one runtime, under one set of conditions."""

    def __init__(self, folder: Path, conditions: str, measure: Measure, version: str = ""):
        """Reads the table. A file that is damaged counts as empty.

        Args:
            folder: Where the file is.
            conditions: What the costs depend on: runtime, version, machine.
            measure: Measures what is not in the table yet.
            version: Of what measures; a table of another version is replaced. "" accepts any.
        """
        name = re.sub("[^a-z0-9.]+", "-", conditions.lower()).strip("-")
        self.path = folder / f"costs-{name}.json"
        self.conditions, self.measure, self.version = conditions, measure, version
        self.costs = self._read()

    def total(self, graph: Graph) -> float:
        """The sum over the layers of a network; measures those whose shapes are new.

        Args:
            graph: The network.

        Returns:
            The cost, in the unit of `measure`.

        Raises:
            UserError: A layer cannot be measured, or the file cannot be written.
        """
        parts = (graph.input, *graph.operators)
        keys = [key_of(part) for part in parts]
        new = {key: part for key, part in zip(keys, parts, strict=True) if key not in self.costs}
        if new:
            self.costs |= zip(new, self.measure(graph, list(new.values())), strict=True)
            self._write()
        return sum(self.costs[key] for key in keys)

    def _read(self) -> dict[str, float]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            valid = not self.version or content["version"] == self.version
            return {key: float(value) for key, value in content["costs"].items()} if valid else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _write(self) -> None:
        self.costs = self._read() | self.costs  # another process may have measured other layers
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"conditions": self.conditions, "version": self.version, "costs": self.costs}
        results.write_text(json.dumps(content, indent=1), self.path)


def key_of(part: Part) -> str:
    """Describes a part of a network: those with the same description cost the same.

    Args:
        part: A layer or the image.

    Returns:
        Such as "Add 24x56x56, 24x56x56 > 24x56x56, relu False".
    """
    if isinstance(part, Tensor):
        return f"image {_product(part.shape)}"
    inputs = ", ".join(_product(tensor.shape) for tensor in part.inputs)
    words = [f"{type(part).__name__} {inputs} > {_product(part.output.shape)}"]
    for name in ("kernel", "stride", "padding", "dilation", "groups", "relu", "function"):
        value = getattr(part, name, None)
        if value is not None:
            words.append(f"{name} {_product(value) if isinstance(value, tuple) else value}")
    if hasattr(part, "weight"):
        words.append(f"weight {_product(part.weight.shape)}")
    return ", ".join(words)


def _product(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
