"""The target devices of int8 models: a row for each, with all that quantization has to know about it.

Imports no torch, so that `--help` prints at once.
"""

from dataclasses import dataclass

from common.system.errors import UserError


@dataclass(frozen=True)
class TargetDevice:
    """How models are quantized for a kind of device, and what runs them.

    Attributes:
        backend: torch's quantization backend; a checkpoint stores it, and finds its row by it.
        processor: What the device computes with, for `--help`.
        activation_bits: 8: activations use the values 0 to 255. 7: the observed range uses 0 to 127, so that
            kernels that add products of uint8 and int8 in 16 bits do not overflow (CPUs without VNNI).
        weight_range: Lowest and highest integer of a weight.
        per_channel: Whether each output channel of a weight has its own scale.
        engines: torch's engines that can compute with these activations and weights.
    """

    backend: str
    processor: str
    activation_bits: int
    weight_range: tuple[int, int]
    per_channel: bool
    engines: tuple[str, ...]


TARGET_DEVICES = {
    "server": TargetDevice(
        backend="fbgemm",
        processor="x86",
        activation_bits=7,
        weight_range=(-127, 127),
        per_channel=True,
        engines=("fbgemm", "onednn", "qnnpack", "x86"),
    ),
    "embedded": TargetDevice(
        backend="qnnpack",
        processor="ARM",
        activation_bits=8,
        weight_range=(-127, 127),
        per_channel=False,
        engines=("qnnpack",),
    ),
}
ENGINES = tuple(sorted({engine for device in TARGET_DEVICES.values() for engine in device.engines}))


def by_backend(backend: str) -> TargetDevice:
    """Finds the row of a backend that a checkpoint names.

    Args:
        backend: Such as "fbgemm".

    Returns:
        The target device.

    Raises:
        UserError: No row has this backend.
    """
    for device in TARGET_DEVICES.values():
        if device.backend == backend:
            return device
    known = ", ".join(device.backend for device in TARGET_DEVICES.values())
    raise UserError(f"unknown quantization backend {backend!r}; this version knows {known}")
