import pytest
import torch

from common.audit import corruptions, measure
from common.data import datasets, loaders
from common.deployment.predictor import Classifier
from common.models import architectures, lineage
from tests.conftest import write_images

CLASSES = ["cat", "dog", "fox"]


@pytest.fixture
def data(tmp_path):
    return write_images(tmp_path / "images", train=4, test=2, side=48)


def classifier(path, **content):
    new = lineage.new_checkpoint("squeezenet1_1", CLASSES, 40) | content
    model = architectures.build("squeezenet1_1", len(CLASSES)).eval()
    return Classifier(path, model, "torch", "fp32 torch", torch.channels_last, new)


def test_each_model_gets_the_same_corrupted_images(data, tmp_path):
    samples = datasets.load_test_split("folder", data).test
    content = lineage.new_checkpoint("squeezenet1_1", CLASSES, 40)
    crops = loaders.eval_loader(samples, content, workers=0)
    first, again, smaller = (
        torch.cat(
            [images for images, _ in measure.Corrupted(crops, content | {"image_size": side}, "noise", 1)]
        )
        for side in (40, 40, 32)
    )
    assert first.shape == (6, 3, 40, 40) and torch.equal(first, again) and smaller.shape == (6, 3, 32, 32)
    clean = torch.cat([images for images, _ in crops])
    assert 0.1 < float((first - clean).std()) < 0.4  # 0.05 of the range of pixels, divided by their deviation


def test_logits_and_scores_are_measured(data, tmp_path):
    samples = datasets.load_test_split("folder", data).test
    measured = measure.measure(classifier(tmp_path), samples, 40, workers=0)
    assert measured.logits.shape == (6, 3) and measured.score.n == 6
    assert torch.equal(measured.logits.argmax(1), measured.score.predictions)
    assert measured.probabilities.sum(1).tolist() == pytest.approx([1] * 6)
    assert len(measured.corrupted) == len(corruptions.KINDS) * len(corruptions.STRENGTHS)
    assert all(score.n == 6 for score in measured.corrupted.values())


def test_the_temperature_is_fitted_on_the_validation_images_of_the_training(data, tmp_path):
    def fitted(**row):
        return measure.fit_temperature(
            classifier(tmp_path, lineage=[row] if row else []), "folder", data, workers=0
        )

    splits = datasets.load_splits("folder", data, 0.25)
    options = {"options": {"val_fraction": 0.25}}
    temperature, note = fitted(split=splits.fingerprint, **options)
    assert temperature > 0 and note == "It was fitted on 3 validation images."
    assert fitted(split="another", **options)[0] is None
    assert fitted(split=splits.fingerprint, options={"val_fraction": 0})[0] is None
    assert fitted()[0] is None
