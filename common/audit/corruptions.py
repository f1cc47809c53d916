"""Images as poor cameras and poor light make them, in three strengths.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019, for the kinds; the strengths are our own.
"""

import io
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional import InterpolationMode

STRENGTHS = (1, 2, 3)


def corrupt(images: Tensor, kind: str, strength: int, generator: torch.Generator) -> Tensor:
    """Corrupts a batch.

    Args:
        images: uint8 [N, 3, H, W].
        kind: Of `KINDS`.
        strength: Of `STRENGTHS`.
        generator: Draws the noise; the other kinds do not use it.

    Returns:
        uint8 [N, 3, H, W].
    """
    function, parameters = KINDS[kind]
    return function(images, parameters[strength - 1], generator)


def _noise(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise; `sigma` for pixels from 0 to 1."""
    noise = torch.randn(images.shape, generator=generator)
    return (images + 255 * sigma * noise).round().clamp(0, 255).to(torch.uint8)


def _blur(images: Tensor, sigma: float, _generator: torch.Generator) -> Tensor:
    """Gaussian blur; `sigma` in pixels."""
    return F.gaussian_blur(images, kernel_size=2 * round(3 * sigma) + 1, sigma=sigma)


def _brightness(images: Tensor, factor: float, _generator: torch.Generator) -> Tensor:
    return F.adjust_brightness(images, factor)


def _contrast(images: Tensor, factor: float, _generator: torch.Generator) -> Tensor:
    return F.adjust_contrast(images, factor)


def _jpeg(images: Tensor, quality: int, _generator: torch.Generator) -> Tensor:
    compressed = []
    for image in images:
        buffer = io.BytesIO()
        F.to_pil_image(image).save(buffer, "JPEG", quality=quality)
        compressed.append(F.pil_to_tensor(Image.open(buffer)))
    return torch.stack(compressed)


def _pixelate(images: Tensor, factor: int, _generator: torch.Generator) -> Tensor:
    """Each square of `factor` x `factor` pixels gets its mean color."""
    size = list(images.shape[-2:])
    small = F.resize(images, [max(1, side // factor) for side in size], antialias=True)
    return F.resize(small, size, InterpolationMode.NEAREST)


KINDS: dict[str, tuple[Callable, tuple]] = {  # the parameter of each strength
    "noise": (_noise, (0.05, 0.1, 0.2)),
    "blur": (_blur, (1.0, 2.0, 3.0)),
    "dark": (_brightness, (0.5, 0.3, 0.15)),
    "bright": (_brightness, (1.5, 2.0, 3.0)),
    "low contrast": (_contrast, (0.5, 0.3, 0.15)),
    "JPEG": (_jpeg, (25, 12, 6)),
    "pixelation": (_pixelate, (2, 4, 6)),
}
