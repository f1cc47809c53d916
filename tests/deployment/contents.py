"""The content of a checkpoint, for the tests that write it as ONNX."""

from torch import nn

from common.compression import int8_state
from common.compression.target_devices import TargetDevice
from common.models import architectures, checkpoint, lineage
from tests.compression.networks import SIDE


def content_of(
    arch: str, model: nn.Module, int8_model: nn.Module | None = None, target: TargetDevice | None = None
) -> dict:
    """A checkpoint with five classes: of the float `model`, or with `target` of its int8 form."""
    return {
        **lineage.new_checkpoint(arch, [*"abcd", "Ägyptische Mau"], SIDE),
        "stage": "quantized" if target else "teacher",
        "state_dict": int8_state.extract(int8_model) if target else checkpoint.float_state(model),
        "int8": {"backend": target.backend, "float_shapes": architectures.shapes(model)} if target else None,
        "metrics": {"top1": 0.5, "ci95": [0.4, 0.6], "n": 10, "params": 1, "macs": 1},
    }
