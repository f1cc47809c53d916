"""Digests of the content of image files, kept in an index so that a file is read again only when it changes.

A digest is SHA-256 over the size and three samples of 4 KiB: the start, the middle and the end of the file.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from common.data.images import CANNOT_READ, UnreadableImages
from common.system import distributed
from common.system.errors import UserError
from common.system.files import atomic_write
from common.system.terminal import progress_bar

SAMPLE_BYTES, DIGEST_BYTES, THREADS = 4096, 16, 16
CHECKSUM_BYTES = 32  # at the end of the index
MANY = 10_000  # files: reading more of them is announced
ENTRY = np.dtype(
    [("path", "<u8"), ("size", "<i8"), ("mtime", "<i8"), ("ctime", "<i8"), ("digest", "u1", DIGEST_BYTES)]
)


def digests(paths: list[Path], index: Path | None) -> dict[Path, bytes]:
    """Computes the digests of files.

    With an index, only new files are read, and files whose size or times (of content and of status) have
    changed; the index is then replaced.

    Args:
        paths: The files.
        index: The file of the index; None for none.

    Returns:
        The digest of each file, 16 bytes.

    Raises:
        UnreadableImages: Files are missing or cannot be read.
        UserError: The index cannot be written.
    """
    with distributed.main_process_first():
        entries = _entries(paths)
        known = _read(index) if index else np.zeros(0, ENTRY)
        changed = _take_known(entries, known)
        if len(changed):
            _announce(len(changed), index)
            entries["digest"][changed] = _read_files([paths[number] for number in changed])
            if index:
                _write(entries, index)
    values = entries["digest"].tobytes()
    return {
        path: values[start : start + DIGEST_BYTES]
        for path, start in zip(paths, range(0, len(values), DIGEST_BYTES), strict=True)
    }


def digest(path: Path) -> bytes:
    """Reads the samples of one file.

    Args:
        path: The file.

    Returns:
        Its digest, 16 bytes.

    Raises:
        OSError: The file is missing or cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        value = hashlib.sha256(f"{size}\n".encode())
        if size <= 3 * SAMPLE_BYTES:
            value.update(file.read())
        else:
            for start in (0, (size - SAMPLE_BYTES) // 2, size - SAMPLE_BYTES):
                file.seek(start)
                value.update(file.read(SAMPLE_BYTES))
    return value.digest()[:DIGEST_BYTES]


def _entries(paths: list[Path]) -> np.ndarray:
    """An entry for each file, its digest still to be filled in."""
    entries = np.zeros(len(paths), ENTRY)
    states = _readable(_attempt(os.stat, path) for path in paths)
    here = os.getcwd()
    keys = [hashlib.sha256(os.fsencode(os.path.join(here, path))).digest()[:8] for path in paths]
    entries["path"] = np.frombuffer(b"".join(keys), "<u8")
    entries["size"] = [state.st_size for state in states]
    entries["mtime"] = [state.st_mtime_ns for state in states]
    entries["ctime"] = [state.st_ctime_ns for state in states]
    return entries


def _take_known(entries: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Copies the digests of unchanged files from `known`; the numbers of the other entries."""
    if not len(known):
        return np.arange(len(entries))
    places = np.searchsorted(known["path"], entries["path"]).clip(max=len(known) - 1)
    same = np.ones(len(entries), bool)
    for field in ("path", "size", "mtime", "ctime"):
        same &= known[field][places] == entries[field]
    entries["digest"][same] = known["digest"][places[same]]
    return np.flatnonzero(~same)


def _announce(count: int, index: Path | None) -> None:
    if count >= MANY:
        once = f", once: {index} keeps their digests" if index else "; --cache DIR would keep their digests"
        print(f"note: reading {count:,} images to tell whether they change{once}", flush=True)


def _read_files(paths: list[Path]) -> np.ndarray:
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(functools.partial(_attempt, digest), paths, chunksize=64)
        values = _readable(progress_bar(found, total=len(paths), desc="digests", unit="image"))
    return np.frombuffer(b"".join(values), np.uint8).reshape(len(paths), DIGEST_BYTES)


def _attempt(function: Callable, path: Path):
    """What a function returns for a file, or the OSError that it raises."""
    try:
        return function(path)
    except OSError as error:
        return error


def _readable(results: Iterable) -> list:
    """The results of `_attempt`. Raises UnreadableImages where there are errors, which names all."""
    results = list(results)
    if errors := [result for result in results if isinstance(result, OSError)]:
        raise UnreadableImages([f"{CANNOT_READ}{error.filename}: {error.strerror}" for error in errors])
    return results


def _read(index: Path) -> np.ndarray:
    """The entries of the index, sorted by path; none where it is missing or damaged."""
    try:
        stored = index.read_bytes()
    except OSError:
        return np.zeros(0, ENTRY)
    entries, checksum = stored[:-CHECKSUM_BYTES], stored[-CHECKSUM_BYTES:]
    return np.frombuffer(entries, ENTRY) if checksum == _checksum(entries) else np.zeros(0, ENTRY)


def _write(entries: np.ndarray, index: Path) -> None:
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --cache {index.parent}: {error.strerror}") from None
    stored = np.sort(entries, order="path").tobytes()
    with atomic_write(index) as temporary:
        temporary.write_bytes(stored + _checksum(stored))


def _checksum(entries: bytes) -> bytes:
    """Of the entries and their layout."""
    return hashlib.sha256(repr(ENTRY.descr).encode() + entries).digest()
