"""Amounts with units: 2MB, 300M MACs or instructions, 5ms, or 0.5 for half of what the model costs now."""

import math
import re

BYTES = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "KiB": 2**10, "MiB": 2**20}
COUNTS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}
UNITS = {
    "macs": COUNTS,
    "instructions": COUNTS,
    "size": BYTES | {"GB": 1e9, "GiB": 2**30},
    "latency": {"": 1, "us": 1e-3, "ms": 1, "s": 1e3},
    "ram": BYTES,
}
EXACT_UNITS = {"macs": "K", "instructions": "K", "size": "B", "latency": "ms", "ram": "B"}
FORMATS = {
    "parameters": "{:,.0f} parameters",
    "macs": "{:,.0f} MACs",
    "instructions": "{:,.0f} instructions",
    "size": "{:,.0f} bytes",
    "latency": "{:.2f} ms",
    "ram": "{:,.0f} bytes of RAM",
}
CONDITIONS = {"ram": "layer by layer"}  # where none are given


def parse(kind: str, text: str) -> tuple[float, bool]:
    """Reads an amount.

    Args:
        kind: "macs", "instructions", "size" (bytes), "latency" (milliseconds) or "ram" (bytes).
        text: A number with a unit, such as "2MB". A number of at most 1 without a unit is a fraction of what
            the model costs now.

    Returns:
        (amount, is_fraction): the amount is in MACs, instructions, bytes or milliseconds, or a fraction from
        0 to 1.

    Raises:
        ValueError: `text` is not an amount of this kind.
    """
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([A-Za-z]*)", text.strip())
    units = {unit.lower(): factor for unit, factor in UNITS[kind].items()}
    if not match or match[2].lower() not in units:
        known = ", ".join(unit for unit in UNITS[kind] if unit)
        raise ValueError(f"{text!r} is not a number with one of {known}, nor a fraction of at most 1")
    amount = float(match[1]) * units[match[2].lower()]
    if not 0 < amount < math.inf:
        raise ValueError(f"{text!r} must be above 0")
    return amount, not match[2] and amount <= 1


def format_exact(kind: str, amount: float) -> str:
    """Writes an amount so that `parse` reads the same value, and never a fraction.

    Args:
        kind: "macs", "instructions", "size", "latency" or "ram".
        amount: In MACs, instructions, bytes or milliseconds.

    Returns:
        The amount with a unit and six decimals.
    """
    unit = EXACT_UNITS[kind]
    return f"{amount / UNITS[kind][unit]:.6f}{unit}"


def describe(kind: str, amount: float, precision: str = "fp32", conditions: str = "") -> str:
    """Writes an amount for a reader.

    Args:
        kind: "parameters", "macs", "instructions", "size", "latency" or "ram".
        amount: In parameters, MACs, instructions, bytes or milliseconds.
        precision: "fp32", or "int8" where the amount is that of the quantized model.
        conditions: How it was measured, such as the engine and the CPU; may begin with the precision.

    Returns:
        Such as "1,200,000 bytes (int8)".
    """
    conditions = conditions or CONDITIONS.get(kind, "")
    named = precision == "int8" and not conditions.startswith(precision)
    notes = [precision] * named + [conditions] * bool(conditions)
    return FORMATS[kind].format(amount) + (f" ({', '.join(notes)})" if notes else "")
