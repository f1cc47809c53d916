import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.squeezenet import Fire

from common.budget import costs
from common.budget.target import Budget
from common.budget.widths import widths_for_budget
from common.compression import pruning
from common.evaluation.metrics import count_parameters
from common.models import architectures
from common.system.errors import UserError

CPU = torch.device("cpu")
CLASSES = 40  # wide enough to be pruned, were it not protected


def built(arch):
    model = architectures.build(arch, CLASSES)
    return model, {"protect": architectures.classifier(model, CLASSES)[1], "image_size": 32}


def chain(*widths, norm=True):
    """Convolutions of these widths, each but the last with a batch norm, and a linear classifier."""
    layers = []
    for before, width in itertools.pairwise((3, *widths)):
        layers += [nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    del layers[-2]
    if not norm:
        layers = [layer for layer in layers if not isinstance(layer, nn.BatchNorm2d)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 4))
    return model, {"protect": model[-1], "image_size": 8}


def at_share(model, share, limits, importance="lamp", scope="local"):
    groups = pruning.rank(model, importance, scope, **limits)
    return pruning.prune(model, groups, pruning.widths_for_fraction(groups, share), **limits)


def within(model, budget, limits):
    groups = pruning.rank(model, "lamp", "global", **limits)
    return pruning.prune(model, groups, widths_for_budget(model, groups, budget, **limits), **limits)


def to_parameters(model, limit, limits):
    return within(model, costs.parameter_budget(limit), limits)


def widths(model):
    return [layer.out_channels for layer in model if isinstance(layer, nn.Conv2d)]


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
def test_the_target_is_met_within_one_point_and_the_rebuilt_model_answers_the_same(arch, ratio):
    model, limits = built(arch)
    before = count_parameters(model)
    pruned = to_parameters(model, round(ratio * before), limits)
    assert abs(count_parameters(pruned) / before - ratio) < 0.01
    assert count_parameters(model) == before  # the original is left whole

    rebuilt = architectures.rebuild(arch, CLASSES, architectures.shapes(pruned))
    rebuilt.load_state_dict(pruned.state_dict())
    images = torch.randn(2, 3, 64, 64)
    logits = pruned.eval()(images)
    assert logits.shape == (2, CLASSES)
    assert torch.equal(rebuilt.eval()(images), logits)

    layers = [module for module in pruned.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert all(layer.weight.shape[0] % 8 == 0 for layer in layers)


@pytest.mark.parametrize("arch", ["regnet_y_400mf", "resnext50_32x4d"])
def test_grouped_convolutions_stay_whole_groups_and_are_rebuilt(arch):
    model, limits = built(arch)
    pruned = at_share(model, 0.25, limits)
    before, after = (
        {layer.groups for layer in network.modules() if isinstance(layer, nn.Conv2d)}
        for network in (model, pruned)
    )
    assert count_parameters(pruned) < 0.8 * count_parameters(model) and after == before
    rebuilt = architectures.rebuild(arch, CLASSES, architectures.shapes(pruned))
    rebuilt.load_state_dict(pruned.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(rebuilt.eval()(images), pruned.eval()(images))


def test_a_network_that_cannot_be_pruned_is_refused():
    model, limits = built("shufflenet_v2_x1_0")
    with pytest.raises(UserError, match="cannot prune ShuffleNetV2"):
        at_share(model, 0.25, limits)


def test_another_layer_makes_up_for_a_large_one_that_tips_the_scale():
    # of the third layer 8 channels are 6 % of all parameters; without that, 50 % would be left
    small, large = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 64, 7)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), small, nn.ReLU(), large, nn.ReLU(),
        nn.Conv2d(64, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    before = count_parameters(model)
    pruned = to_parameters(model, round(0.48 * before), {"protect": model[-1], "image_size": 16})
    assert abs(count_parameters(pruned) / before - 0.48) < 0.01


def test_the_channels_with_the_smallest_weights_go():
    model, limits = built("resnet18")
    with torch.no_grad():
        model.layer1[0].conv1.weight[:32] *= 1e-3  # half of a layer that only conv2 depends on
        kept = model.layer1[0].conv1.weight[32:].clone()
    pruned = at_share(model, 0.5, limits)
    assert pruned.layer1[0].conv1.weight.shape == (32, 32, 3, 3)
    # its inputs are pruned as well: every kept filter is part of one of the large ones
    for small in pruned.layer1[0].conv1.weight:
        assert any(torch.isin(small.flatten(), large.flatten()).all() for large in kept)


def test_channel_ratio_removes_that_share_of_every_width_and_leaves_eight():
    model, limits = built("resnet18")
    pruned = at_share(model, 0.25, limits)
    assert (pruned.conv1.out_channels, pruned.layer4[1].conv2.out_channels) == (48, 384)
    assert at_share(model, 1.0, limits).layer4[1].conv2.out_channels == 8


def test_widths_are_rounded_to_the_nearest_multiple_of_eight():
    model, limits = built("squeezenet1_1")  # 0.8 of 16, 32, 48 and 64: 12.8, 25.6, 38.4 and 51.2
    pruned = at_share(model, 0.2, limits)
    fires = [module for module in pruned.modules() if isinstance(module, Fire)]
    assert [fire.squeeze.out_channels for fire in fires] == [16, 16, 24, 24, 40, 40, 48, 48]


@pytest.mark.parametrize("arch", ["squeezenet1_1", "efficientnet_b0"])  # that has widths of 10
def test_keeping_everything_changes_nothing(arch):
    model, limits = built(arch)
    same = to_parameters(model, count_parameters(model), limits)
    assert architectures.shapes(same) == architectures.shapes(model)


def test_a_target_out_of_reach_names_the_smallest_network():
    model, limits = built("squeezenet1_1")
    least = count_parameters(at_share(model, 1.0, limits))
    with pytest.raises(UserError, match=f"cannot be pruned to 1,000 parameters: {least:,} parameters is the"):
        to_parameters(model, 1000, limits)


def test_training_mode_is_kept():
    model, limits = built("squeezenet1_1")
    groups = pruning.rank(model, "lamp", "local", **limits)
    halves = pruning.widths_for_fraction(groups, 0.5)
    assert pruning.prune(model.train(), groups, halves, **limits).training
    assert not pruning.prune(model.eval(), groups, halves, **limits).training


def test_the_scores_are_lamp_s_and_shared_by_layers_that_are_pruned_together():
    model, limits = built("mobilenet_v2")
    groups = {
        name: group for group in pruning.rank(model, "lamp", "global", **limits) for name in group.layers
    }
    expand, depthwise, project = (f"features.4.conv.{part}" for part in ("0.0", "1.0", "2"))
    assert groups[expand] is groups[depthwise] and groups[project].scores.shape == (32,)
    # the largest of a layer has a score of 1, itself over itself, but for the rounding of the sums
    assert all(group.scores.max().item() == pytest.approx(1, abs=0.01) for group in groups.values())
    assert all(group.scores.min() > 0 for group in groups.values())
    assert architectures.classifier(model, CLASSES)[0] not in groups


def test_layers_with_many_weak_channels_lose_the_most():
    model, limits = built("resnet18")
    with torch.no_grad():
        model.layer2[0].conv1.weight[:96] *= 1e-2
        model.layer2[0].bn1.weight[:96] *= 1e-2
        model.layer2[0].conv2.weight[:, :96] *= 1e-2
    pruned = to_parameters(model, round(0.9 * count_parameters(model)), limits)
    assert pruned.layer2[0].conv1.out_channels == 32
    assert pruned.layer1[0].conv1.out_channels == 64


def channel_norms(model):
    """Of the first convolution's channels: the mean of the squared norms in the three layers they touch."""
    first, norm, _, second = model[:4]
    outgoing, incoming = first.weight.square().sum((1, 2, 3)), second.weight.square().sum((0, 2, 3))
    return (outgoing + norm.weight.square() + incoming) / 3


def lamp(norms):
    return torch.stack([norm / norms[norms >= norm].sum() for norm in norms])


def weight_times_gradient(model):
    first, _, _, second = model[:4]
    return (first.weight * first.weight.grad).abs().sum((1, 2, 3)) + (
        second.weight * second.weight.grad
    ).abs().sum((0, 2, 3))


SCORES = {
    "magnitude": lambda model: channel_norms(model) / channel_norms(model).mean(),
    "lamp": lambda model: lamp(channel_norms(model)),
    "bn-scale": lambda model: model[1].weight.abs() / model[1].weight.abs().mean(),
    "taylor": lambda model: weight_times_gradient(model) / weight_times_gradient(model).mean(),
}


@pytest.mark.parametrize("importance", SCORES)
def test_scores_are_those_of_the_papers(importance):
    model, limits = chain(8, 16)
    nn.init.normal_(model[1].weight)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    scores = {group.layers: group.scores for group in pruning.rank(model, importance, "local", **limits)}
    # the second convolution has no batch norm
    assert set(scores) == ({("0",)} if importance == "bn-scale" else {("0",), ("3",)})
    torch.testing.assert_close(scores["0",], SCORES[importance](model).detach())


def test_bn_scale_removes_the_channels_whose_batch_norm_is_small():
    model, limits = chain(16, 8)
    weak = torch.tensor([1, 2, 5, 7, 8, 11, 12, 15])
    with torch.no_grad():
        model[0].weight[weak] *= 100
        model[1].weight[weak] = -0.01
    assert at_share(model, 0.5, limits, "bn-scale")[1].weight.tolist() == [1] * 8
    assert (at_share(model, 0.5, limits, "magnitude")[1].weight < 0).all()


def test_taylor_removes_channels_without_a_gradient_however_large_their_weights():
    model, limits = chain(16, 8)
    dead = torch.arange(8)
    with torch.no_grad():
        model[0].weight[dead] *= 100
        model[1].bias[dead] = -1e6  # below what the ReLU lets through
    pruning.accumulate_gradients(model, [(torch.randn(8, 3, 8, 8), torch.arange(8) % 4)], CPU)
    assert at_share(model, 0.5, limits, "taylor")[1].bias.tolist() == [0] * 8
    assert (at_share(model, 0.5, limits, "magnitude")[1].bias < 0).all()


def test_gradients_are_summed_over_the_first_sixteen_batches_and_nothing_else_changes():
    model, _ = chain(8, 8)
    before = copy.deepcopy(model.state_dict())
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(4, (4,))) for _ in range(20)]
    plain = copy.deepcopy(model).eval()
    sum(F.cross_entropy(plain(images), labels) for images, labels in batches[:16]).backward()
    for _ in range(2):  # what was there before does not count
        left = iter(batches)
        pruning.accumulate_gradients(model, left, CPU)
        assert len(list(left)) == 4
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_random_scores_are_a_function_of_the_seed():
    model, limits = chain(16, 16)

    def scores(seed):
        torch.manual_seed(seed)
        return torch.cat([group.scores for group in pruning.rank(model, "random", "global", **limits)])

    assert torch.equal(scores(1), scores(1)) and not torch.equal(scores(1), scores(2))
    assert len(scores(1).unique()) == 32


@pytest.mark.parametrize(
    ("scope", "share", "left"),
    [
        ("local", 0.25, [24, 24, 24]),
        ("global", 1 / 6, [16, 32, 32]),  # 16 of 96
        ("global", 0.25, [16, 24, 32]),
        ("isomorphic", 0.25, [16, 32, 24]),  # 16 of the first two's 64, and 8 of the last one's 32
    ],
)
@pytest.mark.parametrize("importance", ["magnitude", "lamp"])
def test_the_scope_says_which_channels_compete(importance, scope, share, left):
    # half of the first layer is next to nothing; of the third, without batch norm, so of another structure,
    # all channels are alike, and the second has smaller ones
    model, limits = chain(32, 32, 32)
    with torch.no_grad():
        for layer in (model[6], model[-1]):
            layer.weight.fill_(0.1)
        model[0].weight[:16] *= 1e-3
        model[1].weight[:16] *= 1e-3
        model[3].weight[:, :16] *= 1e-3
    assert widths(at_share(model, share, limits, importance, scope)) == left


def test_without_batch_norm_there_is_no_bn_scale():
    model, limits = chain(16, 16, norm=False)
    with pytest.raises(UserError, match=r"no layer of this network has a bn-scale score") as refusal:
        pruning.rank(model, "bn-scale", "global", **limits)
    assert "\n" not in str(refusal.value)


def test_the_widths_of_a_pruned_model_prune_the_same_way_again():
    model, limits = built("mobilenet_v2")
    groups = pruning.rank(model, "magnitude", "isomorphic", **limits)
    wanted = pruning.widths_for_fraction(groups, 0.4)
    pruned = pruning.prune(model, groups, wanted, **limits).state_dict()
    assert pruning.widths_from_state(pruned, groups) == wanted
    again = pruning.prune(model, groups, pruning.widths_from_state(pruned, groups), **limits).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in pruned.items())


def test_sensitivity_prunes_one_group_at_a_time_and_says_nan_where_rounding_takes_none():
    model, limits = chain(8, 16, 32, norm=False)
    groups = pruning.rank(model, "magnitude", "local", **limits)
    assert pruning.FRACTIONS == (0.125, 0.25, 0.5, 0.75, 0.875)
    table = pruning.sensitivity(model, groups, count_parameters, **limits)
    table = {group.layers: row for group, row in zip(groups, table, strict=True)}

    def count(a, b, c):
        return 3 * a + a * b + b * c + 4 * c + 4

    none, second, third = math.nan, count(8, 8, 32), [count(8, 16, width) for width in (24, 16, 8)]
    expected = {"0": [none] * 5, "2": [none, none, *[second] * 3], "4": [none, *third, third[-1]]}
    for name, row in expected.items():
        torch.testing.assert_close(table[name,], torch.tensor(row), equal_nan=True, rtol=0, atol=0)
    assert len(table) == 3
    assert count_parameters(model) == count(8, 16, 32)


def test_macs_are_never_exceeded_while_parameters_may_be_missed_by_half_a_point_either_way():
    model, limits = chain(256, 128, 192, 64, 160, 96, norm=False)
    whole = count_parameters(model)

    def missed(kind, share):
        budget = Budget(kind, round(share * whole), count_parameters)
        return (count_parameters(within(model, budget, limits)) - budget.limit) / whole

    shares = (0.3, 0.4, 0.5, 0.55, 0.6, 0.7)
    about = [missed("parameters", share) for share in shares]
    assert max(map(abs, about)) <= 0.005 and min(about) < 0 < max(about)
    for kind in ("macs", "size"):
        assert all(-0.01 < missed(kind, share) <= 0 for share in shares)


def test_a_budget_of_macs_is_met_on_a_real_network():
    model, limits = built("mobilenet_v2")
    budget = costs.make_budget("macs", "0.5", model, {"image_size": 32}, {})
    assert 0.97 * budget.limit < budget.cost(within(model, budget, limits)) <= budget.limit
    with pytest.raises(UserError, match=r"cannot be pruned to 1,000 MACs: [\d,]+ MACs is the least, [\d.]+%"):
        within(model, costs.make_budget("macs", "1K", model, {"image_size": 32}, {}), limits)


@pytest.mark.parametrize("importance", ["lamp", "magnitude", "taylor", "bn-scale"])
def test_channels_that_are_all_zero_go_first(importance):
    model, limits = chain(16, 16, 8)
    pruning.accumulate_gradients(model, [(torch.randn(4, 3, 8, 8), torch.arange(4))], CPU)
    with torch.no_grad():
        for layer in (model[0], model[1], model[3]):
            layer.weight.zero_()
    groups = pruning.rank(model, importance, "global", **limits)
    dead = next(group for group in groups if group.layers == ("0",))
    assert not dead.scores.any()
    assert max(dead.places) < min(min(group.places) for group in groups if group is not dead)


def test_ranking_leaves_the_mode_as_it_is():
    model, limits = chain(16, 8)
    for training in (True, False):
        pruning.rank(model.train(training), "lamp", "global", **limits)
        assert model.training == training and model[1].training == training


def test_where_grouped_convolutions_keep_what_they_have_there_is_no_sensitivity():
    model, limits = built("resnext50_32x4d")
    groups = pruning.rank(model, "lamp", "local", **limits)
    group = next(group for group in groups if "layer1.0.conv2" in group.layers)
    assert pruning.sensitivity(model, [group], count_parameters, **limits).isnan().all()
