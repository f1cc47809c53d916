"""The integers of a hard swish, x * relu6(x + 3) / 6, as TensorFlow Lite computes them in 16 bits.

Source: `HardSwish` of tensorflow/lite/kernels/internal/reference/reference_ops.h, whose integers all its
kernels have; gemmlowp's fixed-point arithmetic.
"""

import math

import numpy as np

from common.integer.graph import HIGH, LOW, Tensor

REAL_3 = 3 / 2**15  # the scale with which 3 is the largest number of 16 bits
LOWEST16, HIGHEST16 = -(2**15), 2**15 - 1


def table(before: Tensor, after: Tensor) -> np.ndarray | None:
    """Tabulates the function.

    Args:
        before: Its input; the shape does not count.
        after: Its output.

    Returns:
        int8 [256], for the inputs -128 to 127; None where the output scale is too small for 16 bits.
    """
    step = before.scale / 128
    output, output_shift = _multiplier(step / after.scale)
    gate, gate_shift = _multiplier(step / REAL_3)
    if output_shift > 0:
        return None
    values = (np.arange(LOW, HIGH + 1) - before.zero_point) * 128
    gates = _saturated(values << max(gate_shift - 1, 0))
    gates = _high_product(gates, gate)
    gates = _saturated(gates << int(gate_shift > 0))
    gates = (_shifted_right(gates, max(-gate_shift, 0)) + 2**15) >> 1  # from 0 to 1, with 15 bits
    products = _saturated(_quotient(gates * _high_product(values, output), 2**15))
    outputs = _shifted_right(products, -output_shift) + after.zero_point
    return outputs.clip(LOW, HIGH).astype(np.int8)


def _multiplier(real: float) -> tuple[int, int]:
    """A number as an integer of 15 bits times 2^(shift - 15)."""
    mantissa, shift = math.frexp(real)
    wide = math.floor(mantissa * 2**31 + 0.5)
    if wide == 2**31:
        wide, shift = 2**30, shift + 1
    return min((wide + 2**15) >> 16, HIGHEST16), shift


def _saturated(values: np.ndarray) -> np.ndarray:
    return values.clip(LOWEST16, HIGHEST16)


def _high_product(values: np.ndarray, factor: int) -> np.ndarray:
    """The high half of the doubled product, rounded."""
    products = values * factor
    return _saturated(_quotient(products + np.where(products >= 0, 2**14, 1 - 2**14), 2**15))


def _quotient(values: np.ndarray, divisor: int) -> np.ndarray:
    """Rounded towards 0, as in C."""
    return np.sign(values) * (np.abs(values) // divisor)


def _shifted_right(values: np.ndarray, bits: int) -> np.ndarray:
    """Divided by a power of two, halves away from 0."""
    mask = (1 << bits) - 1
    return (values >> bits) + ((values & mask) > (mask >> 1) + (values < 0))
