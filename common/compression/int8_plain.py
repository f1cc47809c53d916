"""Int8 models to be read and not run, built without torch's quantized kernels: for older files."""

from types import SimpleNamespace
from unittest import mock

import torch
from torch import fx, nn
from torch.ao.quantization.fx import _lower_to_native_backend as lowering

from common.compression import quantization
from common.compression.target_devices import TargetDevice
from common.integer.fx_grids import PlainLayer
from common.integer.plain import layers_of


def build(float_model: nn.Module, target: TargetDevice, image_size: int, state: dict) -> fx.GraphModule:
    """Builds an int8 model for `from_fx.read`: its convolutions and Linears are `PlainLayer`s.

    Args:
        float_model: The architecture and its widths; changed in place.
        target: The device that the weights were quantized for.
        image_size: Side of the images, in pixels.
        state: The result of `int8_state.extract`.

    Returns:
        The model, on the CPU.

    Raises:
        KeyError, RuntimeError: Names or types of the state do not fit.
    """
    with mock.patch.dict(lowering.STATIC_LOWER_MODULE_MAP, _plain(lowering.STATIC_LOWER_MODULE_MAP)):
        fused = lowering.STATIC_LOWER_FUSED_MODULE_MAP
        with mock.patch.dict(fused, {kind: (fused[kind][0], each) for kind, each in _plain(fused).items()}):
            model = quantization.skeleton(float_model, target, image_size)
    _load(model, state)
    return model


def _plain(kinds: dict) -> dict:
    """What torch calls in place of its quantized layers, which would pack their weights for a kernel."""
    return dict.fromkeys(kinds, SimpleNamespace(from_reference=_from_reference))


def _from_reference(layer: nn.Module, _scale, _zero_point) -> PlainLayer:
    fused = isinstance(layer, nn.Sequential)
    return PlainLayer(layer[0] if fused else layer, relu=fused)


def _load(model: fx.GraphModule, state: dict) -> None:
    integers, rest = layers_of(state), dict(state)
    for name, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, PlainLayer):
            layer.integers = integers[name]
            layer.scale, layer.zero_point = float(state[f"{name}.scale"]), int(state[f"{name}.zero_point"])
            rest = {key: value for key, value in rest.items() if not key.startswith(f"{name}.")}
    own = model.state_dict()
    model.load_state_dict(
        {key: torch.full_like(own[key], each) if isinstance(each, int | float) else each
         for key, each in rest.items()}
    )  # fmt: skip
