"""fit(): the training loop of all stages."""

import copy
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn

from common.compression.distillation import LossFn
from common.data.loaders import DeviceLoader
from common.evaluation.metrics import evaluate
from common.system import distributed, hardware, seeding
from common.system.errors import UserError
from common.system.terminal import progress_bar
from common.training import optimizers
from common.training.resume import Progress

CHECK_EVERY = 10  # steps
DIVERGED = 100  # times the loss of the first step, or 1 where that is less


def fit(
    model: nn.Module,
    loss_fn: LossFn,
    train_loader: DeviceLoader,
    val_loader: DeviceLoader | None,
    *,
    epochs: int,
    lr: float,
    weight_decay: float,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    optimizer: str = "adamw",
    schedule: str = "cosine",
    seed: int = 0,
    crops: int | None = None,
    progress: Progress | None = None,
    deploy: Callable[[nn.Module], nn.Module] = copy.deepcopy,
    deploy_device: torch.device | None = None,
    before_epoch: Callable[[nn.Module, int], None] | None = None,
) -> tuple[nn.Module, list[dict]]:
    """Trains a model, and selects the epoch with the highest top-1 on validation, on a tie the lower loss.

    Random numbers, those of the crops too, are a function of the seed, the epoch and the step.

    Args:
        model: Moved to `device`, and trained in place.
        loss_fn: loss_fn(model, images, labels) -> (loss, logits), see `distillation`.
        train_loader: Training batches.
        val_loader: Validation batches; None to select the last epoch.
        epochs: With 0 the model is only deployed.
        lr: Highest learning rate.
        weight_decay: See `optimizers.build`.
        device: Where the model is trained.
        precision: With torch.bfloat16 the layers compute under autocast; weights, batch-norm statistics and
            the loss stay in float32.
        optimizer: See `optimizers.build`.
        schedule: "cosine" or "step", see `optimizers`.
        seed: Of all random numbers.
        crops: After so many epochs the batches are repeated, and with them all random numbers; None: never.
        progress: Where the state is kept; training resumes from the state that it has.
        deploy: Creates from the model in training the one that is evaluated, selected and returned: a copy,
            or its int8 form.
        deploy_device: Where that one runs; default: `device`.
        before_epoch: before_epoch(model, epoch), epochs from 0, may freeze parts of the model.

    Returns:
        (deployed, history): the deployed model of the selected epoch, and a row for each epoch.

    Raises:
        UserError: The loss is not finite or has grown far beyond its start; or the state does not fit the
            model or cannot be written.
    """
    model.to(device=device, memory_format=hardware.memory_format(model, device))
    training = _Training(
        model, loss_fn, optimizers.build(optimizer, model, lr, weight_decay),
        functools.partial(optimizers.SCHEDULES[schedule], epochs=epochs, steps=len(train_loader)),
        device=device, precision=precision, seed=seed, crops=crops or math.inf,
        progress=progress or Progress(),
    )  # fmt: skip
    state = training.state
    # what is deployed on another device is int8, without autocast
    evaluation = (device, precision) if deploy_device is None else (deploy_device, torch.float32)
    for epoch in range(state.epoch, epochs):
        start = time.perf_counter() - state.seconds
        model.train()
        if before_epoch:
            before_epoch(model, epoch)
        title = f"epoch {epoch + 1}/{epochs}"
        row = {"epoch": epoch + 1} | training.train_epoch(train_loader, title, start)
        distributed.broadcast_buffers(model)
        rank = (-1.0, 0.0)
        if val_loader is not None:
            score = evaluate(deploy(model), val_loader, *evaluation)
            row |= {"val_loss": score.loss, "val_top1": score.top1}
            rank = (score.top1, -score.loss)
        row["seconds"] = round(time.perf_counter() - start, 2)
        print(f"{title}: {_summary(row)}", flush=True)
        training.end_epoch(row, rank, best=val_loader is None or state.best is None or rank > state.best_rank)
    training.end()
    return deploy(model), state.history


def split_epochs(epochs: int, steps: int) -> list[int]:
    """Divides epochs between several calls of `fit`.

    Args:
        epochs: The total.
        steps: The number of calls.

    Returns:
        The epochs of each call; what is left over goes to the last ones.
    """
    each, over = divmod(epochs, steps)
    return [each + (step >= steps - over) for step in range(steps)]


def _summary(row: dict) -> str:
    """One line on an epoch."""
    parts = [
        f"{name} loss {row[f'{key}_loss']:.3f}, top-1 {row[f'{key}_top1']:.2%}"
        for key, name in (("train", "training"), ("val", "validation"))
        if f"{key}_loss" in row
    ]
    return "; ".join([*parts, f"{row['seconds']:.0f} s"])


@dataclass
class _State:
    """The state of a training run, as it is stored.

    `epoch`: epochs done. `step`, `seconds`: of the current epoch; `seen`, `loss_sum`, `correct`: its images,
    and the sums of losses and of correct predictions over them. `limit`: a higher loss is divergence.
    `history`: a row for each epoch. `best`, `best_rank`: the weights of the best epoch, and what they are
    compared by.
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
    """A model in training, resumed from what `progress` has: its optimizer and its state.

    `schedule(step)` is the fraction of the highest learning rate at a step, from 0 over all epochs.
    """

    def __init__(self, model, loss_fn, optimizer, schedule, *, device, precision, seed, crops, progress):
        self.model, self.loss_fn, self.optimizer, self.schedule = model, loss_fn, optimizer, schedule
        self.device, self.precision, self.seed, self.crops, self.progress = (
            device,
            precision,
            seed,
            crops,
            progress,
        )
        self.lr, self.memory_format = optimizer.defaults["lr"], hardware.memory_format(model, device)
        self.state = _State()
        if (saved := progress.begin()) is not None:
            self._restore(saved)
        self.parallel = distributed.data_parallel(model, device)

    def _restore(self, saved: dict) -> None:
        try:
            self._load(saved["model"])
            if saved["optimizer"]:
                self.optimizer.load_state_dict(saved["optimizer"])
            self.state = _State(**{each.name: saved[each.name] for each in fields(_State)})
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.progress.path} does not fit this model, delete it: {reason}") from None

    def _load(self, weights: dict[str, Tensor]) -> None:
        own = self.model.state_dict()  # its _metadata tells a module (of mnasnet) which layout it reads
        own.update(weights)
        self.model.load_state_dict(own)

    def train_epoch(self, loader: DeviceLoader, title: str, start: float) -> dict[str, float]:
        """Trains on the rest of the epoch; returns its first learning rate, mean loss and top-1."""
        state, epoch = self.state, self.state.epoch
        # each call of fit draws other random numbers
        drawn = int((self.progress.epochs_before + epoch) % self.crops)
        recent = torch.zeros(3, dtype=torch.float64, device=self.device)  # losses, correct, images
        with progress_bar(total=len(loader), initial=state.step, desc=title, unit="batch") as bar:
            for images, labels in loader.at(drawn, state.step):
                torch.manual_seed(seeding.derive_seed(self.seed, drawn, state.step, distributed.rank()))
                lr = self.lr * self.schedule(epoch * len(loader) + state.step)
                recent += self._step(images, labels, lr, loader.count(state.step))
                state.step += 1
                bar.update()
                # to read a value, an accelerator has to finish its work first: not at every step
                if state.step in (1, len(loader)) or state.step % CHECK_EVERY == 0:
                    self._accumulate(recent, title)
                    recent.zero_()
                    loss, top1 = state.loss_sum / state.seen, state.correct / state.seen
                    bar.set_postfix(loss=f"{loss:.3f}", top1=f"{top1:.2%}")
                    if self.progress.due():
                        state.seconds = time.perf_counter() - start
                        self._keep(title)
        return {
            "lr": self.lr * self.schedule(epoch * len(loader)),
            "train_loss": state.loss_sum / state.seen,
            "train_top1": state.correct / state.seen,
        }

    def _step(self, images: Tensor, labels: Tensor, lr: float, count: int) -> Tensor:
        """One step on this process's part of `count` images: float64 [3], losses, correct, images."""
        images = hardware.copy_to(images, self.device).contiguous(memory_format=self.memory_format)
        labels = hardware.copy_to(labels, self.device)
        with hardware.autocast(self.device, self.precision):
            loss, logits = self.loss_fn(self.parallel, images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        # gradients are averaged over the processes, whose parts of a batch can differ by an image
        (loss * (len(labels) * distributed.world_size() / count)).backward()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        correct = (logits.argmax(1) == labels).sum()
        images_here = torch.full_like(correct, len(labels))
        return torch.stack([loss.detach().double() * len(labels), correct, images_here])

    def _accumulate(self, recent: Tensor, title: str) -> None:
        """Adds the sums since the last call, over all processes. Raises UserError on divergence."""
        loss_sum, correct, seen = distributed.all_reduce(recent).tolist()
        state, loss = self.state, loss_sum / seen
        if state.limit == math.inf:
            state.limit = DIVERGED * max(1.0, loss)
        if not (math.isfinite(loss) and loss <= state.limit):
            raise self._diverged(f"the loss is {loss:.4g}", title)
        state.loss_sum += loss_sum
        state.correct += int(correct)
        state.seen += int(seen)

    def _diverged(self, reason: str, title: str) -> UserError:
        return UserError(f"{reason} in {title}: training diverged; try a lower --lr{self.progress.hint()}")

    def _keep(self, title: str) -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise self._diverged("the weights are no longer finite", title)
        weights = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        self.progress.keep(vars(self.state) | weights)

    def end_epoch(self, row: dict, rank: tuple[float, float], *, best: bool) -> None:
        """Adds the epoch's `row` to the history, and keeps its weights if they are the best."""
        state = self.state
        state.history.append(row)
        if best:
            state.best_rank = rank
            state.best = {key: value.clone() for key, value in self.model.state_dict().items()}
        state.epoch += 1
        state.step = state.seen = state.correct = 0
        state.seconds = state.loss_sum = 0.0
        if state.epoch == 1 or self.progress.due():
            self._keep(f"epoch {state.epoch}")

    def end(self) -> None:
        """Loads the weights of the best epoch into the model; only they are kept of this call of fit."""
        if self.state.best is not None:
            self._load(self.state.best)
        weights = {"model": self.model.state_dict(), "optimizer": None, "best": None}
        self.progress.keep(vars(self.state) | weights, write=False)
