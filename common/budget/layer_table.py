"""What each layer costs in a runtime: measured once for each shape, and kept in a file.

The cost of a network is the sum over its layers. So it is the same each time, and known for any widths, the
fast and the slow ones.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from common.evaluation import results
from common.integer.graph import Graph, Operator

Measure = Callable[[Graph, Sequence[Operator]], list[float]]  # gets layers of a graph, gives the cost of each


class LayerTable:
    """The table of one runtime, under one set of conditions."""

    def __init__(self, folder: Path | None, conditions: str, measure: Measure, file_key: str = ""):
        """Reads the table. A file that is damaged counts as empty.

        Args:
            folder: Where the file is; None keeps nothing.
            conditions: What the costs depend on: runtime, version, machine.
            measure: Measures what is not in the table yet.
            file_key: The name of the file, if not `conditions`.
        """
        name = re.sub("[^a-z0-9.]+", "-", (file_key or conditions).lower()).strip("-")
        self.path = folder and folder / f"costs-{name}.json"
        self.conditions, self.measure = conditions, measure
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
        keys = [key_of(operator) for operator in graph.operators]
        new = {key: each for key, each in zip(keys, graph.operators, strict=True) if key not in self.costs}
        if new:
            self.costs |= zip(new, self.measure(graph, list(new.values())), strict=True)
            self._write()
        return sum(self.costs[key] for key in keys)

    def _read(self) -> dict[str, float]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8")) if self.path else {}
            costs = content["costs"] if content["conditions"] == self.conditions else {}
            return {str(key): float(value) for key, value in costs.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _write(self) -> None:
        if self.path:
            self.costs = self._read() | self.costs  # another process may have measured other layers
            self.path.parent.mkdir(parents=True, exist_ok=True)
            content = {"conditions": self.conditions, "costs": self.costs}
            results.write_text(json.dumps(content, indent=1), self.path)


def key_of(operator: Operator) -> str:
    """Describes a layer: layers with the same description cost the same.

    Args:
        operator: The layer.

    Returns:
        Such as "Convolution 32x56x56 > 64x56x56, 3x3, stride 1, ...".
    """
    shapes = [f"{'x'.join(map(str, tensor.shape))}" for tensor in (*operator.inputs, operator.output)]
    parts = [f"{type(operator).__name__} {', '.join(shapes[:-1])} > {shapes[-1]}"]
    for name in ("kernel", "stride", "padding", "dilation", "groups", "relu", "function"):
        if (value := getattr(operator, name, None)) is not None:
            parts.append(f"{name} {'x'.join(map(str, value)) if isinstance(value, tuple) else value}")
    if (weight := getattr(operator, "weight", None)) is not None:
        parts.append(f"weight {'x'.join(map(str, weight.shape))}")
    return ", ".join(parts)
