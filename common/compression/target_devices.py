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
        device: What it is, for `--help`.
        weight_range: Lowest and highest integer of a weight. Activations use 0 to 255. With weights from -63
            to 63 the sum of two products is at most 255 * 63 * 2 = 32,130, which 16 bits can hold: kernels
            for CPUs without VNNI add them so, and do not overflow.
        symmetric: Whether the zero point of all activations is 128, which is 0 once 128 is subtracted. Values
            after a ReLU then have 7 bits.
    """

    backend: str
    device: str
    weight_range: tuple[int, int]
    symmetric: bool = False


TARGET_DEVICES = {
    "server": TargetDevice(backend="fbgemm", device="x86", weight_range=(-63, 63)),
    "embedded": TargetDevice(backend="qnnpack", device="ARM", weight_range=(-127, 127)),
    "symmetric": TargetDevice(
        backend="qnnpack",
        device="runtimes that need zero points of 0",
        weight_range=(-127, 127),
        symmetric=True,
    ),
}
ENGINES = ("fbgemm", "onednn", "qnnpack", "x86")  # torch's, of all platforms


def by_backend(backend: str) -> TargetDevice:
    """Finds the first row of a backend that a checkpoint names: which engines can run its models.

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
    known = ", ".join(dict.fromkeys(device.backend for device in TARGET_DEVICES.values()))
    raise UserError(f"unknown quantization backend {backend!r}; this version knows {known}")
