"""Images decoded once and kept in a memory-mapped file of uint8 pixels, rebuilt when the images change."""

import contextlib
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.data.images import UnreadableImages, read_image
from common.data.readable import check
from common.system import distributed
from common.system.errors import UserError
from common.system.files import atomic_write, remove_stale_files
from common.system.terminal import progress_bar

AUTO, DEFAULT_DIR = "auto", "data/cache"  # "auto": DEFAULT_DIR, unless the cache would be too large for it
AUTO_FRACTION = 0.5  # of the free disk that it may take
SAMPLE = 64  # images from which the size of all is estimated
LAYOUT = 1  # of the files; in their names
FINGERPRINT_BYTES = 32


class Decoder(Dataset):
    """Decodes image files; item i is uint8 [H, W, 3]."""

    def __init__(self, paths: list[Path], resize: Callable[..., Image.Image], *sizes: int):
        """Stores the arguments.

        Args:
            paths: The image files.
            resize: A function of `common.data.transforms`, applied to each image.
            *sizes: Its further arguments, in pixels.
        """
        self.paths, self.resize, self.sizes = paths, resize, sizes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(self.resize(read_image(self.paths[index]), *self.sizes)))

    @property
    def name(self) -> str:
        """A name for the decoded images: it depends on their paths, the resizing and the sizes."""
        paths = "\0".join(str(path.absolute()) for path in self.paths)
        digest = hashlib.sha256(paths.encode(errors="surrogateescape"))
        sizes = "-".join(map(str, self.sizes))
        return f"{self.resize.__name__}-{sizes}-{digest.hexdigest()[:16]}-{LAYOUT}"

    def fingerprint(self) -> bytes:
        """SHA-256 over the sizes and times (of content and of status) of the files: any change changes it.

        Raises:
            UserError: A file is missing.
        """
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                status = path.stat()
            except OSError as error:
                raise UserError(f"cannot read the image {path}: {error.strerror}") from None
            digest.update(f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n".encode())
        return digest.digest()


class PixelCache(Dataset):
    """The items of a `Decoder`, read from a file.

    The file holds the pixels of all images, an index int64 [n, 3] (offset, height and width of each), and the
    fingerprint of the image files.
    """

    def __init__(self, path: Path, count: int):
        """Maps the file into memory.

        Args:
            path: The cache file.
            count: How many images it holds.
        """
        self.path = path
        self.bytes = np.memmap(path, np.uint8, mode="r")
        end = len(self.bytes) - FINGERPRINT_BYTES
        self.index = self.bytes[end - count * 24 : end].view(np.int64).reshape(count, 3)

    def __reduce__(self):
        return PixelCache, (self.path, len(self))  # a worker process maps the file itself

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Tensor:
        start, height, width = self.index[index]
        pixels = self.bytes[start : start + 3 * height * width]
        return torch.from_numpy(pixels.reshape(height, width, 3).copy())


def folder_of(cache: str | Path | None) -> Path | None:
    """The folder that --cache names.

    Args:
        cache: A folder, "auto", or None for no cache.

    Returns:
        The folder, or None.
    """
    return cache and Path(DEFAULT_DIR if cache == AUTO else cache)


def open_images(decoders: list[Decoder], cache: str | Path | None, workers: int) -> list[Dataset]:
    """Opens the images of splits: their caches, which are built where they are missing or stale.

    Images without a cache are decoded once to check them. So all files that cannot be read are found here.
    The file of a cache is written completely and then renamed, so that two runs may build it at the same
    time.

    Args:
        decoders: The images of each split.
        cache: Folder of cache files; None for no cache; with "auto" there is none for a split whose cache
            would take more than half of the free disk.
        workers: Processes that decode.

    Returns:
        The items of each decoder; itself where there is no cache.

    Raises:
        UnreadableImages: Images cannot be read; the message names those of all splits.
        UserError: A file cannot be written.
    """
    reasons = []
    # without a cache nothing is created that the others could use: each machine checks its files
    with distributed.main_process_first() if cache is not None else contextlib.nullcontext():
        for decoder in decoders:
            try:
                _prepare(decoder, cache, workers)
            except UnreadableImages as error:
                reasons += error.reasons
        if reasons:
            raise UnreadableImages(reasons)
    return [_open(decoder, cache) for decoder in decoders]


def _prepare(decoder: Decoder, cache: str | Path | None, workers: int) -> None:
    """Builds the cache of a split, or checks its images. Raises UnreadableImages."""
    fingerprint = decoder.fingerprint()
    if cache is not None:
        path = _path(decoder, cache)
        if _stored_fingerprint(path) == fingerprint:
            return
        if _fits(decoder, path.parent, cache == AUTO):
            return _build(decoder, path, fingerprint, workers)
    if distributed.local_rank() == 0:  # the other processes of a machine have the same files
        check(decoder.paths, fingerprint, folder_of(cache))


def _open(decoder: Decoder, cache: str | Path | None) -> Dataset:
    if cache is None or _stored_fingerprint(path := _path(decoder, cache)) != decoder.fingerprint():
        return decoder
    return PixelCache(path, len(decoder))


def _path(decoder: Decoder, cache: str | Path) -> Path:
    return folder_of(cache) / f"{decoder.name}.pixels"


def _fits(decoder: Decoder, folder: Path, automatic: bool) -> bool:
    """Whether there is room for the cache; says how large it will be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_stale_files(folder)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(f"cannot write to --cache {folder}: {error.strerror}") from None
    count, sampled, images = len(decoder), min(SAMPLE, len(decoder)), _Attempts(decoder)
    sample = [images[index * count // sampled] for index in range(sampled)]
    sizes = [pixels.numel() for pixels in sample if torch.is_tensor(pixels)]
    needed = count * sum(sizes) / max(1, len(sizes))
    size = f"{count:,} images need about {needed / 1e9:.2f} GB in {folder}"
    if automatic and needed > AUTO_FRACTION * free:
        print(
            f"note: no cache: {size}, over {AUTO_FRACTION:.0%} of the {free / 1e9:.2f} GB that are free; "
            "they are decoded in every epoch; --cache DIR names another disk"
        )
        return False
    if needed > free:
        raise UserError(
            f"--cache {folder}: {size}, and {free / 1e9:.2f} GB are free; --cache off decodes them in every "
            "epoch instead"
        )
    print(f"cache: {size}", flush=True)
    return True


def _build(decoder: Decoder, path: Path, fingerprint: bytes, workers: int) -> None:
    folder = path.parent
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            _write(decoder, file, workers)
            file.write(fingerprint)
    except OSError as error:
        raise UserError(f"cannot write to --cache {folder}: {error.strerror}") from None


class _Attempts(Dataset):
    """The items of a decoder; of an image that cannot be read the reason."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder

    def __len__(self) -> int:
        return len(self.decoder)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.decoder[index]
        except UserError as error:
            return str(error)


def _stored_fingerprint(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            file.seek(-FINGERPRINT_BYTES, 2)
            return file.read()
    except OSError:
        return None


def _write(decoder: Decoder, file, workers: int) -> None:
    index, reasons, start = [], [], 0
    # with a generator of its own: the training draws the same random numbers whether this ran or not
    images = DataLoader(_Attempts(decoder), batch_size=None, num_workers=workers, generator=torch.Generator())
    for pixels in progress_bar(images, desc="decoding", unit="image"):
        if isinstance(pixels, str):
            reasons.append(pixels)
            continue
        index.append((start, *pixels.shape[:2]))
        start += file.write(pixels.numpy().tobytes())
    if reasons:
        raise UnreadableImages(reasons)
    file.write(np.array(index, np.int64).tobytes())
