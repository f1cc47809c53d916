from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models import MobileNetV2

from common.budget import costs, memory_limits, widths
from common.budget.target import Budget
from common.compression import pruning
from common.evaluation import memory, metrics
from common.evaluation.metrics import count_parameters
from common.models import architectures
from common.system import distributed
from common.system.errors import UserError
from tests.compression.networks import chain, network_options, pruned_by

pytestmark = pytest.mark.usefixtures("shallow_networks")

CLASSES = 40  # so many that the classifier would be pruned if it were not excluded


def built(arch):
    model = architectures.build(arch, CLASSES)
    return model, network_options(model, CLASSES, image_size=32)


def within(model, budget, network, multiple=None):
    groups = pruning.rank(model, "lamp", "global", **network)
    found = widths.widths_for_budget(model, groups, budget, multiple=multiple, **network)
    return pruning.prune(model, groups, found, **network)


def to_fraction(model, fraction, network):
    return within(model, costs.parameter_budget(model, fraction), network)


def test_pruned_widths_are_multiples_of_16_where_it_is_asked_for():
    model, network = built("resnet18")
    budget = Budget("macs", 0.4, 1.0, lambda pruned: count_parameters(pruned) / count_parameters(model))
    pruned = within(model, budget, network, 16)
    narrowed = [
        after.out_channels
        for before, after in zip(model.modules(), pruned.modules(), strict=True)
        if isinstance(after, nn.Conv2d) and after.out_channels < before.out_channels
    ]
    assert len(narrowed) > 5 and all(width % 16 == 0 for width in narrowed)


@pytest.mark.parametrize(
    ("arch", "ratio"),
    [
        ("resnet18", 0.7),
        ("resnet50", 0.4),
        ("mobilenet_v2", 0.4),
        ("squeezenet1_1", 0.4),
        ("squeezenet1_1", 0.7),
    ],
)
def test_the_target_is_met_within_one_point_and_the_rebuilt_model_predicts_the_same(arch, ratio):
    model, network = built(arch)
    before = count_parameters(model)
    pruned = to_fraction(model, ratio, network)
    assert abs(count_parameters(pruned) / before - ratio) < 0.01
    assert count_parameters(model) == before  # the original is not changed

    rebuilt = architectures.rebuild(arch, CLASSES, architectures.shapes(pruned))
    rebuilt.load_state_dict(pruned.state_dict())
    images = torch.randn(2, 3, 64, 64)
    logits = pruned.eval()(images)
    assert logits.shape == (2, CLASSES)
    assert torch.equal(rebuilt.eval()(images), logits)

    layers = [module for module in pruned.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert all(layer.weight.shape[0] % 8 == 0 for layer in layers)


def test_another_layer_compensates_for_a_large_one_that_decides():
    # of the third layer 8 channels are 6 % of all parameters; without that, 50 % would be left
    small, large = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 64, 7)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), small, nn.ReLU(), large, nn.ReLU(),
        nn.Conv2d(64, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    before = count_parameters(model)
    pruned = to_fraction(model, 0.48, {"classifier": "10", "image_size": 16})
    assert abs(count_parameters(pruned) / before - 0.48) < 0.01


@pytest.mark.parametrize("arch", ["squeezenet1_1", "efficientnet_b0"])  # the latter has widths of 10
def test_a_budget_of_all_parameters_changes_nothing(arch):
    model, network = built(arch)
    same = to_fraction(model, 1, network)
    assert architectures.shapes(same) == architectures.shapes(model)


def test_a_target_out_of_reach_names_the_smallest_network():
    model, network = built("squeezenet1_1")
    least = count_parameters(pruned_by(model, 1.0, network))
    budget = Budget("parameters", 1000, count_parameters(model), count_parameters)
    with pytest.raises(UserError, match=f"cannot be pruned to 1,000 parameters: {least:,} parameters is the"):
        within(model, budget, network)


def test_layers_with_many_weak_channels_lose_the_most():
    model, network = built("resnet18")
    with torch.no_grad():
        model.layer2[0].conv1.weight[:96] *= 1e-2
        model.layer2[0].bn1.weight[:96] *= 1e-2
        model.layer2[0].conv2.weight[:, :96] *= 1e-2
    pruned = to_fraction(model, 0.9, network)
    assert pruned.layer2[0].conv1.out_channels == 32
    assert pruned.layer1[0].conv1.out_channels == 64


def test_macs_are_never_exceeded_while_parameters_may_be_missed_by_half_a_point_either_way():
    model, network = chain(256, 128, 192, 64, 160, 96, norm=False)
    full = count_parameters(model)

    def missed(kind, fraction):
        budget = Budget(kind, round(fraction * full), full, count_parameters)
        return (count_parameters(within(model, budget, network)) - budget.limit) / full

    fractions = (0.3, 0.4, 0.5, 0.55, 0.6, 0.7)
    about = [missed("parameters", fraction) for fraction in fractions]
    assert max(map(abs, about)) <= 0.005 and min(about) < 0 < max(about)
    for kind in ("macs", "size"):
        assert all(-0.01 < missed(kind, fraction) <= 0 for fraction in fractions)


def test_a_budget_of_macs_is_met_on_a_real_network():
    model, network = built("mobilenet_v2")
    budget = costs.make_budget("macs", "0.5", model, {"image_size": 32}, {})
    assert 0.97 * budget.limit < budget.cost(within(model, budget, network)) <= budget.limit
    with pytest.raises(UserError, match=r"cannot be pruned to 1,000 MACs: [\d,]+ MACs is the least, [\d.]+%"):
        within(model, costs.make_budget("macs", "1K", model, {"image_size": 32}, {}), network)


def test_for_a_latency_a_wider_layer_that_is_faster_is_found_in_the_table():
    # 24 channels take longer than 32: from 16, only the width after the next one fits
    model, network = chain(32, 32, 16)
    microseconds = {8: 1, 16: 4, 24: 9, 32: 6}
    asked = []

    def cost_of_widths(widths):
        asked.append(widths)
        return sum(microseconds[widths.get(layer, 32)] for layer in ("0", "3"))

    def budget(limit):
        return Budget("latency", limit, 12, lambda _: 12, cost_of_widths=cost_of_widths)

    quantiles = {"0": [0.1] * 24 + [0.9] * 8, "6": [0.99] * 16}
    quantiles["3"] = [0.2] * 8 + [0.3] * 8 + [0.4] * 8 + [0.8] * 8
    found = {limit: found_for(model, budget(limit), network, quantiles) for limit in (10, 7, 2)}
    # the second layer, whose removed channels are the more important ones, is the first to get them back
    assert [(each["0"], each["3"]) for each in found.values()] == [(16, 32), (8, 32), (8, 8)]
    assert asked and all(each["0"] in microseconds for each in asked if each)
    with pytest.raises(UserError, match=r"pruned to 1\.00 ms: 2\.00 ms is the least, 16\.7%"):
        found_for(model, budget(1), network, quantiles)


def ram(limit, start, precision="int8", image_size=8):
    peak = memory_limits.peak_function(image_size, precision, None, "layers")
    return Budget("ram", limit, start, lambda model: peak(model)[0], precision, peak=peak)


def found_for(model, budget, network, quantiles=None, multiple=None):
    """The widths, where the channels of the groups have these quantiles, by the root of the group."""
    groups = pruning.rank(model, "lamp", "global", **network)
    quantiles = {name: torch.as_tensor(values) for name, values in (quantiles or {}).items()}
    groups = [replace(each, quantiles=quantiles.get(each.layers[0], each.quantiles)) for each in groups]
    return widths.widths_for_budget(model, groups, budget, multiple=multiple, **network)


def test_for_ram_the_least_important_channels_at_the_peak_are_removed_and_no_others():
    # 64 pixels; the peak is that of the outputs of the first two layers
    model, network = chain(32, 64, 16)
    weak = [0.1] * 8 + [0.2] * 8 + [0.8] * 16
    quantiles = {"0": weak, "3": [0.15] * 8 + [0.5] * 56, "6": [0.0] * 16}
    start = (32 + 64) * 64
    expected = {96: {}, 95: {"0": 24}, 88: {"0": 24}, 80: {"0": 24, "3": 56}, 72: {"0": 16, "3": 56}}
    for channels, kept in expected.items():
        assert found_for(model, ram(channels * 64, start), network, quantiles) == kept
    assert found_for(model, ram(4 * 88 * 64, 4 * start, "fp32"), network, quantiles) == {"0": 24}


def test_for_ram_16_channels_at_a_time_are_removed_where_it_is_asked_for():
    # the second layer has 56 channels, to 48: the others have an equal importance, and the first layer fewer
    model, network = chain(32, 56, 16)
    quantiles, start = {"0": [0.5] * 32, "3": [0.1] * 56}, (32 + 56) * 64
    expected = {88: {}, 87: {"3": 48}, 80: {"3": 48}, 79: {"3": 32}, 47: {"0": 16, "3": 16}}
    for channels, kept in expected.items():
        assert found_for(model, ram(channels * 64, start), network, quantiles, 16) == kept
    with pytest.raises(UserError, match=r"2,048 bytes of RAM .*is the least"):
        found_for(model, ram(32 * 64 - 1, start), network, quantiles, 16)


def test_for_ram_the_importance_that_is_lost_is_weighed_against_the_values_that_are_saved():
    # at the peak the first layer has four times as many values per channel as the second
    model = nn.Sequential(
        nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 64, 2, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip
    network, start = {"classifier": "6", "image_size": 8}, 32 * 64 + 64 * 16
    quantiles = {"0": [0.4] * 32, "2": [0.2] * 64}
    assert found_for(model, ram(start - 1, start), network, quantiles) == {"0": 24}
    quantiles["2"] = [0.05] * 64
    assert found_for(model, ram(start - 1, start), network, quantiles) == {"2": 56}


def test_for_ram_channels_are_given_back_where_others_have_made_room():
    # the second layer loses 8 channels of 16 values, then the first loses 8 of 64 values, which is enough
    model = nn.Sequential(
        nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 16, 2, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    network, start = {"classifier": "6", "image_size": 8}, 32 * 64 + 16 * 16
    quantiles = {"0": [0.5] * 32, "2": [0.0] * 16}
    assert found_for(model, ram(start - 8 * 64, start), network, quantiles) == {"0": 24, "2": 16}
    assert found_for(model, ram(start - 8 * 64 - 1, start), network, quantiles) == {"0": 24, "2": 8}


def test_a_limit_of_ram_below_the_least_is_an_error():
    model, network = chain(32, 64, 16)
    least = (8 + 8) * 64  # the image and 8 channels would be less
    with pytest.raises(UserError, match=r"pruned to 1,023 bytes of RAM .* 1,024 bytes of RAM .*16\.7%"):
        found_for(model, ram(least - 1, 96 * 64), network)
    assert set(found_for(model, ram(least, 96 * 64), network).values()) == {8}


def test_ram_is_halved_by_the_early_layers_of_a_real_network_alone():
    settings = ((1, 16, 1), (6, 24, 2), (6, 32, 2), (6, 64, 2), (6, 96, 1), (6, 160, 2), (6, 320, 1))
    model = MobileNetV2(CLASSES, inverted_residual_setting=[[*each[:2], 1, each[2]] for each in settings])
    network = network_options(model, CLASSES, image_size=64)
    before, now = metrics.complexity(model, 64), memory.peak(model, 64).values
    budget, pruned = ram(now / 2, now, image_size=64), model
    for step in (1, 2):
        pruned = within(pruned, budget.at_step(step, 2), network)
        assert memory.peak(pruned, 64).values <= budget.at_step(step, 2).limit
    after = metrics.complexity(pruned, 64)
    assert after["params"] > 0.99 * before["params"] and after["macs"] > 0.8 * before["macs"]
    old = architectures.shapes(model)
    changed = {key for key, shape in architectures.shapes(pruned).items() if shape != old[key]}
    assert {key.split(".")[1] for key in changed} <= {"0", "1", "2", "3", "4"}


def test_only_the_main_process_measures_and_the_others_get_its_widths(monkeypatch):
    model, network = chain(16, 16)
    groups = pruning.rank(model, "lamp", "global", **network)
    budget = costs.parameter_budget(model, 0.5)
    found = widths.widths_for_budget(model, groups, budget, **network)
    assert set(found) == {"0", "3"}
    monkeypatch.setattr(distributed, "is_main_process", lambda: False)
    monkeypatch.setattr(distributed, "broadcast", lambda value: found if value is None else value)
    not_measured = Budget("latency", 1, 2, lambda model: pytest.fail("measured in another process"))
    assert widths.widths_for_budget(model, groups, not_measured, **network) == found
