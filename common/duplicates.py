"""Pictures that are in more than one split, found by their content."""

import hashlib
from collections import defaultdict
from pathlib import Path

from common.errors import UserError


def kept_apart(splits: list[list[tuple[Path, int]]]) -> list[list[tuple[Path, int]]]:
    """`splits`, each of pictures and their labels, without what a later one holds too, byte for byte.

    Says how many were left out. Only files of the same size are read. Raises UserError for a file that is
    missing or cannot be read.
    """
    digests = _digests(splits)
    last = {}  # of each content: the last split that holds it, and the picture there
    for number, samples in enumerate(splits):
        last |= {digests[path]: (number, path) for path, _ in samples if path in digests}
    copies, kept = [], []
    for number, samples in enumerate(splits):
        kept.append([])
        for path, label in samples:
            holder, twin = last.get(digests.get(path), (number, path))
            if holder == number:
                kept[-1].append((path, label))
            else:
                copies.append((path, twin))
    if copies:
        counted = "1 picture is" if len(copies) == 1 else f"{len(copies)} pictures are"
        first, twin = map(str, copies[0])
        print(  # repr keeps a name with a line break in one line, and can be printed where the name cannot
            f"note: {counted} in more than one split and left out of training or validation, "
            f"the first: {first!r} is the same as {twin!r}"
        )
    return kept


def _digests(splits: list[list[tuple[Path, int]]]) -> dict[Path, bytes]:
    """SHA-256 of the pictures whose size is that of a picture in another split."""
    by_size = defaultdict(dict)
    try:
        for number, samples in enumerate(splits):
            for path, _ in samples:
                by_size[path.stat().st_size].setdefault(path, set()).add(number)
        alike = [paths for paths in by_size.values() if len(set().union(*paths.values())) > 1]
        return {path: _digest(path) for paths in alike for path in paths}
    except OSError as error:
        raise UserError(f"cannot read the picture {error.filename}: {error.strerror}") from None


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
