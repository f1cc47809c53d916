"""Layers that FX quantization does not convert correctly, and what takes their places before it."""

from torch import nn
from torchvision.ops import StochasticDepth


def replace_layers(model: nn.Module) -> None:
    """Replaces ReLU6, dropout, stochastic depth, ELU and PReLU.

    Args:
        model: The float model; changed in place.
    """
    for module in list(model.modules()):
        if hasattr(module, "drop_rate"):
            module.drop_rate = 0.0  # of dropout that is called as a function
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                # a ReLU is fused into the convolution before it, a ReLU6 is not; and the qnnpack engine of
                # torch 2.14 returns the elements of a quantized ReLU6 in the wrong order; see clipped_layers
                setattr(module, name, nn.ReLU(inplace=child.inplace))
            elif isinstance(child, nn.Dropout | StochasticDepth):
                # the tracer would record stochastic depth in training mode: the int8 model would drop layers
                # at random; and it would give dropout scales of its own, which the int8 model does not apply
                setattr(module, name, _NoDropout())
            elif type(child) in TRACED:
                child.__class__ = TRACED[type(child)]


class _NoDropout(nn.Identity):
    p = 0.0  # attention reads it


class _TracedELU(nn.ELU):
    """One that FX traces as a function: the state dict of torch's int8 layer lacks its scale."""


class _TracedPReLU(nn.PReLU):
    """One that FX traces as a function: the state dict of torch's int8 layer lacks its weight too."""


TRACED = {nn.ELU: _TracedELU, nn.PReLU: _TracedPReLU}
