"""The options of budgets, target devices and engines.

Imports no torch, so that `--help` prints at once.
"""

import argparse

from common.cli.parser import amount, number
from common.compression.target_devices import ENGINES, TARGET_DEVICES
from common.system import units
from common.system.errors import UserError

IMPORTANCES = ("reconstruction", "lamp", "magnitude", "taylor", "bn-scale", "random")
SCOPES = ("local", "global", "isomorphic")
TARGETS = {
    "macs": "multiply-accumulates: 0.5 for half of them, or 300M",
    "size": "the file: 2MB, 500KB, or a fraction of the file now, in float32",
    "latency": "for one image in --latency-in: 5ms, 300M instructions, or a fraction of the latency now",
    "ram": "the peak of the activations of one image, layer by layer, at 4 bytes for each value, in "
    "int8 at 1: 512KB, or a fraction of the peak now",
}
CORES = ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55")
INSTRUCTIONS = "instructions:"


def add_budget_options(group) -> None:
    """Adds `--target-macs` and the options of the other `TARGETS`, of which one may be given.

    Args:
        group: A mutually exclusive group.
    """
    for kind, text in TARGETS.items():
        kinds = (kind, "instructions") if kind == "latency" else (kind,)
        group.add_argument(f"--target-{kind}", type=amount(*kinds), metavar="AMOUNT", help=text)


def budget(args: argparse.Namespace) -> tuple[str, str] | None:
    """Reads the options of `add_budget_options`.

    Args:
        args: The parsed command line.

    Returns:
        (kind, text) of the one that was given, for `costs.make_budget`; None for none.

    Raises:
        UserError: The amount has not the unit of --latency-in.
    """
    given = {kind: getattr(args, f"target_{kind}") for kind in TARGETS}
    kind, text = next(((kind, text) for kind, text in given.items() if text), (None, None))
    if kind is None:
        return None
    if kind == "latency":
        kind = "instructions" if args.latency_in.startswith(INSTRUCTIONS) else kind
        try:
            units.parse(kind, text)
        except ValueError as error:
            raise UserError(f"--target-latency in {args.latency_in}: {error}") from None
    return kind, text


def option(kind: str) -> str:
    """The option of a budget.

    Args:
        kind: See `costs.make_budget`.

    Returns:
        Such as "target_macs".
    """
    return f"target_{'latency' if kind == 'instructions' else kind}"


def add_device_option(group) -> None:
    """Adds `--target-device`.

    Args:
        group: A group of a parser.
    """
    rows = "; ".join(f"{name}: {row.device}, {row.backend}" for name, row in TARGET_DEVICES.items())
    group.add_argument(
        "--target-device",
        choices=tuple(TARGET_DEVICES),
        default="embedded",
        help=f"what int8 models are quantized for; {rows}; default: embedded",
    )


def add_conditions(group) -> None:
    """Adds what a target of int8 models and of latency depends on.

    Args:
        group: A group of a parser.
    """
    add_device_option(group)
    group.add_argument(
        "--threads", type=number(int, 1), default=1, metavar="N", help="of --target-latency; default: 1"
    )
    group.add_argument(
        "--latency-in",
        choices=("onnxruntime", *(INSTRUCTIONS + core for core in CORES)),
        default="onnxruntime",
        metavar="RUNTIME",
        help="where --target-latency is reached: onnxruntime, on this machine, or "
        f"{', '.join(INSTRUCTIONS + core for core in CORES)}, which counts what the int8 network in C "
        "executes (in QEMU, with arm-none-eabi-gcc); each layer is measured once and kept in --cache; "
        "default: onnxruntime",
    )


def add_width_option(group) -> None:
    """Adds `--width-multiple`, for scripts that prune.

    Args:
        group: A group of a parser.
    """
    group.add_argument(
        "--width-multiple",
        type=int,
        choices=(8, 16),
        help="the number of channels of a pruned layer is a multiple of this; 16 for Ethos-U, which stores "
        "16 channels at a time; default: 8",
    )


def add_engine_option(group, text: str = "run int8 checkpoints with this engine of torch") -> None:
    """Adds `--engine`, for scripts that run int8 models.

    Args:
        group: A group of a parser.
        text: What the engine is for.
    """
    group.add_argument(
        "--engine", choices=ENGINES,
        help=f"{text}; default: none, what is computed are the integers, as in ONNX Runtime and LiteRT",
    )  # fmt: skip
