"""fit(): the one training loop of all four stages."""

import copy
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import distributed, machine, seeds
from common.batches import Batches
from common.distillation import LossFunction
from common.errors import UserError
from common.metrics import evaluate
from common.resume import Progress

LOOK_EVERY = 10  # steps
DIVERGED = 100  # times the loss of the first step, or 1 where that is less
WARMUP = 0.05  # share of the steps in which the learning rate rises
OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}


def fit(
    model: nn.Module,
    loss_function: LossFunction,
    train_loader: Batches,
    val_loader: Batches | None,
    *,
    epochs: int,
    lr: float,
    weight_decay: float,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    optimizer: str = "adamw",
    schedule: str = "cosine",
    seed: int = 0,
    progress: Progress | None = None,
    deploy: Callable[[nn.Module], nn.Module] = copy.deepcopy,
    deploy_device: torch.device | None = None,
    before_epoch: Callable[[nn.Module, int], None] | None = None,
) -> tuple[nn.Module, list[dict]]:
    """Trains `model` in place: (deployed model of the best epoch, row per epoch).

    `precision`: with bfloat16 the layers compute under autocast; weights, batch-norm statistics and the loss
    stay in float32. `optimizer`: adamw, adam (weight decay in the gradient) or sgd (Nesterov momentum 0.9).
    `schedule`: cosine (warm-up in a line, then half a cosine down to 0, step by step) or step (a tenth after
    every 15 epochs). What is drawn at random follows from `seed`, the epoch and the step alone.

    After each epoch `deploy(model)` makes the model that counts (a copy, or its int8 form), to run on
    `deploy_device` (default: `device`); the epoch with the highest top-1 on `val_loader` is kept, on a tie
    that with the lower loss; the last one without a `val_loader`. With 0 epochs it is `deploy(model)` itself.
    `before_epoch(model, epoch)`, epochs counted from 0, may freeze parts of the model.

    `progress` keeps how far this came, and where it holds a state, training goes on from there to the same
    end. Raises UserError when the loss is no longer finite or has grown far beyond its start, and where the
    state does not fit the model or cannot be written.
    """
    model.to(device=device, memory_format=torch.channels_last)
    training = _Training(
        model,
        loss_function,
        OPTIMIZERS[optimizer](_parameter_groups(model, weight_decay), lr=lr),
        functools.partial(SCHEDULES[schedule], epochs=epochs, steps=len(train_loader)),
        device=device,
        precision=precision,
        seed=seed,
        progress=progress or Progress(),
    )
    course = training.course
    # what is deployed elsewhere is int8, and nothing for autocast
    scoring = (device, precision) if deploy_device is None else (deploy_device, torch.float32)
    for epoch in range(course.epoch, epochs):
        start = time.perf_counter() - course.seconds
        model.train()
        if before_epoch:
            before_epoch(model, epoch)
        title = f"epoch {epoch + 1}/{epochs}"
        row = {"epoch": epoch + 1} | training.train_epoch(train_loader, title, start)
        distributed.share_buffers(model)
        rank = (-1.0, 0.0)
        if val_loader is not None:
            score = evaluate(deploy(model), val_loader, *scoring)
            row |= {"val_loss": score.loss, "val_top1": score.top1}
            rank = (score.top1, -score.loss)
            print(f"{title}: validation top-1 {score.top1:.2%}, loss {score.loss:.3f}")
        row["seconds"] = round(time.perf_counter() - start, 2)
        training.end_epoch(
            row, rank, best=val_loader is None or course.best is None or rank > course.best_rank
        )
    training.end()
    return deploy(model), course.history


def share_epochs(epochs: int, steps: int) -> list[int]:
    """`epochs` shared out between `steps` rounds of training; what is left over goes to the last ones."""
    each, over = divmod(epochs, steps)
    return [each + (step >= steps - over) for step in range(steps)]


@dataclass
class _Course:
    """How far a training has come: epochs done; steps and seconds of the next, and over its `seen` pictures
    the sum of the losses and of right answers; the highest loss that is not yet divergence; a row for each
    epoch; the weights of the best epoch, and what they are ranked by.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    seen: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    limit: float = math.inf
    history: list[dict] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    best_rank: tuple[float, float] = (-1.0, 0.0)


class _Training:
    """A model in training, from where `progress` left it: its optimizer, and how far it has come.

    `rate(step)` is the share of the optimizer's learning rate at a step, counted from 0 over all epochs.
    """

    def __init__(self, model, loss_function, optimizer, rate, *, device, precision, seed, progress):
        self.model, self.loss_function, self.optimizer, self.rate = model, loss_function, optimizer, rate
        self.device, self.precision, self.seed, self.progress = device, precision, seed, progress
        self.lr = optimizer.defaults["lr"]
        self.course = _Course()
        if (saved := progress.begin()) is not None:
            self._restore(saved)
        self.parallel = distributed.in_parallel(model, device)

    def _restore(self, saved: dict) -> None:
        try:
            self._load(saved["model"])
            if saved["optimizer"]:
                self.optimizer.load_state_dict(saved["optimizer"])
            self.course = _Course(**{each.name: saved[each.name] for each in fields(_Course)})
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.progress.path} does not fit this model, delete it: {reason}") from None

    def _load(self, state: dict[str, Tensor]) -> None:
        own = self.model.state_dict()  # its _metadata tells a module (of mnasnet) which layout it reads
        own.update(state)
        self.model.load_state_dict(own)

    def train_epoch(self, loader: Batches, title: str, start: float) -> dict[str, float]:
        """Trains on what is left of the epoch: its first learning rate, mean loss and top-1."""
        course, epoch = self.course, self.course.epoch
        drawn = self.progress.epochs_before + epoch  # each round of a run draws numbers of its own
        recent = torch.zeros(3, dtype=torch.float64, device=self.device)  # losses, right answers, pictures
        bar = tqdm(total=len(loader), initial=course.step, desc=title, unit="batch", dynamic_ncols=True,
                   leave=False, disable=not distributed.is_first())  # fmt: skip
        with bar:
            for images, labels in loader.at(drawn, course.step):
                torch.manual_seed(seeds.mixed(self.seed, drawn, course.step, distributed.rank()))
                rate = self.lr * self.rate(epoch * len(loader) + course.step)
                recent += self._step(images, labels, rate, loader.count(course.step))
                course.step += 1
                bar.update()
                # to look at a figure, an accelerator has to finish its work first: not at every step
                if course.step in (1, len(loader)) or course.step % LOOK_EVERY == 0:
                    self._look(recent, title)
                    recent.zero_()
                    loss, top1 = course.loss_sum / course.seen, course.correct / course.seen
                    bar.set_postfix(loss=f"{loss:.3f}", top1=f"{top1:.2%}")
                    if self.progress.due():
                        course.seconds = time.perf_counter() - start
                        self._keep(title)
        return {
            "lr": self.lr * self.rate(epoch * len(loader)),
            "train_loss": course.loss_sum / course.seen,
            "train_top1": course.correct / course.seen,
        }

    def _step(self, images: Tensor, labels: Tensor, rate: float, count: int) -> Tensor:
        """One step on this process's part of `count` pictures: float64 [3], losses, right answers, size."""
        images = images.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        labels = labels.to(self.device, non_blocking=True)
        with machine.autocast(self.device, self.precision):
            loss, logits = self.loss_function(self.parallel, images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        # gradients are averaged over the processes, whose parts of a batch can differ by a picture
        (loss * (len(labels) * distributed.size() / count)).backward()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        right = (logits.argmax(1) == labels).sum()
        return torch.stack([loss.detach().double() * len(labels), right, torch.full_like(right, len(labels))])

    def _look(self, recent: Tensor, title: str) -> None:
        """Adds up what all processes have seen since the last look. Raises UserError where it is no good."""
        loss_sum, correct, seen = distributed.total(recent).tolist()
        course, loss = self.course, loss_sum / seen
        if course.limit == math.inf:
            course.limit = DIVERGED * max(1.0, loss)
        if not (math.isfinite(loss) and loss <= course.limit):
            raise self._diverged(f"the loss is {loss:.4g}", title)
        course.loss_sum += loss_sum
        course.correct += int(correct)
        course.seen += int(seen)

    def _diverged(self, what: str, title: str) -> UserError:
        return UserError(f"{what} in {title}: training diverged; try a lower --lr{self.progress.kept()}")

    def _keep(self, title: str) -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise self._diverged("the weights are no longer finite", title)
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        self.progress.keep(vars(self.course) | state)

    def end_epoch(self, row: dict, rank: tuple[float, float], *, best: bool) -> None:
        """Takes down the epoch's `row` of the history, and its weights where they are the best."""
        course = self.course
        course.history.append(row)
        if best:
            course.best_rank = rank
            course.best = {key: value.clone() for key, value in self.model.state_dict().items()}
        course.epoch += 1
        course.step = course.seen = course.correct = 0
        course.seconds = course.loss_sum = 0.0
        if course.epoch == 1 or self.progress.due():
            self._keep(f"epoch {course.epoch}")

    def end(self) -> None:
        """Gives the model the weights of the best epoch, which are all that is kept of the round."""
        if self.course.best is not None:
            self._load(self.course.best)
        state = {"model": self.model.state_dict(), "optimizer": None, "best": None}
        self.progress.keep(vars(self.course) | state, write=False)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay on the weights of layers, none on biases and norms (vectors)."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _warmup_cosine(step: int, *, epochs: int, steps: int) -> float:
    """The share of the highest learning rate at `step`: up in a line, then half a cosine down to 0.

    Training takes `epochs` epochs of `steps` steps.
    """
    total = max(1, epochs * steps)
    warmup = math.ceil(WARMUP * total)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _steps_down(step: int, *, epochs: int, steps: int) -> float:
    """The share of the first rate at `step`: a tenth of it after every 15 epochs of `steps` steps."""
    return 0.1 ** (step // (15 * steps))


SCHEDULES = {"cosine": _warmup_cosine, "step": _steps_down}
