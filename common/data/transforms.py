"""What a network sees of an image: resizing, cropping, normalization."""

import math

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of pixels from 0 to 1
RESIZE_RATIO = 8 / 7  # of the shorter side to the crop in evaluation: 256 to 224
TRAINING_RATIO = 2  # of the shorter side to the crop in training: not even the smallest crops are enlarged
SMALLEST_CROP = 0.35  # of an image's area
CPU = torch.device("cpu")


class Normalize:
    """Normalizes images: pixels from 0 to 1, less the mean, divided by the standard deviation."""

    def __init__(self, mean: list[float], std: list[float], device: torch.device = CPU):
        """Prepares the constants.

        Args:
            mean: Of each channel, for pixels from 0 to 1.
            std: Of each channel, for pixels from 0 to 1.
            device: Where the images are.
        """
        self.scale = torch.tensor([1 / (255 * value) for value in std], device=device)
        self.shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalizes a batch.

        Args:
            images: uint8 [N, 3, H, W].

        Returns:
            float32 [N, 3, H, W] in channels_last.
        """
        # row by row, since the three values of a pixel do not fill a vector register
        rows, width = images.permute(0, 2, 3, 1).flatten(2), images.shape[3]
        normalized = torch.addcmul(self.shift.repeat(width), rows.float(), self.scale.repeat(width))
        return normalized.unflatten(2, (width, 3)).permute(0, 3, 1, 2)


def renormalized(model: nn.Module, own: dict, other: dict) -> nn.Module:
    """Lets a network, such as a teacher, see images with another normalization.

    Args:
        model: The network.
        own: Its `mean` and `std`, of each channel.
        other: The `mean` and `std` of the images.

    Returns:
        A network that computes the same logits from them; the network itself where nothing differs.
    """
    same = all(own[key] == other[key] for key in ("mean", "std"))
    return model if same else _Renormalized(model, own, other)


class _Renormalized(nn.Module):
    """Normalizes images anew: (x * std + mean - own mean) / own std."""

    def __init__(self, model: nn.Module, own: dict, other: dict):
        super().__init__()
        self.model = model
        scale = [theirs / std for theirs, std in zip(other["std"], own["std"], strict=True)]
        means = zip(other["mean"], own["mean"], own["std"], strict=True)
        shift = [(theirs - mean) / std for theirs, mean, std in means]
        self.register_buffer("scale", torch.tensor(scale).view(3, 1, 1))
        self.register_buffer("shift", torch.tensor(shift).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images * self.scale + self.shift)


def resize_shorter_side(image: Image.Image, image_size: int) -> Image.Image:
    """Resizes an image for training crops: its shorter side is at most twice `image_size`.

    Args:
        image: RGB.
        image_size: Side of the crops, in pixels.

    Returns:
        The full image, resized only where it is larger.
    """
    side = image_size * TRAINING_RATIO
    return image if min(image.size) <= side else F.resize(image, [side], antialias=True)


def center_crop(image: Image.Image, image_size: int, shorter_side: int) -> Image.Image:
    """Crops an image for evaluation: it is resized, then the center is cut.

    Args:
        image: RGB.
        image_size: Side of the crop, in pixels.
        shorter_side: What the shorter side of the image is resized to, in pixels: see `resized_side`.

    Returns:
        A square of `image_size` x `image_size` pixels.
    """
    return F.center_crop(F.resize(image, [shorter_side], antialias=True), [image_size])


def resized_side(checkpoint: dict) -> int:
    """The shorter side of an image before its center is cropped for evaluation.

    Args:
        checkpoint: Its `image_size` is used, and its `crop_pct`: the crop's fraction of the shorter side, of
            a network of timm. As in timm's `transforms_imagenet_eval`, the quotient is rounded down. Without
            it, the shorter side is 8/7 of the crop, rounded to the nearest.

    Returns:
        Pixels.
    """
    image_size, crop_pct = checkpoint["image_size"], checkpoint.get("crop_pct")
    return math.floor(image_size / crop_pct) if crop_pct else round(image_size * RESIZE_RATIO)


def random_crop(image_size: int) -> v2.Transform:
    """The augmentation of training: a crop of at least 35 % of the area, resized, flipped half of the time.

    Args:
        image_size: Side of the result, in pixels.

    Returns:
        A transform of uint8 [3, H, W] to uint8 [3, S, S].
    """
    return v2.Compose(
        [
            v2.RandomResizedCrop(image_size, scale=(SMALLEST_CROP, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    )


def eval_transform(image: Image.Image, checkpoint: dict) -> Tensor:
    """Prepares one image as in evaluation.

    Args:
        image: RGB.
        checkpoint: Its `image_size`, `crop_pct`, `mean` and `std` are used.

    Returns:
        float32 [1, 3, S, S], the normalized center crop.
    """
    crop = center_crop(image, checkpoint["image_size"], resized_side(checkpoint))
    images = F.pil_to_tensor(crop)[None]
    return Normalize(checkpoint["mean"], checkpoint["std"])(images)
