"""What is measured of a model: accuracy with its interval, parameters, multiply-accumulates."""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from common.system import distributed, hardware
from common.system.errors import UserError, first_line
from common.system.terminal import progress_bar

EXACT_SUM = 1000  # images: up to here the terms of McNemar's test are added as integers


@dataclass(frozen=True)
class Score:
    """The predictions of a model on a split.

    Attributes:
        labels: int64 [n].
        predictions: The predicted classes of the same images, int64 [n].
        correct5: For how many images the label was among the top 5.
        loss_sum: The sum of the cross-entropies.
    """

    labels: Tensor
    predictions: Tensor
    correct5: int
    loss_sum: float

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.labels)

    @property
    def correct(self) -> Tensor:
        """Which predictions are correct, bool [n]."""
        return self.predictions == self.labels

    @property
    def correct1(self) -> int:
        """How many predictions are correct."""
        return int(self.correct.sum())

    @property
    def top1(self) -> float:
        """Top-1 accuracy, from 0 to 1."""
        return self.correct1 / self.n

    @property
    def top5(self) -> float:
        """Top-5 accuracy, from 0 to 1."""
        return self.correct5 / self.n

    @property
    def ci95(self) -> tuple[float, float]:
        """Wilson's 95 % interval of top-1."""
        return wilson_interval(self.correct1, self.n)

    @property
    def ci95_top5(self) -> tuple[float, float]:
        """Wilson's 95 % interval of top-5."""
        return wilson_interval(self.correct5, self.n)

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / self.n

    def confusion(self, num_classes: int) -> Tensor:
        """The confusion matrix.

        Args:
            num_classes: C.

        Returns:
            int64 [C, C]: how many images of class i were predicted as class j.
        """
        pairs = self.labels * num_classes + self.predictions
        return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)

    def agreement(self, other: "Score") -> float:
        """Compares the predictions of two models.

        Args:
            other: The score of the other model on the same images.

        Returns:
            The fraction of the images with the same prediction, from 0 to 1.
        """
        return float((self.predictions == other.predictions).double().mean())

    def as_dict(self, split: str) -> dict:
        """The metrics as a checkpoint stores them.

        Args:
            split: "test" or "val".

        Returns:
            split, n, top1, top5, loss, and ci95 of top-1.
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
    title: str = "evaluation",
) -> Score:
    """Evaluates a model.

    Of several processes each evaluates its own batches, and all get the score of all images, those of the
    main process first.

    Args:
        model: Moved to `device`, and put into eval mode.
        batches: (images float32 [N, 3, S, S], labels int64 [N]).
        device: Where the model runs.
        precision: With torch.bfloat16 the layers compute under autocast.
        title: What the progress bar says.

    Returns:
        The score.
    """
    # before inference mode, in which moved weights could not be trained any more
    memory_format = hardware.memory_format(model, device)
    model.to(device, memory_format=memory_format).eval()
    none = torch.empty(0, dtype=torch.int64)  # a process may have no image
    all_labels, predictions, correct5, loss_sum = [none], [none], 0, 0.0
    for images, labels in progress_bar(batches, desc=title, unit="batch"):
        images = hardware.copy_to(images, device).contiguous(memory_format=memory_format)
        with torch.inference_mode(), hardware.autocast(device, precision):
            logits = model(images)
        logits, labels = logits.float().cpu(), labels.cpu()
        all_labels.append(labels)
        predictions.append(logits.argmax(1))
        correct5 += int((top_k(logits, 5) == labels[:, None]).sum())
        loss_sum += float(F.cross_entropy(logits, labels, reduction="sum"))
    parts = distributed.all_gather((torch.cat(all_labels), torch.cat(predictions), correct5, loss_sum))
    all_labels, predictions, correct5, loss_sums = zip(*parts, strict=True)
    return Score(torch.cat(all_labels), torch.cat(predictions), sum(correct5), math.fsum(loss_sums))


def top_k(logits: Tensor, k: int) -> Tensor:
    """The classes with the highest logits; of equal ones, as in int8, the first (torch.topk takes any).

    Args:
        logits: float [..., C].
        k: How many classes, at most.

    Returns:
        int64 [..., min(k, C)], the highest first.
    """
    return logits.argsort(dim=-1, descending=True, stable=True)[..., :k]


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion. Source: Wilson, JASA 22 (1927), 209-212.

    Args:
        correct: Successes.
        n: Trials, above 0.

    Returns:
        (low, high), from 0 to 1.
    """
    z = 1.959964
    p = correct / n
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, center - half), min(1.0, center + half)


def mcnemar(one: Tensor, other: Tensor) -> float:
    """McNemar's exact test: could two models be equally accurate?

    Only images count that exactly one of the models predicts correctly: each is a toss of a fair coin if both
    are equally accurate. Source: McNemar, Psychometrika 12 (1947), 153-157, with the binomial distribution in
    place of its normal limit.

    Args:
        one: Which predictions of the first model are correct, bool [n].
        other: The same for the second model and the same images, bool [n].

    Returns:
        The two-sided p-value.
    """
    won, lost = int((one & ~other).sum()), int((other & ~one).sum())
    n, fewer = won + lost, min(won, lost)
    if n <= EXACT_SUM:
        return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)
    # by logarithms, to about 10 digits: the binomial coefficients themselves have too many
    k = torch.arange(fewer + 1, dtype=torch.float64)
    log_terms = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1) - n * math.log(2)
    return min(1.0, 2 * float(torch.logsumexp(log_terms, 0).exp()))


def count_parameters(model: nn.Module) -> int:
    """Counts parameters.

    Args:
        model: A float model.

    Returns:
        The number of its trainable values.
    """
    return sum(parameter.numel() for parameter in model.parameters())


def complexity(model: nn.Module, image_size: int) -> dict[str, int]:
    """Counts parameters and multiply-accumulates.

    MACs are those of convolutions, linear layers and attention, as in the tables of papers and of
    torchvision; normalization, activations and pooling do not count. The model runs without data, on torch's
    meta device.

    Args:
        model: A float model; not changed.
        image_size: Side of the images, in pixels.

    Returns:
        "params", and "macs" for one image.

    Raises:
        UserError: The model does not accept images of this size.
    """
    # the counter fails on layers with tuples as inputs where weights have gradients
    frozen = copy.deepcopy(model).requires_grad_(False).eval()
    try:
        try:
            macs = _count_macs(copy.deepcopy(frozen).to_empty(device="meta"), image_size)
        except RuntimeError:  # a network whose forward pass depends on values cannot run without data
            macs = _count_macs(frozen.cpu(), image_size)
    except (RuntimeError, AssertionError, ValueError, TypeError, LookupError, AttributeError) as error:
        cause = f"does not accept images of {image_size} pixels: {first_line(error)}"
        raise UserError(f"{type(model).__name__} {cause}") from None
    return {"params": count_parameters(model), "macs": macs}


def _count_macs(model: nn.Module, image_size: int) -> int:
    example = torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example)
    return counter.get_total_flops() // 2


def describe_size(model: nn.Module, image_size: int) -> str:
    """Writes the size of a model for a reader.

    Args:
        model: A float model.
        image_size: Side of the images, in pixels.

    Returns:
        Such as "1,136,437 parameters, 237,188,077 MACs".

    Raises:
        UserError: The model does not accept images of this size.
    """
    size = complexity(model, image_size)
    return f"{size['params']:,} parameters, {size['macs']:,} MACs"
