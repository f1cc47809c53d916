"""Batches of pictures: what is cut from each, and the loaders that feed the stages."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from common import machine
from common.cache import Decoder, cached
from common.data import Sample, Splits

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of pixels from 0 to 1
RESIZE_RATIO = 8 / 7  # of the short side to the crop when scoring: 256 to 224
TRAINING_RATIO = 2  # of the short side to the crop in training: not even the smallest crops are enlarged
SMALLEST_CROP = 0.35  # of a picture's area
MANY_WORKERS = 8
CPU = torch.device("cpu")


class Crops(Dataset):
    """Pictures and labels by the batch: uint8 [N, 3, S, S] in channels_last, what `crop` makes of each uint8
    [3, H, W], and int64 [N].
    """

    def __init__(self, pictures: Dataset, labels: list[int], crop):
        self.pictures, self.labels, self.crop = pictures, torch.tensor(labels), crop

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        crops = [self.crop(self.pictures[index].permute(2, 0, 1)).permute(1, 2, 0) for index in indices]
        return torch.stack(crops).permute(0, 3, 1, 2), self.labels[indices]


@dataclass(frozen=True)
class Batches:
    """Batches of (images float32 [N, 3, S, S] in channels_last, labels int64 [N]), both on `device`."""

    loader: DataLoader
    mean: list[float]
    std: list[float]
    device: torch.device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.loader:
            # four times fewer bytes cross to the device than with floats
            images = images.to(self.device, non_blocking=True)
            yield normalise(images, self.mean, self.std), labels.to(self.device, non_blocking=True)


@dataclass(frozen=True)
class Loaders:
    """The batches of the three splits; no `val` where no part was set aside."""

    train: Batches
    val: Batches | None
    test: Batches


def whole_picture(picture: Image.Image, image_size: int) -> Image.Image:
    """All of the picture, its short side at most twice `image_size`: what training crops are made of."""
    side = round(image_size * TRAINING_RATIO)
    return picture if min(picture.size) <= side else F.resize(picture, [side], antialias=True)


def middle(picture: Image.Image, image_size: int) -> Image.Image:
    """The middle `image_size` x `image_size` pixels of the picture, its short side made 8/7 as long: what is
    scored.
    """
    return F.center_crop(F.resize(picture, [resized_side(image_size)], antialias=True), [image_size])


def resized_side(image_size: int) -> int:
    """The short side, in pixels, that a picture has before `image_size` pixels are cut from its middle."""
    return round(image_size * RESIZE_RATIO)


def random_crop(image_size: int) -> v2.Transform:
    """A part of the picture, at least 35 % of its area, resized to a square, half of them mirrored."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(image_size, scale=(SMALLEST_CROP, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    )


def normalise(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """uint8 [N, 3, H, W] to float32 in channels_last: divided by 255, less `mean`, divided by `std`."""
    # row by row, since the three values of a pixel do not fill a vector register
    rows = images.permute(0, 2, 3, 1).flatten(2)
    width = images.shape[3]
    scale = torch.tensor([1 / (255 * value) for value in std], device=images.device).repeat(width)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device).repeat(width)
    return torch.addcmul(shift, rows.float(), scale).unflatten(2, (width, 3)).permute(0, 3, 1, 2)


def eval_transform(picture: Image.Image, checkpoint: dict) -> Tensor:
    """What is scored of a picture: its middle, float32 [1, 3, S, S], normalised as the checkpoint says."""
    images = F.pil_to_tensor(middle(picture, checkpoint["image_size"]))[None]
    return normalise(images, checkpoint["mean"], checkpoint["std"])


def make_loaders(
    splits: Splits,
    checkpoint: dict,
    batch_size: int,
    seed: int,
    *,
    cache: str | Path | None = None,
    workers: int | None = None,
    device: torch.device = CPU,
) -> Loaders:
    """Loaders of the three splits, at the checkpoint's image size and normalised by its mean and standard
    deviation.

    `train` is augmented and shuffled with `seed`, the others are in order. `cache`: the folder that keeps the
    decoded pictures; None decodes them in every epoch. `workers`: processes that decode and crop, None for as
    many as fit the machine. Raises UserError where a picture cannot be read or the cache not be written.
    """
    options = {"cache": cache, "workers": workers, "device": device}
    image_size = checkpoint["image_size"]
    return Loaders(
        train=_batches(
            splits.train,
            checkpoint,
            batch_size,
            whole_picture,
            random_crop(image_size),
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
            # batch norm cannot train on a last batch of one picture
            drop_last=len(splits.train) % batch_size == 1 and len(splits.train) > 1,
            **options,
        ),
        val=scoring_loader(splits.val, checkpoint, batch_size, **options) if splits.val else None,
        test=scoring_loader(splits.test, checkpoint, batch_size, **options),
    )


def scoring_loader(samples: list[Sample], checkpoint: dict, batch_size: int = 32, **options) -> Batches:
    """Batches of `samples`, in order and as `eval_transform` gives them for the checkpoint.

    The `options`, cache, workers and device, are those of `make_loaders`.
    """
    return _batches(samples, checkpoint, batch_size, middle, v2.Identity(), **options)


def _batches(
    samples, checkpoint, batch_size, resize, crop, *, cache=None, workers=None, device=CPU, **options
) -> Batches:
    pictures = Decoder([path for path, _ in samples], resize, checkpoint["image_size"])
    many = min(machine.cores(), MANY_WORKERS)
    if cache is not None:
        pictures = cached(pictures, cache, many if workers is None else workers)
    if workers is None:
        # to crop a cached picture takes so little that on a CPU the cores are better left to the training
        workers = 0 if cache is not None and device.type == "cpu" else many
    loader = DataLoader(
        Crops(pictures, [label for _, label in samples], crop),
        batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        collate_fn=_as_it_is,
        **options,
    )
    return Batches(loader, checkpoint["mean"], checkpoint["std"], device)


def _as_it_is(batch):
    return batch
