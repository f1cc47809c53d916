"""What is measured of a model: accuracy with its interval, parameters, multiply-accumulates."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError


@dataclass(frozen=True)
class Score:
    """Sums over the `n` pictures of a split, divided once; and the class `answers`, int64 [n], in their
    order.
    """

    n: int
    correct1: int
    correct5: int
    loss_sum: float
    answers: Tensor

    @property
    def top1(self) -> float:
        return self.correct1 / self.n

    @property
    def top5(self) -> float:
        return self.correct5 / self.n

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / self.n

    def agreement(self, other: "Score") -> float:
        """The share of the pictures to which both gave the same answer."""
        return float((self.answers == other.answers).double().mean())

    def as_dict(self) -> dict:
        """The figures as a checkpoint keeps them; `ci95` is Wilson's interval of top-1."""
        return {
            "n": self.n,
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "ci95": list(wilson_interval(self.correct1, self.n)),
        }

    def __str__(self) -> str:
        low, high = wilson_interval(self.correct1, self.n)
        return f"top-1 {self.top1:.2%} [{low:.1%}, {high:.1%}], top-5 {self.top5:.2%}, n {self.n}"


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Score:
    """Scores `model`, moved to `device` and put into eval mode, on batches of (images [N, 3, S, S], labels
    [N]).
    """
    model.to(device).eval()
    n = correct1 = correct5 = 0
    loss_sum, answers = 0.0, []
    for images, labels in batches:
        images = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        logits = model(images).float().cpu()
        # int8 logits can be equal: argmax takes the first of them, topk any
        answers.append(logits.argmax(1))
        n += len(labels)
        correct1 += int((answers[-1] == labels).sum())
        correct5 += int((logits.topk(min(5, logits.shape[1])).indices == labels[:, None]).sum())
        loss_sum += float(F.cross_entropy(logits, labels, reduction="sum"))
    return Score(n, correct1, correct5, loss_sum, torch.cat(answers))


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion. Source: Wilson, JASA 22 (1927), 209-212."""
    z = 1.959964
    share = correct / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def count_parameters(model: nn.Module) -> int:
    """The number of trainable values of a float model."""
    return sum(parameter.numel() for parameter in model.parameters())


def size(model: nn.Module, image_size: int) -> dict[str, int]:
    """`params` of a float model, and its `macs`, the multiply-accumulates for one picture.

    Raises UserError where the model cannot take pictures of `image_size` pixels.
    """
    was_training = model.training
    picture = torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device)
    try:
        with torch.no_grad():
            macs, _ = torch_pruning.utils.count_ops_and_params(model.eval(), picture)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        name = type(model).__name__
        raise UserError(f"{name} cannot take pictures of {image_size} pixels: {reason}") from None
    finally:
        model.train(was_training)
    return {"params": count_parameters(model), "macs": int(macs)}
