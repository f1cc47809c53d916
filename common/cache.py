"""Pictures decoded once and kept in a memory-mapped file of uint8 pixels, made anew when they change."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from common import distributed
from common.data import read_picture
from common.errors import UserError
from common.files import sweep, written_whole

LAYOUT = 1  # of the files; in their names
FINGERPRINT = 32  # bytes


class Decoder(Dataset):
    """Decodes pictures: item i is uint8 [H, W, 3], made of `paths[i]` by `resize(picture, image_size)`."""

    def __init__(self, paths: list[Path], resize: Callable[[Image.Image, int], Image.Image], image_size: int):
        self.paths, self.resize, self.image_size = paths, resize, image_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.resize(read_picture(self.paths[index]), self.image_size)))

    @property
    def name(self) -> str:
        """Says where the pictures lie and what is made of them; the same as long as these are the same."""
        paths = "\0".join(str(path.absolute()) for path in self.paths)
        digest = hashlib.sha256(paths.encode(errors="surrogateescape"))
        return f"{self.resize.__name__}-{self.image_size}-{digest.hexdigest()[:16]}-{LAYOUT}"

    def fingerprint(self) -> bytes:
        """SHA-256 over the files' sizes and times, of content and of status: another one after any change.

        Raises UserError for a file that is not there.
        """
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                status = path.stat()
            except OSError as error:
                raise UserError(f"cannot read the picture {path}: {error.strerror}") from None
            digest.update(f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n".encode())
        return digest.digest()


class PixelCache(Dataset):
    """The items of a `Decoder`, from a file: the pixels of all pictures, int64 [n, 3] with where each begins,
    its height and its width, and the fingerprint of the pictures that they were made from.
    """

    def __init__(self, path: Path, count: int):
        self.path = path
        self.bytes = np.memmap(path, np.uint8, mode="r")
        end = len(self.bytes) - FINGERPRINT
        self.index = self.bytes[end - count * 24 : end].view(np.int64).reshape(count, 3)

    def __reduce__(self):
        return PixelCache, (self.path, len(self))  # a worker process maps the file itself

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> torch.Tensor:
        start, height, width = self.index[index]
        pixels = self.bytes[start : start + 3 * height * width]
        return torch.from_numpy(pixels.reshape(height, width, 3).copy())


def cached(decoder: Decoder, folder: str | Path, workers: int) -> PixelCache:
    """The items of `decoder` from a file in `folder`, which is written first where it is missing or stale.

    `workers` processes decode. The file is written whole and then put in place, so that two runs may do so at
    once. Raises UserError for a picture that cannot be read, and where the file cannot be written.
    """
    path, fingerprint = Path(folder) / f"{decoder.name}.pixels", decoder.fingerprint()
    with distributed.one_first():
        if _fingerprint_in(path) != fingerprint:
            _build(decoder, path, fingerprint, workers)
    return PixelCache(path, len(decoder))


def _build(decoder: Decoder, path: Path, fingerprint: bytes, workers: int) -> None:
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        needed, free = len(decoder) * decoder[0].numel(), shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(
                f"--cache {folder}: {len(decoder)} pictures need about {needed / 1e9:.1f} GB there, and "
                f"{free / 1e9:.1f} GB are free; --cache off decodes them in every epoch instead"
            )
        with written_whole(path) as temporary, temporary.open("wb") as file:
            _write(decoder, file, workers)
            file.write(fingerprint)
    except OSError as error:
        raise UserError(f"cannot write to --cache {folder}: {error.strerror}") from None


def _fingerprint_in(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            file.seek(-FINGERPRINT, 2)
            return file.read()
    except OSError:
        return None


def _write(decoder: Decoder, file, workers: int) -> None:
    index, start = [], 0
    # with a generator of its own: the training that follows draws the same numbers whether this ran or not
    pictures = DataLoader(decoder, batch_size=None, num_workers=workers, generator=torch.Generator())
    for pixels in tqdm(pictures, desc="decoding", unit="picture", dynamic_ncols=True, leave=False):
        index.append((start, *pixels.shape[:2]))
        start += file.write(pixels.numpy().tobytes())
    file.write(np.array(index, np.int64).tobytes())
