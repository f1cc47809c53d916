"""Batches of images and labels for training, validation and test."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from common.data import transforms
from common.data.cache import Decoder, PixelCache, open_images
from common.data.datasets import Splits
from common.data.duplicates import Sample
from common.data.transforms import CPU, Normalize
from common.system import distributed, hardware, seeding
from common.system.errors import UserError

MAX_WORKERS = 8


class EpochBatchSampler(Sampler):
    """The indices of each batch: lists of (epoch, index), this process's part of the batch.

    With a seed, every epoch has its own order, and a last batch is dropped that has not two images for each
    process: batch norm cannot train with one.
    """

    def __init__(self, count: int, batch_size: int, seed: int | None = None):
        """Starts at epoch 0.

        Args:
            count: Images in the split.
            batch_size: Images of a batch, in all processes together.
            seed: Of the order; None for the order of the split.
        """
        self.batch_size, self.seed, self.images = batch_size, seed, count
        self.epoch, self.first = 0, 0
        left_over = count % batch_size
        self.count = (
            count - left_over if seed is not None and left_over < 2 * distributed.world_size() else count
        )

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = range(self.count)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(seeding.derive_seed(self.seed, self.epoch))
            order = torch.randperm(self.images, generator=generator).tolist()
        for start in range(self.first * self.batch_size, self.count, self.batch_size):
            batch = order[start : min(start + self.batch_size, self.count)]
            if part := batch[distributed.rank() :: distributed.world_size()]:
                yield [(self.epoch, index) for index in part]


class CroppedImages(Dataset):
    """Batches of crops: images uint8 [N, 3, S, S] in channels_last, labels int64 [N].

    Random crops are a function of the seed, the epoch and the image: they are the same in whichever process,
    and whatever was drawn before.
    """

    def __init__(self, images: Dataset, labels: list[int], crop: Callable[[Tensor], Tensor], seed: int):
        """Stores the arguments.

        Args:
            images: Item i is uint8 [H, W, 3].
            labels: Of each image.
            crop: A transform of uint8 [3, H, W] to uint8 [3, S, S].
            seed: Of random crops.
        """
        self.images, self.labels, self.crop, self.seed = images, torch.tensor(labels), crop, seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        crops = []
        for epoch, index in keys:
            with seeding.fork_rng(self.seed, epoch, index):
                crops.append(self.crop(self.images[index].permute(2, 0, 1)).permute(1, 2, 0))
        return torch.stack(crops).permute(0, 3, 1, 2), self.labels[[index for _, index in keys]]


@dataclass(frozen=True)
class DeviceLoader:
    """Batches on a device: images float32 [N, 3, S, S] in channels_last, labels int64 [N].

    Of several processes each gets its part of every batch.
    """

    loader: DataLoader
    normalize: Normalize
    device: torch.device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.at(0)

    def at(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterates over an epoch.

        Args:
            epoch: Its number, from 0.
            first: The batch to start at, from 0.

        Yields:
            (images, labels).
        """
        self.loader.batch_sampler.epoch, self.loader.batch_sampler.first = epoch, first
        for images, labels in self.loader:
            # as uint8: four times fewer bytes are copied to the device than as floats
            images = self.normalize(hardware.copy_to(images, self.device))
            yield images, hardware.copy_to(labels, self.device)

    def count(self, batch: int) -> int:
        """The size of a batch.

        Args:
            batch: Its number, from 0.

        Returns:
            Images in all processes together.
        """
        sampler = self.loader.batch_sampler
        return min(sampler.batch_size, sampler.count - batch * sampler.batch_size)


@dataclass(frozen=True)
class Loaders:
    """The batches of the splits; `val` is None without a validation split, and `test` where it is unused."""

    train: DeviceLoader
    val: DeviceLoader | None
    test: DeviceLoader | None

    def of(self, split: str) -> DeviceLoader:
        """The batches of a split.

        Args:
            split: "test" or "val".

        Returns:
            Its loader.

        Raises:
            UserError: There is no validation split.
        """
        loader = {"test": self.test, "val": self.val}[split]
        if loader is None:
            raise UserError("this needs validation images: a --val-fraction above 0")
        return loader


def make_loaders(
    splits: Splits,
    checkpoint: dict,
    batch_size: int,
    seed: int,
    *,
    cache: str | Path | None = None,
    workers: int | None = None,
    device: torch.device = CPU,
    test: bool = True,
) -> Loaders:
    """Builds the loaders of the three splits: `train` is augmented and shuffled, the others are in order.

    Args:
        splits: The images.
        checkpoint: Its `image_size`, `crop_pct`, `mean` and `std` are used.
        batch_size: Images of a batch, in all processes together.
        seed: Of the order and the crops of training.
        cache: Folder of the decoded images; None decodes them in every epoch; see `cache.open_images`.
        workers: Processes that decode and crop; None for a number that fits the machine.
        device: Where the batches are put.
        test: Whether the test images are used; else they are not read.

    Returns:
        The loaders.

    Raises:
        UnreadableImages: Images of any split cannot be read; the message names them.
        UserError: The cache cannot be written, or a batch has not two images for each process.
    """
    largest, needed = min(batch_size, len(splits.train)), 2 * distributed.world_size()
    if largest < needed:
        raise UserError(
            f"batches of {largest} training images are too small: "
            f"batch norm needs {needed}, two for each process"
        )
    image_size, evaluated = checkpoint["image_size"], {"val": splits.val, "test": splits.test if test else []}
    evaluated = {name: samples for name, samples in evaluated.items() if samples}
    decoders = [Decoder([path for path, _ in splits.train], transforms.resize_shorter_side, image_size)]
    decoders += [_eval_decoder(samples, checkpoint) for samples in evaluated.values()]
    train, *others = open_images(decoders, cache, _automatic() if workers is None else workers)
    sampler, crop = EpochBatchSampler(len(splits.train), batch_size, seed), transforms.random_crop(image_size)
    loaders = {
        name: _eval_loader(samples, images, checkpoint, batch_size, workers, device)
        for (name, samples), images in zip(evaluated.items(), others, strict=True)
    }
    loaders["train"] = _loader(splits.train, train, checkpoint, sampler, crop, workers, device)
    return Loaders(loaders["train"], loaders.get("val"), loaders.get("test"))


def eval_loader(
    samples: list[Sample],
    checkpoint: dict,
    batch_size: int = 32,
    *,
    cache: str | Path | None = None,
    workers: int | None = None,
    device: torch.device = CPU,
) -> DeviceLoader:
    """Builds a loader for evaluation: center crops, in order, as `eval_transform` prepares them.

    Args:
        samples: (path, label) of the images.
        checkpoint: Its `image_size`, `crop_pct`, `mean` and `std` are used.
        batch_size: Images of a batch, in all processes together.
        cache: See `make_loaders`.
        workers: See `make_loaders`.
        device: See `make_loaders`.

    Returns:
        The loader.

    Raises:
        UnreadableImages: Images cannot be read; the message names them.
        UserError: The cache cannot be written.
    """
    decoder = _eval_decoder(samples, checkpoint)
    (images,) = open_images([decoder], cache, _automatic() if workers is None else workers)
    return _eval_loader(samples, images, checkpoint, batch_size, workers, device)


def _eval_decoder(samples: list[Sample], checkpoint: dict) -> Decoder:
    paths = [path for path, _ in samples]
    sizes = checkpoint["image_size"], transforms.resized_side(checkpoint)
    return Decoder(paths, transforms.center_crop, *sizes)


def _eval_loader(samples, images, checkpoint, batch_size, workers, device) -> DeviceLoader:
    sampler = EpochBatchSampler(len(samples), batch_size)
    return _loader(samples, images, checkpoint, sampler, v2.Identity(), workers, device)


def _automatic() -> int:
    """The number of workers that fits: the processes of a machine share its cores."""
    return min(max(1, hardware.cores() // distributed.local_world_size()), MAX_WORKERS)


def _loader(samples, images, checkpoint, sampler, crop, workers, device) -> DeviceLoader:
    training = sampler.seed is not None
    if workers is None:
        # to crop a cached image takes so little that on a CPU the cores are better left to the training
        workers = 0 if isinstance(images, PixelCache) and device.type == "cpu" else _automatic()
        # evaluation, which runs between epochs, gets half of them
        workers = workers if training else -(-workers // 2)
    loader = DataLoader(
        CroppedImages(images, [label for _, label in samples], crop, sampler.seed or 0),
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0 and training,
        pin_memory=device.type == "cuda",
        collate_fn=_identity,
        generator=torch.Generator(),  # a DataLoader draws a number for its workers, which none of them needs
    )
    return DeviceLoader(loader, Normalize(checkpoint["mean"], checkpoint["std"], device), device)


def _identity(batch):
    return batch
