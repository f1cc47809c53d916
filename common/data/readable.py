"""Finds the image files that cannot be read, before a training begins: each file is decoded once."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.data.images import UnreadableImages, read_image
from common.system import hardware
from common.system.errors import UserError
from common.system.files import atomic_write
from common.system.terminal import progress_bar

_checked: set[bytes] = set()  # what `check` has found readable in this process


def check(paths: list[Path], fingerprint: bytes, folder: Path | None) -> None:
    """Decodes image files, unless these were decoded before and have not changed since.

    A part of a file does not tell: a truncated image has a valid header.

    Args:
        paths: The files.
        fingerprint: Changes when one of them does.
        folder: Where a file notes that they can be read, for later runs; None for this process only.

    Raises:
        UnreadableImages: Files cannot be read; the message names them.
    """
    names = hashlib.sha256("\0".join(str(path.absolute()) for path in paths).encode(errors="surrogateescape"))
    key = names.digest() + fingerprint
    note = folder and folder / f"{names.hexdigest()[:16]}.readable"
    if key in _checked or (note and note.exists() and note.read_bytes() == key):
        return
    with ThreadPoolExecutor(hardware.cores()) as pool:
        results = progress_bar(pool.map(_reason, paths), total=len(paths), desc="checking", unit="image")
        reasons = [reason for reason in results if reason]
    if reasons:
        raise UnreadableImages(reasons)
    _checked.add(key)
    if note:
        with atomic_write(note) as temporary:
            temporary.write_bytes(key)


def _reason(path: Path) -> str:
    """Why a file cannot be read; "" where it can."""
    try:
        read_image(path)
    except UserError as error:
        return str(error)
    return ""
