"""The losses that the stages train with: cross-entropy, or knowledge distillation from a teacher."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.system import hardware

LossFn = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, alpha: float
) -> Tensor:
    """Hinton's knowledge distillation loss.

    alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - alpha) * cross-entropy(student,
    labels)

    T^2 keeps the gradient of the first term as large as that of the second at any temperature. Source:
    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.

    Args:
        student_logits: float [N, C].
        teacher_logits: float [N, C]; no gradient flows into them.
        labels: int64 [N].
        temperature: T, above 0; a higher one makes the probabilities softer.
        alpha: Weight of the first term, from 0 to 1.

    Returns:
        The mean over the batch, a scalar.
    """
    soft_targets = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    soft_predictions = F.log_softmax(student_logits / temperature, dim=1)
    divergence = F.kl_div(soft_predictions, soft_targets, reduction="batchmean", log_target=True)
    return alpha * temperature**2 * divergence + (1 - alpha) * F.cross_entropy(student_logits, labels)


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss function of plain training.

    Args:
        model: The model in training.
        images: float [N, 3, S, S].
        labels: int64 [N].

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
    mixup: bool = False,
    precision: torch.dtype = torch.float32,
) -> LossFn:
    """Builds a loss function, called like `cross_entropy`, with the loss of `distillation_loss`.

    The teacher sees the same augmented images as the student.

    Args:
        teacher: Put into eval mode; it computes in inference mode.
        temperature: See `distillation_loss`.
        alpha: See `distillation_loss`.
        mixup: Whether both models see each image mixed with another of the batch, in a proportion drawn
            uniformly from 0 to 1 at every step, the losses of the two labels weighted alike (Zhang et al.,
            "mixup: Beyond Empirical Risk Minimization", ICLR 2018).
        precision: That of the teacher's layers.

    Returns:
        The loss function.
    """
    teacher.eval().to(memory_format=torch.channels_last)

    def loss_fn(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if mixup:
            weight, order = float(torch.rand(())), torch.randperm(len(images), device=images.device)
            images = weight * images + (1 - weight) * images[order]
        with torch.inference_mode(), hardware.autocast(images.device, precision):
            teacher_logits = teacher(images)
        teacher_logits = teacher_logits.float().clone()  # inference tensors cannot take part in a loss
        logits = model(images).float()
        loss = distillation_loss(logits, teacher_logits, labels, temperature, alpha)
        if mixup:
            other = distillation_loss(logits, teacher_logits, labels[order], temperature, alpha)
            loss = weight * loss + (1 - weight) * other
        return loss, logits

    return loss_fn
