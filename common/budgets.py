"""What a model may cost: parameters, multiply-accumulates, bytes of its file, milliseconds here."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from common import amounts, checkpoint, engines, files, latency, metrics, models, quantization

RESERVE = 4096  # bytes that figures and further rows of the lineage may take in a file
FIGURES = {"n": 0, "top1": 0.0, "top5": 0.0, "loss": 0.0, "ci95": [0.0, 0.0], "params": 0, "macs": 0}


@dataclass(frozen=True)
class Budget:
    """At most `limit` of what `cost(model)` says of a float model, alone or (`precision` "int8") once it is
    quantized.

    `kind`: parameters, macs, size (bytes) or latency (milliseconds). `conditions`: what it was measured with.
    """

    TRIALS = 64  # how finely widths are searched where each look is a measurement

    kind: str
    limit: float
    cost: Callable[[nn.Module], float]
    precision: str = "fp32"
    conditions: str = ""

    @property
    def exact(self) -> bool:
        """Whether the cost of a model is the same each time."""
        return self.kind != "latency"

    @property
    def strict(self) -> bool:
        """Whether it may not be exceeded, not even by a little."""
        return self.kind != "parameters"

    def shown(self, value: float) -> str:
        """`value` with its unit, and what it is measured with."""
        extra = [self.precision] * (self.precision == "int8") + [self.conditions] * bool(self.conditions)
        return amounts.SHOWN[self.kind](value) + (f" ({', '.join(extra)})" if extra else "")

    def achieved(self, model: nn.Module) -> dict:
        """What the pruned `model` costs, and what it may, as a checkpoint keeps it."""
        return {
            "of": self.kind,
            "precision": self.precision,
            "limit": self.limit,
            "achieved": self.cost(model),
            "conditions": self.conditions,
        }

    def on_the_way(self, start: float, done: float) -> "Budget":
        """What is left to reach when the share `done` of the way from the cost `start` lies behind: each of
        several steps takes the same share of what is there.
        """
        return replace(self, limit=start * (self.limit / start) ** done)


def parameters(limit: int) -> Budget:
    """About `limit` parameters."""
    return Budget("parameters", limit, metrics.count_parameters)


def read(
    kind: str,
    text: str,
    model: nn.Module,
    parent: dict,
    row: dict,
    *,
    precision: str = "fp32",
    backend: str | None = None,
    threads: int = 1,
    parent_bytes: int | None = None,
) -> Budget:
    """What `text` means for `model`, rebuilt from the checkpoint `parent`: see `amounts.read`.

    A share is one of what `model` costs now, in float32, `parent_bytes` being the size of its file. `row` is
    what its lineage gets. With `precision` "int8" the cost is that once it is quantized for `backend`.
    Latency is the median for one picture here, with `threads` threads and torch's fastest engine. Raises
    UserError where the model cannot be quantized.
    """
    image_size, engine = parent["image_size"], "fp32"
    if precision == "int8":
        engine = engines.use(backend)
        quantization.prepare(model, backend, image_size)

    def macs(model: nn.Module) -> int:
        return metrics.size(model, image_size)["macs"]

    def file_bytes(model: nn.Module) -> int:
        content = checkpoint.child(
            parent, row, state_dict=checkpoint.float_state(model), metrics=FIGURES, int8=None
        )
        return files.saved_bytes(content) + RESERVE

    def int8_file_bytes(model: nn.Module) -> int:
        shapes = models.shapes(model)
        content = checkpoint.child(
            checkpoint.child(parent, row),
            json.loads(json.dumps(row)),  # of the same object a file would have but one
            state_dict=quantization.resized_int8_state(int8_state, shapes),
            int8={"backend": backend, "float_shapes": shapes},
            metrics=FIGURES,
        )
        return files.saved_bytes(content) + RESERVE

    def milliseconds(model: nn.Module) -> float:
        return latency.measure(copy.deepcopy(model).cpu(), image_size, batch=1, threads=threads).p50

    def int8_milliseconds(model: nn.Module) -> float:
        int8_model = quantization.skeleton(copy.deepcopy(model).cpu(), backend, image_size)
        return latency.measure(int8_model, image_size, batch=1, threads=threads).p50

    costs = {
        ("macs", "fp32"): macs,
        ("macs", "int8"): macs,
        ("size", "fp32"): file_bytes,
        ("size", "int8"): int8_file_bytes,
        ("latency", "fp32"): milliseconds,
        ("latency", "int8"): int8_milliseconds,
    }
    if (kind, precision) == ("size", "int8"):
        skeleton = quantization.skeleton(copy.deepcopy(model).cpu(), backend, image_size)
        int8_state = quantization.int8_state(skeleton)
    amount, is_share = amounts.read(kind, text)
    if is_share:
        whole = parent_bytes if kind == "size" and parent_bytes else costs[kind, "fp32"](model)
        amount *= whole
    conditions = f"{engine} on {latency.cpu()}, {threads} thread(s)" if kind == "latency" else ""
    return Budget(kind, amount, costs[kind, precision], precision, conditions)
