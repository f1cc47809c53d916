import copy

import pytest
import torch
from torch.ao.quantization import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    disable_fake_quant,
    disable_observer,
)

from common.compression import fake_quantization, quantization
from tests.compression.networks import EMBEDDED, SIDE, each_target, random_network


def test_the_observed_range_is_mapped_to_seven_bits():
    observer = fake_quantization.SevenBitObserver(quant_min=0, quant_max=255, dtype=torch.quint8)
    observer(torch.tensor([-1.0, 3.0]))
    scale, zero_point = observer.calculate_qparams()
    assert scale.item() == pytest.approx(4 / 127) and zero_point.item() == round(127 / 4)


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2"])
def test_the_fused_layers_have_the_outputs_and_gradients_of_those_of_torch(arch):
    fast = quantization.trace(random_network(arch), EMBEDDED, SIDE).train()
    slow = copy.deepcopy(fast)
    for module in slow.modules():
        module.__dict__.pop("forward", None)  # back to that of torch
    pairs = [
        (one, other)
        for one, other in zip(fast.modules(), slow.modules(), strict=True)
        if "forward" in vars(one)
    ]
    assert len(pairs) >= 20 and {type(one).__name__ for one, _ in pairs} == {"ConvBn2d", "ConvBnReLU2d"}
    for one, other in pairs:
        images = torch.randn(4, one.in_channels, 8, 8).requires_grad_()
        outputs = one(images), other(images)
        assert torch.allclose(*outputs, atol=1e-4)
        assert torch.allclose(one.bn.running_var, other.bn.running_var, rtol=1e-4, atol=1e-6)
        direction = torch.randn_like(outputs[0])
        gradients = [
            torch.autograd.grad(
                (output * direction).sum(), [images, layer.weight, layer.bn.weight, layer.bn.bias]
            )
            for output, layer in zip(outputs, (one, other), strict=True)
        ]
        for actual, expected in zip(*gradients, strict=True):
            # a few values lie halfway between two integers, and their last bit decides
            assert (actual - expected).norm() < 0.02 * expected.norm() + 1e-4


@each_target
def test_activations_are_fake_quantized_as_by_torch_with_the_same_gradient(target):
    own = fake_quantization.qconfig_mapping(target).global_qconfig.activation()
    observer = {7: fake_quantization.SevenBitObserver, 8: MovingAverageMinMaxObserver}[target.activation_bits]
    torchs = FakeQuantize(observer=observer, quant_min=0, quant_max=255)
    for scale in (1.0, 4.0):  # the second batch exceeds the moving average: its ends are clipped
        x = scale * torch.randn(4, 6, 9, 9).contiguous(memory_format=torch.channels_last)
        results = []
        for module in (own, torchs):
            values = x.clone().requires_grad_()
            output = module(values)
            output.square().sum().backward()
            results.append((output, values.grad))
        assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert own.scale == torchs.scale and own.zero_point == torchs.zero_point
    if target.activation_bits == 8:
        assert (results[1][1] == 0).any()


def test_a_disabled_observer_and_disabled_fake_quantization_have_no_effect():
    module = fake_quantization.qconfig_mapping(EMBEDDED).global_qconfig.activation()
    module(torch.linspace(-1, 1, 50))
    scale = module.scale.clone()
    module.apply(disable_observer)
    module(torch.linspace(-9, 9, 50))
    assert module.scale == scale
    module.apply(disable_fake_quant)
    x = torch.rand(50)
    assert torch.equal(module(x), x)
