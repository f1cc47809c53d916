"""What is measured of a model: accuracy with its interval, parameters, multiply-accumulates."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional as F

from common import distributed, machine
from common.errors import UserError


@dataclass(frozen=True)
class Score:
    """The class `answers` to the pictures of a split and their `labels`, both int64 [n] in the same order; in
    how many the label was among the five likeliest; the sum of the cross-entropies, divided once.
    """

    labels: Tensor
    answers: Tensor
    correct5: int
    loss_sum: float

    @property
    def n(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> Tensor:
        """Which pictures were answered right, bool [n]."""
        return self.answers == self.labels

    @property
    def correct1(self) -> int:
        return int(self.correct.sum())

    @property
    def top1(self) -> float:
        return self.correct1 / self.n

    @property
    def top5(self) -> float:
        return self.correct5 / self.n

    @property
    def ci95(self) -> tuple[float, float]:
        """Wilson's interval of top-1."""
        return wilson_interval(self.correct1, self.n)

    @property
    def ci95_top5(self) -> tuple[float, float]:
        """Wilson's interval of top-5."""
        return wilson_interval(self.correct5, self.n)

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / self.n

    def confusion(self, classes: int) -> Tensor:
        """int64 [classes, classes]: how many pictures of label i were answered with j."""
        pairs = self.labels * classes + self.answers
        return torch.bincount(pairs, minlength=classes**2).view(classes, classes)

    def agreement(self, other: "Score") -> float:
        """The share of the pictures to which both gave the same answer."""
        return float((self.answers == other.answers).double().mean())

    def as_dict(self, split: str) -> dict:
        """The figures as a checkpoint keeps them: `split`, "test" or "val", is what was scored, `ci95` is
        Wilson's interval of top-1.
        """
        return {
            "split": split,
            "n": self.n,
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "ci95": list(self.ci95),
        }

    def __str__(self) -> str:
        low, high = self.ci95
        return f"top-1 {self.top1:.2%} [{low:.1%}, {high:.1%}], top-5 {self.top5:.2%}, n {self.n}"


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    precision: torch.dtype = torch.float32,
) -> Score:
    """Scores `model`, moved to `device` and put into eval mode, on batches of (images [N, 3, S, S], labels
    [N]). With `precision` bfloat16 its layers compute under autocast.

    Of several processes each scores its own batches, and all get the score of all pictures, those of the
    first process first.
    """
    # before inference mode, in which moved weights could not be trained any more
    model.to(device, memory_format=torch.channels_last).eval()
    none = torch.empty(0, dtype=torch.int64)  # a process may have no picture
    all_labels, answers, correct5, loss_sum = [none], [none], 0, 0.0
    for images, labels in batches:
        images = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), machine.autocast(device, precision):
            logits = model(images)
        logits, labels = logits.float().cpu(), labels.cpu()
        all_labels.append(labels)
        # int8 logits can be equal: argmax takes the first of them, topk any
        answers.append(logits.argmax(1))
        correct5 += int((logits.topk(min(5, logits.shape[1])).indices == labels[:, None]).sum())
        loss_sum += float(F.cross_entropy(logits, labels, reduction="sum"))
    parts = distributed.gathered((torch.cat(all_labels), torch.cat(answers), correct5, loss_sum))
    all_labels, answers, correct5, loss_sums = zip(*parts, strict=True)
    return Score(torch.cat(all_labels), torch.cat(answers), sum(correct5), math.fsum(loss_sums))


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion. Source: Wilson, JASA 22 (1927), 209-212."""
    z = 1.959964
    share = correct / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(one: Tensor, other: Tensor) -> float:
    """The exact two-sided p-value of McNemar's test: could both be right equally often?

    `one` and `other`, bool [n], say which of the same n pictures each answered right. Only those count that
    one of them alone answered right: each is a toss of a fair coin if both are equally good. Source: McNemar,
    Psychometrika 12 (1947), 153-157, with the binomial distribution in place of its normal limit.
    """
    won, lost = int((one & ~other).sum()), int((other & ~one).sum())
    tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1))
    return min(1.0, float(Fraction(2 * tail, 2 ** (won + lost))))


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
