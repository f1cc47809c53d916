"""Images that are in more than one split, found by their content."""

import hashlib
from collections import defaultdict
from pathlib import Path

from common.system.errors import UserError

Sample = tuple[Path, int]  # an image file and its label


def remove_duplicates(splits: list[list[Sample]]) -> list[list[Sample]]:
    """Removes from each split the images that a later split contains too, byte for byte.

    Prints how many were removed. Only files of the same size are read.

    Args:
        splits: (path, label) of the images of each split, the test split last.

    Returns:
        The splits without these images.

    Raises:
        UserError: A file is missing or cannot be read.
    """
    digests = _digests(splits)
    last = {}  # of each content: the last split that contains it, and the file there
    for number, samples in enumerate(splits):
        last |= {digests[path]: (number, path) for path, _ in samples if path in digests}
    removed, kept = [], []
    for number, samples in enumerate(splits):
        kept.append([])
        for path, label in samples:
            holder, copy = last.get(digests.get(path), (number, path))
            if holder == number:
                kept[-1].append((path, label))
            else:
                removed.append((path, copy))
    if removed:
        counted = "1 image is" if len(removed) == 1 else f"{len(removed)} images are"
        first, copy = map(str, removed[0])
        print(  # repr keeps a name with a line break in one line, and can be printed where the name cannot
            f"note: {counted} in more than one split and removed from training or validation, "
            f"the first: {first!r} is the same as {copy!r}"
        )
    return kept


def _digests(splits: list[list[Sample]]) -> dict[Path, bytes]:
    """SHA-256 of the images whose size in bytes is that of an image in another split."""
    by_size = defaultdict(dict)
    try:
        for number, samples in enumerate(splits):
            for path, _ in samples:
                by_size[path.stat().st_size].setdefault(path, set()).add(number)
        same_size = [paths for paths in by_size.values() if len(set().union(*paths.values())) > 1]
        return {path: _digest(path) for paths in same_size for path in paths}
    except OSError as error:
        raise UserError(f"cannot read the image {error.filename}: {error.strerror}") from None


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
