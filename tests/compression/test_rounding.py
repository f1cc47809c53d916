"""Rounding with compensated errors, against hand-worked values and a search of all integers."""

import itertools

import pytest
import torch

from common.compression import rounding, weight_bits
from common.system.errors import UserError
from tests.compression.networks import CPU
from tests.compression.test_weight_bits import IMAGES, prepared


def test_the_second_weight_compensates_the_error_of_the_first():
    """Of two equal inputs only the sum of the weights counts: 0.4 + 0.4 is nearer to 1 than to 0."""
    covariance = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]], dtype=torch.float64)
    weight = torch.tensor([[[0.4, 0.4]]], dtype=torch.float64)
    assert rounding.columns(weight, covariance, 7).sum() == 1
    independent = torch.eye(2, dtype=torch.float64)[None]
    assert rounding.columns(weight, independent, 7).tolist() == [[[0, 0]]]


def test_weights_are_clipped_and_others_take_over():
    covariance = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]], dtype=torch.float64)
    weight = torch.tensor([[[9.0, 1.0]]], dtype=torch.float64)
    assert sorted(rounding.columns(weight, covariance, 7).flatten().tolist()) == [3, 7]


def test_it_is_better_than_the_nearest_integers_and_nearly_the_best():
    generator, ratios = torch.Generator().manual_seed(0), []
    for _ in range(20):
        inputs = torch.randn(50, 4, generator=generator, dtype=torch.float64)
        inputs = inputs @ torch.randn(4, 4, generator=generator, dtype=torch.float64)
        covariance = (inputs.mT @ inputs)[None]
        weight = 3 * torch.randn(1, 1, 4, generator=generator, dtype=torch.float64)

        def error(integers, weight=weight, covariance=covariance):
            difference = integers - weight
            return float((difference @ covariance * difference).sum())

        around = [(float(w.floor()), float(w.ceil())) for w in weight.flatten()]
        tries = (
            torch.tensor(each, dtype=torch.float64).view(1, 1, -1) for each in itertools.product(*around)
        )
        best = min(map(error, tries))
        ratios.append((error(rounding.columns(weight, covariance, 100)) / best, error(weight.round()) / best))
    found, nearest = torch.tensor(ratios).log().mean(0).exp().tolist()
    assert found < 2 < nearest


def test_inputs_that_are_always_0_and_of_any_scale_are_allowed():
    for scale in (1e-30, 1.0, 1e30):
        covariance = scale * torch.diag(torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64))[None]
        weight = torch.tensor([[[1.2, -2.7, 3.4]]], dtype=torch.float64)
        assert rounding.columns(weight, covariance, 7).tolist() == [[[1, -3, 3]]]
    assert rounding.columns(weight, 0 * covariance, 7).tolist() == [[[1, -3, 3]]]


@pytest.mark.parametrize("narrow", [(), ("0", "3", "5", "9")], ids=["8 bits", "4 bits"])
def test_the_outputs_of_a_network_are_nearer_to_those_in_float(narrow):
    def distance(traced):
        return float((traced(IMAGES) - expected).square().mean())

    exact = prepared(narrow=narrow)
    exact.apply(lambda module: hasattr(module, "enable_fake_quant") and module.enable_fake_quant(False))
    with torch.no_grad():
        expected = exact(IMAGES)
        nearest, compensated = (prepared(narrow=narrow) for _ in range(2))
        fits = rounding.compensate(compensated, [(IMAGES, None)], CPU)
        assert [fit.layer for fit in fits] == ["0", "3", "5", "9"]
        assert sum(fit.after for fit in fits) < 0.8 * sum(fit.before for fit in fits)
        if narrow:
            assert distance(compensated) < distance(nearest)
    text = rounding.summary(fits)
    assert text.startswith("rounded the weights of 4 layers: ")


def test_rounded_weights_are_multiples_of_their_scales_and_observers_go_on():
    traced = prepared()
    rounding.compensate(traced, [(IMAGES, None)], CPU)
    for layer in weight_bits.layers_of(traced).values():
        scale = layer.weight_fake_quant.scale.view(-1, *[1] * (layer.weight.ndim - 1))
        integers = layer.weight * weight_bits.factor_of(layer) / scale
        assert torch.allclose(integers, integers.round(), atol=1e-4) and integers.abs().max() < 7.01
        assert layer.weight_fake_quant.observes


def test_the_mean_error_becomes_part_of_the_bias():
    """Inputs that hardly vary: all of the error is its mean."""
    images = torch.ones(4, 3, 16, 16) + 1e-3 * torch.randn(4, 3, 16, 16)
    exact, traced = prepared(), prepared()
    exact.apply(lambda module: hasattr(module, "enable_fake_quant") and module.enable_fake_quant(False))
    rounding.compensate(traced, [(images, None)], CPU)
    layer, old = (each.get_submodule("0") for each in (traced, exact))
    with torch.no_grad():
        outputs, expected = layer(images).mean((0, 2, 3)), old(images).mean((0, 2, 3))
    before = old.bn.bias
    assert not torch.allclose(layer.bn.bias, before, atol=1e-3)
    assert torch.allclose(outputs, expected, atol=0.02 * float(expected.abs().max()))


def test_a_layer_that_is_used_twice_is_refused_before_anything_changes():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, images):
            return self.layer(self.layer(images)).flatten(1)

    traced = prepared(narrow=("layer",), model=Twice().eval())
    with pytest.raises(UserError, match="uses the layer layer more than once"):
        rounding.compensate(traced, [(IMAGES, None)], CPU)
    assert traced.layer.weight_fake_quant.observes
