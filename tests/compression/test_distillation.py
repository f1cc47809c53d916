import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import train_student
from common.cli import teacher_options
from common.compression.distillation import (
    DISTANCES,
    MeanOfLogits,
    correlation_distance,
    cross_entropy,
    distillation_loss,
    distillation_loss_fn,
    mixup,
    standardize,
)

# teacher / T = (ln 3, 0), so its soft prediction is (3/4, 1/4); that of the student is (1/2, 1/2)
TEACHER = torch.tensor([[2 * math.log(3), 0.0]])
LABEL = torch.tensor([0])


def test_the_loss_equals_the_value_computed_by_hand():
    student = torch.zeros(1, 2)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    expected = 0.9 * 2**2 * divergence + 0.1 * math.log(2)
    assert distillation_loss(student, TEACHER, LABEL, 2.0, 0.9).item() == pytest.approx(expected, abs=1e-6)


def test_the_gradient_equals_the_value_computed_by_hand():
    # alpha * T * (soft student - soft teacher) + (1 - alpha) * (student - one-hot)
    student = torch.zeros(1, 2, requires_grad=True)
    distillation_loss(student, TEACHER, LABEL, 2.0, 0.9).backward()
    assert torch.allclose(student.grad, torch.tensor([[-0.5, 0.5]]), atol=1e-6)


@pytest.mark.parametrize("standardize_logits", [False, True])
@pytest.mark.parametrize("distillation", DISTANCES)
def test_the_gradient_agrees_with_finite_differences(distillation, standardize_logits):
    student = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    teacher, labels = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 4, 2])
    how = (labels, 3.0, 0.7, distillation, standardize_logits)
    assert torch.autograd.gradcheck(lambda logits: distillation_loss(logits, teacher, *how), student)


def test_the_correlation_distance_equals_the_value_computed_by_hand():
    # probabilities of the teacher (1/4, 3/4) and (3/4, 1/4), of the student (1/4, 3/4) and (1/3, 2/3)
    teacher, student = (
        torch.tensor([[1.0, 3.0], [3.0, 1.0]]).log(),
        torch.tensor([[1.0, 3.0], [1.0, 2.0]]).log(),
    )
    # of two values the correlation is 1 or -1: between classes 1 and -1, between images 1 and 1
    assert correlation_distance(student, teacher).item() == pytest.approx(1 + 0, abs=1e-6)


def test_the_correlation_distance_is_that_of_numpy():
    student, teacher = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    s, t = student.softmax(1).numpy(), teacher.softmax(1).numpy()
    between_classes = np.mean([1 - np.corrcoef(s[i], t[i])[0, 1] for i in range(6)])
    between_images = np.mean([1 - np.corrcoef(s[:, i], t[:, i])[0, 1] for i in range(5)])
    assert correlation_distance(student, teacher).item() == pytest.approx(between_classes + between_images)
    # probabilities that are a linear function of the teacher's have no distance
    closer = (0.5 * teacher.softmax(1) + 0.1).log()
    assert correlation_distance(closer, teacher).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("images", "classes", "settings", "expected"),
    [
        (16, 2, {"standardize_logits": True}, False),
        (16, 2, {"distillation": "dist", "standardize_logits": True}, False),
        (2, 2, {"distillation": "dist"}, False),
        (16, 2, {"distillation": "dist"}, True),
        (2, 3, {"distillation": "dist"}, True),
        (16, 2, {}, True),
        (16, 3, {"standardize_logits": True}, True),
    ],
)
def test_two_numbers_standardized_teach_nothing(images, classes, settings, expected):
    """What `teacher_options.check` refuses is what has no gradient."""
    student, labels = torch.randn(images, classes, requires_grad=True), torch.arange(images) % classes
    distillation_loss(student, torch.randn(images, classes), labels, 1.0, 1.0, **settings).backward()
    assert (float(student.grad.norm()) > 0.01) == expected


def test_a_batch_of_one_image_has_a_gradient_without_nan():
    student = torch.randn(1, 5, requires_grad=True)
    distillation_loss(student, torch.randn(1, 5), torch.tensor([0]), 3.0, 0.9, "dist", True).backward()
    assert student.grad.isfinite().all() and student.grad.abs().sum() > 0


def test_standardized_logits_are_compared_at_the_temperature_and_keep_the_cross_entropy():
    logits = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
    assert torch.allclose(standardize(logits), torch.tensor([[-1.0, 1.0], [0.0, 0.0]]), atol=1e-6)
    # (0, 2) and (1, 9) are both (-1, 1), so only the cross-entropy is left
    student, teacher, label = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 9.0]]), torch.tensor([0])
    expected = 0.1 * math.log(1 + math.exp(2))
    loss = distillation_loss(student, teacher, label, 2.0, 0.9, "kd", True).item()
    assert loss == pytest.approx(expected, abs=1e-6)
    # the student (0, 0) stays, the teacher is (-1, 1) / T
    soft = torch.tensor([-0.5, 0.5]).softmax(0)
    divergence = float((soft * (soft / 0.5).log()).sum())
    loss = distillation_loss(torch.zeros(1, 2), teacher, label, 2.0, 0.9, "kd", True).item()
    assert loss == pytest.approx(0.9 * 4 * divergence + 0.1 * math.log(2), abs=1e-6)


def test_the_chosen_distance_is_what_trains():
    images, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    settings = {"temperature": 2.0, "alpha": 0.5, "distillation": "dist", "standardize_logits": True}
    loss, logits = distillation_loss_fn(teacher, **settings)(student, images, labels)
    assert loss.item() == distillation_loss(logits, teacher(images), labels, *settings.values()).item()
    assert loss.item() != distillation_loss(logits, teacher(images), labels, 2.0, 0.5).item()


def test_the_loss_is_a_mean_over_the_batch():
    student, teacher, labels = torch.randn(6, 3), torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    one_by_one = [
        distillation_loss(student[i : i + 1], teacher[i : i + 1], labels[i : i + 1], 3.0, 0.9)
        for i in range(6)
    ]
    assert distillation_loss(student, teacher, labels, 3.0, 0.9).item() == pytest.approx(
        torch.stack(one_by_one).mean().item(), abs=1e-6
    )


def test_no_gradient_flows_into_the_logits_of_the_teacher():
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    distillation_loss(student, teacher, torch.tensor([0, 1]), 3.0, 0.9).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_with_alpha_0_the_loss_is_cross_entropy():
    student, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = distillation_loss(student, torch.randn(6, 3), labels, 3.0, 0.0)
    assert torch.allclose(loss, F.cross_entropy(student, labels))
    model = nn.Identity()
    assert torch.allclose(cross_entropy(model, student, labels)[0], loss)


def test_the_teacher_is_in_eval_mode_gets_no_gradient_and_sees_the_same_images_as_the_student():
    seen, gradients = [], []

    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

        def forward(self, images):
            seen.append(images)
            gradients.append(torch.is_grad_enabled())
            return self.layer(images)

    teacher, student = Recorder(), Recorder()
    loss_fn = distillation_loss_fn(teacher, temperature=3.0, alpha=0.9)
    statistics = teacher.layer[1].running_mean.clone()
    loss, logits = loss_fn(student, torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    loss.backward()
    assert not teacher.training and student.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert torch.equal(teacher.layer[1].running_mean, statistics)
    assert seen[0] is seen[1]
    assert gradients == [False, True]
    assert logits.shape == (5, 3)


def test_mixup_mixes_the_images_of_both_models_and_the_labels(monkeypatch):
    weight, order = 0.25, torch.tensor([1, 2, 0])
    monkeypatch.setattr(torch, "rand", lambda size: torch.tensor(weight))
    monkeypatch.setattr(torch, "randperm", lambda count, device: order)
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    images, labels = torch.randn(3, 4), torch.tensor([0, 1, 2])
    loss_fn = mixup(distillation_loss_fn(teacher, temperature=3.0, alpha=0.6), num_classes=3)
    loss, logits = loss_fn(student, images, labels)
    mixed = 0.25 * images + 0.75 * images[[1, 2, 0]]
    assert torch.allclose(logits, student(mixed))
    targets = 0.25 * F.one_hot(labels, 3) + 0.75 * F.one_hot(labels[[1, 2, 0]], 3)
    soft = F.softmax(teacher(mixed) / 3, dim=1)
    divergence = (soft * (soft.log() - F.log_softmax(student(mixed) / 3, dim=1))).sum(1).mean()
    cross_entropies = -(targets * F.log_softmax(student(mixed), dim=1)).sum(1).mean()
    assert loss.item() == pytest.approx((0.6 * 9 * divergence + 0.4 * cross_entropies).item(), abs=1e-5)


def test_mixup_without_a_teacher_is_cross_entropy_with_mixed_labels(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda size: torch.tensor(0.75))
    monkeypatch.setattr(torch, "randperm", lambda count, device: torch.tensor([1, 0]))
    images, labels = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])
    loss, logits = mixup(cross_entropy, num_classes=2)(nn.Identity(), images, labels)
    assert logits.tolist() == [[0.75, 0.5], [0.25, 1.5]]
    # -log softmax of a pair (a, b) at a is log(1 + exp(b - a))
    expected = [
        0.75 * math.log1p(math.exp(-0.25)) + 0.25 * math.log1p(math.exp(0.25)),
        0.25 * math.log1p(math.exp(1.25)) + 0.75 * math.log1p(math.exp(-1.25)),
    ]
    assert loss.item() == pytest.approx(sum(expected) / 2, abs=1e-6)


def test_the_logits_of_several_teachers_are_averaged():
    one, other = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        one.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        other.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 5.0]]))
    logits = MeanOfLogits([one, other])(torch.tensor([[1.0, 2.0]]))
    assert logits.tolist() == [[2.0, 6.0]] and logits.dtype == torch.float32


def test_a_teacher_computes_the_batch_of_a_seed_once():
    seen = []

    class Teacher(nn.Linear):
        def forward(self, images):
            seen.append(images)
            return super().forward(images)

    teacher, student, labels = Teacher(4, 3), nn.Linear(4, 3), torch.tensor([0, 1])
    first, second = torch.randn(2, 2, 4)
    for keep, calls in ((False, 3), (True, 2)):
        loss_fn, losses = distillation_loss_fn(teacher, temperature=3.0, alpha=0.9, keep_logits=keep), []
        for seed, images in ((1, first), (2, second), (1, first)):
            torch.manual_seed(seed)
            torch.rand(3)  # as mixup does
            losses.append(loss_fn(student, images, labels)[0].item())
        assert losses[0] == losses[2] != losses[1]
        assert len(seen) == calls
        seen.clear()


def test_teacher_and_student_each_compute_in_their_own_precision():
    seen = []

    class Watched(nn.Linear):
        def forward(self, images):
            logits = super().forward(images)
            seen.append((logits.dtype, torch.is_inference_mode_enabled()))
            return logits

    loss_fn = distillation_loss_fn(Watched(4, 3), temperature=3.0, alpha=0.9, precision=torch.bfloat16)
    loss, logits = loss_fn(Watched(4, 3), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    loss.backward()
    assert seen == [(torch.bfloat16, True), (torch.float32, False)]
    assert loss.dtype == logits.dtype == torch.float32


def test_each_distance_can_be_chosen():
    settings = {"kd": (3.0, 0.9), "dist": (1.0, 0.5)}  # temperature and alpha
    assert settings.keys() == DISTANCES.keys()
    for name, expected in settings.items():
        args = train_student.parse_args(["--teacher", "a", "--student", "b", "--distillation", name])
        teacher_options.settle(args, "kd", 37)
        assert args.distillation == name and (args.temperature, args.alpha) == expected
        given = train_student.parse_args(
            ["--teacher", "a", "--student", "b", "--distillation", name, "--temperature", "9", "--alpha", "0"]
        )
        teacher_options.settle(given, "kd", 37)
        assert (given.temperature, given.alpha) == (9.0, 0.0)
    with pytest.raises(SystemExit):
        train_student.parse_args(["--teacher", "a", "--student", "b", "--distillation", "none"])
