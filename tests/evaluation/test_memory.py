import pytest
import torch
from torch import nn

from common.evaluation import memory
from common.models import architectures, lineage
from common.system.errors import UserError
from tests.compression.networks import chain

SIDE, IMAGE = 8, 3 * 64  # pixels, and the values of an image


class Network(nn.Module):
    """Convolutions of 4 channels on images of 8 pixels; `function` joins them."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.relu, self.act = nn.BatchNorm2d(4), nn.ReLU6(), nn.Hardswish()
        self.drop, self.small = nn.Dropout(), nn.Conv2d(4, 4, 1, stride=2)
        self.function = function

    def forward(self, images):
        return self.function(self, images)


def described(peak):
    """The values of a peak, and the layers whose outputs are kept."""
    return peak.values, {layer for tensor in peak.tensors for layer in tensor.layers}


def peak_of(function):
    return described(memory.peak(Network(function), SIDE))


@pytest.mark.parametrize(
    ("arch", "side", "kibibytes"),
    [
        ("mobilenet_v2", 224, 1470),  # 96 channels of 112 x 112 pixels and of 56 x 56
        ("mobilenet_v2", 160, 750),
        ("mobilenet_v2", 96, 270),
        ("mnasnet1_0", 224, 784),
        ("mobilenet_v3_small", 224, 392),
    ],
)
def test_the_peak_of_real_networks(arch, side, kibibytes):
    assert memory.peak(architectures.build(arch, 10), side).values == 1024 * kibibytes


def test_a_value_is_kept_until_it_is_read_and_no_longer():
    model, _ = chain(16, 8, 24)
    peak = memory.peak(model.train(), SIDE)
    assert model.training
    # the outputs of the first two layers, then of the last two
    assert described(peak) == ((8 + 24) * 64, {"3", "6"})
    assert {(each.values, each.channels) for each in peak.tensors} == {(8 * 64, 8), (24 * 64, 24)}
    assert memory.peak(chain(16, 8)[0], SIDE).values == (16 + 8) * 64


def test_the_image_counts():
    values, layers = peak_of(lambda net, images: net.small(net.a(images)).mean((2, 3)))
    assert (values, layers) == (IMAGE + 4 * 64, {"a"})


def test_the_input_of_a_residual_block_is_kept_until_it_is_added():
    def residual(net, images):
        first = net.a(images)
        return first + net.b(first)

    # the first two and their sum, whose layers are both
    assert peak_of(residual) == (3 * 4 * 64, {"a", "b"})


@pytest.mark.parametrize(
    "function",
    [
        lambda net, values: net.relu(net.norm(values)),
        lambda net, values: torch.relu(values).relu(),
        lambda net, values: net.drop(values),
        lambda net, values: nn.functional.dropout(values, 0.5, net.training),
        lambda net, values: torch.flatten(values, 1),
        lambda net, values: values.flatten(1).view(1, -1),
    ],
)
def test_what_is_computed_in_place_needs_no_memory(function):
    assert peak_of(lambda net, images: function(net, net.a(images)))[0] == IMAGE + 4 * 64


def doubled(values):
    return torch.cat([values, values], 1)


def shuffled(values):
    halves = values.chunk(2, 1)  # one tensor is written; each half is a part of it
    return torch.cat([halves[0], halves[1], halves[0]], 1)


@pytest.mark.parametrize(
    ("function", "channels"),
    [
        (lambda net, images: net.b(net.act(net.a(images))), 4 + 4),
        (lambda net, images: torch.cat([net.a(images), net.a(images)], 1), 4 + 4 + 8),
        (lambda net, images: net.a(images) * net.a(images), 4 + 4 + 4),
        (lambda net, images: doubled(net.a(images))[:, :6], 8 + 6),
        (lambda net, images: shuffled(net.a(images)), 4 + 6),
    ],
)
def test_other_operations_write_a_tensor(function, channels):
    assert peak_of(function)[0] == channels * 64


def test_a_relu_is_not_in_place_where_its_input_is_read_again():
    def twice(net, images):
        first = net.a(images)
        return torch.cat([net.relu(first), first], 1)

    assert peak_of(twice)[0] == (4 + 4 + 8) * 64


def test_the_layers_are_found_behind_other_operations():
    def joined(net, images):
        both = torch.cat([net.act(net.a(images)), net.relu(net.b(net.a(images)))], 1)
        return nn.functional.max_pool2d(both, 4)

    peak = memory.peak(Network(joined), SIDE)
    # the activation of a, the output of b, and both joined
    expected = {(4, frozenset("a")), (4, frozenset("b")), (8, frozenset("ab"))}
    assert {(each.channels, each.layers) for each in peak.tensors} == expected
    assert peak.values == (4 + 4 + 8) * 64


def test_a_network_that_cannot_be_traced_is_an_error_of_one_line():
    with pytest.raises(UserError, match=r"^the RAM of Network is not known: .+$") as caught:
        peak_of(lambda net, images: net.a(images) if images.sum() > 0 else net.b(images))
    assert "\n" not in str(caught.value)


def test_images_that_are_too_small_are_an_error():
    with pytest.raises(UserError, match="the RAM of AlexNet is not known: "):
        memory.peak(architectures.build("alexnet", 10), SIDE)


def test_a_value_has_four_bytes_in_a_float_checkpoint_and_one_in_int8():
    content = lineage.new_checkpoint("mobilenet_v2", ["cat", "dog"], 96)
    model = architectures.build("mobilenet_v2", 2)
    assert memory.checkpoint_bytes(content, model) == 4 * 270 * 1024
    content["int8"] = {"backend": "qnnpack", "float_shapes": architectures.shapes(model)}
    assert memory.checkpoint_bytes(content, nn.Identity()) == 270 * 1024
    content["metrics"]["int8_fraction"] = 0.5
    assert memory.as_metric(content, nn.Identity()) == {}  # the rest computes in float32
