"""A sum of products in steps of its output: the two roundings of runtimes (see `reference`)."""

import numpy as np
import torch
from torch import Tensor


def scaled_once(sums: Tensor, first: float, second: float | Tensor, divisor: float) -> Tensor:
    """round(sum * m), half to even, with m = first * second / divisor, all in float32.

    Source: `xnn_qs8_requantize_fp32` of XNNPACK; `MlasRequantizeOutput` of ONNX Runtime.

    Args:
        sums: Integers [N, ...].
        first: Scale of the input.
        second: Scales of the weights, or that of another input.
        divisor: Scale of the output.

    Returns:
        float32 [N, ...], integers.
    """
    return torch.round(sums.float() * multiplier(first, second, divisor))


def multiplier(first: float, second: float | Tensor, divisor: float) -> Tensor:
    """What `scaled_once` multiplies a sum by.

    Args:
        first: See `scaled_once`, also for the others.
        second: See there.
        divisor: See there.

    Returns:
        float32, of the shape of `second`.
    """
    second = torch.as_tensor(second, dtype=torch.float32)
    return torch.tensor(first, dtype=torch.float32) * second / np.float32(divisor)


def scaled_twice(sums: Tensor, first: float, second: float | Tensor, divisor: float) -> Tensor:
    """The sum times q * 2^shift, with q an integer of 31 bits; the product rounds, and the shift rounds.

    Source: `MultiplyByQuantizedMultiplier` of TensorFlow Lite, with two roundings: the high half of the
    doubled product rounds half up, and the division by a power of two half away from zero.

    Args:
        sums: See `scaled_once`, also for the others.
        first: See there.
        second: See there.
        divisor: See there.

    Returns:
        int64 [N, ...].
    """
    q, shift = fixed_point(first, second, divisor)
    left, right = (-shift).clamp(0, 30), shift.clamp(0)
    limit = 2**31 >> left  # a larger sum gives at least 2^30, more than any output
    high = ((sums.long().clamp(-limit, limit) << left) * q + 2**30) >> 31
    rest, mask = high & ((1 << right) - 1), (1 << right) - 1
    return (high >> right) + (rest > (mask >> 1) + (high < 0).long())


def fixed_point(first: float, second: float | Tensor, divisor: float) -> tuple[Tensor, Tensor]:
    """What `scaled_twice` multiplies a sum by: q * 2^-31 * 2^-shift.

    Source: `QuantizeMultiplier` of TensorFlow Lite.

    Args:
        first: See `scaled_once`, also for the others.
        second: See there.
        divisor: See there.

    Returns:
        int64 q, from 2^30 to 2^31 - 1, or 0 for a factor below 2^-32; int64 shift, up to 31.
    """
    real = first * torch.as_tensor(second, dtype=torch.float64) / divisor
    mantissa, exponent = torch.frexp(real)
    q = torch.floor(mantissa * 2**31 + 0.5).long()
    q, exponent = torch.where(q == 2**31, q // 2, q), torch.where(q == 2**31, exponent + 1, exponent)
    return torch.where(exponent < -31, 0, q), (-exponent).clamp(max=31).long()
