import pytest
import torch
from torch import nn
from torchvision.models.squeezenet import Fire

from common.compression import importance, pruning
from common.evaluation.metrics import count_parameters
from common.models import architectures
from common.system.errors import UserError
from tests.compression.networks import CPU, chain, network_options, pruned_by

CLASSES = 40  # so many that the classifier would be pruned if it were not excluded


def built(arch):
    model = architectures.build(arch, CLASSES)
    return model, network_options(model, CLASSES, image_size=32)


def out_channels(model):
    return [layer.out_channels for layer in model if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize("arch", ["regnet_y_400mf", "resnext50_32x4d"])
def test_grouped_convolutions_lose_channels_in_full_groups_and_are_rebuilt(arch):
    model, network = built(arch)
    pruned = pruned_by(model, 0.25, network)
    before, after = (
        {layer.groups for layer in each.modules() if isinstance(layer, nn.Conv2d)} for each in (model, pruned)
    )
    assert count_parameters(pruned) < 0.8 * count_parameters(model) and after == before
    rebuilt = architectures.rebuild(arch, CLASSES, architectures.shapes(pruned))
    rebuilt.load_state_dict(pruned.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(rebuilt.eval()(images), pruned.eval()(images))


class Fixed(nn.Module):
    """Its code has a fixed number of channels, which pruning changes."""

    def __init__(self):
        super().__init__()
        self.first, self.classifier = nn.Conv2d(3, 32, 3), nn.Linear(32, CLASSES)

    def forward(self, images):
        return self.classifier(self.first(images).view(-1, 32, 900).mean(2))


def test_a_network_that_cannot_be_pruned_is_refused_by_the_name_of_a_layer():
    model = Fixed()
    message = "torch-pruning cannot follow the channels of Fixed at the layer first: shape '.*' is invalid"
    with pytest.raises(UserError, match=message):
        pruned_by(model, 0.25, network_options(model, CLASSES, image_size=32))


def test_the_channels_with_the_smallest_weights_are_removed():
    model, network = built("resnet18")
    with torch.no_grad():
        model.layer1[0].conv1.weight[:32] *= 1e-3  # half of a layer that only conv2 depends on
        kept = model.layer1[0].conv1.weight[32:].clone()
    pruned = pruned_by(model, 0.5, network)
    assert pruned.layer1[0].conv1.weight.shape == (32, 32, 3, 3)
    # its inputs are pruned as well: every kept filter is part of one of the large ones
    for small in pruned.layer1[0].conv1.weight:
        assert any(torch.isin(small.flatten(), large.flatten()).all() for large in kept)


def test_a_fraction_of_every_width_is_removed_and_eight_channels_stay():
    model, network = built("resnet18")
    pruned = pruned_by(model, 0.25, network)
    assert (pruned.conv1.out_channels, pruned.layer4[0].conv2.out_channels) == (48, 384)
    assert pruned_by(model, 1.0, network).layer4[0].conv2.out_channels == 8


def test_widths_are_rounded_to_the_nearest_multiple_of_eight():
    model, network = built("squeezenet1_1")  # 0.8 of 16 and 64: 12.8 and 51.2
    pruned = pruned_by(model, 0.2, network)
    fires = [module for module in pruned.modules() if isinstance(module, Fire)]
    assert [fire.squeeze.out_channels for fire in fires] == [16, 48]


def test_the_training_mode_is_kept():
    model, network = built("squeezenet1_1")
    groups = pruning.rank(model, "lamp", "local", **network)
    halves = pruning.widths_for_fraction(groups, 0.5)
    assert pruning.prune(model.train(), groups, halves, **network).training
    assert not pruning.prune(model.eval(), groups, halves, **network).training


def test_lamp_scores_are_equal_for_layers_that_are_pruned_together():
    model, network = built("mobilenet_v2")
    groups = {
        name: group for group in pruning.rank(model, "lamp", "global", **network) for name in group.layers
    }
    expand, depthwise, project = (f"features.4.conv.{part}" for part in ("0.0", "1.0", "2"))
    assert groups[expand] is groups[depthwise] and groups[project].scores.shape == (32,)
    # the largest of a layer has a score of 1, itself divided by itself, except for rounding
    assert all(group.scores.max().item() == pytest.approx(1, abs=0.01) for group in groups.values())
    assert all(group.scores.min() > 0 for group in groups.values())
    assert architectures.classifier(model, CLASSES) not in groups


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
    model, network = chain(8, 16)
    nn.init.normal_(model[1].weight)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    scores = {group.layers: group.scores for group in pruning.rank(model, importance, "local", **network)}
    # the second convolution has no batch norm
    assert set(scores) == ({("0",)} if importance == "bn-scale" else {("0",), ("3",)})
    torch.testing.assert_close(scores["0",], SCORES[importance](model).detach())


def test_bn_scale_removes_the_channels_whose_batch_norm_is_small():
    model, network = chain(16, 8)
    weak = torch.tensor([1, 2, 5, 7, 8, 11, 12, 15])
    with torch.no_grad():
        model[0].weight[weak] *= 100
        model[1].weight[weak] = -0.01
    assert pruned_by(model, 0.5, network, "bn-scale")[1].weight.tolist() == [1] * 8
    assert (pruned_by(model, 0.5, network, "magnitude")[1].weight < 0).all()


def test_random_scores_are_a_function_of_the_seed():
    model, network = chain(16, 16)

    def scores(*seed):
        groups = pruning.rank(model, "random", "global", seed=seed, **network)
        return torch.cat([group.scores for group in groups])

    before = torch.get_rng_state()
    assert torch.equal(scores(1), scores(1)) and torch.equal(scores(1, 2), scores(1, 2))
    assert not torch.equal(scores(1), scores(2)) and not torch.equal(scores(1, 1), scores(1, 2))
    assert len(scores(1).unique()) == 32
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("scope", "fraction", "expected"),
    [
        ("local", 0.25, [24, 24, 24]),
        ("global", 1 / 6, [16, 32, 32]),  # 16 of 96
        ("global", 0.25, [16, 24, 32]),
        ("isomorphic", 0.25, [16, 32, 24]),  # 16 of the first two's 64, and 8 of the last one's 32
    ],
)
@pytest.mark.parametrize("importance", ["magnitude", "lamp"])
def test_the_scope_determines_which_channels_compete(importance, scope, fraction, expected):
    # half of the first layer is almost zero; the third has no batch norm, so it has another structure, and
    # all its channels are equal; the second has smaller ones
    model, network = chain(32, 32, 32)
    with torch.no_grad():
        for layer in (model[6], model[-1]):
            layer.weight.fill_(0.1)
        model[0].weight[:16] *= 1e-3
        model[1].weight[:16] *= 1e-3
        model[3].weight[:, :16] *= 1e-3
    assert out_channels(pruned_by(model, fraction, network, importance, scope)) == expected


def test_bn_scale_without_batch_norm_is_refused():
    model, network = chain(16, 16, norm=False)
    with pytest.raises(UserError, match=r"no layer of this network has such a score") as refusal:
        pruning.rank(model, "bn-scale", "global", **network)
    assert "\n" not in str(refusal.value)


def test_the_widths_of_a_pruned_model_give_the_same_model_again():
    model, network = built("mobilenet_v2")
    groups = pruning.rank(model, "magnitude", "isomorphic", **network)
    widths = pruning.widths_for_fraction(groups, 0.4)
    pruned = pruning.prune(model, groups, widths, **network).state_dict()
    assert pruning.widths_from_state(pruned, groups) == widths
    again = pruning.prune(model, groups, pruning.widths_from_state(pruned, groups), **network).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in pruned.items())


@pytest.mark.parametrize("name", ["lamp", "magnitude", "taylor", "bn-scale", "reconstruction"])
def test_channels_with_only_zeros_are_removed_first(name):
    model, network = chain(16, 16, 8)
    batches = [(torch.randn(4, 3, 8, 8), torch.arange(4))]
    importance.accumulate_gradients(model, batches, CPU)
    with torch.no_grad():
        for layer in (model[0], model[1], model[3]):
            layer.weight.zero_()
    if name != "taylor":
        score = importance.prepare(name, model, batches, CPU)
    groups = pruning.rank(model, name if name == "taylor" else score, "global", **network)
    dead = next(group for group in groups if group.layers == ("0",))
    assert not dead.scores.any()
    assert max(dead.quantiles) < min(min(group.quantiles) for group in groups if group is not dead)


def test_ranking_keeps_the_training_mode():
    model, network = chain(16, 8)
    for training in (True, False):
        pruning.rank(model.train(training), "lamp", "global", **network)
        assert model.training == training and model[1].training == training
