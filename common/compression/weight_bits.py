"""Weights of 4 bits beside those of 8: the ranges of their integers, and the scales of 15 values.

The largest weight of a channel sets the scale of 8 bits. With 4 bits a smaller range is better: a few
weights are clipped, and all others are rounded in finer steps. The range with the least squared error is used
(Nagel et al., "A White Paper on Neural Network Quantization", arXiv:2106.08295, section 3.1).
"""

import torch
from torch import Tensor, fx, nn
from torch.ao.nn.intrinsic.qat import ConvBn2d, ConvBnReLU2d

from common.compression.fake_quantization import FakeQuantizeValues
from common.compression.observers import WeightObserver
from common.integer import nibbles

RANGE = (-nibbles.LARGEST, nibbles.LARGEST)
FRACTIONS = torch.linspace(0.4, 1, 31).tolist()  # of the largest absolute value of a channel


class ClippedWeightObserver(WeightObserver):
    """Sets the range of each channel once: that of the least squared error of the weights.

    The scales stay while the network trains. A range that follows the largest weight would shrink.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Observes the first weights that it gets.

        Args:
            x: float [O, ...].

        Returns:
            `x` itself.
        """
        if not self.min_val.numel():
            fraction = best_fraction(x.detach().flatten(1), self.quant_max)
            super().forward(x.detach() * fraction.view(-1, *[1] * (x.ndim - 1)))
        return x


def best_fraction(weight: Tensor, largest: int) -> Tensor:
    """Searches the range of each channel whose squared error of rounding and clipping is the least.

    Args:
        weight: float [O, K].
        largest: The largest integer.

    Returns:
        Fractions of the largest absolute value of the channel, float [O].
    """
    limits = weight.abs().amax(1).clamp(min=torch.finfo(weight.dtype).tiny)
    errors = []
    for fraction in FRACTIONS:
        step = (limits * fraction / largest).unsqueeze(1)
        rounded = (weight / step).round().clamp(-largest, largest) * step
        errors.append((rounded - weight).square().sum(1))
    return torch.tensor(FRACTIONS).to(weight)[torch.stack(errors).argmin(0)]


def layers_of(prepared: fx.GraphModule) -> dict[str, nn.Module]:
    """The layers whose weights are quantized.

    Args:
        prepared: A model with fake quantization.

    Returns:
        Modules by name, in the order in which they run.
    """
    modules = dict(prepared.named_modules(remove_duplicate=False))
    names = dict.fromkeys(node.target for node in prepared.graph.nodes if node.op == "call_module")
    return {name: modules[name] for name in names if hasattr(modules[name], "weight_fake_quant")}


def use_4_bits(layer: nn.Module) -> None:
    """Lets the weights of a layer have 4 bits; they are observed at once.

    Args:
        layer: One of `layers_of`; changed in place.
    """
    layer.weight_fake_quant = FakeQuantizeValues(
        observer=ClippedWeightObserver, qscheme=torch.per_channel_symmetric, dtype=torch.qint8,
        quant_min=RANGE[0], quant_max=RANGE[1],
    ).to(layer.weight.device)  # fmt: skip
    layer.weight_fake_quant(layer.weight * factor_of(layer))


def has_4_bits(layer: nn.Module) -> bool:
    """Whether the weights of a layer have 4 bits.

    Args:
        layer: One of `layers_of`.

    Returns:
        False for 8 bits.
    """
    return layer.weight_fake_quant.quant_max == RANGE[1]


def factor_of(layer: nn.Module) -> Tensor:
    """What the weight is multiplied by before it is quantized: the scale of the batch norm.

    Args:
        layer: One of `layers_of`.

    Returns:
        float, of a shape that the weight can be multiplied by; 1 without a batch norm.
    """
    if not isinstance(layer, ConvBn2d | ConvBnReLU2d):
        return torch.ones((), device=layer.weight.device)
    return (layer.bn.weight / torch.sqrt(layer.bn.running_var + layer.bn.eps)).detach().view(-1, 1, 1, 1)


def bias_of(layer: nn.Module) -> nn.Parameter | None:
    """What is added to the outputs of a layer.

    Args:
        layer: One of `layers_of`.

    Returns:
        The bias of its batch norm, else its own; None without either.
    """
    return layer.bn.bias if isinstance(layer, ConvBn2d | ConvBnReLU2d) else layer.bias


@torch.no_grad()
def set_weight(layer: nn.Module, quantized: Tensor) -> None:
    """Gives a layer the weight that is `quantized` once it is multiplied by the scale of the batch norm.

    Args:
        layer: One of `layers_of`; changed in place.
        quantized: float, of the shape of the weight.
    """
    factor = factor_of(layer)
    weight = quantized / factor.masked_fill(factor == 0, 1)
    layer.weight.copy_(torch.where(factor == 0, layer.weight, weight))


@torch.no_grad()
def clip(prepared: fx.GraphModule) -> None:
    """Clips weights of 4 bits to their range: torch's conversion clips to 8 bits only.

    Args:
        prepared: A model with fake quantization, its observers disabled; changed in place.
    """
    for layer in filter(has_4_bits, layers_of(prepared).values()):
        scale = layer.weight_fake_quant.scale.view(-1, *[1] * (layer.weight.ndim - 1))
        weight = layer.weight * factor_of(layer)
        set_weight(layer, torch.clamp(weight, RANGE[0] * scale, RANGE[1] * scale))
