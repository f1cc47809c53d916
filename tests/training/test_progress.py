"""The state that `fit` keeps, and resumes from."""

import itertools
import math
from types import SimpleNamespace

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
def test_training_that_stops_at_any_step_resumes_to_the_same_weights(tmp_path, monkeypatch, at):
    monkeypatch.setattr(resume, "MIN_INTERVAL", 0)
    monkeypatch.setattr(resume, "MAX_TIME_FRACTION", math.inf)
    monkeypatch.setattr(loop, "CHECK_EVERY", 1)

    def train(progress, stop=math.inf):
        torch.manual_seed(0)
        model, steps = nn.Sequential(nn.Dropout(0.3), Flat()), itertools.count()
        batches, val = separable(32), separable(24)

        def loss_fn(model, images, labels):
            if next(steps) == stop:
                raise KeyboardInterrupt
            return cross_entropy(model, images, labels)

        results = []
        for _ in range(2):  # two calls of fit, as in pruning in two steps
            model, history = fit(model, loss_fn, batches, val, epochs=2, lr=0.05, weight_decay=0.1,
                                 device=CPU, progress=progress)  # fmt: skip
            results += [{key: value for key, value in row.items() if key != "seconds"} for row in history]
        return model[1].layer.weight, results

    expected, rows = train(Progress())
    first = Progress(tmp_path / "x.resume", {}, {})
    with pytest.raises(KeyboardInterrupt):
        train(first, stop=at)
    second = Progress(tmp_path / "x.resume", {}, {})
    second.states = files.load_checked(tmp_path / "x.resume")["rounds"]
    weights, resumed_rows = train(second)
    assert torch.equal(weights, expected) and resumed_rows == rows


def test_each_call_of_fit_in_a_run_has_epochs_of_its_own():
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
def test_a_run_that_diverges_keeps_its_last_finite_state(tmp_path, monkeypatch, broken):
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
        f"in epoch 3/5: training diverged; try a lower --lr; --resume continues from {path} (epochs done: 2"
        in str(error.value)
    )
    (state,) = files.load_checked(path)["rounds"]
    assert (state["epoch"], len(state["history"])) == (2, 2)
    assert all(value.isfinite().all() for value in state["model"].values())


def test_weights_that_are_not_finite_are_never_kept(tmp_path, monkeypatch):
    """The loss of the last step is finite, its gradient is not."""
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
    progress.states = [{"model": {"x": torch.zeros(1)}, "optimizer": None}]
    with pytest.raises(UserError, match=r"x\.resume does not fit this model, delete it"):
        fit(Flat(), cross_entropy, separable(8), None, epochs=1, lr=0.1, weight_decay=0.0, device=CPU,
            progress=progress)  # fmt: skip


def test_a_state_is_written_when_it_is_due_and_deleted_when_the_run_is_finished(tmp_path, monkeypatch):
    path, now = tmp_path / "x.resume", 0.0
    monkeypatch.setattr(resume, "time", SimpleNamespace(monotonic=lambda: now))
    progress = Progress(path, {}, {})
    assert progress.begin() is None and progress.hint() == "" and not progress.due()
    now = resume.MIN_INTERVAL
    assert progress.due()
    progress.keep({"epoch": 1, "step": 2}, write=False)
    assert not path.exists()
    progress.keep({"epoch": 1, "step": 2})
    assert path.exists() and not progress.due()
    assert progress.hint() == (
        f"; --resume continues from {path} (epochs done: 1, and 2 steps of the next), also with another --lr"
    )
    progress.finish()
    assert not path.exists()
    assert not Progress().due()  # without a file there is nothing to write
