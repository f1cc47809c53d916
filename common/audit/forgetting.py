"""Which images and which classes a compressed model forgot, compared with the model that it comes from.

Source: Hooker et al., "What Do Compressed Deep Neural Networks Forget?", 2019.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from common.evaluation.metrics import Score, mcnemar

Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class Flips:
    """The images for which exactly one of two models is correct.

    Attributes:
        forgotten: The indices of those that only the parent predicts correctly, int64 [...].
        learned: Of those that only the child predicts correctly, int64 [...].
        changed: Of all images with different predictions, int64 [...].
        p: The p-value of McNemar's exact test.
    """

    forgotten: Tensor
    learned: Tensor
    changed: Tensor
    p: float


def flips(parent: Score, child: Score) -> Flips:
    """Finds the images that one of two models predicts correctly and the other does not.

    Args:
        parent: The score of the model before compression.
        child: That of the compressed model on the same images.

    Returns:
        The indices of the images, and a p-value.
    """
    return Flips(
        forgotten=(parent.correct & ~child.correct).nonzero().flatten(),
        learned=(child.correct & ~parent.correct).nonzero().flatten(),
        changed=(child.predictions != parent.predictions).nonzero().flatten(),
        p=mcnemar(child.correct, parent.correct),
    )


def worst(forgotten: Tensor, parent: Tensor, child: Tensor, labels: Tensor, count: int) -> list[int]:
    """Sorts forgotten images by how much of the label's probability is lost.

    Args:
        forgotten: See `Flips`.
        parent: Probabilities of the parent, float [n, C].
        child: Probabilities of the child, float [n, C].
        labels: int64 [n].
        count: How many are returned, at most.

    Returns:
        Indices of images, the greatest loss first.
    """
    lost = (parent - child).gather(1, labels[:, None])[forgotten, 0]
    return forgotten[lost.argsort(descending=True, stable=True)[:count]].tolist()


@dataclass(frozen=True)
class ClassChange:
    """How the accuracy of one class changed.

    Attributes:
        label: The index of the class.
        n: Its images.
        parent: Accuracy before, from 0 to 1.
        child: Accuracy after.
        interval: 95 % interval of the difference.
        p: McNemar's exact p-value.
        p_holm: The same, corrected for the number of classes.
    """

    label: int
    n: int
    parent: float
    child: float
    interval: tuple[float, float]
    p: float
    p_holm: float

    @property
    def difference(self) -> float:
        """Accuracy after, minus before."""
        return self.child - self.parent


def class_changes(parent: Score, child: Score, num_classes: int) -> list[ClassChange]:
    """Compares the accuracies of each class.

    Args:
        parent: The score of the model before compression.
        child: That of the compressed model on the same images.
        num_classes: C.

    Returns:
        A row for each class that has images, the greatest loss first.
    """
    members = [child.labels == label for label in range(num_classes)]
    present = [label for label, images in enumerate(members) if images.any()]
    tests = [mcnemar(child.correct[members[label]], parent.correct[members[label]]) for label in present]
    changes = []
    for label, p, p_holm in zip(present, tests, holm(tests), strict=True):
        before, after = parent.correct[members[label]], child.correct[members[label]]
        accuracies = (float(before.double().mean()), float(after.double().mean()))
        changes.append(ClassChange(label, len(after), *accuracies, paired_interval(before, after), p, p_holm))
    return sorted(changes, key=lambda change: (change.difference, change.p))


def holm(p_values: list[float]) -> list[float]:
    """Corrects p-values for their number. Source: Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.

    Args:
        p_values: Of independent or dependent tests.

    Returns:
        The corrected values, in the same order: below 0.05, the chance of one or more false rejections among
        all is below 0.05.
    """
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def paired_interval(before: Tensor, after: Tensor) -> tuple[float, float]:
    """The 95 % interval of the difference of two accuracies on the same images.

    Source: Bonett and Price, Journal of Educational and Behavioral Statistics 37 (2012), 479-488: Wald's
    interval with one image added to each kind of disagreement.

    Args:
        before: Which predictions of the first model are correct, bool [n].
        after: The same of the second model.

    Returns:
        (low, high) of the second accuracy minus the first, from -1 to 1.
    """
    n = len(before) + 2
    won, lost = ((int((a & ~b).sum()) + 1) / n for a, b in ((after, before), (before, after)))
    half = Z * math.sqrt((won + lost - (won - lost) ** 2) / n)
    return max(-1.0, won - lost - half), min(1.0, won - lost + half)
