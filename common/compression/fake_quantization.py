"""Fake quantization: how layers compute as if in int8 while they train, and what they observe.

torch's own, changed so that it computes what the int8 model will, in less time.
"""

import types

import torch
from torch import Tensor, fx, nn
from torch.ao.nn.intrinsic import qat as fused
from torch.ao.nn.intrinsic.qat import ConvBn2d, ConvBnReLU2d
from torch.ao.quantization import (
    FakeQuantize,
    QConfig,
    QConfigMapping,
    default_placeholder_observer,
    get_default_qat_qconfig_mapping,
)
from torch.nn import functional as F

from common.compression.observers import RangeObserver, SymmetricRangeObserver, WeightObserver
from common.compression.target_devices import TargetDevice

RELU6_MAX = 6.0
WITH_RELU = (
    *(fused.ConvBnReLU1d, fused.ConvBnReLU2d, fused.ConvBnReLU3d),
    *(fused.ConvReLU2d, fused.ConvReLU3d, fused.LinearReLU),
)


def qconfig_mapping(target: TargetDevice) -> QConfigMapping:
    """torch's defaults for a target device, changed so that fake quantization computes what int8 will.

    torch's default modules, which fuse observer and fake quantization, train with weight scales that differ
    by 1/255 from those of the converted model. And with weights from -128 to 127 the largest weight of a
    channel lies halfway between two integers, so that the least noise decides between them.

    Args:
        target: Its row in the table of target devices.

    Returns:
        What `prepare_qat_fx` needs.
    """
    observer, qscheme = RangeObserver, torch.per_tensor_affine
    if target.symmetric:
        observer, qscheme = SymmetricRangeObserver, torch.per_tensor_symmetric
    activation = FakeQuantizeValues.with_args(observer=observer, qscheme=qscheme, quant_min=0, quant_max=255)
    weight = FakeQuantizeValues.with_args(
        observer=WeightObserver,
        qscheme=torch.per_channel_symmetric,
        quant_min=target.weight_range[0],
        quant_max=target.weight_range[1],
        dtype=torch.qint8,
    )
    mapping = get_default_qat_qconfig_mapping(target.backend)
    mapping.set_global(QConfig(activation, weight))
    for norm in (nn.LayerNorm, F.layer_norm):  # its weights stay in float
        mapping.set_object_type(norm, QConfig(activation, default_placeholder_observer))
    return mapping


def clipped_layers(model: nn.Module) -> set[str]:
    """Finds what a ReLU6 clips: in int8 it becomes a ReLU, and 6 the largest value that 8 bits represent.

    Args:
        model: A float model that FX can trace.

    Returns:
        The names of the ReLU6 layers, and of the layers that they are fused with.
    """
    if not any(isinstance(module, nn.ReLU6) for module in model.modules()):
        return set()
    traced, names = fx.symbolic_trace(model), set()
    layers = dict(traced.named_modules(remove_duplicate=False))
    for node in traced.graph.nodes:
        if isinstance(layers.get(node.target), nn.ReLU6):
            names.add(node.target)
            source = node.args[0]
            if isinstance(layers.get(source.target), nn.BatchNorm2d):
                source = source.args[0]
            if isinstance(layers.get(source.target), nn.Conv2d | nn.Linear) and len(source.users) == 1:
                names.add(source.target)
    return names


def clip(prepared: fx.GraphModule, names: set[str]) -> None:
    """Lets the range of what a ReLU6 clipped end at 6.

    Args:
        prepared: What `prepare_qat_fx` returned; its observers are changed.
        names: The result of `clipped_layers` for the float model.
    """
    layers = dict(prepared.named_modules(remove_duplicate=False))
    for node in prepared.graph.nodes:
        observer = getattr(layers.get(node.target), "activation_post_process", None)
        if isinstance(observer, RangeObserver) and node.args[0].target in names:
            observer.limit = RELU6_MAX


class FakeQuantizeValues(FakeQuantize):
    """torch's fake quantization, with the same results in less time.

    torch's forward pass reads from the device whether it observes and quantizes: on CUDA it waits for that in
    each layer. Here the answers are attributes. And on a CPU the gradient of activations takes one pass.
    """

    def __init__(self, **settings):
        """Starts with both switched on.

        Args:
            **settings: Those of torch's class.
        """
        super().__init__(**settings)
        self.observes = self.quantizes = True

    def enable_observer(self, enabled: bool = True) -> None:
        """Switches the observer on or off.

        Args:
            enabled: Whether it is on.
        """
        super().enable_observer(enabled)
        self.observes = enabled

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Switches the quantization on or off.

        Args:
            enabled: Whether it is on.
        """
        super().enable_fake_quant(enabled)
        self.quantizes = enabled

    def raise_scale(self, lowest: Tensor) -> None:
        """Raises the scale to a bound, or above it, where it is lower.

        Args:
            lowest: The bound, float [channels] for a weight, [1] for an activation.
        """
        observer = self.activation_post_process
        raised = torch.where(self.scale < lowest, lowest * self.quant_max, observer.max_val)
        observer.max_val = raised.view_as(observer.max_val)
        self.scale.copy_(self.calculate_qparams()[0])

    def multiply_scale(self, factor: float) -> None:
        """Changes the scale of activations, and with it the range that they are clipped to.

        Args:
            factor: What the scale is multiplied by.
        """
        observer = self.activation_post_process
        observer.min_val, observer.max_val = observer.min_val * factor, observer.max_val * factor
        scale, zero_point = self.calculate_qparams()
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self.observes, self.quantizes = bool(self.observer_enabled), bool(self.fake_quant_enabled)

    def forward(self, x: Tensor) -> Tensor:
        """Observes the range of the values, and quantizes and dequantizes them.

        Args:
            x: float [...].

        Returns:
            float [...], values that 8 bits can represent.
        """
        if self.observes:
            self.activation_post_process(x.detach())
            scale, zero_point = self.calculate_qparams()
            if self.scale.shape != scale.shape:  # one for each channel, and the first values
                self.scale.resize_(scale.shape)
                self.zero_point.resize_(zero_point.shape)
            self.scale.copy_(scale)
            self.zero_point.copy_(zero_point)
        if not self.quantizes:
            return x
        grid = (self.quant_min, self.quant_max)
        if self.is_per_channel:
            return torch.fake_quantize_per_channel_affine(x, self.scale, self.zero_point, self.ch_axis, *grid)
        if self.dtype == torch.quint8 and x.device.type == "cpu":
            return _RoundStraightThrough.apply(x, self.scale, self.zero_point, *grid)
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, *grid)


class _RoundStraightThrough(torch.autograd.Function):
    """Fake quantization with a straight-through gradient where x is not clipped (Jacob et al., CVPR 2018,
    section 3).

    torch keeps a mask of these places and multiplies by it: two more passes over memory.
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


def use_fast_layers(prepared: nn.Module) -> None:
    """Replaces the forward pass of each fused convolution and batch norm by a faster one.

    Args:
        prepared: What `prepare_qat_fx` returned; changed in place.
    """
    for module in prepared.modules():
        if isinstance(module, ConvBn2d | ConvBnReLU2d):
            module.forward = types.MethodType(_convolve_and_normalize, module)


def _convolve_and_normalize(layer: ConvBn2d | ConvBnReLU2d, images: Tensor) -> Tensor:
    """What torch's fused layer computes, in a third of its time.

    The weight is multiplied by the scale of the batch norm, fake-quantized as it will be in int8, and divided
    by that scale again. torch divides the output of the convolution; since convolution is linear, the weight
    can be divided instead, which is small. Where the scale is 0, the batch norm multiplies by 0: the weight
    stays in float there, so that the channel can learn.
    """
    scale = (layer.bn.weight / torch.sqrt(layer.bn.running_var + layer.bn.eps)).view(-1, 1, 1, 1)
    zero = scale == 0
    quantized = layer.weight_fake_quant(layer.weight * scale) / scale.masked_fill(zero, 1)
    weight = torch.where(zero, layer.weight, quantized)
    output = layer.bn(layer._conv_forward(images, weight, layer.bias))
    return F.relu(output) if isinstance(layer, ConvBnReLU2d) else output


def use_exact_sums(prepared: fx.GraphModule, int8_model: fx.GraphModule) -> None:
    """Lets convolutions and linear layers add and round as the integers do; for evaluation only.

    In float32 the last bit of a sum depends on the order of its terms. Where a sum lies nearly halfway
    between two integers that decides between them, and a deep network amplifies it.

    Args:
        prepared: A model with fake quantization, its observers disabled; changed in place.
        int8_model: What it was converted to.
    """
    modules = dict(prepared.named_modules(remove_duplicate=False))
    for node in prepared.graph.nodes:
        layer = modules.get(node.target)
        if not hasattr(layer, "weight_fake_quant"):
            continue
        source, output = (modules.get(each.target) for each in (node.args[0], next(iter(node.users))))
        if all(isinstance(each, FakeQuantizeValues) for each in (source, output)):
            layer.scales = float(source.scale), float(output.scale)
            converted = int8_model.get_submodule(node.target)
            step = layer.weight_fake_quant.scale.double() * layer.scales[0]
            bias = torch.zeros(len(step)) if converted.bias() is None else converted.bias().detach()
            layer.register_buffer("integers", converted.weight().int_repr().float(), persistent=False)
            layer.register_buffer("bias_integers", (bias / step).round().float(), persistent=False)
            layer.forward = types.MethodType(_add_exactly, layer)


def _add_exactly(layer: nn.Module, values: Tensor) -> Tensor:
    """round(sum * m), with m = input scale * weight scale / output scale: see `integer.reference`."""
    input_scale, output_scale = layer.scales
    inputs, shape = torch.round(values / input_scale), (-1, *[1] * (values.ndim - 2))
    if isinstance(layer, nn.Linear):  # its channels are the last dimension
        sums, shape = F.linear(inputs, layer.integers), (-1,)
    else:
        sums = layer._conv_forward(inputs, layer.integers, None)
    sums = sums.round() + layer.bias_integers.view(shape)
    multipliers = layer.weight_fake_quant.scale * input_scale / output_scale
    outputs = torch.round(sums * multipliers.view(shape)) * output_scale
    return F.relu(outputs) if isinstance(layer, WITH_RELU) else outputs
