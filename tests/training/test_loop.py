import copy
import itertools
import math

import pytest
import torch
from torch import nn

from common.cli import options
from common.compression.distillation import cross_entropy
from common.models import architectures
from common.system.errors import UserError
from common.training.loop import (
    CHECK_EVERY,
    OPTIMIZERS,
    SCHEDULES,
    _steps_down,
    _warmup_cosine,
    fit,
    split_epochs,
)
from tests.toys import Flat, Listed, separable

CPU = torch.device("cpu")


def trained(val, **options):
    options = {"epochs": 5, "lr": 0.05, "weight_decay": 0.0, "device": CPU} | options
    return fit(Flat(), cross_entropy, separable(48), val, **options)


def test_training_learns_and_logs_each_epoch():
    model, history = trained(separable(24))
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert history[-1]["val_top1"] == 1.0
    assert history[-1]["train_loss"] < history[0]["train_loss"] / 2
    assert set(history[0]) == {"epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1", "seconds"}
    assert isinstance(model, Flat)


def test_the_best_epoch_on_validation_is_kept_and_not_the_last():
    # validation labels are turned, so the first model, the least trained, is the best on them
    deployed = []

    def deploy(model):
        deployed.append(copy.deepcopy(model))
        return deployed[-1]

    best, history = trained(separable(24, shift=1), deploy=deploy)
    ranks = [(row["val_top1"], -row["val_loss"]) for row in history]
    assert ranks.index(max(ranks)) < len(ranks) - 1
    assert torch.equal(best.layer.weight, deployed[ranks.index(max(ranks))].layer.weight)


def test_a_model_that_is_never_right_is_saved_all_the_same():
    best, history = trained([(torch.zeros(2, 3, 2, 2), torch.tensor([0, 0]))], epochs=1)
    assert history[0]["val_top1"] in (0.0, 1.0) and best is not None
    worst, history = fit(
        _always(1), cross_entropy, separable(48), [(torch.zeros(2, 3, 2, 2), torch.tensor([0, 0]))],
        epochs=2, lr=1e-9, weight_decay=0.0, device=CPU,
    )  # fmt: skip
    assert [row["val_top1"] for row in history] == [0.0, 0.0] and worst is not None


def _always(label: int) -> nn.Module:
    model = Flat()
    with torch.no_grad():
        model.layer.weight.zero_()
        model.layer.bias.copy_(10 * nn.functional.one_hot(torch.tensor(label), 3))
    return model


def test_without_validation_the_last_epoch_is_kept():
    model = Flat()
    best, history = fit(
        model, cross_entropy, separable(48), None, epochs=3, lr=0.05, weight_decay=0.0, device=CPU
    )
    assert torch.equal(best.layer.weight, model.layer.weight) and "val_top1" not in history[0]


def test_no_epochs_deploy_the_model_as_it_is():
    model = Flat()
    best, history = fit(
        model, cross_entropy, separable(8), None, epochs=0, lr=1.0, weight_decay=0.0, device=CPU
    )
    assert history == [] and best is not model
    assert torch.equal(best.layer.weight, model.layer.weight)


def test_what_is_scored_is_the_deployed_model():
    # a deployed model that always answers 1 scores the share of that label, however well the other one learns
    _, history = trained(separable(24), deploy=lambda model: _always(1))
    assert all(row["val_top1"] == pytest.approx(1 / 3) for row in history)
    assert history[-1]["train_top1"] > 0.9


def test_before_epoch_sees_the_model_in_training_mode():
    seen = []
    trained(None, epochs=3, before_epoch=lambda model, epoch: seen.append((epoch, model.training)))
    assert seen == [(0, True), (1, True), (2, True)]


def test_a_loss_that_is_not_finite_ends_in_advice():
    def broken(model, images, labels):
        loss, logits = cross_entropy(model, images, labels)
        return loss * math.nan, logits

    with pytest.raises(UserError, match=r"the loss is nan in epoch 1/5.*lower --lr"):
        fit(Flat(), broken, separable(8), None, epochs=5, lr=0.1, weight_decay=0.0, device=CPU)


def test_the_seed_decides_what_is_drawn_whatever_was_drawn_before():
    def weights(seed, draws=0):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Dropout(0.5), Flat())
        batches = separable(48)
        torch.rand(draws)
        fit(model, cross_entropy, batches, None, epochs=2, lr=0.05, weight_decay=0.0, device=CPU, seed=seed)
        return model[1].layer.weight

    assert torch.equal(weights(1), weights(1, draws=5))
    assert not torch.equal(weights(1), weights(2))


def test_a_loss_that_grows_far_beyond_its_start_stops_the_run():
    losses = itertools.count()

    def growing(model, images, labels):
        loss, logits = cross_entropy(model, images, labels)
        return loss / loss.detach() * 3 ** next(losses), logits

    # from 1 in the first step; 81 is under a hundred times that, 243 is not
    with pytest.raises(
        UserError, match=r"the loss is 243 in epoch 6/9: training diverged; try a lower --lr$"
    ):
        fit(Flat(), growing, separable(8), None, epochs=9, lr=1e-9, weight_decay=0.0, device=CPU)


def test_a_module_that_reads_its_metadata_gets_the_weights_of_the_best_epoch():
    model = architectures.build("mnasnet0_5", 3)
    still = Listed([(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))])
    _, history = fit(model, cross_entropy, still, None, epochs=1, lr=0.01, weight_decay=0.0, device=CPU)
    assert len(history) == 1


def test_biases_and_norms_do_not_decay():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3))
    still = Listed([(torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, 2, 0]))])
    before = copy.deepcopy(model.state_dict())
    kept, _ = fit(
        model, lambda model, images, labels: (0 * sum(p.sum() for p in model.parameters()), model(images)),
        still, None, epochs=3, lr=0.1, weight_decay=0.5, device=CPU,
    )  # fmt: skip
    after = kept.state_dict()
    assert after["1.weight"].abs().sum() < before["1.weight"].abs().sum()
    assert torch.equal(after["1.bias"], before["1.bias"]) and torch.equal(
        after["2.weight"], before["2.weight"]
    )


def test_the_learning_rate_rises_then_falls_to_zero():
    rates = [_warmup_cosine(step, epochs=10, steps=10) for step in range(101)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == 1.0 and rates[100] == pytest.approx(0.0, abs=1e-12)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[5:]))
    assert _warmup_cosine(0, epochs=1, steps=1) == 1.0


@pytest.mark.parametrize(
    ("epochs", "steps", "shares"), [(10, 1, [10]), (10, 3, [3, 3, 4]), (2, 3, [0, 1, 1]), (0, 2, [0, 0])]
)
def test_epochs_are_shared_out_between_the_steps(epochs, steps, shares):
    assert split_epochs(epochs, steps) == shares


def test_the_step_schedule_is_a_tenth_after_every_fifteen_epochs():
    rates = [_steps_down(step, epochs=100, steps=4) for step in (0, 59, 60, 119, 120, 399)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 1e-6])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_and_schedule_learns(optimizer):
    for schedule in SCHEDULES:
        _, history = trained(separable(24), optimizer=optimizer, schedule=schedule)
        assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_the_choices_of_the_command_line_are_those_of_the_training():
    assert set(options.OPTIMIZERS) == set(OPTIMIZERS) and set(options.SCHEDULES) == set(SCHEDULES)


def test_in_bf16_layers_compute_in_bf16_and_weights_statistics_and_loss_stay_in_float32():
    seen = {}

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))

        def forward(self, images):
            answer = self.layers(images)
            seen["answer"] = answer.dtype
            return answer

    def loss_function(model, images, labels):
        loss, logits = cross_entropy(model, images, labels)
        seen["loss"], seen["logits"] = loss.dtype, logits.dtype
        return loss, logits

    model, history = fit(
        Small(), loss_function, separable(48), separable(24), epochs=6, lr=0.05, weight_decay=0.0, device=CPU,
        precision=torch.bfloat16,
    )  # fmt: skip
    assert seen == {"answer": torch.bfloat16, "loss": torch.float32, "logits": torch.float32}
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}
    mean = torch.cat([images for images, _ in separable(48)]).mean((0, 2, 3))
    wanted = model.layers[0](mean.view(1, 3, 1, 1)).flatten()
    assert torch.allclose(model.layers[1].running_mean, wanted, atol=0.1)
    assert history[-1]["val_top1"] == 1.0


def test_a_deployed_model_elsewhere_is_scored_in_float32():
    seen = []

    class Watched(Flat):
        def forward(self, images):
            answer = super().forward(images)
            seen.append((self.training, answer.dtype))
            return answer

    for place in (None, CPU):
        fit(
            Watched(), cross_entropy, separable(8), separable(8), epochs=1, lr=0.1, weight_decay=0.0,
            device=CPU, precision=torch.bfloat16, deploy_device=place,
        )  # fmt: skip
    assert seen == [
        (True, torch.bfloat16),
        (False, torch.bfloat16),
        (True, torch.bfloat16),
        (False, torch.float32),
    ]


def test_a_loss_that_was_not_finite_once_is_noticed_later():
    calls = itertools.count()

    def once(model, images, labels):
        loss, logits = cross_entropy(model, images, labels)
        return loss * (math.inf if next(calls) == 2 else 1), logits

    with pytest.raises(UserError, match="training diverged"):
        trained_by = separable(8 * 15)
        fit(Flat(), once, trained_by, None, epochs=1, lr=0.1, weight_decay=0.0, device=CPU)
    assert next(calls) <= 2 + CHECK_EVERY
