import math

import torch

from common.compression import pruning, sensitivity
from common.evaluation.metrics import count_parameters
from common.models import architectures
from tests.compression.networks import chain, network_options


def test_one_group_is_pruned_at_a_time_and_nan_where_rounding_removes_none():
    model, network = chain(8, 16, 32, norm=False)
    groups = pruning.rank(model, "magnitude", "local", **network)
    assert sensitivity.FRACTIONS == (0.125, 0.25, 0.5, 0.75, 0.875)
    table = sensitivity.measure(model, groups, count_parameters, **network)
    table = {group.layers: row for group, row in zip(groups, table, strict=True)}

    def count(a, b, c):
        return 3 * a + a * b + b * c + 4 * c + 4

    none, second, third = math.nan, count(8, 8, 32), [count(8, 16, width) for width in (24, 16, 8)]
    expected = {"0": [none] * 5, "2": [none, none, *[second] * 3], "4": [none, *third, third[-1]]}
    for name, row in expected.items():
        torch.testing.assert_close(table[name,], torch.tensor(row), equal_nan=True, rtol=0, atol=0)
    assert len(table) == 3
    assert count_parameters(model) == count(8, 16, 32)


def test_there_is_no_sensitivity_where_grouped_convolutions_cannot_lose_channels():
    model = architectures.build("regnet_y_400mf", num_classes=40)
    network = network_options(model, num_classes=40, image_size=32)
    groups = pruning.rank(model, "lamp", "local", **network)
    group = next(group for group in groups if "trunk_output.block4.block4-5.f.a.0" in group.layers)
    assert group.multiple == 440 == len(group.scores)  # of 8 and of 55 groups
    assert sensitivity.measure(model, [group], count_parameters, **network).isnan().all()
