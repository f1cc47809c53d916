import copy
import itertools

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from common.cli import options
from common.training import optimizers
from common.training.loop import fit
from tests.toys import Listed, separable
from tests.training.test_loop import CPU, trained


def test_biases_and_norms_do_not_decay():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3))
    batches = Listed([(torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, 2, 0]))])
    before = copy.deepcopy(model.state_dict())
    deployed, _ = fit(
        model, lambda model, images, labels: (0 * sum(p.sum() for p in model.parameters()), model(images)),
        batches, None, epochs=3, lr=0.1, weight_decay=0.5, device=CPU,
    )  # fmt: skip
    after = deployed.state_dict()
    assert after["1.weight"].abs().sum() < before["1.weight"].abs().sum()
    assert torch.equal(after["1.bias"], before["1.bias"])
    assert torch.equal(after["2.weight"], before["2.weight"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adamw", 2 - 0.1 * 0.25 * 2),  # lr * weight_decay * weight
        ("adam", 2 - 0.1),  # the decay is the gradient, and Adam's first step is lr, whatever its size
        ("sgd", 2 - 0.1 * (1 + 0.9) * 0.25 * 2),  # the decay is the gradient, with Nesterov momentum
    ],
)
def test_one_step_of_weight_decay_worked_by_hand(name, expected):
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(2)
        model.bias.fill_(2)
    optimizer = optimizers.build(name, model, lr=0.1, weight_decay=0.25)
    model.weight.grad, model.bias.grad = torch.zeros(1, 1), torch.zeros(1)
    optimizer.step()
    assert model.weight.item() == pytest.approx(expected) and model.bias.item() == 2


def test_the_learning_rate_rises_and_then_falls_to_zero():
    rates = [optimizers.warmup_cosine(step, epochs=10, steps=10) for step in range(101)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == 1.0 and rates[100] == pytest.approx(0.0, abs=1e-12)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[5:]))
    assert optimizers.warmup_cosine(0, epochs=1, steps=1) == 1.0


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.5),  # 5 % of 40 steps are 2 of warm-up
        (1, 1),
        (2, 1),  # the cosine begins
        (2 + 19, 0.5),  # half of the 38 steps that are left
        (40, 0),
    ],
)
def test_steps_of_warm_up_and_cosine_worked_by_hand(step, expected):
    assert optimizers.warmup_cosine(step, epochs=2, steps=20) == pytest.approx(expected, abs=1e-12)


def test_the_step_schedule_divides_by_10_after_every_15_epochs():
    rates = [optimizers.step_decay(step, epochs=100, steps=4) for step in (0, 59, 60, 119, 120, 399)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 1e-6])
    rates = [optimizers.step_decay(step, epochs=40, steps=1) for step in (14, 15, 29, 30)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("optimizer", optimizers.OPTIMIZERS)
def test_every_optimizer_and_schedule_learns(optimizer):
    for schedule in optimizers.SCHEDULES:
        _, history = trained(separable(24), optimizer=optimizer, schedule=schedule)
        assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_the_choices_of_the_command_line_are_those_of_the_training():
    assert set(options.OPTIMIZERS) == set(optimizers.OPTIMIZERS)
    assert set(options.SCHEDULES) == set(optimizers.SCHEDULES)


def decays_of(model):
    """The weight decay of each parameter, by its name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = optimizers.build("adamw", model, lr=0.1, weight_decay=0.25).param_groups
    decays = {names[parameter]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert len(decays) == len(names) == sum(len(group["params"]) for group in groups)
    return decays


@pytest.mark.parametrize(
    ("arch", "without", "decayed"),
    [
        ("convnext_tiny", "layer_scale", "features.1.0.block.0.weight"),
        ("vit_b_16", "class_token", "conv_proj.weight"),
        ("vit_b_16", "pos_embedding", "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"),
        ("swin_t", "relative_position_bias_table", "features.1.0.attn.qkv.weight"),
    ],
)
def test_only_weights_of_layers_decay(arch, without, decayed):
    with torch.device("meta"):
        model = get_model(arch, weights=None)
    decays = decays_of(model)
    others = [name for name in decays if name.endswith(without)]
    assert others and all(decays[name] == 0 for name in others)
    assert decays[decayed] == 0.25
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) > 20 and all(decays[f"{name}.weight"] == 0.25 for name in layers)
    assert all(decay == 0 for name, decay in decays.items() if name.endswith("bias"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)],
)
def test_the_name_of_an_optimizer_gives_its_kind(name, kind):
    # with more than one parameter: the name of none of them takes its place
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    assert type(optimizers.build(name, model, lr=0.1, weight_decay=0.25)) is kind
