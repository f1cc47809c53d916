"""Images that are in more than one split, found by their content."""

import hashlib
from pathlib import Path

from common.system.errors import UserError

Sample = tuple[Path, int]  # an image file and its label


def remove_duplicates(splits: list[list[Sample]], digests: dict[Path, bytes]) -> list[list[Sample]]:
    """Removes from each split the images that a later split contains too, byte for byte.

    Prints how many were removed. Only files with the digest of a file in another split are read.

    Args:
        splits: (path, label) of the images of each split, the test split last.
        digests: The result of `content.digests` for all images.

    Returns:
        The splits without these images.

    Raises:
        UserError: A file is missing or cannot be read.
    """
    contents = _contents(splits, digests)
    last = {}  # of each content: the last split that contains it, and the file there
    for number, samples in enumerate(splits):
        last |= {contents[path]: (number, path) for path, _ in samples if path in contents}
    removed, kept = [], []
    for number, samples in enumerate(splits):
        kept.append([])
        for path, label in samples:
            holder, copy = last.get(contents.get(path), (number, path))
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


def _contents(splits: list[list[Sample]], digests: dict[Path, bytes]) -> dict[Path, bytes]:
    """SHA-256 over all bytes of the images whose digest is that of an image in another split."""
    first, shared = {}, set()  # of each digest: the first split that contains it; those in several splits
    for number, samples in enumerate(splits):
        for path, _ in samples:
            if first.setdefault(digests[path], number) != number:
                shared.add(digests[path])
    if not shared:
        return {}
    try:
        return {path: _sha256(path) for samples in splits for path, _ in samples if digests[path] in shared}
    except OSError as error:
        raise UserError(f"cannot read the image {error.filename}: {error.strerror}") from None


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
