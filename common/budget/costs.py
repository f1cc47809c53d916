"""What a model costs: parameters, multiply-accumulates, bytes of its file and of RAM, milliseconds here."""

import contextlib
import copy
import functools
import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from common.budget import memory_limits
from common.budget.target import Budget
from common.compression import int8_engines, int8_state, quantization
from common.compression.reparameterization import fuse_branches
from common.compression.target_devices import TargetDevice
from common.deployment import onnx_latency, onnx_model
from common.evaluation import latency, memory, metrics
from common.integer import from_fx, plain
from common.models import architectures, checkpoint, lineage
from common.system import files, units
from common.system.errors import UserError

RESERVE = 4096  # bytes that metrics and further rows of the lineage may take in a file
PLACEHOLDERS = {"n": 0, "top1": 0.0, "top5": 0.0, "loss": 0.0, "ci95": [0.0, 0.0], "params": 0, "macs": 0}
MEMORY_FORMATS = {"onnxruntime": onnx_latency.MEMORY_FORMAT, "torch": torch.channels_last}
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
    parent_bytes: int | None = None,
    ram_schedule: str = "layers",
) -> Budget:
    """Builds the budget that a user asks for.

    Args:
        kind: "macs", "size", "latency" (the median for one image on this machine) or "ram" (for one image).
        text: An amount, see `units.parse`. A fraction is one of what `model` costs now, in `precision`; of a
            size one of the file in float32, since that is the file that exists.
        model: The float model of `parent`; not changed.
        parent: The checkpoint that is pruned.
        row: What its lineage gets.
        precision: "fp32", or "int8" for the cost once the model is quantized.
        target: The device to quantize for.
        threads: Of a latency.
        latency_in: "onnxruntime": of the ONNX file; "torch": with torch's fastest engine.
        parent_bytes: Size of the parent's file, of which a fraction is one.
        ram_schedule: "layers" for the peak of the activations, layer by layer; another of
            `planner.SCHEDULES` for the static array of the network in C, in int8.

    Returns:
        The budget.

    Raises:
        UserError: The model cannot be quantized or exported, or its cost cannot be measured.
    """
    image_size, engine = parent["image_size"], "fp32"
    if precision == "int8":
        engine = int8_engines.use(target)
        check = functools.partial(onnx_model.check, parent)
        quantization.prepare(fuse_branches(model), target, image_size, check)
    else:
        target = None
    peak = memory_limits.peak_function(image_size, precision, target, ram_schedule)
    costs = {
        "macs": lambda: _macs(image_size, fuse_branches if target else lambda model: model),
        "size": lambda: _int8_file_bytes(model, parent, row, target) if target else _file_bytes(parent, row),
        "latency": lambda: _milliseconds(parent, threads, latency_in, target),
        "ram": lambda: lambda model: peak(model)[0],
    }
    cost = costs[kind]()
    start = cost(model)
    limit, is_fraction = units.parse(kind, text)
    if is_fraction and kind == "size":
        limit *= parent_bytes or _file_bytes(parent, row)(model)
    elif is_fraction:
        limit *= start
    conditions = hint = ""
    if kind == "latency":
        engine = engine if latency_in == "torch" else f"{precision} ONNX Runtime"
        conditions = f"{engine} on {latency.cpu()}, {threads} thread(s)"
    elif kind == "ram":
        conditions, hint = memory_limits.describe(ram_schedule, image_size)
    return Budget(kind, limit, start, cost, precision, conditions, peak, hint)


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
) -> Budget:
    """Builds the budget for a checkpoint that is to be pruned: see `make_budget`.

    Args:
        kind: "macs", "size", "latency" or "ram".
        path: The checkpoint.
        text: An amount.
        precision: "fp32" or "int8".
        image_size: Takes the place of the checkpoint's own, in pixels.
        options: Those of the command line, for an estimate of the lineage's size.
        target: The device to quantize for.
        threads: Of a latency.
        latency_in: "onnxruntime" or "torch".

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
        precision=precision, target=target, threads=threads, latency_in=latency_in, parent_bytes=file_bytes,
    )  # fmt: skip


def checkpoint_cost(kind: str, path: Path, *, threads: int, latency_in: str) -> float:
    """Measures a finished checkpoint, at its own image size.

    Args:
        kind: "macs", "size", "latency" or "ram".
        path: The checkpoint, float or int8.
        threads: Of a latency.
        latency_in: "onnxruntime" or "torch".

    Returns:
        MACs, bytes or milliseconds.

    Raises:
        UserError: The checkpoint cannot be read or run.
    """
    content = checkpoint.load(path)
    if kind == "latency":
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.onnx")
            model = _load(
                content, lambda: fuse_branches(checkpoint.rebuild(content)), threads, latency_in, file
            )
        how = {"threads": threads, "memory_format": MEMORY_FORMATS[latency_in]}
        return latency.measure(model, content["image_size"], batch=1, **how).p50
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


def _milliseconds(parent: dict, threads: int, latency_in: str, target: TargetDevice | None) -> Cost:
    """The latency in float32, or with a target in int8: of arbitrary scales, which does not change it.

    Each network is compared with the first one, the unpruned: a latency is that at the speed that the machine
    had at first. Other programs slow it down for minutes.
    """
    # its metadata are not read, but have to be complete
    content = {"stage": "pruned"} | parent | {"metrics": PLACEHOLDERS}
    content["int8"] = target and {"backend": target.backend}
    # a network that is measured again is not exported again; deleted together with the cost
    folder = tempfile.TemporaryDirectory()
    how = {"threads": threads, "memory_format": MEMORY_FORMATS[latency_in]}
    first = []

    def load(model: nn.Module) -> nn.Module:
        def build() -> nn.Module:
            copied = copy.deepcopy(fuse_branches(model)).cpu()
            return quantization.skeleton(copied, target, content["image_size"]) if target else copied

        shapes = json.dumps(architectures.shapes(model))
        file = Path(folder.name, f"{hashlib.sha256(shapes.encode()).hexdigest()}.onnx")
        return _load(content, build, threads, latency_in, file)

    def cost(model: nn.Module) -> float:
        timed, side = load(model), content["image_size"]
        if not first:
            first.extend((timed, latency.measure(timed, side, batch=1, **how).p50))
            return first[1]
        return first[1] * latency.ratio(timed, first[0], side, **how)

    return cost


def _load(
    content: dict, build: Callable[[], nn.Module], threads: int, latency_in: str, file: Path
) -> nn.Module:
    """What is timed: the model of `build`, or its ONNX file, which is written to `file`."""
    if latency_in == "torch":
        return build()
    try:
        return onnx_latency.load(content, build, file, threads=threads)
    except UserError as error:
        raise UserError(
            f"the latency in ONNX Runtime cannot be measured: {error}; --latency-in torch measures "
            "torch's instead"
        ) from None
