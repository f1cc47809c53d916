"""Each form of a layer, function or method: the graph has the integers of torch's int8 model."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.integer import from_fx, reference
from common.integer import operators as ops
from common.system.errors import UserError
from tests.integer.networks import SIDE, Net, int8


def convert(middle, followed=False):
    """A network in int8, and images; `followed` by a layer that quantizes what torch computes in float."""
    network = middle if isinstance(middle, Net) else Net(middle)
    if followed:
        function = network.middle
        network.middle = lambda net, x: net.conv(function(net, x))
    return int8(network)


def read(middle, followed=False):
    converted, images = convert(middle, followed)
    return from_fx.read(converted.int8, SIDE), converted.int8, images


def logits(graph, images):
    return reference.dequantize(reference.run(graph, reference.quantize(images, graph.input)), graph.output)


def kinds(graph):
    return [type(each).__name__ for each in graph.operators]


class Attention(nn.Module):
    """A convolution over the channels, as a sequence (ECA)."""

    def __init__(self):
        super().__init__()
        self.pool, self.conv, self.gate = nn.AdaptiveAvgPool2d(1), nn.Conv1d(1, 1, 3, padding=1), nn.Sigmoid()

    def forward(self, x):
        weights = self.gate(self.conv(self.pool(x).squeeze(-1).transpose(1, 2)))
        return x * weights.transpose(1, 2).unsqueeze(-1)


def shuffled(_net, x):
    batch, channels, height, width = x.shape
    return (
        x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
    )


def halves(net, x):
    first, second = x.chunk(2, 1)
    return torch.cat([second, net.conv(x), first], 1)


MOVES = {
    "flatten": lambda _, x: torch.flatten(x, start_dim=1),
    "channel shuffle": shuffled,
    "nn.ChannelShuffle": nn.ChannelShuffle(4),
    "chunk": halves,
    "chunk, dim=": lambda _, x: x.chunk(chunks=2, dim=1)[1],
    "torch.chunk": lambda _, x: torch.chunk(x, 2, dim=2)[0],
    "split": lambda _, x: torch.split(x, [3, 5], dim=1)[1],
    "x.split": lambda _, x: x.split(3, dim=1)[2],
    "unbind": lambda _, x: x.unbind(2)[3],
    "narrow": lambda _, x: x.narrow(3, 2, 5),
    "flip": lambda _, x: torch.flip(x, dims=[3]),
    "x.flip": lambda _, x: x.flip(1),
    "roll": lambda _, x: torch.roll(x, shifts=(1, 2), dims=(2, 3)),
    "slices": lambda _, x: x[:, 1:7:2, ::2, 3:],
    "flip of slices, flattened": lambda _, x: x[:, 1:7].flip(3).flatten(2)[:, :, 5:60],
    "one channel": lambda _, x: x[:, 2],
    "squeeze": lambda net, x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
    "unsqueeze": lambda _, x: torch.unsqueeze(x[:, 0], 1),
    "permute twice": lambda _, x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "nn.Flatten, nn.Unflatten": nn.Sequential(nn.Flatten(), nn.Unflatten(1, (4, 8, 16))),
    "nn.Dropout": nn.Dropout(0.5),
    "F.dropout": lambda net, x: F.dropout(x, 0.5, training=net.training),
    "nearest": lambda _, x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "nn.UpsamplingNearest2d": nn.UpsamplingNearest2d(scale_factor=2),
    "expand": lambda _, x: F.adaptive_avg_pool2d(x, 1).expand(-1, -1, 3, 2),
}
FUNCTIONS = {
    "nn.ReLU": nn.ReLU(),
    "F.relu": lambda _, x: F.relu(x, inplace=True),
    "torch.relu": lambda _, x: torch.relu(x),
    "x.relu": lambda _, x: x.relu(),
    "x.relu_": lambda _, x: x.relu_(),
    "nn.ReLU6": nn.ReLU6(),
    "F.relu6": lambda _, x: F.relu6(x),
    "nn.Sigmoid": nn.Sigmoid(),
    "torch.sigmoid": lambda _, x: torch.sigmoid(x),
    "x.sigmoid": lambda _, x: x.sigmoid(),
    "nn.Hardsigmoid": nn.Hardsigmoid(),
    "F.hardsigmoid": lambda _, x: F.hardsigmoid(x),
    "nn.Hardswish": nn.Hardswish(),
    "F.hardswish": lambda _, x: F.hardswish(x),
    "nn.SiLU": nn.SiLU(),
    "F.silu": lambda _, x: F.silu(x),
    "nn.GELU": nn.GELU(),
    "F.gelu": lambda _, x: F.gelu(x, approximate="tanh"),
    "nn.Mish": nn.Mish(),
    "nn.ELU": nn.ELU(0.5),
    "F.elu": lambda _, x: F.elu(x, alpha=0.5),
    "nn.Tanh": nn.Tanh(),
    "torch.tanh": lambda _, x: torch.tanh(x),
    "x.tanh": lambda _, x: x.tanh(),
    "nn.LeakyReLU": nn.LeakyReLU(0.2),
    "F.leaky_relu": lambda _, x: F.leaky_relu(x, negative_slope=0.2),
    "nn.Hardtanh": nn.Hardtanh(-0.5, 0.5),
    "F.hardtanh": lambda _, x: F.hardtanh(x, -0.5, 0.5),
    "torch.clamp": lambda _, x: torch.clamp(x, min=-0.5, max=0.5),
    "x.clamp": lambda _, x: x.clamp(-0.5, 0.5),
    "x + number": lambda _, x: x + 0.5,
    "number * x": lambda _, x: 0.7 * x,
    "x * number, ReLU": lambda _, x: F.relu(x * 0.7),
}
LAYERS = {
    "nn.Conv1d": Attention(),
    "convolution, stride, dilation": nn.Conv2d(8, 4, (3, 2), (2, 1), (2, 1), (2, 3), groups=2, bias=False),
    "depthwise": nn.Conv2d(8, 16, 3, groups=8),
    "convolution and ReLU": nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU()),
    "nn.Linear": lambda net, x: net.linear(x[:, :, 1:, 1:].mean((2, 3))),
    "nn.Linear and ReLU": lambda net, x: F.relu(net.linear(x[:, :, 1:, 1:].mean((2, 3)))),
    "batch norm": lambda net, x: net.norm(F.max_pool2d(x, 2)),
    "batch norm and ReLU": lambda net, x: F.relu(net.norm(F.max_pool2d(x, 2))),
    "x + y": lambda net, x: x + net.conv(x),
    "torch.add": lambda net, x: torch.add(x, net.conv(x)),
    "x += y": lambda net, x: F.relu(x.clone() + net.conv(x)),
    "x * y": lambda net, x: x * torch.sigmoid(net.conv(x)),
    "x * y, ReLU": lambda net, x: F.relu(torch.mul(x, net.conv(x))),
    "x * parameter": lambda net, x: x * net.scale,
    "x + parameter": lambda net, x: x + net.scale,
    "vector * parameter": lambda net, x: x.mean((2, 3)) * net.row,
    "x * parameter of columns": lambda net, x: x * net.row,
    "concatenation of unequal scales": lambda net, x: torch.cat(
        (x, 4 * net.conv(x), torch.sigmoid(x)), dim=1
    ),
    "nn.MaxPool2d": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "F.max_pool2d": lambda _, x: F.max_pool2d(x, kernel_size=(2, 3), stride=2),
    "nn.AvgPool2d": nn.AvgPool2d(2),
    "F.avg_pool2d": lambda _, x: F.avg_pool2d(x, kernel_size=3, stride=2),
    "ceil_mode": nn.AvgPool2d(3, 2, ceil_mode=True),
    "count_include_pad": nn.AvgPool2d(3, 2, 1),
    "count_include_pad=False": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "8 -> 1": nn.AdaptiveAvgPool2d(1),
    "8 -> 4 x 2": nn.AdaptiveAvgPool2d((4, 2)),
    "7 -> 2": lambda _, x: F.adaptive_avg_pool2d(x[:, :, :7, :7], output_size=2),
    "8 -> 3": lambda _, x: F.adaptive_avg_pool2d(x, 3),
    "1 -> 6": lambda _, x: F.adaptive_avg_pool2d(F.adaptive_avg_pool2d(x, 1), (6, 6)),
    "mean of rows": lambda _, x: x.mean(3),
    "mean, keepdim": lambda _, x: torch.mean(x, dim=(2, 3), keepdim=True),
    "mean, negative dimensions": lambda _, x: x.mean(dim=(-2, -1)),
}
FORMS = MOVES | FUNCTIONS | LAYERS


# torch 2.14: its engine qnnpack returns elements in another order, or counts what is padded
INCORRECT = {"F.relu6", "nn.Hardtanh", "F.hardtanh", "torch.clamp", "x.clamp", "count_include_pad=False"}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_has_the_integers_of_torch(name):
    converted, images = convert(FORMS[name], followed=name in FUNCTIONS)
    graph = from_fx.read(converted.int8, SIDE)
    images = torch.cat([images, 2 * images])  # beyond what was calibrated
    actual = logits(graph, images)
    with torch.no_grad():
        expected = (converted.fake_quant if name in INCORRECT else converted.int8)(images)
    steps = ((actual - expected) / graph.output.scale).abs().round()
    assert len(torch.unique(expected)) > 3 and actual.shape == expected.shape
    assert steps.max() <= 1 and (steps == 0).double().mean() > 0.9


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (lambda _, x: x.permute(0, 2, 3, 1).flatten(1), "values in this order"),
        (
            lambda _, x: F.interpolate(x, scale_factor=2, mode="bilinear"),
            "the operator interpolate, which changes values",
        ),
        (lambda _, x: F.max_pool2d(x, 2, dilation=2), "with dilation"),
        (nn.AvgPool2d(2, divisor_override=3), "with divisor_override"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "with reflect padding"),
        (lambda _, x: x.mean(1), r"over dimensions 1"),
        (lambda _, x: torch.cat([x, x], 2), "in dimension 2"),
        (lambda net, x: torch.cat([net.scale.expand(x.shape[0], 8, 8, 8), x], 1), "with a parameter"),
        (lambda _, x: x.softmax(1), "softmax"),
        (nn.LayerNorm(8), "LayerNorm"),
        (lambda _, x: torch.matmul(x, x), "matmul"),
        (lambda _, x: x.amax((2, 3)), "amax"),
        (lambda _, x: x - x.mean((2, 3), keepdim=True), "sub"),
    ],
)
def test_what_has_no_form_is_refused_in_one_line_that_names_it(middle, message):
    with pytest.raises(UserError, match=message) as caught:
        read(middle)
    assert "\n" not in str(caught.value) and re.match(r"\w+, the operator ", str(caught.value))


def test_a_vector_that_is_given_to_an_image_is_repeated_for_each_image_of_a_batch():
    graph, _, images = read(lambda net, x: x * net.row)  # [8] along the columns of [N, 8, 8, 8]
    alone = torch.cat([logits(graph, image[None]) for image in images])
    assert torch.equal(logits(graph, images), alone)


def test_each_channel_of_the_images_can_have_its_own_scale():
    class Scaled(Net):
        def forward(self, images):
            parts = [
                torch.unsqueeze(images[:, channel], 1) * scale
                for channel, scale in enumerate((0.4, 1.0, 3.0))
            ]
            return self.stem(torch.cat(parts, 1)).flatten(1)

    graph, int8_model, images = read(Scaled(lambda _, x: x))
    assert kinds(graph).count("Select") == 3
    steps = (logits(graph, images) - int8_model(images)) / graph.output.scale
    assert steps.abs().max() < 2.5 and (steps.abs() < 0.5).double().mean() > 0.8


def test_parts_that_the_logits_do_not_need_are_left_out():
    graph, _, _ = read(lambda net, x: (net.conv(x).chunk(2, 1)[0], net.norm(x))[0])
    assert kinds(graph) == ["Convolution", "Convolution", "Select", "Reshape"]


def test_a_mean_over_few_values_is_a_convolution_which_all_runtimes_round_alike():
    even, odd, padded = (read(nn.AvgPool2d(*each))[0] for each in ((2,), (3, 2), (3, 2, 1)))
    assert [kinds(each)[1] for each in (even, odd, padded)] == ["Convolution", "AveragePool", "Pad"]
    assert even.operators[1].weight_scales.tolist() == [0.25] * 8


def test_functions_in_float_between_two_integers_become_one_table():
    graph, _, _ = read(nn.Sequential(nn.SiLU(), nn.GELU()), followed=True)
    tables = [each.function for each in graph.operators if isinstance(each, ops.Table)]
    assert tables == ["silu, gelu"]


def test_a_network_in_float_is_refused():
    class Float(nn.Module):
        def forward(self, images):
            return images.softmax(1).flatten(1)

    with pytest.raises(UserError, match=r"^images, the operator images of float32 values"):
        from_fx.read(torch.fx.symbolic_trace(Float()), SIDE)


class WithMask(Net):
    """With an optional argument, as the networks of timm with attention have."""

    def forward(self, x, mask=None):
        return super().forward(x)


def test_an_optional_argument_is_not_taken_for_the_images():
    graph, _, _ = read(WithMask(nn.ReLU()))
    expected, _, _ = read(Net(nn.ReLU()))
    assert graph.input.shape == (3, SIDE, SIDE) and kinds(graph) == kinds(expected)
