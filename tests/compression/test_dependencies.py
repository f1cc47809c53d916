"""Channels that torch-pruning cannot follow stay whole, and what remains computes the same."""

import warnings

import pytest
import torch
from torch import nn
from torchvision.models.swin_transformer import SwinTransformer

from common.compression import dependencies, masking, pruning
from common.models import architectures
from common.system.errors import UserError
from tests.compression.networks import network_options, pruned_by

CLASSES = 5


def without_effect(layer, norm, count):
    """Lets the first channels of a layer be zero: to remove them changes nothing."""
    with torch.no_grad():
        layer.weight[:count] = 0.0
        norm.weight[:count] = norm.bias[:count] = 0.0


def test_channels_before_a_shuffle_stay_and_those_inside_of_its_branches_are_removed():
    torch.manual_seed(0)
    model = architectures.build("shufflenet_v2_x0_5", CLASSES).eval()
    network = network_options(model, CLASSES, image_size=64)
    blocks = [*model.stage2, *model.stage3, *model.stage4]
    for block in blocks:
        first, first_norm, _, depthwise, norm, *_ = block.branch2
        for layer, its_norm in ((first, first_norm), (depthwise, norm)):
            without_effect(layer, its_norm, len(layer.weight) // 3 // 8 * 8)
    images = torch.randn(2, 3, 64, 64)
    expected = model(images)
    groups = pruning.rank(model, "magnitude", "local", **network)
    inner = {
        name: width
        for name, width in pruning.widths_for_fraction(groups, 1 / 3).items()
        if name.startswith("stage")
    }
    pruned = pruning.prune(model, groups, inner, **network)
    changed = [*pruned.stage2, *pruned.stage3, *pruned.stage4]
    for before, after in zip(blocks, changed, strict=True):
        assert after.branch2[0].out_channels < before.branch2[0].out_channels
        assert after.branch2[5].out_channels == before.branch2[5].out_channels
    assert torch.allclose(pruned(images), expected, atol=1e-5)


def test_attention_stays_whole_and_the_layers_between_are_pruned():
    model = SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=CLASSES)
    pruned = pruned_by(model, 0.25, network_options(model, CLASSES, image_size=32))
    before, after = model.features[1][0], pruned.features[1][0]
    assert after.attn.qkv.weight.shape == before.attn.qkv.weight.shape
    assert after.mlp[0].out_features == after.mlp[3].in_features == before.mlp[0].out_features * 3 // 4


class Sums(nn.Module):
    """Its layers are added to each other: they are pruned together."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(8))
        self.first, self.classifier = nn.Conv2d(3, 8, 3), nn.Linear(8, CLASSES)

    def forward(self, images):
        x = self.first(images)
        for layer in self.layers:
            x = layer(x) + x
        return self.classifier(x.mean((2, 3)))


@pytest.mark.parametrize("limit", ["MOST_DEPENDENCIES", "MOST_STEPS"])
def test_a_search_that_does_not_end_is_given_up(monkeypatch, limit):
    monkeypatch.setattr(dependencies, limit, 20)
    model = Sums()
    with pytest.raises(UserError, match="cannot prune Sums: its layers depend on each other"):
        pruned_by(model, 0.25, network_options(model, CLASSES, image_size=16))


def test_warnings_of_torch_pruning_do_not_reach_the_user():
    model = architectures.build("convnext_tiny", CLASSES)  # its scales are parameters outside of layers
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        groups = pruning.rank(model, "magnitude", "local", **network_options(model, CLASSES, image_size=32))
    assert groups


class Chains(nn.Module):
    """Its forward pass adds many values and concatenates the sum: a long search for a number of channels."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(8))
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(32, 16, 1)
        self.classifier = nn.Linear(16, CLASSES)

    def forward(self, images):
        x = first = self.first(images).relu()
        for layer in self.layers:
            x = layer(x).relu() + x + x.sigmoid()
        return self.classifier(self.last(torch.cat([x, first], 1)).mean((2, 3)))


def test_concatenated_channels_are_counted_after_many_additions():
    model = Chains().eval()
    network = network_options(model, CLASSES, image_size=16)
    groups = pruning.rank(model, "random", "local", **network)
    widths = pruning.widths_for_fraction(groups, 0.5)
    pruned = pruning.prune(model, groups, widths, **network)
    masking.verify(pruned, model, groups, widths, **network)
    assert (pruned.first.out_channels, pruned.last.in_channels) == (8, 16)


def test_a_network_with_a_barrier_everywhere_is_refused():
    class Flipped(nn.Sequential):
        def forward(self, images):
            return self[1](self[0](images).flip(1).mean((2, 3)))

    model = Flipped(nn.Conv2d(3, 16, 3), nn.Linear(16, CLASSES))
    with pytest.raises(UserError, match="cannot follow the channels of any layer of Flipped"):
        pruned_by(model, 0.25, network_options(model, CLASSES, image_size=16))
