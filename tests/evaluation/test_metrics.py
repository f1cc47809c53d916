import pytest
import torch
from torch import nn

from common.evaluation import metrics
from common.models import architectures
from common.system.errors import UserError

CPU = torch.device("cpu")


class Fixed(nn.Module):
    """Returns given logits: the first pixel of an image is the number of their row."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits[images[:, 0, 0, 0].long()]


def batches(labels, size):
    rows = torch.arange(len(labels)).float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return list(zip(rows.split(size), torch.tensor(labels).split(size), strict=True))


def test_scores_do_not_depend_on_the_batches():
    logits = torch.randn(7, 8)
    labels = [0, 1, 2, 3, 4, 5, 6]
    one_batch = metrics.evaluate(Fixed(logits), batches(labels, 7), CPU)
    three_batches = metrics.evaluate(Fixed(logits), batches(labels, 3), CPU)
    assert (one_batch.n, one_batch.correct1, one_batch.correct5) == (
        three_batches.n,
        three_batches.correct1,
        three_batches.correct5,
    )
    assert one_batch.loss == pytest.approx(three_batches.loss)
    assert one_batch.loss == pytest.approx(
        nn.functional.cross_entropy(logits, torch.tensor(labels)).item(), abs=1e-6
    )


def test_top1_and_top5_by_hand():
    logits = torch.tensor([[5.0, 4, 3, 2, 1, 0], [5.0, 4, 3, 2, 1, 0], [5.0, 4, 3, 2, 1, 0]])
    score = metrics.evaluate(Fixed(logits), batches([0, 4, 5], 2), CPU)
    assert (score.n, score.correct1, score.correct5) == (3, 1, 2)
    assert score.top1 == pytest.approx(1 / 3)


def test_of_equal_logits_the_first_is_the_prediction():
    logits = torch.zeros(64, 37)
    logits[:, [20, 3, 30]] = 1.0
    score = metrics.evaluate(Fixed(logits), batches([3] * 64, 32), CPU)
    assert score.top1 == 1 and set(score.predictions.tolist()) == {3}


def test_two_classes_have_a_top5():
    score = metrics.evaluate(Fixed(torch.tensor([[1.0, 0.0], [1.0, 0.0]])), batches([0, 1], 2), CPU)
    assert (score.top1, score.top5) == (0.5, 1.0)


def test_evaluation_is_in_eval_mode_and_does_not_change_statistics():
    model = architectures.build("resnet18", 3).train()
    before = model.bn1.running_mean.clone()
    metrics.evaluate(model, [(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))], CPU)
    assert not model.training and torch.equal(model.bn1.running_mean, before)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3; and the ends
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)],
)
def test_wilson_interval_against_published_values(correct, n, low, high):
    assert metrics.wilson_interval(correct, n) == pytest.approx((low, high), abs=6e-5)


def test_the_complexity_of_resnet50_is_the_published_one():
    # torchvision's documentation: 25,557,032 parameters and 4.09 GMACs at 224 px
    complexity = metrics.complexity(architectures.build("resnet50", 1000), 224)
    assert complexity["params"] == 25_557_032
    assert complexity["macs"] == pytest.approx(4.09e9, rel=0.02)


def test_the_size_is_described_by_parameters_and_macs():
    model = nn.Conv2d(3, 8, 1, bias=False)
    assert metrics.describe_size(model, 10) == "24 parameters, 2,400 MACs"


def test_an_image_too_small_for_the_network_is_refused():
    model = architectures.build("squeezenet1_1", 3).train()
    with pytest.raises(UserError, match="SqueezeNet does not accept images of 8 pixels"):
        metrics.complexity(model, 8)
    assert metrics.complexity(model, 64)["macs"] > 0 and model.training


def test_agreement_is_the_fraction_of_equal_predictions():
    one = metrics.evaluate(Fixed(torch.eye(4)), batches([0, 0, 0, 0], 3), CPU)
    other = metrics.evaluate(Fixed(torch.eye(4)[[0, 1, 2, 0]]), batches([0, 0, 0, 0], 2), CPU)
    assert one.predictions.tolist() == [0, 1, 2, 3] and one.agreement(other) == 0.75


def test_mcnemar_by_hand():
    # 5 images that only one model predicts correctly, 1 that only the other does: 2 (C(6, 0) + C(6, 1)) / 2^6
    one = torch.tensor([True] * 5 + [False] + [True, False] * 20)
    other = torch.tensor([False] * 5 + [True] + [True, False] * 20)
    assert metrics.mcnemar(one, other) == metrics.mcnemar(other, one) == 14 / 64
    assert metrics.mcnemar(one, one) == 1.0
    assert metrics.mcnemar(one[4:6], other[4:6]) == 1.0  # 1 to 1: not 1.5
    many = torch.ones(2000, dtype=torch.bool)
    assert metrics.mcnemar(many, ~many) == pytest.approx(0.0, abs=1e-300)


def test_the_confusion_matrix_has_the_labels_as_rows():
    score = metrics.evaluate(Fixed(torch.eye(3)[[0, 1, 1, 1]]), batches([0, 0, 1, 2], 3), CPU)
    assert score.confusion(3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert score.correct.tolist() == [True, False, True, False]


def test_a_model_that_was_evaluated_can_be_trained():
    # its weights change their layout when it is evaluated
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 3))
    images, labels = torch.randn(2, 3, 4, 4), torch.tensor([0, 1])
    metrics.evaluate(model, [(images, labels)], CPU)
    model(images).sum().backward()
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[0].weight.grad.abs().sum() > 0
