import pytest
import torch
from torch import nn
from torchvision.models.squeezenet import Fire

from common import models, pruning
from common.errors import UserError
from common.metrics import count_parameters

CLASSES = 40  # wide enough to be pruned, were it not protected


def built(arch):
    model = models.build(arch, CLASSES)
    return model, {"protect": models.classifier(model, CLASSES)[1], "image_size": 32}


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
    pruned = pruning.prune_to_parameters(model, round(ratio * before), **limits)
    assert abs(count_parameters(pruned) / before - ratio) < 0.01
    assert count_parameters(model) == before  # the original is left whole

    rebuilt = models.rebuild(arch, CLASSES, models.shapes(pruned))
    rebuilt.load_state_dict(pruned.state_dict())
    images = torch.randn(2, 3, 64, 64)
    logits = pruned.eval()(images)
    assert logits.shape == (2, CLASSES)
    assert torch.equal(rebuilt.eval()(images), logits)

    widths = [m.weight.shape[0] for m in pruned.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(width % 8 == 0 for width in widths)


@pytest.mark.parametrize("arch", ["regnet_y_400mf", "resnext50_32x4d"])
def test_grouped_convolutions_stay_whole_groups_and_are_rebuilt(arch):
    model, limits = built(arch)
    pruned = pruning.prune_channels(model, 0.25, **limits)
    before, after = (
        {layer.groups for layer in network.modules() if isinstance(layer, nn.Conv2d)}
        for network in (model, pruned)
    )
    assert count_parameters(pruned) < 0.8 * count_parameters(model) and after == before
    rebuilt = models.rebuild(arch, CLASSES, models.shapes(pruned))
    rebuilt.load_state_dict(pruned.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(rebuilt.eval()(images), pruned.eval()(images))


def test_a_network_that_cannot_be_pruned_is_refused():
    model, limits = built("shufflenet_v2_x1_0")
    with pytest.raises(UserError, match="cannot prune ShuffleNetV2"):
        pruning.prune_channels(model, 0.25, **limits)


def test_another_layer_makes_up_for_a_large_one_that_tips_the_scale():
    # of the third layer 8 channels are 6 % of all parameters; without that, 50 % would be left
    small, large = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 64, 7)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), small, nn.ReLU(), large, nn.ReLU(),
        nn.Conv2d(64, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    before = count_parameters(model)
    pruned = pruning.prune_to_parameters(model, round(0.48 * before), protect=model[-1], image_size=16)
    assert abs(count_parameters(pruned) / before - 0.48) < 0.01


def test_the_channels_with_the_smallest_weights_go():
    model, limits = built("resnet18")
    with torch.no_grad():
        model.layer1[0].conv1.weight[:32] *= 1e-3  # half of a layer that only conv2 depends on
        kept = model.layer1[0].conv1.weight[32:].clone()
    pruned = pruning.prune_channels(model, 0.5, **limits)
    assert pruned.layer1[0].conv1.weight.shape == (32, 32, 3, 3)
    # its inputs are pruned as well: every kept filter is part of one of the large ones
    for small in pruned.layer1[0].conv1.weight:
        assert any(torch.isin(small.flatten(), large.flatten()).all() for large in kept)


def test_channel_ratio_removes_that_share_of_every_width_and_leaves_eight():
    model, limits = built("resnet18")
    pruned = pruning.prune_channels(model, 0.25, **limits)
    assert (pruned.conv1.out_channels, pruned.layer4[1].conv2.out_channels) == (48, 384)
    assert pruning.prune_channels(model, 1.0, **limits).layer4[1].conv2.out_channels == 8


def test_widths_are_rounded_to_the_nearest_multiple_of_eight():
    model, limits = built("squeezenet1_1")  # 0.8 of 16, 32, 48 and 64: 12.8, 25.6, 38.4 and 51.2
    pruned = pruning.prune_channels(model, 0.2, **limits)
    fires = [module for module in pruned.modules() if isinstance(module, Fire)]
    assert [fire.squeeze.out_channels for fire in fires] == [16, 16, 24, 24, 40, 40, 48, 48]


def test_keeping_everything_changes_nothing():
    model, limits = built("squeezenet1_1")
    same = pruning.prune_to_parameters(model, count_parameters(model), **limits)
    assert models.shapes(same) == models.shapes(model)


def test_a_target_out_of_reach_names_the_smallest_network():
    model, limits = built("squeezenet1_1")
    with pytest.raises(UserError, match=r"is the least"):
        pruning.prune_to_parameters(model, 1000, **limits)


def test_training_mode_and_device_are_kept():
    model, limits = built("squeezenet1_1")
    assert pruning.prune_channels(model.train(), 0.5, **limits).training
    assert not pruning.prune_channels(model.eval(), 0.5, **limits).training


def test_the_scores_are_lamp_s_and_shared_by_layers_that_are_pruned_together():
    model, limits = built("mobilenet_v2")
    scores = pruning._lamp_scores(model, **limits)
    expand, depthwise, project = (f"features.4.conv.{part}" for part in ("0.0", "1.0", "2"))
    assert torch.equal(scores[expand], scores[depthwise]) and scores[project].shape == (32,)
    # the largest of a layer has a score of 1, itself over itself, but for the rounding of the sums
    assert all(score.max().item() == pytest.approx(1, abs=0.01) for score in scores.values())
    assert all(score.min() > 0 for score in scores.values())
    assert models.classifier(model, CLASSES)[0] not in scores


def test_layers_with_many_weak_channels_lose_the_most():
    model, limits = built("resnet18")
    with torch.no_grad():
        model.layer2[0].conv1.weight[:96] *= 1e-2
        model.layer2[0].bn1.weight[:96] *= 1e-2
        model.layer2[0].conv2.weight[:, :96] *= 1e-2
    pruned = pruning.prune_to_parameters(model, round(0.9 * count_parameters(model)), **limits)
    assert pruned.layer2[0].conv1.out_channels == 32
    assert pruned.layer1[0].conv1.out_channels == 64
