"""What a model costs: parameters, MACs, bytes of its file and of RAM, milliseconds or instructions."""

import contextlib
import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path

from torch import nn

from common.budget import layer_costs, layer_table, memory_limits
from common.budget.target import Budget
from common.compression import int8_engines, int8_state, quantization, target_devices
from common.compression.reparameterization import fuse_branches
from common.compression.target_devices import TargetDevice
from common.deployment import onnx_model
from common.evaluation import memory, metrics
from common.integer import from_fx, plain
from common.models import architectures, checkpoint, lineage
from common.system import files, units
from common.system.errors import UserError

RESERVE = 4096  # bytes that metrics and further rows of the lineage may take in a file
PLACEHOLDERS = {"n": 0, "top1": 0.0, "top5": 0.0, "loss": 0.0, "ci95": [0.0, 0.0], "params": 0, "macs": 0}
BY_LAYERS = "latency", "instructions"
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
    latency_in: str = "onnxruntime",
    tables: Path = Path(),
    parent_bytes: int | None = None,
    ram_schedule: str = "layers",
) -> Budget:
    """Builds the budget that a user asks for.

    Args:
        kind: "macs", "size", "latency" (milliseconds for one image on this machine, from a table of its
            layers), "instructions" (the same on a Cortex-M) or "ram" (for one image).
        text: An amount, see `units.parse`. A fraction is one of what `model` costs now, in `precision`; of a
            size one of the file in float32, since that is the file that exists.
        model: The float model of `parent`; not changed.
        parent: The checkpoint that is pruned.
        row: What its lineage gets.
        precision: "fp32", or "int8" for the cost once the model is quantized.
        target: The device to quantize for.
        threads: Of a latency.
        latency_in: The runtime of `layer_table.open_table`.
        tables: Folder in which the tables of layers are kept.
        parent_bytes: Size of the parent's file, of which a fraction is one.
        ram_schedule: "layers" for the peak of the activations, layer by layer; another of
            `planner.SCHEDULES` for the static array of the network in C, in int8.

    Returns:
        The budget.

    Raises:
        UserError: The model cannot be quantized or exported, or its cost cannot be measured.
    """
    image_size = parent["image_size"]
    if kind == "instructions" and precision != "int8":
        raise UserError(f"{latency_in} counts int8 networks: --target-precision int8")
    if precision == "int8":
        if kind == "latency" and target.symmetric:  # which kernel a layer gets depends on those before it
            raise UserError("with zero points of 0 the time in ONNX Runtime is no sum over layers")
        int8_engines.use(target)
        check = functools.partial(onnx_model.check, parent)
        quantization.prepare(fuse_branches(model), target, image_size, check)
    else:
        target = None
    peak = memory_limits.peak_function(image_size, precision, target, ram_schedule)
    costs = {
        "macs": lambda: _macs(image_size, fuse_branches if target else lambda model: model),
        "size": lambda: _int8_file_bytes(model, parent, row, target) if target else _file_bytes(parent, row),
        "ram": lambda: lambda model: peak(model)[0],
    }
    conditions, cost, of_widths = "", None, None
    if kind in BY_LAYERS:
        table = layer_table.open_table(latency_in, precision, threads, tables)
        cost, of_widths = layer_costs.costs_of(model, image_size, target, table)
        conditions = table.conditions
    cost = cost or costs[kind]()
    start = cost(model)
    limit, is_fraction = units.parse(kind, text)
    if is_fraction and kind == "size":
        limit *= parent_bytes or _file_bytes(parent, row)(model)
    elif is_fraction:
        limit *= start
    hint = ""
    if kind == "ram":
        conditions, hint = memory_limits.describe(ram_schedule, image_size)
    return Budget(kind, limit, start, cost, precision, conditions, peak, hint, of_widths)


def checkpoint_budget(
    kind: str,
    path: Path,
    text: str,
    precision: str,
    image_size: int,
    *,
    options: dict,
    target: TargetDevice,
    threads: int,
    latency_in: str,
    tables: Path,
) -> Budget:
    """Builds the budget for a checkpoint that is to be pruned: see `make_budget`.

    Args:
        kind: See `make_budget`.
        path: The checkpoint.
        text: An amount.
        precision: "fp32" or "int8".
        image_size: Takes the place of the checkpoint's own, in pixels.
        options: Those of the command line, for an estimate of the lineage's size.
        target: The device to quantize for.
        threads: Of a latency.
        latency_in: See `make_budget`.
        tables: See there.

    Returns:
        The budget.

    Raises:
        UserError: The checkpoint cannot be read, or its model cannot be quantized or measured.
    """
    content = checkpoint.load(path) | {"image_size": image_size}
    options = options | {"model_name": None}
    row = lineage.new_row(content, path, "pruned", options=options, machine="", split="")
    model, file_bytes = checkpoint.rebuild(content), path.stat().st_size
    return make_budget(
        kind, text, model, content, row,
        precision=precision, target=target, threads=threads, latency_in=latency_in, tables=tables,
        parent_bytes=file_bytes,
    )  # fmt: skip


def checkpoint_cost(kind: str, path: Path, *, threads: int, latency_in: str, tables: Path) -> float:
    """Finds the cost of a finished checkpoint, at its own image size.

    Args:
        kind: See `make_budget`.
        path: The checkpoint, float or int8.
        threads: Of a latency.
        latency_in: See `make_budget`.
        tables: See there.

    Returns:
        MACs, bytes, milliseconds or instructions.

    Raises:
        UserError: The checkpoint cannot be read, or its cost is not known.
    """
    content = checkpoint.load(path)
    if kind in BY_LAYERS:
        int8, target = content["int8"], None
        model = checkpoint.rebuild(content)
        if int8:
            model = architectures.rebuild(content["arch"], len(content["classes"]), int8["float_shapes"])
            target = target_devices.by_backend(int8["backend"])
        table = layer_table.open_table(latency_in, "int8" if int8 else "fp32", threads, tables)
        return layer_costs.costs_of(model, content["image_size"], target, table)[0](model)
    if kind == "ram":
        return memory.checkpoint_bytes(content, checkpoint.rebuild(content))
    return path.stat().st_size if kind == "size" else content["metrics"]["macs"]


def int8_file_bytes(parent: dict, row: dict, content: dict) -> int:
    """Estimates the file of a model that is quantized.

    Args:
        parent: The checkpoint that it is created from.
        row: What its lineage gets.
        content: Its "state_dict" and "int8".

    Returns:
        Bytes.
    """
    return files.file_bytes(lineage.child(parent, row, metrics=PLACEHOLDERS, **content)) + RESERVE


def _macs(image_size: int, deployed: Callable[[nn.Module], nn.Module]) -> Cost:
    return lambda model: metrics.complexity(deployed(model), image_size)["macs"]


def _file_bytes(parent: dict, row: dict) -> Cost:
    def cost(model: nn.Module) -> float:
        state = checkpoint.float_state(model)
        content = lineage.child(parent, row, state_dict=state, metrics=PLACEHOLDERS, int8=None)
        return files.file_bytes(content) + RESERVE

    return cost


def _int8_file_bytes(model: nn.Module, parent: dict, row: dict, target: TargetDevice) -> Cost:
    """The size follows from the shapes: one int8 model is built, and resized for each other width."""
    fused = copy.deepcopy(fuse_branches(model)).cpu()
    skeleton = quantization.skeleton(fused, target, parent["image_size"])
    state = int8_state.extract(skeleton)
    int8 = {"backend": target.backend}
    with contextlib.suppress(UserError):  # a part computes in float32: the file has no graph
        int8["graph"] = plain.to_plain(from_fx.read(skeleton, parent["image_size"]), state)

    def cost(model: nn.Module) -> float:
        shapes = architectures.shapes(fuse_branches(model))
        content = lineage.child(
            lineage.child(parent, row),
            json.loads(json.dumps(row)),  # a file would hold the same object only once
            state_dict=int8_state.resize(state, shapes),
            int8=int8 | {"float_shapes": shapes},
            metrics=PLACEHOLDERS,
        )
        return files.file_bytes(content) + RESERVE

    return cost
