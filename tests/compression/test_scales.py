"""The scales of sums and products after a conversion: simple ratios, small changes, equal integers."""

import numpy as np
import pytest
import torch
from torch import nn

from common.compression import quantization, scales
from common.integer import from_fx
from common.integer import operators as ops
from tests.integer.networks import SIDE, Net, int8, prepared


class Residual(Net):
    """A chain of sums, and products with a gate and with another branch."""

    def __init__(self):
        super().__init__(nn.Identity())
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(5))

    def forward(self, images):
        x = self.stem(images)
        for conv in self.convs[:3]:
            x = torch.relu(x + conv(x))
        x = x * torch.sigmoid(self.convs[3](x))
        return (x * self.convs[4](x)).mean((2, 3))


def ratios_of(model):
    """(scales of the inputs / scale of the output) of each sum and product of two values."""
    graph = from_fx.read(int8(model)[0].int8, SIDE)
    found = {"Add": [], "Multiply": []}
    for step in graph.operators:
        if isinstance(step, ops.Add):
            found["Add"] += [tensor.scale / step.output.scale for tensor in step.inputs]
        elif isinstance(step, ops.Multiply):
            first, second = (tensor.scale for tensor in step.inputs)
            found["Multiply"].append(first * second / step.output.scale)
    return found


def is_multiple(ratio, denominator=scales.DENOMINATOR):
    return abs(ratio * denominator - round(ratio * denominator)) < 1e-6 * ratio * denominator


def test_the_ratios_of_a_residual_network_have_odd_denominators():
    found = ratios_of(Residual())
    assert len(found["Add"]) == 6 and all(map(is_multiple, found["Add"]))
    assert len(found["Multiply"]) == 2
    for ratio in found["Multiply"]:
        numerator = max(1, round(ratio * scales.DENOMINATOR))
        denominator = round(numerator / ratio)
        assert denominator % 2 == 1 and abs(numerator / denominator / ratio - 1) < 3e-7


def test_a_summand_that_is_shared_is_changed_once():
    class Shared(Residual):
        def forward(self, images):
            x = self.stem(images)
            branch = self.convs[0](x)
            return ((x + branch) + (branch + self.convs[1](x))).mean((2, 3))

    found = ratios_of(Shared())["Add"]
    # of the last sum both summands are fixed: the first has a simple ratio, and the second as it happens
    assert len(found) == 6 and all(map(is_multiple, found[:5]))


def test_a_value_can_be_added_to_itself():
    class Doubled(Residual):
        def forward(self, images):
            x = self.stem(images)
            return (x + x).mean((2, 3))

    first, second = ratios_of(Doubled())["Add"]
    assert first == second and is_multiple(first)


def test_each_scale_changes_by_less_than_one_percent():
    before, _ = prepared(Residual())
    after = quantization.convert(before).fake_quant
    changes = [
        float(after.get_submodule(name).scale / layer.scale)
        for name, layer in before.named_modules()
        if hasattr(layer, "multiply_scale") and layer.scale.numel() == 1
    ]
    assert len(changes) > 8 and max(abs(change - 1) for change in changes) < scales.MAX_CHANGE
    assert sum(change != 1 for change in changes) >= 7


def runtimes(first, second, output, a, b, zero_point):
    """The sum in float64, in float32 with the zero point added before it is rounded, and with 21 bits."""
    exact = np.rint((a * first + b * second) / output) + zero_point
    sums = a.astype(np.float32) * np.float32(first) + b.astype(np.float32) * np.float32(second)
    float32 = np.rint(sums / np.float32(output) + np.float32(zero_point))
    shift = 20 - int(np.floor(np.log2(max(first, second) / output)))  # the larger factor has 21 bits
    factors = [round(each / output * 2.0**shift) for each in (first, second)]
    fixed = ((a * factors[0] + b * factors[1] + (1 << (shift - 1))) >> shift) + zero_point
    return exact, float32, fixed


@pytest.mark.parametrize("zero_point", [0, 1, 117])
def test_sums_with_such_ratios_are_equal_in_every_arithmetic(zero_point):
    rng = np.random.default_rng(zero_point)
    a, b = rng.integers(-255, 256, (2, 40_000))
    for _ in range(20):
        numerators, output = rng.integers(10, 1023, 2), float(np.float32(10 ** rng.uniform(-3, 1)))
        first, second = (float(np.float32(output * each / scales.DENOMINATOR)) for each in numerators)
        exact, *others = runtimes(first, second, output, a, b, zero_point)
        assert all(np.array_equal(exact, other) for other in others)


def test_sums_with_other_ratios_differ():
    a, b = np.random.default_rng(0).integers(-255, 256, (2, 40_000))
    exact, *others = runtimes(0.5, 0.25, 1.0, a, b, 1)
    assert all((exact != other).mean() > 0.05 for other in others)
