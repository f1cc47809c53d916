"""The options of budgets, target devices and engines.

Imports no torch, so that `--help` prints at once.
"""

import argparse

from common.cli.options import RAM_SCHEDULE, RAM_SCHEDULES
from common.cli.parser import Parser, amount, number
from common.compression.target_devices import ENGINES, TARGET_DEVICES
from common.system import units
from common.system.errors import UserError

IMPORTANCES = ("reconstruction", "lamp", "magnitude", "taylor", "bn-scale", "random")
SCOPES = ("local", "global", "isomorphic")
TARGETS = {
    "macs": "multiply-accumulates: 0.5 for half of them, or 300M",
    "size": "the file: 2MB, 500KB, or a fraction of the file now, in float32",
    "latency": "for one image in --latency-in: 5ms, 300M instructions, or a fraction of the latency now",
    "ram": "for one image: the peak of the activations, layer by layer, at 4 bytes for each value, in "
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


def add_precision_options(group) -> None:
    """Adds `--target-precision` and `--ram-schedule`, for scripts that prune once; see `with_precision`.

    Args:
        group: A group of a parser.
    """
    group.add_argument(
        "--target-precision", choices=("fp32", "int8"),
        help="int8: the target is for what train_quantization.py will create, and a fraction of latency or "
        "RAM is one of the unpruned network in int8; default: fp32, with rows or camera int8",
    )  # fmt: skip
    group.add_argument(
        "--ram-schedule", choices=RAM_SCHEDULES,
        help="rows or camera: --target-ram is for the static array of the network in C, which export.py "
        f"--schedule writes; {RAM_SCHEDULE}; default: layers",
    )  # fmt: skip


def with_precision(parser: Parser, args: argparse.Namespace) -> argparse.Namespace:
    """Settles the options of `add_precision_options`: a network in C is int8.

    Args:
        parser: Reports a mistake.
        args: The parsed command line.

    Returns:
        The same, with a precision.
    """
    in_c = args.ram_schedule in RAM_SCHEDULES[1:]
    if args.ram_schedule and not args.target_ram:
        parser.error("--ram-schedule needs --target-ram")
    if in_c and args.target_precision == "fp32":
        parser.error(f"--ram-schedule {args.ram_schedule} is of C, which has no --target-precision fp32")
    args.target_precision = args.target_precision or ("int8" if in_c else "fp32")
    return args


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


def add_bits_options(group) -> None:
    """Adds `--weight-bits` and what depends on it.

    Args:
        group: A group of a parser.
    """
    group.add_argument(
        "--weight-bits",
        choices=("8", "4", "mixed"),
        default="8",
        help="of all layers; or mixed: 8 where 4 would change the predictions most for the bytes that "
        "it saves; default: 8",
    )
    group.add_argument(
        "--target-size",
        type=amount("size"),
        metavar="AMOUNT",
        help=f"of --weight-bits mixed: {TARGETS['size']}; default: as small as the predictions allow",
    )
    group.add_argument(
        "--weight-rounding",
        choices=("nearest", "compensated"),
        help="before the training: to the nearest integers, or so that the errors in a layer compensate "
        "each other (GPTQ); default: compensated below 8 bits",
    )


def settle_bits(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Sets the default that depends on the bits, and refuses a size without `mixed`.

    Args:
        parser: For the error.
        args: The parsed command line; changed.
    """
    if args.target_size and args.weight_bits != "mixed":
        parser.error("--target-size needs --weight-bits mixed")
    args.weight_rounding = args.weight_rounding or ("nearest" if args.weight_bits == "8" else "compensated")


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
