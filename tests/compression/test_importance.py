import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.compression import importance, pruning, regression
from tests.compression.networks import CPU, chain, network_options, pruned_by, random_network


def test_taylor_removes_channels_without_a_gradient_however_large_their_weights():
    model, network = chain(16, 8)
    dead = torch.arange(8)
    with torch.no_grad():
        model[0].weight[dead] *= 100
        model[1].bias[dead] = -1e6  # so far below 0 that the ReLU gives 0
    importance.accumulate_gradients(model, [(torch.randn(8, 3, 8, 8), torch.arange(8) % 4)], CPU)
    assert pruned_by(model, 0.5, network, "taylor")[1].bias.tolist() == [0] * 8
    assert (pruned_by(model, 0.5, network, "magnitude")[1].bias < 0).all()


def test_gradients_are_summed_over_the_first_sixteen_batches_and_nothing_else_changes():
    model, _ = chain(8, 8)
    before = copy.deepcopy(model.state_dict())
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(4, (4,))) for _ in range(20)]
    plain = copy.deepcopy(model).eval()
    sum(F.cross_entropy(plain(images), labels) for images, labels in batches[:16]).backward()
    for _ in range(2):  # earlier gradients do not count
        left = iter(batches)
        importance.accumulate_gradients(model, left, CPU)
        assert len(list(left)) == 4
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_images_are_used_where_an_importance_needs_them():
    model, network = chain(8, 8)
    batches = [(torch.randn(4, 3, 8, 8), torch.arange(4))] * 10
    assert importance.prepare("lamp", model, iter([]), CPU) is importance.IMPORTANCES["lamp"]
    score = importance.prepare("reconstruction", model, batches, CPU)
    assert isinstance(score, importance.ReconstructionError) and model[0].weight.grad is None
    assert len(pruning.rank(model, score, "global", **network)) == 2
    assert importance.prepare("taylor", model, batches, CPU) is importance.IMPORTANCES["taylor"]
    assert model[0].weight.grad is not None


def test_the_error_is_divided_by_what_a_channel_costs():
    """Layer 0: 3 weights of a channel before it and 6 behind it. Layer 3: 8, and 4 for one position."""
    model, network = chain(8, 6)
    model.eval()
    batches = [(torch.randn(4, 3, 8, 8), None)]

    def scores(kind):
        score = importance.prepare("reconstruction", model, batches, CPU, kind)
        return {group.layers[0]: group.scores for group in pruning.rank(model, score, "global", **network)}

    errors = scores("ram")
    for kind, costs in (
        ("parameters", (3 + 6, 8 + 4)), ("size", (3 + 6, 8 + 4)),
        ("macs", ((3 + 6) * 64, 8 * 64 + 4)), ("latency", ((3 + 6) * 64, 8 * 64 + 4)),
    ):  # fmt: skip
        divided = scores(kind)
        for layer, cost in zip(("0", "3"), costs, strict=True):
            assert torch.allclose(divided[layer], errors[layer] / cost, rtol=1e-5, atol=0)


def test_second_moments_are_those_of_the_inputs():
    model, _ = chain(8, 8)
    model.eval()
    batches = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    moments = importance.second_moments(model, [(images, None) for images in batches], CPU)
    rows = torch.cat(batches).permute(0, 2, 3, 1).reshape(-1, 3).double()
    assert torch.allclose(moments["0"], rows.T @ rows / len(rows), atol=1e-6)
    pooled = model[:-1](torch.cat(batches)).double()
    assert torch.allclose(moments["7"], pooled.T @ pooled / len(pooled), atol=1e-6)
    assert not any(module._forward_hooks for module in model.modules())


def scores_of(model, network, moments):
    groups = pruning.rank(model, importance.ReconstructionError(model, moments), "global", **network)
    return {group.layers[0]: group.scores for group in groups}


def test_the_score_is_the_error_that_least_squares_leave(monkeypatch):
    """Eight channels: each is scored as if it alone were removed. Compared with numpy's least squares."""
    monkeypatch.setattr(regression, "RIDGE", 1e-9)
    model, network = chain(8, 6)
    model.eval()
    images = torch.randn(16, 3, 8, 8)
    scores = scores_of(model, network, importance.second_moments(model, [(images, None)], CPU))["0"]
    inputs = model[:3](images).permute(0, 2, 3, 1).reshape(-1, 8).double().detach().numpy()
    outputs = inputs @ model[3].weight.detach()[:, :, 0, 0].double().numpy().T
    for channel in range(8):
        others = np.delete(inputs, channel, axis=1)
        left = outputs - others @ np.linalg.lstsq(others, outputs, rcond=None)[0]
        assert float(scores[channel]) == pytest.approx((left**2).sum() / (outputs**2).sum(), rel=0.01)


def test_a_channel_that_is_flattened_is_removed_with_all_its_columns(monkeypatch):
    monkeypatch.setattr(regression, "RIDGE", 1e-9)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 5), nn.Linear(5, 4))
    network = {"classifier": "4", "image_size": 2}
    images = torch.randn(64, 3, 2, 2)
    scores = scores_of(model, network, importance.second_moments(model, [(images, None)], CPU))["0"]
    inputs = model[:3](images).detach().double().numpy()
    outputs = inputs @ model[3].weight.detach().double().numpy().T
    for channel in range(8):
        others = np.delete(inputs, slice(4 * channel, 4 * channel + 4), axis=1)
        left = outputs - others @ np.linalg.lstsq(others, outputs, rcond=None)[0]
        assert float(scores[channel]) == pytest.approx((left**2).sum() / (outputs**2).sum(), rel=0.01)


def test_channels_that_others_can_replace_are_removed_first():
    """Channels 8 to 15 are sums of two others each. Their weights are large, so magnitude keeps them."""
    model, network = chain(16, 8, norm=False)
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].weight[8:] = 2 * (model[0].weight[:8] + model[0].weight[:8].roll(1, 0))
        model[0].weight[:8, 0] += torch.rand(8, 1, 1)
        model[0].weight[8:] = 2 * (model[0].weight[:8] + model[0].weight[:8].roll(1, 0))
    images = torch.rand(8, 3, 8, 8)
    moments = importance.second_moments(model, [(images, None)], CPU)
    ranked = scores_of(model, network, moments)["0"].argsort()
    assert len(set(ranked[:8].tolist())) == 8
    removed = ranked[:8]
    kept = ranked[8:]
    # what is kept spans what was removed: the error of all removed channels together is nothing
    inputs = F.relu(model[0](images)).permute(0, 2, 3, 1).reshape(-1, 16).detach().double().numpy()
    left = np.linalg.lstsq(inputs[:, kept], inputs[:, removed], rcond=None)[0]
    assert np.allclose(inputs[:, kept] @ left, inputs[:, removed], atol=1e-4)


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_torchvision_networks_are_scored_and_their_state_does_not_change(arch):
    model = random_network(arch)
    before = copy.deepcopy(model.state_dict())
    network = network_options(model, 5, 32)
    moments = importance.second_moments(model, [(torch.randn(8, 3, 32, 32), None)], CPU)
    groups = pruning.rank(model, importance.ReconstructionError(model, moments), "global", **network)
    lamp = pruning.rank(model, "lamp", "global", **network)
    assert [group.layers for group in groups] == [group.layers for group in lamp]
    assert all(group.scores.isfinite().all() and (group.scores >= 0).all() for group in groups)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_grouped_layer_that_reads_channels_is_scored_by_its_weights():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 3, groups=2, padding=1), nn.Flatten(), nn.Linear(8 * 16, 4)
    )  # fmt: skip
    network = {"classifier": "3", "image_size": 4}
    moments = importance.second_moments(model, [(torch.randn(4, 3, 4, 4), None)], CPU)
    weight = model[1].weight.detach().square().sum((2, 3))  # [outputs, channels of a group]
    expected = torch.cat([weight[:4].sum(0), weight[4:].sum(0)]) / weight.sum()
    assert torch.allclose(scores_of(model, network, moments)["0"].sort().values, expected.sort().values)


def test_a_layer_too_large_for_a_regression_is_scored_by_its_weights(monkeypatch):
    model, network = chain(8, 8)
    monkeypatch.setattr(regression, "LARGEST", 3)
    moments = importance.second_moments(model, [(torch.randn(4, 3, 8, 8), None)], CPU)
    assert set(moments) == {"0"}
    weight = model[3].weight.detach()[:, :, 0, 0]
    assert torch.allclose(
        scores_of(model, network, moments)["0"], weight.square().sum(0) / weight.square().sum(), atol=1e-5
    )
