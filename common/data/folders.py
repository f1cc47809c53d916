"""Reads folders of images as torchvision's ImageFolder does: one for each split, in it one for each class."""

from pathlib import Path

from common.data import class_names
from common.data.duplicates import Sample
from common.data.images import describe_left_out, find_images
from common.system.errors import UserError


def read(root: Path, names: list[str]) -> tuple[list[list[Sample]], list[str]]:
    """Lists the images of splits, and prints a note on photos that cannot be read.

    Args:
        root: The folder of the splits.
        names: Their folders, such as "train".

    Returns:
        (images of each split, class names).

    Raises:
        UserError: A folder is missing, cannot be read or contains no image, or the splits have other classes.
    """
    splits = [_read_split(root, name) for name in names]
    first = splits[0][1]
    for name, (_, classes, _) in zip(names, splits, strict=True):
        check_same(root, first, classes, f"{names[0]}/", f"{name}/")
    if left_out := [path for _, _, paths in splits for path in paths]:
        print(f"note: {describe_left_out(left_out)}")
    return [images for images, _, _ in splits], first


def check_same(root: Path, one: list[str], other: list[str], here: str, there: str) -> None:
    """Checks that two splits have the same classes.

    Args:
        root: The folder of the data set.
        one: The class names of a split, in order.
        other: Those of another split.
        here: The name of the first split, for the message.
        there: That of the other.

    Raises:
        UserError: They differ; the message says which class is where.
    """
    if one != other:
        difference = class_names.difference(one, other, here, there) or "their order differs"
        raise UserError(f"{root}: {here} and {there} must have the same classes: {difference}")


def _read_split(root: Path, name: str) -> tuple[list[Sample], list[str], list[Path]]:
    """The images in root/name, the class names, and the photos that cannot be read."""
    needed = f"--data-dir {root} needs {name}/ with a folder of images for each class"
    try:
        entries = sorted(path.name for path in (root / name).iterdir() if path.is_dir())
    except OSError as error:
        raise UserError(f"{needed}: {error.strerror}") from None
    classes = [entry for entry in entries if not entry.startswith(".")]
    found = [find_images(root / name / each) for each in classes]
    left_out = [path for _, paths in found for path in paths]
    empty = [each for each, (images, _) in zip(classes, found, strict=True) if not images]
    if empty or not classes:
        advice = f"; {describe_left_out(left_out)}" if left_out else ""
        raise UserError(f"{needed}: there is none in {empty[0] if empty else name}/{advice}")
    return [(file, label) for label, (files, _) in enumerate(found) for file in files], classes, left_out
