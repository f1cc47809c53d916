"""What people write for how much a model may cost: 2MB, 300M, 5ms, or 0.5 for half of what it was."""

import math
import re

UNITS = {
    "macs": {"": 1, "K": 1e3, "M": 1e6, "G": 1e9},
    "size": {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "latency": {"": 1, "us": 1e-3, "ms": 1, "s": 1e3},
}
SHOWN = {
    "parameters": lambda value: f"{value:,.0f} parameters",
    "macs": lambda value: f"{value:,.0f} MACs",
    "size": lambda value: f"{value:,.0f} bytes",
    "latency": lambda value: f"{value:.2f} ms",
}


def read(kind: str, text: str) -> tuple[float, bool]:
    """(amount, whether it is a share): of "macs", of "size" in bytes, or of "latency" in milliseconds.

    A number of at most 1 without a unit is a share of what the model costs before. Raises ValueError.
    """
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([A-Za-z]*)", text.strip())
    units = {unit.lower(): factor for unit, factor in UNITS[kind].items()}
    if not match or match[2].lower() not in units:
        known = ", ".join(unit for unit in UNITS[kind] if unit)
        raise ValueError(f"{text!r} is not a number with one of {known}, nor a share of at most 1")
    amount = float(match[1]) * units[match[2].lower()]
    if not 0 < amount < math.inf:
        raise ValueError(f"{text!r} must be above 0")
    return amount, not match[2] and amount <= 1


def exact(kind: str, amount: float) -> str:
    """The text that `read` takes for this amount, never for a share."""
    unit = {"macs": "K", "size": "B", "latency": "ms"}[kind]
    return f"{amount / UNITS[kind][unit]:.6f}{unit}"
