"""Files are read without running what they hold, and written whole or not at all."""

import contextlib
import hashlib
import io
import json
import os
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from common.errors import UserError

CHECKSUM = "checksum"
UNFINISHED = ".unfinished-"  # how a file's name begins while it is written
DAY = 24 * 3600  # seconds


def load_tensors(path: str | Path):
    """What `torch.save` wrote to `path`, on the CPU; only tensors and plain values are read, no code is run.

    Raises UserError for a file that is missing, damaged or holds anything else.
    """
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below; what fails here is not the content
    except (OSError, ValueError) as error:  # of a name that no file can have
        if isinstance(error, FileNotFoundError):
            raise UserError(f"there is no file {path}") from None
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        with file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch advises weights_only=False for files it refuses
            _check_not_packed(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    # damaged bytes make the readers of zip and of pickle raise errors of any kind
    except Exception as error:
        if "GLOBAL" in str(error) or "Unsupported class" in str(error):
            raise UserError(
                f"{path} is refused: it holds Python objects, not only tensors and values"
            ) from None
        raise UserError(f"{path} is damaged or not a file of torch.save") from None


def _check_not_packed(file) -> None:
    """Raises ValueError where the parts of a zip file are compressed, or larger together than the file.

    torch.save does not compress: a small file that unpacks to a huge one was made to fill the memory.
    """
    if zipfile.is_zipfile(file):
        parts = zipfile.ZipFile(file).infolist()
        size = file.seek(0, os.SEEK_END)
        if any(part.compress_type for part in parts) or sum(part.file_size for part in parts) > size:
            raise ValueError("compressed")
    file.seek(0)


def load_checked(path: str | Path, *, since: int = 1):
    """What `save_checked` wrote to `path`. Raises UserError as `load_tensors` does, and where the content is
    not what was written. Files whose "format" is before `since` may lack the checksum.
    """
    content = load_tensors(path)
    if isinstance(content, dict) and CHECKSUM in content:
        given = content.pop(CHECKSUM)
        try:
            right = given == checksum(content)
        except (TypeError, ValueError, RuntimeError, RecursionError):
            right = False
        if not right:
            raise UserError(f"{path} is damaged: its content is not what its checksum says")
    elif isinstance(content, dict) and content.get("format", 0) not in range(since):
        raise UserError(f"{path} is damaged: it has no checksum")
    return content


def save_checked(content: dict, path: Path) -> None:
    """Writes `content`, tensors and plain values, with its checksum to the file `path`. Raises OSError."""
    with path.open("wb") as file:
        try:
            torch.save({**content, CHECKSUM: checksum(content)}, file)
        except RuntimeError as error:  # what torch makes of a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def saved_bytes(content: dict) -> int:
    """How many bytes a file of `save_checked` has."""
    file = io.BytesIO()
    torch.save({**content, CHECKSUM: "0" * 64}, file)
    return file.tell()


def checksum(content) -> str:
    """SHA-256, in hexadecimal, over all of `content`: dicts, lists, tuples, tensors and JSON's values.

    Of a tensor its dtype, its shape and its values in order count, not how they lie in memory. Raises
    TypeError for anything else, and ValueError for a tensor whose values take no memory of their own.
    """
    digest = hashlib.sha256()

    def add(value) -> None:
        if torch.is_tensor(value):
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError("a tensor shows the same values more than once")
            digest.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, dict):
            digest.update(f"dict {len(value)} ".encode())
            for key, part in value.items():
                add(key)
                add(part)
        elif isinstance(value, list | tuple):
            digest.update(f"{type(value).__name__} {len(value)} ".encode())
            for part in value:
                add(part)
        else:
            digest.update(f"{json.dumps(value)} ".encode())

    add(content)
    return digest.hexdigest()


@contextlib.contextmanager
def written_whole(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Gives a temporary file beside `path` to write, which becomes `path` once the block has ended well.

    A process that is killed, or a power cut, leaves the old file or the new one. Raises UserError where the
    system refuses to write; without `replace` FileExistsError where there is a file of that name by then.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=UNFINISHED, suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        os.chmod(temporary, 0o644)
        _put_in_place(temporary, path, replace)
        _flush(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _put_in_place(temporary: Path, path: Path, replace: bool) -> None:
    if replace:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.rename(temporary, path)


def _flush(path: Path) -> None:
    """Waits until the file, or what a folder says of its files, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # which cannot open folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Removes what killed processes left unfinished in `folder` more than a day ago."""
    for path in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > DAY:
                path.unlink()
