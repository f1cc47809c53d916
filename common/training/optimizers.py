"""Optimizers, weight decay and learning-rate schedules."""

import functools
import math

import torch
from torch import nn

WARMUP = 0.05  # fraction of the steps in which the learning rate rises
STEP_EPOCHS, STEP_FACTOR = 15, 0.1  # of the schedule "step"
DECAYED = ("weight", "in_proj_weight")  # names of parameters; the second is that of attention
OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}


def build(name: str, model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Builds an optimizer, with weight decay only on the weights of convolutions, linear layers, attention.

    Biases, norms, ConvNeXt's layer scale, class tokens, position embeddings and bias tables have none.

    Args:
        name: "adamw", "adam" (weight decay in the gradient) or "sgd" (Nesterov momentum 0.9).
        model: The model.
        lr: Highest learning rate.
        weight_decay: Of the weights.

    Returns:
        The optimizer.
    """
    decayed, others = [], []
    for path, parameter in model.named_parameters():
        is_weight = parameter.ndim > 1 and path.rpartition(".")[2] in DECAYED
        (decayed if is_weight else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return OPTIMIZERS[name](groups, lr=lr)


def warmup_cosine(step: int, *, epochs: int, steps: int) -> float:
    """A schedule: linear warm-up, then half a cosine down to 0.

    Args:
        step: From 0, over all epochs.
        epochs: How many there are.
        steps: Of each epoch.

    Returns:
        The learning rate as a fraction of the highest one.
    """
    total = max(1, epochs * steps)
    warmup = math.ceil(WARMUP * total)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def step_decay(step: int, *, epochs: int, steps: int) -> float:
    """A schedule: a tenth after every 15 epochs.

    Args:
        step: From 0, over all epochs.
        epochs: Not used.
        steps: Of each epoch.

    Returns:
        The learning rate as a fraction of the first one.
    """
    return STEP_FACTOR ** (step // (STEP_EPOCHS * steps))


SCHEDULES = {"cosine": warmup_cosine, "step": step_decay}
