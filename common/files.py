"""Files are read without running what they hold, and written whole or not at all."""

import contextlib
import os
import pickle
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from common.errors import UserError


def load_tensors(path: str | Path):
    """What `torch.save` wrote to `path`, on the CPU; only tensors and plain values are read, no code is run.

    Raises UserError for a file that is missing, damaged or holds anything else.
    """
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below; what fails here is not the content
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    try:
        with file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch advises weights_only=False for files it refuses
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "Unsupported class" in str(error):
            raise UserError(
                f"{path} is refused: it holds Python objects, not only tensors and values"
            ) from None
        raise UserError(f"{path} is damaged or not a file of torch.save") from None
    # the readers of zip and of pickle answer damaged bytes with errors of many kinds
    except (
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        AssertionError,
    ):
        raise UserError(f"{path} is damaged or not a file of torch.save") from None


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary file beside `path` to write, which replaces `path` once the block has ended well.

    Raises UserError where the system refuses to write.
    """
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    finally:
        Path(temporary).unlink(missing_ok=True)
