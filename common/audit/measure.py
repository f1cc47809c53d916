"""What an audit measures of one model: logits of the test images, predictions for corrupted ones."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from common.audit import calibration, corruptions
from common.data import datasets, loaders
from common.data.transforms import CPU, Normalize
from common.deployment.predictor import Classifier
from common.evaluation import metrics
from common.evaluation.metrics import Score
from common.system import seeding

SEED = 0


@dataclass(frozen=True)
class Measured:
    """One model on the test images.

    Attributes:
        score: Its score.
        logits: float32 [n, C].
        corrupted: Its score on the corrupted images, by kind and strength.
    """

    score: Score
    logits: Tensor
    corrupted: dict[tuple[str, int], Score]

    @property
    def probabilities(self) -> Tensor:
        """Of each class, float64 [n, C]."""
        return self.logits.double().softmax(1)


def measure(classifier: Classifier, samples: list, side: int, **options) -> Measured:
    """Evaluates a model on images and on their corruptions.

    Args:
        classifier: The model, with its image size.
        samples: (path, label) of the images.
        side: Of the crops that are corrupted, in pixels: at least the image size of the model. A model with a
            smaller one gets the corrupted crop, resized.
        **options: `cache` and `workers` of `loaders.make_loaders`.

    Returns:
        What was measured.

    Raises:
        UserError: An image cannot be read.
    """
    logits, score = outputs(classifier, samples, **options)
    crops = loaders.eval_loader(samples, classifier.content | {"image_size": side}, **options)
    corrupted = {
        (kind, strength): metrics.evaluate(
            classifier.model, Corrupted(crops, classifier.content, kind, strength), CPU, title=kind
        )
        for kind, strength in itertools.product(corruptions.KINDS, corruptions.STRENGTHS)
    }
    return Measured(score, logits, corrupted)


def outputs(classifier: Classifier, samples: list, **options) -> tuple[Tensor, Score]:
    """Evaluates a model and keeps its logits.

    Args:
        classifier: The model.
        samples: See `measure`.
        **options: See `measure`.

    Returns:
        (logits float32 [n, C], score).
    """
    recording = _Recording(classifier.model)
    score = metrics.evaluate(recording, loaders.eval_loader(samples, classifier.content, **options), CPU)
    return torch.cat(recording.logits), score


def fit_temperature(
    classifier: Classifier, dataset: str, data_dir: str | None, **options
) -> tuple[float | None, str]:
    """Fits a temperature on the validation images that the training of a model has set aside.

    Args:
        classifier: The model.
        dataset: See `datasets.load_splits`.
        data_dir: See `datasets.load_splits`.
        **options: See `measure`.

    Returns:
        (temperature, on which images it was fitted); (None, why it was not fitted).

    Raises:
        UserError: An image cannot be read.
    """
    rows = classifier.content["lineage"]
    fraction = rows[-1]["options"].get("val_fraction", 0) if rows else 0
    if not fraction:
        return None, "it needs validation images, and no image was left out of the training."
    splits = datasets.load_splits(dataset, data_dir, fraction)
    if not splits.trained(classifier.content):
        return None, "the training had other validation images than this data set has."
    logits, score = outputs(classifier, splits.val, **options)
    return calibration.fit_temperature(logits, score.labels), f"It was fitted on {score.n} validation images."


class _Recording(nn.Module):
    """A model that keeps its logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.logits = model, []

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        self.logits.append(logits.float().cpu().clone())
        return logits


class Corrupted:
    """Batches of corrupted images, as `metrics.evaluate` takes them. The same for each model."""

    def __init__(self, crops: loaders.DeviceLoader, checkpoint: dict, kind: str, strength: int):
        """Stores the arguments.

        Args:
            crops: Batches of center crops.
            checkpoint: Its `image_size`, `mean` and `std` are used.
            kind: Of the corruption.
            strength: Of the corruption.
        """
        self.crops, self.kind, self.strength = crops.loader, kind, strength
        self.size = [checkpoint["image_size"]] * 2
        self.normalize = Normalize(checkpoint["mean"], checkpoint["std"])

    def __len__(self) -> int:
        return len(self.crops)

    def __iter__(self):
        numbers = (SEED, list(corruptions.KINDS).index(self.kind), self.strength)
        generator = torch.Generator().manual_seed(seeding.derive_seed(*numbers))
        for images, labels in self.crops:
            images = corruptions.corrupt(images.contiguous(), self.kind, self.strength, generator)
            if list(images.shape[-2:]) != self.size:
                images = F.resize(images, self.size, antialias=True)
            yield self.normalize(images), labels
