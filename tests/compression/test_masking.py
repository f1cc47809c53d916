"""A pruned network is compared with the original one in which the removed channels are zero."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_pruning.pruner import function

from common.compression import dependencies, masking, pruning
from common.models import architectures
from common.system.errors import UserError
from tests.compression.networks import chain, network_options

CLASSES, SIDE = 5, 64
ROUNDING = 1e-5


def pruned_with(model, network, fraction=0.5):
    """(the pruned network, the arguments of `masking.verify` after it); the channels are random ones."""
    groups = pruning.rank(model, "random", "local", **network)
    widths = pruning.widths_for_fraction(groups, fraction)
    return pruning.prune(model, groups, widths, **network), (model, groups, widths)


def difference(model, network, fraction=0.5):
    pruned, planned = pruned_with(model, network, fraction)
    return masking.difference(pruned, model, masking.kept_weights(*planned, **network), network["image_size"])


class Moved(nn.Module):
    """`move` is between two layers, and changes the places of channels."""

    def __init__(self, move, before=16, after=16):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, before, 3, 1, 1)
        self.second, self.head, self.move = nn.Conv2d(after, 16, 3, 1, 1), nn.Linear(16, CLASSES), move

    def forward(self, images):
        x = self.move(F.relu(self.first(F.relu(self.stem(images)))))
        return self.head(F.relu(self.second(x)).mean((2, 3)))


MOVED = {
    "flip": (lambda x: x.flip(1), 16, 16),
    "flip from the end": (lambda x: x.flip(-3), 16, 16),
    "roll": (lambda x: x.roll(5, 1), 16, 16),
    "roll of all axes": (lambda x: x.roll(5), 16, 16),
    "padding": (lambda x: F.pad(x, (0, 0, 0, 0, 8, 8)), 16, 32),
    "index": (lambda x: x[:, torch.arange(15, -1, -1)], 16, 16),
    "index_select": (lambda x: x.index_select(1, torch.arange(15, -1, -1)), 16, 16),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), 16, 32),
    "sort": (lambda x: x.sort(1).values, 16, 16),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), 32, 8),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), 8, 32),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, 2), 16, 16),
    "every second": (lambda x: x[:, ::2], 32, 16),
    "the first": (lambda x: x[:, :16], 32, 16),
    "split": (lambda x: x.split([24, 8], 1)[0], 32, 24),
}


@pytest.mark.parametrize("kind", MOVED)
def test_channels_that_move_stay_and_the_others_are_removed(kind):
    model = Moved(*MOVED[kind])
    network = {"classifier": "head", "image_size": 32}
    pruned, planned = pruned_with(model, network)
    kept = masking.verify(pruned, *planned, **network)
    assert len(kept["stem"]) == len(kept["second"]) == 8 and len(kept["first"]) == len(model.first.weight)
    assert difference(model, network) < ROUNDING


@pytest.mark.parametrize("kind", ["flip", "roll", "index", "sort"])
def test_without_a_barrier_wrong_channels_are_found(monkeypatch, kind):
    monkeypatch.setattr(dependencies, "MOVES", {})
    network = {"classifier": "head", "image_size": 32}
    with pytest.raises(UserError, match="cannot follow the channels of Moved"):
        pruned, planned = pruned_with(Moved(*MOVED[kind]), network)
        masking.verify(pruned, *planned, **network)


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "convnext_tiny"])
@pytest.mark.parametrize("layer", ["ConvPruner", "LinearPruner"])
def test_a_layer_that_loses_other_inputs_is_found(monkeypatch, arch, layer):
    pruner = getattr(function, layer)
    right = pruner.prune_in_channels

    def wrong(self, module, idxs):
        count = module.in_channels if layer == "ConvPruner" else module.in_features
        return right(self, module, [(index + 1) % count for index in idxs])

    model = architectures.build(arch, CLASSES).eval()
    network = network_options(model, CLASSES, SIDE)
    assert difference(model, network) < ROUNDING
    monkeypatch.setattr(pruner, "prune_in_channels", wrong)
    assert difference(model, network) > masking.TOLERANCE


def test_new_blocks_that_end_in_zeros_do_not_hide_wrong_channels(monkeypatch):
    monkeypatch.setattr(dependencies, "MOVES", {})
    network = {"classifier": "head", "image_size": 32}
    model = Moved(*MOVED["flip"])
    nn.init.zeros_(model.head.weight)
    assert difference(model, network) > masking.TOLERANCE


def test_weights_that_are_not_those_of_the_original_are_found():
    model, network = chain(16, 16)
    pruned, planned = pruned_with(model, network)
    with torch.no_grad():
        pruned[3].weight[0, 0] += 1e-3
    with pytest.raises(UserError, match="the logits differ by inf%"):
        masking.verify(pruned, *planned, **network)


def test_the_difference_is_that_of_the_largest_logit():
    """Nothing is removed, and all logits are larger by 1 %."""
    original, pruned = (nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Flatten()) for _ in range(2))
    with torch.no_grad():
        pruned[0].weight.copy_(original[0].weight)
    kept = {"0.weight": torch.arange(6).reshape(2, 3, 1, 1)}
    assert masking.difference(pruned, original, kept, 1) == 0
    pruned.append(Scaled(1.01))
    assert masking.difference(pruned, original, kept, 1) == pytest.approx(0.01, rel=1e-4)


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class Block(nn.Module):
    """Of the ResNets for CIFAR: its shortcut is subsampled, and padded with channels of zeros."""

    def __init__(self, before, after):
        super().__init__()
        self.stride, self.pad = 1 + (after > before), (after - before) // 2
        self.first, self.first_norm = nn.Conv2d(before, after, 3, self.stride, 1), nn.BatchNorm2d(after)
        self.second, self.second_norm = nn.Conv2d(after, after, 3, 1, 1), nn.BatchNorm2d(after)

    def forward(self, x):
        y = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(x + y)


def test_blocks_with_padded_shortcuts_are_pruned_inside():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), Block(16, 16), Block(16, 32), Block(32, 64), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(64, CLASSES),
    ).eval()  # fmt: skip
    network = {"classifier": "6", "image_size": 32}
    pruned, planned = pruned_with(model, network)
    kept = masking.verify(pruned, *planned, **network)
    assert [len(kept[name]) for name in ("1.first", "2.first", "3.first")] == [8, 16, 32]
    assert [len(kept[name]) for name in ("0", "1.second", "2.second", "3.second")] == [16, 16, 32, 64]


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75])
def test_grouped_convolutions_get_the_widths_that_were_planned(fraction, capsys):
    model = architectures.build("resnext50_32x4d", CLASSES).eval()
    network = network_options(model, CLASSES, SIDE)
    pruned, planned = pruned_with(model, network, fraction)
    masking.verify(pruned, *planned, **network)
    assert pruned.layer1[0].conv2.out_channels == round(128 * (1 - fraction))
    assert capsys.readouterr().out == ""


def test_a_width_that_was_not_planned_is_said(capsys):
    model = architectures.build("resnext50_32x4d", CLASSES).eval()
    network = network_options(model, CLASSES, SIDE)
    groups = pruning.rank(model, "random", "local", **network)
    group = next(group for group in groups if group.layers == ("layer1.0.conv2",))
    widths = {"layer1.0.conv2": dataclasses.replace(group, multiple=8).width(0.45)}
    pruned = pruning.prune(model, groups, widths, **network)
    masking.verify(pruned, model, groups, widths, **network)
    message = "note: the width of layer1.0.conv2 is 64, and not 72 as planned\n"
    assert capsys.readouterr().out == message


def test_nothing_is_changed_by_the_check():
    model, network = chain(16, 16)
    pruned, planned = pruned_with(model, network)
    before = [copy.deepcopy(each.state_dict()) for each in (pruned, model)]
    masking.verify(pruned.train(), *planned, **network)
    for each, state in zip((pruned, model), before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in each.state_dict().items())
    assert pruned.training
