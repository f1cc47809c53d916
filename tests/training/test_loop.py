import copy
import itertools
import math

import pytest
import torch
from torch import nn

from common.compression.distillation import cross_entropy
from common.models import architectures
from common.system.errors import UserError
from common.training.loop import CHECK_EVERY, fit, split_epochs
from tests.toys import Flat, Listed, separable

CPU = torch.device("cpu")


def trained(val, **options):
    """The result of `fit` for a linear classifier on images that it can tell apart."""
    options = {"epochs": 5, "lr": 0.05, "weight_decay": 0.0, "device": CPU} | options
    return fit(Flat(), cross_entropy, separable(48), val, **options)


def test_training_learns_and_records_each_epoch():
    model, history = trained(separable(24))
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert history[-1]["val_top1"] == 1.0
    assert history[-1]["train_loss"] < history[0]["train_loss"] / 2
    assert set(history[0]) == {"epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1", "seconds"}
    assert isinstance(model, Flat)


def test_the_best_epoch_on_validation_is_selected_and_not_the_last():
    # validation labels are rotated, so the first model, the least trained, is the best on them
    deployed = []

    def deploy(model):
        deployed.append(copy.deepcopy(model))
        return deployed[-1]

    best, history = trained(separable(24, shift=1), deploy=deploy)
    ranks = [(row["val_top1"], -row["val_loss"]) for row in history]
    assert ranks.index(max(ranks)) < len(ranks) - 1
    assert torch.equal(best.layer.weight, deployed[ranks.index(max(ranks))].layer.weight)


def test_a_model_without_correct_predictions_is_returned_too():
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


def test_without_validation_the_last_epoch_is_selected():
    model = Flat()
    best, history = fit(
        model, cross_entropy, separable(48), None, epochs=3, lr=0.05, weight_decay=0.0, device=CPU
    )
    assert torch.equal(best.layer.weight, model.layer.weight) and "val_top1" not in history[0]


def test_with_0_epochs_the_model_is_deployed_unchanged():
    model = Flat()
    best, history = fit(
        model, cross_entropy, separable(8), None, epochs=0, lr=1.0, weight_decay=0.0, device=CPU
    )
    assert history == [] and best is not model
    assert torch.equal(best.layer.weight, model.layer.weight)


def test_the_deployed_model_is_evaluated():
    # deployed is a model that always predicts 1: it is correct for a third, whatever the other one learns
    _, history = trained(separable(24), deploy=lambda model: _always(1))
    assert all(row["val_top1"] == pytest.approx(1 / 3) for row in history)
    assert history[-1]["train_top1"] > 0.9


def test_before_epoch_gets_the_model_in_training_mode():
    seen = []
    trained(None, epochs=3, before_epoch=lambda model, epoch: seen.append((epoch, model.training)))
    assert seen == [(0, True), (1, True), (2, True)]


def test_a_loss_that_is_not_finite_is_an_error_with_advice():
    def broken(model, images, labels):
        loss, logits = cross_entropy(model, images, labels)
        return loss * math.nan, logits

    with pytest.raises(UserError, match=r"the loss is nan in epoch 1/5.*lower --lr"):
        fit(Flat(), broken, separable(8), None, epochs=5, lr=0.1, weight_decay=0.0, device=CPU)


def test_random_numbers_depend_on_the_seed_and_not_on_earlier_ones():
    def weights(seed, draws=0):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Dropout(0.5), Flat())
        batches = separable(48)
        torch.rand(draws)  # earlier random numbers
        fit(model, cross_entropy, batches, None, epochs=2, lr=0.05, weight_decay=0.0, device=CPU, seed=seed)
        return model[1].layer.weight

    assert torch.equal(weights(1), weights(1, draws=5))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(("crops", "expected"), [(None, [0, 1, 2, 3, 4]), (2, [0, 1, 0, 1, 0])])
def test_batches_and_random_numbers_are_repeated_after_some_epochs(crops, expected):
    asked, seeds = [], []

    class Asked(Listed):
        def at(self, epoch, first=0):
            asked.append(epoch)
            return super().at(epoch, first)

    def loss_fn(model, images, labels):
        seeds.append(torch.initial_seed())
        return cross_entropy(model, images, labels)

    fit(
        Flat(),
        loss_fn,
        Asked(separable(16)),
        None,
        epochs=5,
        lr=0.1,
        weight_decay=0.0,
        device=CPU,
        crops=crops,
    )
    assert asked == expected
    of_epochs = [tuple(seeds[start : start + 2]) for start in range(0, 10, 2)]
    assert [of_epochs.index(each) for each in of_epochs] == expected


def test_a_loss_that_grows_far_beyond_its_start_stops_the_training():
    losses = itertools.count()

    def growing(model, images, labels):
        loss, logits = cross_entropy(model, images, labels)
        return loss / loss.detach() * 3 ** next(losses), logits

    # the loss of the first step is 1; 81 is below a hundred times that, 243 is not
    with pytest.raises(
        UserError, match=r"the loss is 243 in epoch 6/9: training diverged; try a lower --lr$"
    ):
        fit(Flat(), growing, separable(8), None, epochs=9, lr=1e-9, weight_decay=0.0, device=CPU)


def test_a_module_that_reads_its_metadata_gets_the_weights_of_the_best_epoch():
    model = architectures.build("mnasnet0_5", 3)
    batches = Listed([(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))])
    _, history = fit(model, cross_entropy, batches, None, epochs=1, lr=0.01, weight_decay=0.0, device=CPU)
    assert len(history) == 1


@pytest.mark.parametrize(
    ("epochs", "steps", "parts"), [(10, 1, [10]), (10, 3, [3, 3, 4]), (2, 3, [0, 1, 1]), (0, 2, [0, 0])]
)
def test_epochs_are_divided_between_the_steps(epochs, steps, parts):
    assert split_epochs(epochs, steps) == parts


def test_in_bf16_layers_compute_in_bf16_and_weights_statistics_and_loss_stay_in_float32():
    seen = {}

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))

        def forward(self, images):
            output = self.layers(images)
            seen["output"] = output.dtype
            return output

    def loss_fn(model, images, labels):
        loss, logits = cross_entropy(model, images, labels)
        seen["loss"], seen["logits"] = loss.dtype, logits.dtype
        return loss, logits

    model, history = fit(
        Small(), loss_fn, separable(48), separable(24), epochs=6, lr=0.05, weight_decay=0.0, device=CPU,
        precision=torch.bfloat16,
    )  # fmt: skip
    assert seen == {"output": torch.bfloat16, "loss": torch.float32, "logits": torch.float32}
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}
    mean = torch.cat([images for images, _ in separable(48)]).mean((0, 2, 3))
    expected = model.layers[0](mean.view(1, 3, 1, 1)).flatten()
    assert torch.allclose(model.layers[1].running_mean, expected, atol=0.1)
    assert history[-1]["val_top1"] == 1.0


def test_a_model_that_is_deployed_on_a_device_of_its_own_is_evaluated_in_float32():
    seen = []

    class Watched(Flat):
        def forward(self, images):
            output = super().forward(images)
            seen.append((self.training, output.dtype))
            return output

    for deploy_device in (None, CPU):
        fit(
            Watched(), cross_entropy, separable(8), separable(8), epochs=1, lr=0.1, weight_decay=0.0,
            device=CPU, precision=torch.bfloat16, deploy_device=deploy_device,
        )  # fmt: skip
    assert seen == [
        (True, torch.bfloat16),
        (False, torch.bfloat16),
        (True, torch.bfloat16),
        (False, torch.float32),
    ]


def test_a_loss_that_was_not_finite_in_one_step_is_noticed_later():
    calls = itertools.count()

    def once(model, images, labels):
        loss, logits = cross_entropy(model, images, labels)
        return loss * (math.inf if next(calls) == 2 else 1), logits

    with pytest.raises(UserError, match="training diverged"):
        fit(Flat(), once, separable(8 * 15), None, epochs=1, lr=0.1, weight_decay=0.0, device=CPU)
    assert next(calls) <= 2 + CHECK_EVERY


def test_every_epoch_is_one_line_with_and_without_validation(capsys):
    for val, parts in ((None, 1), (separable(24), 2)):
        _, history = trained(val, epochs=2)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2
        for line, row in zip(lines, history, strict=True):
            expected = [f"training loss {row['train_loss']:.3f}, top-1 {row['train_top1']:.2%}"]
            if val:
                expected.append(f"validation loss {row['val_loss']:.3f}, top-1 {row['val_top1']:.2%}")
            assert len(expected) == parts
            assert line == f"epoch {row['epoch']}/2: {'; '.join(expected)}; {row['seconds']:.0f} s"


class Noted(torch.Tensor):
    """A tensor that notes whether its copies are asynchronous."""

    def to(self, *args, **options):
        copies.append(options.get("non_blocking", False))
        return super().to(*args, **options).as_subclass(torch.Tensor)


copies = []


def test_a_step_on_the_cpu_waits_for_its_images_and_labels():
    copies.clear()
    noted = Listed([tuple(part.as_subclass(Noted) for part in batch) for batch in separable(16)])
    fit(Flat(), cross_entropy, noted, None, epochs=1, lr=0.01, weight_decay=0.0, device=CPU)
    assert len(copies) >= 4 and not any(copies)
