"""The losses that the stages train with: cross-entropy, or knowledge distillation from a teacher."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import machine

LossFunction = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, alpha: float
) -> Tensor:
    """Hinton's knowledge distillation loss, the mean over the batch, a scalar.

    alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - alpha) * cross-entropy(student,
    labels)

    T^2 keeps the gradient of the first term as large as that of the second whatever the temperature.
    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.

    Args:
        student_logits: float [N, C].
        teacher_logits: float [N, C], a constant: no gradient flows into it.
        labels: int64 [N].
        temperature: above 0; higher is softer.
        alpha: share of the teacher in the loss, 0 to 1.
    """
    soft_targets = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    soft_predictions = F.log_softmax(student_logits / temperature, dim=1)
    divergence = F.kl_div(soft_predictions, soft_targets, reduction="batchmean", log_target=True)
    return alpha * temperature**2 * divergence + (1 - alpha) * F.cross_entropy(student_logits, labels)


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, logits) of plain training; images float [N, 3, S, S], labels int64 [N]."""
    logits = model(images).float()  # of an autocast model bfloat16
    return F.cross_entropy(logits, labels), logits


def taught_by(
    teacher: nn.Module,
    *,
    temperature: float,
    alpha: float,
    mixup: bool = False,
    precision: torch.dtype = torch.float32,
) -> LossFunction:
    """A loss function as `cross_entropy`, in which `teacher` sees the student's own augmented pictures.

    With `mixup` both see each picture laid over another of the batch, by a share that is drawn evenly from 0
    to 1 at every step (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018); the two labels
    count by the same shares. Puts the teacher into eval mode; it computes in inference mode, its layers in
    `precision`.
    """
    teacher.eval().to(memory_format=torch.channels_last)

    def loss_function(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if mixup:
            share, order = float(torch.rand(())), torch.randperm(len(images), device=images.device)
            images = share * images + (1 - share) * images[order]
        with torch.inference_mode(), machine.autocast(images.device, precision):
            teacher_logits = teacher(images)
        teacher_logits = teacher_logits.float().clone()  # inference tensors cannot take part in a loss
        logits = model(images).float()
        loss = distillation_loss(logits, teacher_logits, labels, temperature, alpha)
        if mixup:
            below = distillation_loss(logits, teacher_logits, labels[order], temperature, alpha)
            loss = share * loss + (1 - share) * below
        return loss, logits

    return loss_function
