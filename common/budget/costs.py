"""What a model costs: parameters, multiply-accumulates, bytes of its file, milliseconds on this machine."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

from torch import nn

from common.budget.target import Budget
from common.compression import int8_engines, int8_state, quantization
from common.compression.target_devices import TargetDevice
from common.evaluation import latency, metrics
from common.models import architectures, checkpoint, lineage
from common.system import files, units

RESERVE = 4096  # bytes that metrics and further rows of the lineage may take in a file
PLACEHOLDERS = {"n": 0, "top1": 0.0, "top5": 0.0, "loss": 0.0, "ci95": [0.0, 0.0], "params": 0, "macs": 0}
Cost = Callable[[nn.Module], float]


def parameter_budget(model: nn.Module, fraction: float) -> Budget:
    """A budget of parameters.

    Args:
        model: The model before pruning.
        fraction: Of its parameters, how many may be kept, above 0 and at most 1.

    Returns:
        The budget.
    """
    start = metrics.count_parameters(model)
    return Budget("parameters", round(start * fraction), start, metrics.count_parameters)


def make_budget(
    kind: str,
    text: str,
    model: nn.Module,
    parent: dict,
    row: dict,
    *,
    precision: str = "fp32",
    target: TargetDevice | None = None,
    threads: int = 1,
    parent_bytes: int | None = None,
) -> Budget:
    """Builds the budget that a user asks for.

    Args:
        kind: "macs", "size" or "latency" (the median for one image on this machine, with torch's fastest
            engine).
        text: An amount, see `units.parse`; a fraction is one of what `model` costs now, in float32.
        model: The float model of `parent`; not changed.
        parent: The checkpoint that is pruned.
        row: What its lineage gets.
        precision: "fp32", or "int8" for the cost once the model is quantized.
        target: The device to quantize for.
        threads: Of a latency.
        parent_bytes: Size of the parent's file, of which a fraction is one.

    Returns:
        The budget.

    Raises:
        UserError: The model cannot be quantized.
    """
    image_size, engine = parent["image_size"], "fp32"
    if precision == "int8":
        engine = int8_engines.use(target)
        quantization.prepare(model, target, image_size)
    float_costs = {
        "macs": _macs(image_size),
        "size": _file_bytes(parent, row),
        "latency": _milliseconds(image_size, threads),
    }
    int8_costs = {
        "macs": lambda: _macs(image_size),
        "size": lambda: _int8_file_bytes(model, parent, row, target),
        "latency": lambda: _int8_milliseconds(image_size, threads, target),
    }
    cost = int8_costs[kind]() if precision == "int8" else float_costs[kind]
    limit, is_fraction = units.parse(kind, text)
    if is_fraction:
        limit *= parent_bytes if kind == "size" and parent_bytes else float_costs[kind](model)
    conditions = f"{engine} on {latency.cpu()}, {threads} thread(s)" if kind == "latency" else ""
    return Budget(kind, limit, cost(model), cost, precision, conditions)


def checkpoint_budget(
    kind: str,
    path: Path,
    text: str,
    precision: str,
    *,
    options: dict,
    image_size: int | None,
    target: TargetDevice,
    threads: int,
) -> Budget:
    """Builds the budget for a checkpoint that is to be pruned: see `make_budget`.

    Args:
        kind: "macs", "size" or "latency".
        path: The checkpoint.
        text: An amount.
        precision: "fp32" or "int8".
        options: Those of the command line, for an estimate of the lineage's size.
        image_size: Takes the place of the checkpoint's own, in pixels.
        target: The device to quantize for.
        threads: Of a latency.

    Returns:
        The budget.

    Raises:
        UserError: The checkpoint cannot be read, or its model cannot be quantized.
    """
    content = checkpoint.load(path)
    content["image_size"] = image_size or content["image_size"]
    options = options | {"model_name": None}
    row = lineage.new_row(content, path, "pruned", options=options, machine="", split="")
    model, file_bytes = checkpoint.rebuild(content), path.stat().st_size
    return make_budget(
        kind, text, model, content, row,
        precision=precision, target=target, threads=threads, parent_bytes=file_bytes,
    )  # fmt: skip


def checkpoint_cost(kind: str, path: Path, *, image_size: int | None, threads: int) -> float:
    """Measures a finished checkpoint.

    Args:
        kind: "macs", "size" or "latency".
        path: The checkpoint, float or int8.
        image_size: Takes the place of the checkpoint's own, in pixels.
        threads: Of a latency.

    Returns:
        MACs, bytes or milliseconds.

    Raises:
        UserError: The checkpoint cannot be read or run.
    """
    content = checkpoint.load(path)
    if kind == "latency":
        side = image_size or content["image_size"]
        return latency.measure(checkpoint.rebuild(content), side, batch=1, threads=threads).p50
    return path.stat().st_size if kind == "size" else content["metrics"]["macs"]


def _macs(image_size: int) -> Cost:
    return lambda model: metrics.complexity(model, image_size)["macs"]


def _file_bytes(parent: dict, row: dict) -> Cost:
    def cost(model: nn.Module) -> float:
        state = checkpoint.float_state(model)
        content = lineage.child(parent, row, state_dict=state, metrics=PLACEHOLDERS, int8=None)
        return files.file_bytes(content) + RESERVE

    return cost


def _int8_file_bytes(model: nn.Module, parent: dict, row: dict, target: TargetDevice) -> Cost:
    """The size follows from the shapes: one int8 model is built, and resized for each other width."""
    skeleton = quantization.skeleton(copy.deepcopy(model).cpu(), target, parent["image_size"])
    state = int8_state.extract(skeleton)

    def cost(model: nn.Module) -> float:
        shapes = architectures.shapes(model)
        content = lineage.child(
            lineage.child(parent, row),
            json.loads(json.dumps(row)),  # a file would hold the same object only once
            state_dict=int8_state.resize(state, shapes),
            int8={"backend": target.backend, "float_shapes": shapes},
            metrics=PLACEHOLDERS,
        )
        return files.file_bytes(content) + RESERVE

    return cost


def _milliseconds(image_size: int, threads: int) -> Cost:
    return lambda model: latency.measure(copy.deepcopy(model).cpu(), image_size, batch=1, threads=threads).p50


def _int8_milliseconds(image_size: int, threads: int, target: TargetDevice) -> Cost:
    def cost(model: nn.Module) -> float:
        int8_model = quantization.skeleton(copy.deepcopy(model).cpu(), target, image_size)
        return latency.measure(int8_model, image_size, batch=1, threads=threads).p50

    return cost
