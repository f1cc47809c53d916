"""Weights of 4 bits: their ranges, in training and in the integers that ship."""

import copy

import pytest
import torch
from torch import nn

from common.compression import int8_engines, int8_state, quantization, weight_bits
from common.deployment import integer_model
from common.integer import from_fx, plain
from tests.compression.networks import CPU, EMBEDDED, SERVER

SIDE = 16
NOISE = torch.randn(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
IMAGES = NOISE.cumsum(2).cumsum(3) / 4  # neighbors are nearly equal, as in photos


def network():
    """A convolution with batch norm and ReLU, a depthwise one, a plain one and a linear layer."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
    model[1].weight.data.uniform_(0.2, 2)
    model[1].running_var.uniform_(0.5, 2)
    model[-1].weight.data *= 30  # logits that differ
    return model.eval()


def prepared(target=EMBEDDED, narrow=("0", "3", "5", "9"), model=None):
    """The network with fake quantization, calibrated; the layers of these names have 4 bits."""
    int8_engines.use(target, int8_engines.reference_engine(target))
    traced = quantization.trace(model or network(), target, SIDE)
    quantization.calibrate(traced, [(IMAGES, None)], CPU, 1)
    for name in narrow:
        weight_bits.use_4_bits(traced.get_submodule(name))
    return traced


def bits_of(graph):
    return [step.weight_bits for step in graph.operators if hasattr(step, "weight")]


@pytest.mark.parametrize("target", [EMBEDDED, SERVER], ids=["embedded", "server"])
def test_the_layers_that_were_chosen_have_4_bits_in_the_graph_and_in_the_file(target):
    converted = integer_model.convert(prepared(target, ("3", "9")), SIDE)
    graph = converted.network.graph
    assert bits_of(graph) == [8, 4, 8, 4]
    content = integer_model.to_content(converted, network(), target)
    state = content["state_dict"]
    assert "int8" in state["0.weight"] and "int4" in state["3.weight"]
    packed = state["9._packed_params._packed_params"][0]
    assert (packed["int4"].dtype, packed["int4"].numel(), packed["shape"]) == (torch.uint8, 30, [5, 12])
    again = plain.from_plain(content["int8"]["graph"], state)
    assert bits_of(again) == [8, 4, 8, 4]
    for one, other in zip(graph.operators, again.operators, strict=True):
        assert not hasattr(one, "weight") or (one.weight == other.weight).all()
    assert int8_state.fractions(state) == {"int8_fraction": 1.0, "int4_fraction": 132 / 444}


def test_the_integers_compute_what_fake_quantization_does():
    convolutions = nn.Sequential(*network()[:7], nn.Flatten())
    converted = integer_model.convert(prepared(narrow=("0", "3", "5"), model=convolutions), SIDE)
    assert torch.allclose(converted(IMAGES), converted.fake_quant(IMAGES), rtol=1e-5)


def test_a_checkpoint_of_4_bits_is_loaded_into_torch_s_model():
    converted = quantization.convert(prepared())
    loaded = quantization.skeleton(network(), EMBEDDED, SIDE)
    int8_state.load(loaded, int8_state.extract(converted.int8))
    assert torch.equal(loaded(IMAGES), converted.int8(IMAGES))


def test_weights_that_leave_the_range_in_training_are_clipped_to_7():
    traced = prepared()
    scales = traced.get_submodule("5").weight_fake_quant.scale.clone()
    with torch.no_grad():
        for name in ("0", "5"):
            traced.get_submodule(name).weight *= 3
    traced(IMAGES)  # observes
    assert torch.equal(traced.get_submodule("5").weight_fake_quant.scale, scales)
    before = copy.deepcopy(traced.state_dict())
    converted = quantization.convert(traced)
    assert all(torch.equal(value, traced.state_dict()[key]) for key, value in before.items())
    graph = from_fx.read(converted.int8, SIDE)
    largest = [int(abs(step.weight).max()) for step in graph.operators if hasattr(step, "weight")]
    assert largest == [7, 7, 7, 7] and bits_of(graph) == [4, 4, 4, 4]


def test_the_range_has_the_least_squared_error():
    """With 0.98, 0.7 is five steps of 0.14, and 1 is clipped to 0.98."""
    weight = torch.tensor([[0.7] * 49 + [1.0], [1.0] * 50])
    fractions = weight_bits.best_fraction(weight, 7)
    assert fractions[0] == pytest.approx(0.98) and fractions[1] == pytest.approx(1.0)


def test_a_weight_is_set_to_what_is_quantized_but_where_the_batch_norm_multiplies_by_0():
    layer = prepared().get_submodule("0")
    with torch.no_grad():
        layer.bn.weight[2] = 0
        old = layer.weight.clone()
    wanted = torch.randn_like(layer.weight)
    weight_bits.set_weight(layer, wanted)
    actual = layer.weight * weight_bits.factor_of(layer)
    others = torch.arange(8) != 2
    assert torch.allclose(actual[others], wanted[others]) and torch.equal(layer.weight[2], old[2])
