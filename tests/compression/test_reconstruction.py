import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.compression import pruning, reconstruction
from common.models import architectures
from common.system.errors import UserError
from tests.compression.networks import CPU, chain, network_options

SIDE = 32


def batches(count=4, images=8, side=SIDE):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(images, 3, side, side, generator=generator), None) for _ in range(count)]


def pruned_and_kept(model, fraction, network):
    groups = pruning.rank(model, "magnitude", "local", **network)
    widths = pruning.widths_for_fraction(groups, fraction)
    kept = pruning.kept_channels(model, groups, widths, **network)
    return pruning.prune(model, groups, widths, **network).eval(), kept


def all_channels(model):
    layers = [
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, reconstruction.LAYERS)
    ]
    return {name: torch.arange(len(layer.weight)) for name, layer in layers}


class Small(nn.Module):
    """Convolutions of every kind: strided, dilated, grouped, depthwise; with a sum and a gate."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.wide = nn.Conv2d(16, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=2, dilation=2, groups=32, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(32)
        self.grouped = nn.Conv2d(32, 16, (1, 3), padding=(0, 1), groups=2)
        self.plain = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.gate = nn.Conv2d(16, 16, 1)
        self.classifier = nn.Linear(32, 5)

    def forward(self, images):
        stem = F.relu(self.norm(self.stem(images)), inplace=True)
        wide = F.relu6(self.depthwise_norm(self.depthwise(F.hardswish(self.wide(stem)))))
        branch = self.plain(F.relu(self.grouped(wide)))
        branch = branch * torch.sigmoid(self.gate(branch.mean((2, 3), keepdim=True)))
        branch += stem
        return self.classifier(torch.cat([branch, stem], 1).mean((2, 3)))


def small():
    model = Small().eval()
    for norm in (model.norm, model.depthwise_norm):
        nn.init.uniform_(norm.running_mean, -0.5, 0.5)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
    return model


def test_a_network_that_was_not_cut_stays_as_it_is():
    model = small()
    same = copy.deepcopy(model)
    assert reconstruction.least_squares(same, model, all_channels(model), batches(), CPU) == []
    for key, value in same.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
