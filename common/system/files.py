"""Reading files without running code that they hold; writing files completely or not at all."""

import contextlib
import hashlib
import io
import json
import os
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from common.system.errors import UserError

CHECKSUM = "checksum"
UNFINISHED = ".unfinished-"  # prefix of a file's name while it is written
DAY = 24 * 3600  # seconds


def load_tensors(path: str | Path, classes: Sequence[type] = ()):
    """Reads a file of `torch.save`; only tensors and plain values are loaded, no code is run.

    Args:
        path: The file.
        classes: Whose objects are loaded too; to create one must run no code, as for `argparse.Namespace`.

    Returns:
        Its content, with all tensors on the CPU.

    Raises:
        UserError: The file is missing or damaged, or holds anything else.
    """
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below; what fails here is not the content
    except (OSError, ValueError) as error:  # of a name that no file can have
        if isinstance(error, FileNotFoundError):
            raise UserError(f"there is no file {path}") from None
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        with file, warnings.catch_warnings(), torch.serialization.safe_globals(list(classes)):
            warnings.simplefilter("ignore")  # torch advises weights_only=False for files it refuses
            _check_parts(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    # damaged bytes make the readers of zip and of pickle raise errors of any kind
    except Exception as error:
        reason = "is damaged or not a file of torch.save"
        if "TorchScript" in str(error):
            reason = "is a program of TorchScript, and not weights: save the state_dict of its network"
        elif "GLOBAL" in str(error) or "Unsupported class" in str(error):
            reason = "is refused: it holds Python objects, not only tensors and values"
        raise UserError(f"{path} {reason}") from None


def _check_parts(file) -> None:
    """Raises ValueError for a zip file of TorchScript, or one that expands, which may fill the memory."""
    if zipfile.is_zipfile(file):
        parts = zipfile.ZipFile(file).infolist()
        if any(Path(part.filename).name == "constants.pkl" for part in parts):
            raise ValueError("TorchScript")
        size = file.seek(0, os.SEEK_END)
        if any(part.compress_type for part in parts) or sum(part.file_size for part in parts) > size:
            raise ValueError("compressed")
    file.seek(0)


def load_checked(path: str | Path, *, since: int = 1):
    """Reads a file of `save_checked` and verifies its checksum.

    Args:
        path: The file.
        since: Files whose "format" is below this number may lack the checksum.

    Returns:
        The content, without the checksum.

    Raises:
        UserError: As for `load_tensors`, or the content does not match its checksum.
    """
    content = load_tensors(path)
    if isinstance(content, dict) and CHECKSUM in content:
        try:
            intact = content.pop(CHECKSUM) == checksum(content)
            content = _in_own_storages(content)
        except (TypeError, ValueError, RuntimeError, RecursionError):
            intact = False
        if not intact:
            raise UserError(f"{path} is damaged: its content does not match its checksum")
    elif isinstance(content, dict) and content.get("format", 0) not in range(since):
        raise UserError(f"{path} is damaged: it has no checksum")
    return content


def save_checked(content: dict, path: Path) -> None:
    """Writes a dict and its checksum with `torch.save`.

    Args:
        content: Tensors and plain values.
        path: The file, which is replaced.

    Raises:
        OSError: The file cannot be written.
    """
    with path.open("wb") as file:
        try:
            torch.save(_in_few_storages({**content, CHECKSUM: checksum(content)}), file)
        except RuntimeError as error:  # what torch raises on a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def file_bytes(content: dict) -> int:
    """The size of a file of `save_checked`.

    Args:
        content: Tensors and plain values.

    Returns:
        Bytes.
    """
    file = io.BytesIO()
    torch.save(_in_few_storages({**content, CHECKSUM: "0" * 64}), file)
    return file.tell()


def _map_tensors(value, function: Callable):
    """A copy of nested dicts, lists and tuples, with `function(tensor)` in the place of each tensor."""
    if isinstance(value, dict):
        return {key: _map_tensors(part, function) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map_tensors(part, function) for part in value)
    return function(value) if torch.is_tensor(value) else value


def _in_few_storages(content):
    """A copy whose tensors of one dtype share a storage: each storage takes about 180 bytes of a file."""
    parts: dict[torch.dtype, list[torch.Tensor]] = {}

    _map_tensors(
        content, lambda tensor: parts.setdefault(tensor.dtype, []).append(tensor.detach().cpu().reshape(-1))
    )
    shared = {
        dtype: iter(torch.cat(tensors).split([len(tensor) for tensor in tensors]))
        for dtype, tensors in parts.items()
    }
    return _map_tensors(content, lambda tensor: next(shared[tensor.dtype]).view(tensor.shape))


def _in_own_storages(content):
    """A copy whose tensors share no storage: pickle would write all of it for each of them.

    Raises ValueError where they take more memory than their storages, as in a file meant to fill the memory.
    """

    def place(tensor: torch.Tensor) -> tuple:
        start = tensor.untyped_storage().data_ptr()
        return start, tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride()

    own = {}
    _map_tensors(content, lambda tensor: own.setdefault(place(tensor), tensor))
    storages = {key[0]: tensor.untyped_storage().nbytes() for key, tensor in own.items()}
    if sum(tensor.nbytes for tensor in own.values()) > sum(storages.values()):
        raise ValueError("tensors overlap")
    own = {key: tensor.clone() for key, tensor in own.items()}
    return _map_tensors(content, lambda tensor: own[place(tensor)])


def checksum(content) -> str:
    """The SHA-256 of nested dicts, lists and tuples of tensors and JSON values.

    Of a tensor the dtype, the shape and the values in order count, not its strides.

    Args:
        content: What is hashed.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: There is a value of another type.
        ValueError: A tensor is expanded: several of its values share one place in memory.
    """
    digest = hashlib.sha256()

    def add(value) -> None:
        if torch.is_tensor(value):
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError("an expanded tensor")
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
def atomic_write(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A context that gives a temporary file, and renames it to `path` when the block has succeeded.

    After a kill or a power cut there is the old file or the new one, never a part of one.

    Args:
        path: The file to write.
        replace: Whether an existing file is replaced.

    Yields:
        The temporary file, in the same folder.

    Raises:
        UserError: The file system refuses to write.
        FileExistsError: There is a file of that name, and `replace` is False.
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
    """Waits until the file, or the entries of a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_stale_files(folder: Path) -> None:
    """Removes temporary files that killed processes left more than a day ago.

    Args:
        folder: Where to look, not below it.
    """
    for path in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > DAY:
                path.unlink()
