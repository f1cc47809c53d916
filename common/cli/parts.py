"""Microcontrollers by name: the memory that a network and the rest of a program share.

Imports no torch, so that `--help` prints at once.
"""

import argparse
from dataclasses import dataclass

from common.cli import targets
from common.system import units

KIB = 1024


@dataclass(frozen=True)
class Part:
    """A microcontroller.

    Attributes:
        ram: Bytes of the largest RAM without a gap.
        flash: Bytes.
        core: What computes.
    """

    ram: int
    flash: int
    core: str = ""


# Source: the device files of the Python package modm-devices, version 0.13.1
PARTS = {
    "stm32f411re": Part(128 * KIB, 512 * KIB, "Cortex-M4"),
    "stm32f446re": Part(128 * KIB, 512 * KIB, "Cortex-M4"),
    "nrf52833": Part(128 * KIB, 512 * KIB, "Cortex-M4"),
    "stm32wb55rg": Part(192 * KIB, 1024 * KIB, "Cortex-M4"),
    "nrf52840": Part(256 * KIB, 1024 * KIB, "Cortex-M4"),
    "samd51j20": Part(256 * KIB, 1024 * KIB, "Cortex-M4"),
    "stm32f722ze": Part(256 * KIB, 512 * KIB, "Cortex-M7"),
    "stm32f746ng": Part(320 * KIB, 1024 * KIB, "Cortex-M7"),
    "same70q21": Part(384 * KIB, 2048 * KIB, "Cortex-M7"),
    "stm32f767zi": Part(512 * KIB, 2048 * KIB, "Cortex-M7"),
    "stm32h743zi": Part(512 * KIB, 2048 * KIB, "Cortex-M7"),
    "stm32h563zi": Part(640 * KIB, 2048 * KIB, "Cortex-M33"),
    "stm32u585ai": Part(768 * KIB, 2048 * KIB, "Cortex-M33"),
    "stm32h7a3zi": Part(1024 * KIB, 2048 * KIB, "Cortex-M7"),
}
PROGRAM = Part(16 * KIB, 32 * KIB)  # what is left for the stack, the code and the rest of the program


def limits(args: argparse.Namespace) -> tuple[int, int] | None:
    """The memory that a network in C may use; sets the options of the budget to its flash.

    Args:
        args: The parsed command line, with `--part` and the options of `targets.add_budget_options`.

    Returns:
        Bytes of RAM and of flash, of `--part` or of `--target-ram` with `--target-size`; None for another
        budget.

    Raises:
        ValueError: There is no budget, or there are others together.
    """
    given = {kind for kind in targets.TARGETS if getattr(args, f"target_{kind}")}
    if args.part and not given:
        part = PARTS[args.part]
        ram, flash = part.ram - PROGRAM.ram, part.flash - PROGRAM.flash
    elif not args.part and given == {"ram", "size"}:
        amounts = {kind: units.parse(kind, getattr(args, f"target_{kind}")) for kind in given}
        if any(is_fraction for _, is_fraction in amounts.values()):
            raise ValueError("--target-ram with --target-size: both must be in bytes")
        ram, flash = (int(amounts[kind][0]) for kind in ("ram", "size"))
    elif not args.part and len(given) == 1:
        return None
    else:
        raise ValueError("give one --target, --target-ram with --target-size, or --part")
    args.target_ram, args.target_size = None, f"{flash}B"
    return ram, flash
