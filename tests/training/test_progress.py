"""What `fit` keeps of its way, and goes on from."""

import itertools
import math

import pytest
import torch
from torch import nn

from common.compression.distillation import cross_entropy
from common.system import files
from common.system.errors import UserError
from common.training import loop, resume
from common.training.loop import fit
from common.training.resume import Progress
from tests.toys import Flat, Listed, separable

CPU = torch.device("cpu")


@pytest.mark.parametrize("at", range(1, 12))
def test_a_training_that_stops_at_any_step_goes_on_to_the_same_weights(tmp_path, monkeypatch, at):
    monkeypatch.setattr(resume, "MIN_INTERVAL", 0)
    monkeypatch.setattr(resume, "MAX_TIME_FRACTION", math.inf)
    monkeypatch.setattr(loop, "CHECK_EVERY", 1)

    def train(progress, stop=math.inf):
        torch.manual_seed(0)
        model, steps = nn.Sequential(nn.Dropout(0.3), Flat()), itertools.count()
        pictures, others = separable(32), separable(24)

        def loss_function(model, images, labels):
            if next(steps) == stop:
                raise KeyboardInterrupt
            return cross_entropy(model, images, labels)

        results = []
        for _ in range(2):  # two rounds, as in pruning step by step
            model, history = fit(model, loss_function, pictures, others, epochs=2, lr=0.05, weight_decay=0.1,
                                 device=CPU, progress=progress)  # fmt: skip
            results += [{key: value for key, value in row.items() if key != "seconds"} for row in history]
        return model[1].layer.weight, results

    wanted, rows = train(Progress())
    first = Progress(tmp_path / "x.resume", {}, {})
    with pytest.raises(KeyboardInterrupt):
        train(first, stop=at)
    second = Progress(tmp_path / "x.resume", {}, {})
    second.rounds = files.load_checked(tmp_path / "x.resume")["rounds"]
    weights, again = train(second)
    assert torch.equal(weights, wanted) and again == rows


def test_each_round_of_a_run_draws_numbers_of_its_own():
    class Watched(Listed):
        def at(self, epoch, first=0):
            seen.append(epoch)
            return super().at(epoch, first)

    seen, progress = [], Progress()
    for epochs in (2, 1, 3):
        fit(Flat(), cross_entropy, Watched(separable(8)), None, epochs=epochs, lr=0.1, weight_decay=0.0,
            device=CPU, progress=progress)  # fmt: skip
    assert seen == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("broken", ["loss", "weights"])
def test_a_run_that_diverges_keeps_its_last_good_state(tmp_path, monkeypatch, broken):
    monkeypatch.setattr(resume, "MIN_INTERVAL", 0)
    monkeypatch.setattr(resume, "MAX_TIME_FRACTION", math.inf)
    progress, steps = Progress(tmp_path / "x.resume", {}, {}), itertools.count(1)

    def breaking(model, images, labels):
        loss, logits = cross_entropy(model, images, labels)
        if next(steps) == 6:  # the second step of the third epoch
            loss = loss * math.nan if broken == "loss" else loss + 0 * (model.layer.weight * math.inf).sum()
        return loss, logits

    with pytest.raises(UserError) as error:
        fit(Flat(), breaking, separable(16), None, epochs=5, lr=0.1, weight_decay=0.0, device=CPU,
            progress=progress)  # fmt: skip
    path = tmp_path / "x.resume"
    assert (
        f"in epoch 3/5: training diverged; try a lower --lr; --resume goes on from {path} (epochs done: 2"
        in str(error.value)
    )
    (state,) = files.load_checked(path)["rounds"]
    assert (state["epoch"], len(state["history"])) == (2, 2)
    assert all(value.isfinite().all() for value in state["model"].values())


def test_weights_that_are_not_finite_are_never_kept(tmp_path, monkeypatch):
    """The loss of the last step is still good, its gradient is not."""
    progress = Progress(tmp_path / "x.resume", {}, {})

    def breaking(model, images, labels):
        loss, logits = cross_entropy(model, images, labels)
        logits.register_hook(lambda gradient: gradient * math.nan)
        return loss, logits

    with pytest.raises(UserError, match="the weights are no longer finite in epoch 1"):
        fit(Flat(), breaking, separable(8), None, epochs=1, lr=0.1, weight_decay=0.0, device=CPU,
            progress=progress)  # fmt: skip
    assert not (tmp_path / "x.resume").exists()


def test_a_state_of_another_network_is_refused(tmp_path):
    progress = Progress(tmp_path / "x.resume", {}, {})
    progress.rounds = [{"model": {"x": torch.zeros(1)}, "optimizer": None}]
    with pytest.raises(UserError, match=r"x\.resume does not fit this model, delete it"):
        fit(Flat(), cross_entropy, separable(8), None, epochs=1, lr=0.1, weight_decay=0.0, device=CPU,
            progress=progress)  # fmt: skip
