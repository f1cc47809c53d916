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
from tests.test_quantization import SIDE, awake


def test_seven_bits_are_used_of_fbgemm_s_activations():
    observer = fake_quantization.SevenBitObserver(quant_min=0, quant_max=255, dtype=torch.quint8)
    observer(torch.tensor([-1.0, 3.0]))
    scale, zero_point = observer.calculate_qparams()
    assert scale.item() == pytest.approx(4 / 127) and zero_point.item() == round(127 / 4)


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2"])
def test_the_fused_layers_compute_what_torchs_do_and_learn_as_they_do(arch):
    fast = quantization.trace(awake(arch), "qnnpack", SIDE).train()
    slow = copy.deepcopy(fast)
    for module in slow.modules():
        module.__dict__.pop("forward", None)  # torch's own again
    pairs = [
        (one, other)
        for one, other in zip(fast.modules(), slow.modules(), strict=True)
        if "forward" in vars(one)
    ]
    assert len(pairs) >= 20 and {type(one).__name__ for one, _ in pairs} == {"ConvBn2d", "ConvBnReLU2d"}
    for one, other in pairs:
        images = torch.randn(4, one.in_channels, 8, 8).requires_grad_()
        answers = one(images), other(images)
        assert torch.allclose(*answers, atol=1e-4)
        assert torch.allclose(one.bn.running_var, other.bn.running_var, rtol=1e-4, atol=1e-6)
        target = torch.randn_like(answers[0])
        wanted = [images, other.weight, other.bn.weight, other.bn.bias]
        given = torch.autograd.grad(
            (answers[0] * target).sum(), [images, one.weight, one.bn.weight, one.bn.bias]
        )
        for mine, theirs in zip(given, torch.autograd.grad((answers[1] * target).sum(), wanted), strict=True):
            # a few values lie between two integers, and the last bit decides
            assert (mine - theirs).norm() < 0.02 * theirs.norm() + 1e-4


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_activations_are_fake_quantized_as_torch_does_with_its_gradient(backend):
    mine = fake_quantization.qconfig_mapping(backend).global_qconfig.activation()
    observer = MovingAverageMinMaxObserver if backend == "qnnpack" else fake_quantization.SevenBitObserver
    theirs = FakeQuantize(observer=observer, quant_min=0, quant_max=255)
    for scale in (1.0, 4.0):  # the second batch goes beyond the moving average: its ends are cut off
        x = scale * torch.randn(4, 6, 9, 9).contiguous(memory_format=torch.channels_last)
        results = []
        for module in (mine, theirs):
            given = x.clone().requires_grad_()
            answer = module(given)
            answer.square().sum().backward()
            results.append((answer, given.grad))
        assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert mine.scale == theirs.scale and mine.zero_point == theirs.zero_point
    if backend == "qnnpack":
        assert (results[1][1] == 0).any()


def test_an_observer_at_rest_and_fake_quantization_switched_off_stay_so():
    module = fake_quantization.qconfig_mapping("qnnpack").global_qconfig.activation()
    module(torch.linspace(-1, 1, 50))
    scale = module.scale.clone()
    module.apply(disable_observer)
    module(torch.linspace(-9, 9, 50))
    assert module.scale == scale
    module.apply(disable_fake_quant)
    x = torch.rand(50)
    assert torch.equal(module(x), x)
