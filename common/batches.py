"""Batches of pictures: what is cut from each, and the loaders that feed the stages."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from common import distributed, machine, seeds
from common.cache import Decoder, cached
from common.data import Sample, Splits
from common.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of pixels from 0 to 1
RESIZE_RATIO = 8 / 7  # of the short side to the crop when scoring: 256 to 224
TRAINING_RATIO = 2  # of the short side to the crop in training: not even the smallest crops are enlarged
SMALLEST_CROP = 0.35  # of a picture's area
MANY_WORKERS = 8
CPU = torch.device("cpu")


class Order(Sampler):
    """Which pictures make up the batches: lists of (epoch, index), this process's part of each batch.

    With a `seed` every epoch has an order of its own, and leaves out a last batch that has not two pictures
    for each process, with which batch norm cannot train.
    """

    def __init__(self, count: int, batch_size: int, seed: int | None = None):
        self.batch_size, self.seed, self.pictures = batch_size, seed, count
        self.epoch, self.first = 0, 0
        left_over = count % batch_size
        self.count = count - left_over if seed is not None and left_over < 2 * distributed.size() else count

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = range(self.count)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(seeds.mixed(self.seed, self.epoch))
            order = torch.randperm(self.pictures, generator=generator).tolist()
        for start in range(self.first * self.batch_size, self.count, self.batch_size):
            batch = order[start : min(start + self.batch_size, self.count)]
            if part := batch[distributed.rank() :: distributed.size()]:
                yield [(self.epoch, index) for index in part]


class Crops(Dataset):
    """Pictures and labels by the batch: uint8 [N, 3, S, S] in channels_last, what `crop` makes of each uint8
    [3, H, W], and int64 [N].

    What `crop` draws at random follows from `seed`, the epoch and the picture: it is the same in whichever
    process, and whatever was drawn before.
    """

    def __init__(self, pictures: Dataset, labels: list[int], crop, seed: int):
        self.pictures, self.labels, self.crop, self.seed = pictures, torch.tensor(labels), crop, seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        crops = []
        for epoch, index in keys:
            with seeds.drawing(self.seed, epoch, index):
                crops.append(self.crop(self.pictures[index].permute(2, 0, 1)).permute(1, 2, 0))
        return torch.stack(crops).permute(0, 3, 1, 2), self.labels[[index for _, index in keys]]


class Normalise:
    """Makes of uint8 [N, 3, H, W] float32 in channels_last: divided by 255, less `mean`, divided by `std`."""

    def __init__(self, mean: list[float], std: list[float], device: torch.device = CPU):
        self.scale = torch.tensor([1 / (255 * value) for value in std], device=device)
        self.shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)

    def __call__(self, images: Tensor) -> Tensor:
        # row by row, since the three values of a pixel do not fill a vector register
        rows, width = images.permute(0, 2, 3, 1).flatten(2), images.shape[3]
        answer = torch.addcmul(self.shift.repeat(width), rows.float(), self.scale.repeat(width))
        return answer.unflatten(2, (width, 3)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Batches:
    """Batches of (images float32 [N, 3, S, S] in channels_last, labels int64 [N]), both on `device`: this
    process's parts of them.
    """

    loader: DataLoader
    normalise: Normalise
    device: torch.device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.at(0)

    def at(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of `epoch` from the batch `first` on, both counted from 0."""
        self.loader.batch_sampler.epoch, self.loader.batch_sampler.first = epoch, first
        for images, labels in self.loader:
            # four times fewer bytes cross to the device than with floats
            images = self.normalise(images.to(self.device, non_blocking=True))
            yield images, labels.to(self.device, non_blocking=True)

    def count(self, batch: int) -> int:
        """How many pictures the batch of this number has in all processes together."""
        order = self.loader.batch_sampler
        return min(order.batch_size, order.count - batch * order.batch_size)


@dataclass(frozen=True)
class Loaders:
    """The batches of the three splits; no `val` where no part was set aside."""

    train: Batches
    val: Batches | None
    test: Batches

    def scored(self, split: str) -> Batches:
        """Those of "test" or "val". Raises UserError where none were set aside for validation."""
        batches = {"test": self.test, "val": self.val}[split]
        if batches is None:
            raise UserError("this needs validation pictures: a --val-fraction above 0")
        return batches


def whole_picture(picture: Image.Image, image_size: int) -> Image.Image:
    """All of the picture, its short side at most twice `image_size`: what training crops are made of."""
    side = image_size * TRAINING_RATIO
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


def eval_transform(picture: Image.Image, checkpoint: dict) -> Tensor:
    """What is scored of a picture: its middle, float32 [1, 3, S, S], normalised as the checkpoint says."""
    images = F.pil_to_tensor(middle(picture, checkpoint["image_size"]))[None]
    return Normalise(checkpoint["mean"], checkpoint["std"])(images)


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

    `train` is augmented and shuffled with `seed`, the others are in order. Of several processes each reads
    its part of every batch. `cache`: the folder that keeps the decoded pictures; None decodes them in every
    epoch. `workers`: processes that decode and crop, None for as many as fit the machine. Raises UserError
    where a picture cannot be read, the cache not be written, or a batch lacks two pictures for each process.
    """
    options = {"cache": cache, "workers": workers, "device": device}
    largest, needed = min(batch_size, len(splits.train)), 2 * distributed.size()
    if largest < needed:
        raise UserError(
            f"batches of {largest} training pictures are too small: "
            f"batch norm needs {needed}, two for each process"
        )
    train = Order(len(splits.train), batch_size, seed)
    crop = random_crop(checkpoint["image_size"])
    return Loaders(
        train=_batches(splits.train, checkpoint, train, whole_picture, crop, **options),
        val=scoring_loader(splits.val, checkpoint, batch_size, **options) if splits.val else None,
        test=scoring_loader(splits.test, checkpoint, batch_size, **options),
    )


def scoring_loader(samples: list[Sample], checkpoint: dict, batch_size: int = 32, **options) -> Batches:
    """Batches of `samples`, in order and as `eval_transform` gives them for the checkpoint.

    The `options`, cache, workers and device, are those of `make_loaders`.
    """
    order = Order(len(samples), batch_size)
    return _batches(samples, checkpoint, order, middle, v2.Identity(), **options)


def _batches(samples, checkpoint, order, resize, crop, *, cache=None, workers=None, device=CPU) -> Batches:
    pictures = Decoder([path for path, _ in samples], resize, checkpoint["image_size"])
    many = min(machine.cores(), MANY_WORKERS)
    if cache is not None:
        pictures = cached(pictures, cache, many if workers is None else workers)
    if workers is None:
        # to crop a cached picture takes so little that on a CPU the cores are better left to the training
        workers = 0 if cache is not None and device.type == "cpu" else many
    loader = DataLoader(
        Crops(pictures, [label for _, label in samples], crop, order.seed or 0),
        batch_sampler=order,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # it draws a number for its workers, which none of them needs
    )
    return Batches(loader, Normalise(checkpoint["mean"], checkpoint["std"], device), device)


def _as_it_is(batch):
    return batch
