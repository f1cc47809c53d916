"""fit(): the one training loop of all four stages."""

import copy
import functools
import math
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from common import machine
from common.distillation import LossFunction
from common.errors import UserError
from common.metrics import evaluate

LOOK_EVERY = 10  # steps
WARMUP = 0.05  # share of the steps in which the learning rate rises
OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}


def fit(
    model: nn.Module,
    loss_function: LossFunction,
    train_loader: DataLoader,
    val_loader: DataLoader | None,
    *,
    epochs: int,
    lr: float,
    weight_decay: float,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    optimizer: str = "adamw",
    schedule: str = "cosine",
    deploy: Callable[[nn.Module], nn.Module] = copy.deepcopy,
    deploy_device: torch.device | None = None,
    before_epoch: Callable[[nn.Module, int], None] | None = None,
) -> tuple[nn.Module, list[dict]]:
    """Trains `model` in place: (best deployed model, row per epoch).

    `precision`: with bfloat16 the layers compute under autocast; weights, batch-norm statistics and the loss
    stay in float32. `optimizer`: adamw, adam (weight decay in the gradient) or sgd (Nesterov momentum 0.9).
    `schedule`: cosine (warm-up in a line, then half a cosine down to 0, step by step) or step (a tenth after
    every 15 epochs).

    After each epoch `deploy(model)` makes the model that counts (a copy, or its int8 form), to run on
    `deploy_device` (default: `device`); the one with the highest top-1 on `val_loader` is kept, on a tie that
    with the lower loss; the last one without a `val_loader`. With 0 epochs that is `deploy(model)` itself.
    `before_epoch(model, epoch)`, epochs counted from 0, may freeze parts of the model.

    Raises UserError when the loss is no longer finite.
    """
    model.to(device=device, memory_format=torch.channels_last)
    optimizer = OPTIMIZERS[optimizer](_parameter_groups(model, weight_decay), lr=lr)
    share = functools.partial(SCHEDULES[schedule], epochs=epochs, steps=len(train_loader))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    # what is deployed elsewhere is int8, and nothing for autocast
    scoring = (device, precision) if deploy_device is None else (deploy_device, torch.float32)
    best, best_rank, history = None, (-1.0, 0.0), []
    for epoch in range(epochs):
        start = time.perf_counter()
        model.train()
        if before_epoch:
            before_epoch(model, epoch)
        row = {"epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"]}
        title = f"epoch {epoch + 1}/{epochs}"
        row |= _train_epoch(
            model, loss_function, train_loader, optimizer, scheduler, device, precision, title
        )
        deployed = deploy(model)
        rank = (-1.0, 0.0)
        if val_loader is not None:
            score = evaluate(deployed, val_loader, *scoring)
            row |= {"val_loss": score.loss, "val_top1": score.top1}
            rank = (score.top1, -score.loss)
            print(f"{title}: validation top-1 {score.top1:.2%}, loss {score.loss:.3f}")
        if best is None or rank > best_rank or val_loader is None:
            best, best_rank = deployed, rank
        history.append(row | {"seconds": round(time.perf_counter() - start, 2)})
    return (deploy(model) if best is None else best), history


def share_epochs(epochs: int, steps: int) -> list[int]:
    """`epochs` shared out between `steps` rounds of training; what is left over goes to the last ones."""
    each, over = divmod(epochs, steps)
    return [each + (step >= steps - over) for step in range(steps)]


def _train_epoch(
    model, loss_function, loader, optimizer, scheduler, device, precision, title: str
) -> dict[str, float]:
    seen, sums = 0, torch.zeros(2, dtype=torch.float64, device=device)  # of the loss, of right answers
    with tqdm(loader, desc=title, unit="batch", dynamic_ncols=True, leave=False) as bar:
        for step, (images, labels) in enumerate(bar, start=1):
            images = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            labels = labels.to(device, non_blocking=True)
            with machine.autocast(device, precision):
                loss, logits = loss_function(model, images, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()
            seen += len(labels)
            sums += torch.stack([loss.detach() * len(labels), (logits.argmax(1) == labels).sum()])
            # to look at a figure, an accelerator has to finish its work first: not at every step
            if step % LOOK_EVERY == 0 or step == len(loader):
                mean_loss, top1 = (sums / seen).tolist()
                if not math.isfinite(mean_loss):
                    raise UserError(
                        f"the loss is {mean_loss} in {title}: training diverged; try a lower --lr"
                    )
                bar.set_postfix(loss=f"{mean_loss:.3f}", top1=f"{top1:.2%}")
    return {"train_loss": mean_loss, "train_top1": top1}


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
