"""Fake quantization: how layers compute as if in int8 while they train, and what they observe.

torch's own, changed so that it computes what the int8 model will, in less time.
"""

import types

import torch
from torch import Tensor, nn
from torch.ao.nn.intrinsic.qat import ConvBn2d, ConvBnReLU2d
from torch.ao.quantization import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    QConfig,
    QConfigMapping,
    default_placeholder_observer,
    get_default_qat_qconfig_mapping,
)
from torch.nn import functional as F


def qconfig_mapping(backend: str) -> QConfigMapping:
    """torch's defaults for `backend`, changed so that fake quantization computes what the int8 model will.

    The fused fake-quant modules that are torch's default train with weight scales that are 1/255 off those
    that are converted; and from -128 to 127 the largest weight of a channel lies halfway between two
    integers, so that the least noise decides which of them it becomes.
    """
    weight = {
        "quant_min": -127,
        "quant_max": 127,
        "dtype": torch.qint8,
        "observer": MovingAverageMinMaxObserver,
    }
    if backend == "fbgemm":
        activation = FakeQuantizeActivation.with_args(observer=SevenBitObserver, quant_min=0, quant_max=255)
        weight |= {"qscheme": torch.per_channel_symmetric, "observer": MovingAveragePerChannelMinMaxObserver}
    else:
        activation = FakeQuantizeActivation.with_args(observer=RangeObserver, quant_min=0, quant_max=255)
        weight |= {"qscheme": torch.per_tensor_symmetric}
    mapping = get_default_qat_qconfig_mapping(backend)
    mapping.set_global(QConfig(activation, FakeQuantize.with_args(**weight)))
    for norm in (nn.LayerNorm, F.layer_norm):  # its weights stay in float
        mapping.set_object_type(norm, QConfig(activation, default_placeholder_observer))
    return mapping


class FakeQuantizeActivation(FakeQuantize):
    """torch's fake quantization of a whole tensor, on a CPU with a faster way to the same gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """x as uint8 and back, float [...], after its range was observed."""
        if x.device.type != "cpu" or not self.fake_quant_enabled[0]:
            return super().forward(x)
        if self.observer_enabled[0]:
            self.activation_post_process(x.detach())
            scale, zero_point = self.calculate_qparams()
            self.scale.copy_(scale)
            self.zero_point.copy_(zero_point)
        return _RoundStraightThrough.apply(x, self.scale, self.zero_point, self.quant_min, self.quant_max)


class _RoundStraightThrough(torch.autograd.Function):
    """Fake quantization, whose gradient passes where x is not cut off (Jacob et al., CVPR 2018, section 3).

    torch keeps a mask of these places and multiplies by it: two passes over memory more.
    """

    @staticmethod
    def forward(ctx, x, scale, zero_point, low, high):
        ctx.save_for_backward(x)
        step, zero = float(scale), int(zero_point)
        ctx.bounds = ((low - 0.5 - zero) * step, (high + 0.5 - zero) * step)
        return torch.fake_quantize_per_tensor_affine(x, step, zero, low, high)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, x, *ctx.bounds), None, None, None, None


class RangeObserver(MovingAverageMinMaxObserver):
    """torch's moving average of the least and the greatest value, without a copy of channels_last tensors."""

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x.permute(0, 2, 3, 1) if x.ndim == 4 else x)
        return x


class SevenBitObserver(RangeObserver):
    """Spreads the range that it has seen over the values 0 to 127, and leaves 128 to 255 to what lies beyond.

    With 7 bits the kernels of CPUs without VNNI do not overflow, as with torch's `reduce_range`. But that
    cuts fake quantization off at 127, while the int8 model goes on to 255.
    """

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """(scale float32 [1], zero point int32 [1]) for uint8."""
        scale, zero_point = super().calculate_qparams()
        return scale * 255 / 127, (zero_point * 127 / 255).round().to(zero_point.dtype)


def use_fast_layers(prepared: nn.Module) -> None:
    """Gives each fused convolution and batch norm of `prepared` a faster way to the same answer."""
    for module in prepared.modules():
        if isinstance(module, ConvBn2d | ConvBnReLU2d):
            module.forward = types.MethodType(_convolve_and_normalise, module)


def _convolve_and_normalise(layer: ConvBn2d | ConvBnReLU2d, images: Tensor) -> Tensor:
    """What torch's fused layer computes, in a third of its time.

    The weight is fake-quantized as it will be in int8, times the scale of the batch norm, which is then taken
    out again. torch divides the output of the convolution by it; since convolution is linear, it can as well
    be the weight, which is small.
    """
    scale = (layer.bn.weight / torch.sqrt(layer.bn.running_var + layer.bn.eps)).view(-1, 1, 1, 1)
    weight = layer.weight_fake_quant(layer.weight * scale) / scale
    answer = layer.bn(
        F.conv2d(images, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    )
    return F.relu(answer) if isinstance(layer, ConvBnReLU2d) else answer
