"""Calibration: whether a model is correct as often as its probabilities claim."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BINS, RESAMPLES = 15, 1000
TEMPERATURES = (0.05, 20.0)  # the range that is searched
STEPS = 60  # of the search; each leaves 0.62 of the range


@dataclass(frozen=True)
class Bin:
    """Images with similar confidence.

    Attributes:
        n: How many.
        confidence: Their mean probability of the predicted class.
        accuracy: The fraction of them that is predicted correctly.
    """

    n: int
    confidence: float
    accuracy: float


def reliability(probabilities: Tensor, labels: Tensor) -> list[Bin]:
    """Compares confidence and accuracy in `BINS` bins with the same number of images (up to one).

    Args:
        probabilities: float [n, C].
        labels: int64 [n].

    Returns:
        The bins by rising confidence; fewer where there are fewer images.
    """
    confidence, correct = _confidence(probabilities, labels)
    order = confidence.argsort(stable=True)
    parts = order.tensor_split(min(BINS, len(order)))
    return [Bin(len(part), float(confidence[part].mean()), float(correct[part].mean())) for part in parts]


def expected_calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """The mean distance of confidence and accuracy over the bins of `reliability`.

    Source: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015; with
    bins of equal mass as in Nguyen and O'Connor, EMNLP 2015.

    Args:
        probabilities: float [n, C].
        labels: int64 [n].

    Returns:
        From 0 to 1.
    """
    return _error(*_confidence(probabilities, labels))


def bootstrap_interval(probabilities: Tensor, labels: Tensor, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the expected calibration error, from `RESAMPLES` resamples of the images.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3 (percentiles).

    Args:
        probabilities: float [n, C].
        labels: int64 [n].
        seed: Of the resamples.

    Returns:
        (low, high), from 0 to 1.
    """
    confidence, correct = _confidence(probabilities, labels)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(labels), (RESAMPLES, len(labels)), generator=generator)
    errors = torch.tensor([_error(confidence[each], correct[each]) for each in drawn], dtype=torch.float64)
    low, high = errors.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the lowest cross-entropy. Source: Guo et al., ICML 2017, section 4.2.

    The cross-entropy is convex in 1 / temperature; the minimum is found by golden-section search.

    Args:
        logits: Of validation images, float [n, C].
        labels: int64 [n].

    Returns:
        What logits are divided by, from 0.05 to 20.
    """
    logits, golden = logits.double(), (5**0.5 - 1) / 2

    def loss(inverse: float) -> float:
        return float(F.cross_entropy(logits * inverse, labels))

    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    for _ in range(STEPS):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return 2 / (low + high)


def _confidence(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The probability of each predicted class, and 1.0 where the prediction is correct; float64 [n]."""
    # argmax, since int8 logits can be equal: it takes the first, as in evaluation
    predictions = probabilities.argmax(1)
    confidence = probabilities.double().gather(1, predictions[:, None])[:, 0]
    return confidence, (predictions == labels).double()


def _error(confidence: Tensor, correct: Tensor) -> float:
    gaps = (correct - confidence)[confidence.argsort(stable=True)].tensor_split(min(BINS, len(correct)))
    return sum(abs(float(gap.sum())) for gap in gaps) / len(correct)
