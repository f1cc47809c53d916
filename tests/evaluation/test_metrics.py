import math
from fractions import Fraction

import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

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


def test_of_equal_logits_the_first_five_are_the_top5():
    logits = torch.zeros(37, 37)
    logits[:, 30] = 1.0
    score = metrics.evaluate(Fixed(logits), batches(list(range(37)), 37), CPU)
    assert score.correct5 == 5  # the classes 30, 0, 1, 2 and 3
    assert metrics.top_k(logits[0], 5).tolist() == [30, 0, 1, 2, 3]
    int8 = torch.randint(-4, 4, (200, 37)).float()
    assert torch.equal(metrics.top_k(int8, 1)[:, 0], int8.argmax(1))


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


@pytest.mark.parametrize(
    "arch", ["mobilenet_v2", "resnet18", "resnet50", "squeezenet1_1", "swin_t", "vit_b_16"]
)
def test_the_complexity_is_that_of_the_tables_of_torchvision(arch):
    published = get_model_weights(arch)["IMAGENET1K_V1"].meta
    with torch.device("meta"):  # the weights do not count
        complexity = metrics.complexity(get_model(arch, weights=None), 224)
    assert complexity["params"] == published["num_params"]
    assert complexity["macs"] == pytest.approx(1e9 * published["_ops"], rel=0.005)


def test_multiplications_are_counted_by_hand():
    layers = (nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(8 * 10 * 10, 5))
    assert metrics.complexity(nn.Sequential(*layers), 10)["macs"] == 3 * 8 * 9 * 100 + 800 * 5


def test_normalization_activations_and_pooling_do_not_count():
    convolution, head = nn.Conv2d(3, 8, 3, bias=False), nn.Linear(8, 5)
    pool, flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    bare = nn.Sequential(convolution, pool, flat, head)
    full = nn.Sequential(
        convolution, nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 1), pool, flat, nn.LayerNorm(8), head
    )
    assert metrics.complexity(bare, 12)["macs"] == metrics.complexity(full, 12)["macs"] == 21_640


def test_counting_does_not_change_the_model():
    model = architectures.build("squeezenet1_1", 3).train()
    model.classifier[0].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    metrics.complexity(model, 64)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


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


def discordant(won, lost):
    """Which predictions are correct: `won` times only those of one model, `lost` times only the other's."""
    one = torch.arange(won + lost) < won
    return one, ~one


@pytest.mark.parametrize(("won", "lost"), [(950, 1050), (1000, 1000), (870, 1130), (1, 1999)])
def test_mcnemar_equals_the_sum_in_exact_fractions(won, lost):
    n = won + lost
    exact = Fraction(2 * sum(math.comb(n, k) for k in range(min(won, lost) + 1)), 2**n)
    p = metrics.mcnemar(*discordant(won, lost))
    assert p == pytest.approx(min(1.0, float(exact)), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("won", [49_400, 49_800, 49_990])
def test_mcnemar_of_many_images_is_near_its_normal_limit(won):
    n = 100_000
    normal = math.erfc((n - 2 * won - 1) / math.sqrt(2 * n))  # with the correction for continuity
    assert metrics.mcnemar(*discordant(won, n - won)) == pytest.approx(normal, rel=0.01)


def test_mcnemar_is_finite_however_unequal_the_models_are():
    assert metrics.mcnemar(*discordant(0, 100_000)) == 0.0
    assert metrics.mcnemar(*discordant(50_000, 50_000)) == 1.0


class Noted(torch.Tensor):
    """A tensor that notes whether its copies are asynchronous."""

    def to(self, *args, **options):
        copies.append(options.get("non_blocking", False))
        return super().to(*args, **options).as_subclass(torch.Tensor)


copies = []


def test_what_is_evaluated_on_the_cpu_waits_for_its_images():
    # an int8 model runs on the CPU though its images are on an accelerator
    copies.clear()
    loader = [
        (images.as_subclass(Noted), labels.as_subclass(Noted)) for images, labels in batches([0, 1, 2], 2)
    ]
    assert metrics.evaluate(Fixed(torch.eye(3)), loader, CPU).top1 == 1
    assert len(copies) >= 2 and not any(copies)


def test_each_batch_is_copied_as_its_device_needs(monkeypatch):
    devices = []
    monkeypatch.setattr(metrics.hardware, "copy_to", lambda x, device: devices.append(device) or x)
    metrics.evaluate(Fixed(torch.eye(3)), batches([0, 1, 2], 2), CPU)
    assert devices == [CPU, CPU]


def test_the_macs_of_a_network_that_reads_its_values_are_counted_with_data():
    class Gated(torch.nn.Conv2d):
        def forward(self, images):
            return super().forward(images) if images.sum().item() == 0 else images

    assert metrics.complexity(Gated(3, 4, 1, bias=False), 8) == {"params": 12, "macs": 12 * 64}
