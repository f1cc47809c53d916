"""The losses that the stages train with: cross-entropy, or knowledge distillation from teachers; mixup."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.system import hardware

LossFn = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The divergence of the student's probabilities from those of the teacher.

    KL(softmax(teacher) || softmax(student)). Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a
    Neural Network", 2015, section 2.

    Args:
        student_logits: float [N, C].
        teacher_logits: float [N, C].

    Returns:
        The mean over the batch, a scalar.
    """
    soft_targets, soft_predictions = F.log_softmax(teacher_logits, 1), F.log_softmax(student_logits, 1)
    return F.kl_div(soft_predictions, soft_targets, reduction="batchmean", log_target=True)


def correlation_distance(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """DIST: how little the student's probabilities correlate with those of the teacher.

    The mean over the images of 1 - Pearson(student, teacher) between classes, plus the mean over the classes
    of 1 - Pearson(student, teacher) between images. Unlike the divergence, it does not ask for the same
    probabilities, only for the same relations. Source: Huang, You, Wang, Qian, Xu, "Knowledge Distillation
    from A Stronger Teacher", NeurIPS 2022, equations 7 to 9.

    Args:
        student_logits: float [N, C].
        teacher_logits: float [N, C].

    Returns:
        From 0 to 4, a scalar.
    """
    student, teacher = student_logits.softmax(1), teacher_logits.softmax(1)
    return (1 - _pearson(student, teacher)).mean() + (1 - _pearson(student.T, teacher.T)).mean()


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """The correlation of each row; 0 where all values of a row are equal."""
    return F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True))


def standardize(logits: Tensor) -> Tensor:
    """Subtracts the mean from the logits of each image, and divides them by their standard deviation.

    The student then learns their relations, not their magnitude. Source: Sun, Ren, Li, Wang, Cao, "Logit
    Standardization in Knowledge Distillation", CVPR 2024, algorithm 1.

    Args:
        logits: float [N, C].

    Returns:
        float [N, C], of each image the mean 0 and the standard deviation 1.
    """
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True, correction=0) + EPSILON)


DISTANCES = {"kd": kl_divergence, "dist": correlation_distance}  # of --distillation
EPSILON = 1e-7  # for an image whose logits are all equal


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
    distillation: str = "kd",
    standardize_logits: bool = False,
) -> Tensor:
    """The loss of knowledge distillation.

    alpha * T^2 * distance(student / T, teacher / T) + (1 - alpha) * cross-entropy(student, labels)

    T^2 keeps the gradient of the first term as large as that of the second at any temperature. Source:
    Hinton, Vinyals, Dean, 2015, section 2.

    Args:
        student_logits: float [N, C].
        teacher_logits: float [N, C]; no gradient flows into them.
        labels: int64 [N], or float [N, C], the probabilities of the classes.
        temperature: T, above 0; a higher one makes the probabilities softer.
        alpha: Weight of the first term, from 0 to 1.
        distillation: The distance, of `DISTANCES`.
        standardize_logits: Whether both are standardized first. The cross-entropy is that of the logits.

    Returns:
        The mean over the batch, a scalar.
    """
    student, teacher = student_logits, teacher_logits.detach()
    if standardize_logits:
        student, teacher = standardize(student), standardize(teacher)
    distance = DISTANCES[distillation](student / temperature, teacher / temperature)
    return alpha * temperature**2 * distance + (1 - alpha) * F.cross_entropy(student_logits, labels)


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss function of plain training.

    Args:
        model: The model in training.
        images: float [N, 3, S, S].
        labels: int64 [N], or float [N, C], the probabilities of the classes.

    Returns:
        (loss, logits): the mean over the batch, a scalar, and float32 [N, C].
    """
    logits = model(images).float()  # under autocast bfloat16
    return F.cross_entropy(logits, labels), logits


def distillation_loss_fn(
    teacher: nn.Module,
    *,
    temperature: float,
    alpha: float,
    distillation: str = "kd",
    standardize_logits: bool = False,
    precision: torch.dtype = torch.float32,
    keep_logits: bool = False,
) -> LossFn:
    """Builds a loss function, called like `cross_entropy`, with the loss of `distillation_loss`.

    The teacher sees the same augmented images as the student.

    Args:
        teacher: Put into eval mode; it computes in inference mode.
        temperature: See `distillation_loss`.
        alpha: See `distillation_loss`.
        distillation: See `distillation_loss`.
        standardize_logits: See `distillation_loss`.
        precision: That of the teacher's layers.
        keep_logits: Whether the teacher computes each batch once only: its logits, 4 * C bytes for each crop,
            are kept by the seed of the step, of which the batch is a function (see `loop.fit`).

    Returns:
        The loss function.
    """
    hardware.set_memory_format(teacher.eval(), torch.channels_last)
    settings, kept = (temperature, alpha, distillation, standardize_logits), {}

    def logits_of_teacher(images: Tensor) -> Tensor:
        with torch.inference_mode(), hardware.autocast(images.device, precision):
            logits = teacher(images)
        return logits.float().clone()  # inference tensors cannot take part in a loss

    def loss_fn(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        seed = torch.initial_seed()
        teacher_logits = kept[seed] if seed in kept else logits_of_teacher(images)
        if keep_logits:
            kept[seed] = teacher_logits
        logits = model(images).float()
        return distillation_loss(logits, teacher_logits, labels, *settings), logits

    return loss_fn


class MeanOfLogits(nn.ModuleList):
    """Several teachers as one: its logits are the mean of theirs."""

    def forward(self, images: Tensor) -> Tensor:
        """Computes the logits.

        Args:
            images: float [N, 3, S, S].

        Returns:
            float32 [N, C].
        """
        return torch.stack([teacher(images).float() for teacher in self]).mean(0)


def mixup(loss_fn: LossFn, num_classes: int) -> LossFn:
    """Mixes each image of a batch with another one, and their labels alike.

    w * image + (1 - w) * other, w drawn uniformly from 0 to 1 for each batch. Student and teacher see the
    same mixed images. Source: Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization",
    ICLR 2018, equation 1.

    Args:
        loss_fn: Linear in the labels; it takes them as probabilities, float [N, C].
        num_classes: C.

    Returns:
        A loss function that takes labels as int64 [N].
    """

    def mixed(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        weight, order = float(torch.rand(())), torch.randperm(len(images), device=images.device)
        targets = F.one_hot(labels, num_classes).float()
        pairs = [weight * each + (1 - weight) * each[order] for each in (images, targets)]
        return loss_fn(model, *pairs)

    return mixed
