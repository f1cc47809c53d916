import copy
import os

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.compression import importance, layerwise, masking, pruning, reconstruction
from common.system import distributed
from common.system.errors import UserError
from tests import processes
from tests.compression.networks import CPU, network_options, random_network

SIDE = 32
NETWORK = {"classifier": "classifier", "image_size": SIDE}


def batches(count=4, images=8, side=SIDE):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(images, 3, side, side, generator=generator), None) for _ in range(count)]


def pruned_and_kept(model, fraction, network=NETWORK):
    groups = pruning.rank(model, "magnitude", "local", **network)
    widths = pruning.widths_for_fraction(groups, fraction)
    pruned = pruning.prune(model, groups, widths, **network).eval()
    return pruned, masking.verify(pruned, model, groups, widths, **network)


class Small(nn.Module):
    """Convolutions of every kind, and a sum, a gate and a concatenation."""

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
        wide = F.relu6(self.depthwise_norm(self.depthwise(F.hardswish(self.wide(stem), inplace=True))))
        branch = self.plain(F.relu(self.grouped(wide)))
        branch *= torch.sigmoid(self.gate(branch.mean((2, 3), keepdim=True)))
        branch += stem
        top, bottom = torch.cat([stem, branch], 1).chunk(2, 2)
        return self.classifier(torch.cat([bottom, top], 2).mean((2, 3)))


def small():
    model = Small().eval()
    for norm in (model.norm, model.depthwise_norm):
        nn.init.uniform_(norm.running_mean, -0.5, 0.5)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
    return model


@torch.no_grad()
def distance(one, other, images=None):
    images = torch.randn(32, 3, SIDE, SIDE) if images is None else images
    return float((one(images) - other(images)).square().mean())


def test_a_network_that_was_not_cut_stays_as_it_is():
    for model, network in ((small(), NETWORK), (random_network("mobilenet_v3_small").eval(), None)):
        same, _ = copy.deepcopy(model), network
        layers = [
            (name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)
        ]
        everything = {name: torch.arange(len(layer.weight)) for name, layer in layers}
        assert reconstruction.least_squares(same, model, everything, batches(2), CPU) == []
        for key, value in same.state_dict().items():
            assert torch.equal(value, model.state_dict()[key]), key


def test_no_layer_is_worse_than_before_and_the_network_is_much_nearer():
    model = small()
    pruned, kept = pruned_and_kept(model, 0.5)
    before = distance(pruned, model)
    fits = reconstruction.least_squares(pruned, model, kept, batches(), CPU)
    assert [fit.layer for fit in fits] == ["wide", "depthwise", "grouped", "plain", "gate", "classifier"]
    assert all(0 < fit.after < fit.before for fit in fits)
    assert distance(pruned, model) < 0.2 * before


@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "squeezenet1_1"])
def test_torchvision_networks_predict_nearly_what_they_did_for_the_images_that_were_used(arch):
    model, (images, _) = random_network(arch).eval(), batches(1, 16)[0]
    pruned, kept = pruned_and_kept(model, 0.25, network_options(model, 5, SIDE))
    before = distance(pruned, model, images)
    fits = reconstruction.least_squares(pruned, model, kept, [(images, None)], CPU)
    assert all(fit.after <= fit.before for fit in fits) and len(fits) > 5
    assert distance(pruned, model, images) < 0.05 * before


def two_convolutions(*between, bias=True):
    """A network of 16 and 8 channels, and the arguments of pruning."""
    layers = [nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1, bias=bias), *between]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    return model, {"classifier": str(len(model) - 1), "image_size": SIDE}


def without_half_of_the_first(model, network):
    groups = pruning.rank(model, "magnitude", "local", **network)
    pruned = pruning.prune(model, groups, {"0": 8}, **network)
    return pruned, masking.verify(pruned, model, groups, {"0": 8}, **network)


def test_channels_that_are_multiples_of_others_can_be_removed_without_loss():
    """What is removed is an eighth of what is kept: the next weights become w_kept + w_removed / 8."""
    model, network = two_convolutions()
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter[8:] = parameter[:8] / 8
    pruned, kept = without_half_of_the_first(model, network)
    assert kept["0"].tolist() == list(range(8))
    fits = reconstruction.least_squares(pruned, model, kept, batches(), CPU)
    assert fits[0].layer == "2" and fits[0].after < 1e-4 < fits[0].before
    expected = model[2].weight[:, :8] + model[2].weight[:, 8:] / 8
    assert torch.allclose(pruned[2].weight, expected, atol=0.01)
    assert distance(pruned, model) < 1e-6


@pytest.mark.parametrize("bias", [True, False])
def test_the_intercept_is_absorbed_by_the_bias_or_by_the_batch_norm(bias):
    """Channels that are constant are removed: only an intercept can replace them."""
    model, network = two_convolutions(*([] if bias else [nn.BatchNorm2d(8)]), bias=bias)
    with torch.no_grad():
        model[0].weight[:8] = 0
        model[0].bias[:8] = torch.linspace(0.01, 0.08, 8)
    pruned, kept = without_half_of_the_first(model, network)
    assert kept["0"].tolist() == list(range(8, 16))
    reconstruction.least_squares(pruned, model, kept, batches(), CPU)
    missing = model[2].weight[:, :8, 0, 0] @ model[0].bias[:8]
    got = pruned[2].bias - model[2].bias if bias else model[3].running_mean - pruned[3].running_mean
    assert torch.allclose(got, missing, atol=1e-5) and distance(pruned, model) < 1e-9


def test_the_kept_channels_are_those_that_pruning_keeps():
    model = small()
    pruned, kept = pruned_and_kept(model, 0.5)
    assert torch.equal(pruned.stem.weight, model.stem.weight[kept["stem"]])
    assert torch.equal(pruned.wide.weight, model.wide.weight[kept["wide"]][:, kept["stem"]])
    assert torch.equal(pruned.depthwise.weight, model.depthwise.weight[kept["wide"]])
    assert kept["classifier"].tolist() == list(range(5))


def test_values_that_are_not_stored_are_computed_again_with_the_same_result(monkeypatch):
    model, results = small(), []
    for size in (2**30, 600_000, 0):
        monkeypatch.setattr(layerwise, "CACHE_BYTES", size)
        pruned, kept = pruned_and_kept(model, 0.5)
        reconstruction.least_squares(pruned, model, kept, batches(), CPU)
        results.append(pruned.state_dict())
    for state in results[1:]:
        assert all(torch.equal(value, results[0][key]) for key, value in state.items())


class Branching(Small):
    """A network whose operations depend on the values."""

    def forward(self, images):
        return super().forward(images if images.mean() > 0 else -images)


class Repeating(Small):
    """A network that uses a layer twice."""

    def forward(self, images):
        return super().forward(images) + self.classifier(
            self.norm(self.stem(images)).repeat(1, 2, 1, 1).mean((2, 3))
        )


@pytest.mark.parametrize(("kind", "reason"), [(Branching, "cannot be traced"), (Repeating, "more than once")])
def test_a_network_that_cannot_be_followed_is_refused_before_anything_changes(kind, reason):
    model = kind().eval()
    pruned = copy.deepcopy(model)
    with pytest.raises(UserError, match=f"{kind.__name__} .*{reason}"):
        reconstruction.least_squares(pruned, model, {}, batches(1), CPU)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in pruned.state_dict().items())


def _reconstruct_a_part(file, environment):
    os.environ.update(environment)
    torch.set_num_threads(1)
    if environment:
        distributed.start()
    torch.manual_seed(0)
    model = small()
    pruned, kept = pruned_and_kept(model, 0.5)
    part = slice(distributed.rank(), None, distributed.world_size())
    mine = [(images[part], None) for images, _ in batches(2, 33)]
    moments = importance.second_moments(model, mine, CPU)
    reconstruction.least_squares(pruned, model, kept, mine, CPU)
    if distributed.is_main_process():
        torch.save(
            pruned.state_dict() | {f"moment of {name}": value for name, value in moments.items()}, file
        )
    distributed.stop()


def test_two_processes_get_the_result_of_one(tmp_path):
    """Although one has 17 images of each batch, and the other 16."""
    for name, meetings in (("one", [{}]), ("two", processes.meetings(2))):
        pool = [
            processes.CONTEXT.Process(target=_reconstruct_a_part, args=(tmp_path / name, each))
            for each in meetings
        ]
        for process in pool:
            process.start()
        for process in pool:
            process.join()
    one, two = (torch.load(tmp_path / name) for name in ("one", "two"))
    assert "moment of gate" in one and one.keys() == two.keys()
    for key, value in one.items():
        assert torch.allclose(value, two[key], rtol=1e-3, atol=1e-4), key
