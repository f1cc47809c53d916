"""The three data sets and their splits into training, validation and test images."""

import hashlib
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torchvision.datasets import OxfordIIITPet

from common.data import duplicates, synthetic
from common.data.duplicates import Sample
from common.data.images import find_images
from common.system import distributed
from common.system.errors import UserError

DEFAULT_DIRS = {"pet37": "data", "synthetic": "data/synthetic"}
SPLIT_SEED = 0  # not --seed: every stage of a chain must use the same images for validation


@dataclass(frozen=True)
class Splits:
    """The images of training, validation and test, and the class names in the order of the labels."""

    train: list[Sample]
    val: list[Sample]
    test: list[Sample]
    classes: list[str]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the class names and the file names and labels of the three splits, 16 hex digits."""
        digest = hashlib.sha256("\n".join(self.classes).encode("utf-8", "surrogateescape"))
        for name in ("train", "val", "test"):
            digest.update(name.encode())
            for path, label in sorted((path.name, label) for path, label in getattr(self, name)):
                digest.update(f"{path}\0{label}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]

    def __str__(self) -> str:
        counts = f"{len(self.train)} training, {len(self.val)} validation and {len(self.test)} test images"
        return f"{counts} of {len(self.classes)} classes"


def load_splits(dataset: str, data_dir: str | None, val_fraction: float) -> Splits:
    """Lists the images of a data set and splits the training part into training and validation.

    Args:
        dataset: "pet37" (downloaded on first use), "synthetic" (generated on first use) or "folder".
        data_dir: Its folder; None for the default.
        val_fraction: Fraction of the training images that become the validation split, from 0 to below 1.

    Returns:
        The three splits.

    Raises:
        UserError: The data set is missing and cannot be created, or a split is empty.
    """
    if not data_dir and dataset not in DEFAULT_DIRS:
        raise UserError(f"--dataset {dataset} needs --data-dir")
    root = Path(data_dir or DEFAULT_DIRS[dataset])
    if dataset == "folder":
        return _read_folder(root, val_fraction)
    with distributed.main_process_first():
        _create(dataset, root)
    trainval, classes = _read_pet37(root, "trainval")
    test, test_classes = _read_pet37(root, "test")
    if classes != test_classes:
        raise UserError(f"{root}: trainval.txt and test.txt do not name the same classes")
    train, val = split_stratified(trainval, val_fraction)
    return _checked(Splits(train, val, test, classes), root, val_fraction)


def _create(dataset: str, root: Path) -> None:
    """Generates or downloads the images, where they are missing."""
    if dataset == "synthetic":
        try:
            synthetic.write(root)
        except OSError as error:
            raise UserError(f"cannot write the synthetic images to {root}: {error.strerror}") from None
        return
    try:
        OxfordIIITPet(root, download=True)
    except (OSError, RuntimeError, EOFError, ValueError, tarfile.TarError) as error:
        urls = [url for url, _ in OxfordIIITPet._RESOURCES]
        if os.path.exists(root / "oxford-iiit-pet" / "annotations" / "trainval.txt"):
            raise UserError(f"cannot read the annotations in {root}/oxford-iiit-pet: {error}") from None
        raise UserError(
            f"cannot download Oxford-IIIT Pet ({error}): put {' and '.join(urls)} "
            f"into {root / 'oxford-iiit-pet'}, or use --dataset synthetic, which needs no network"
        ) from None


def _read_pet37(root: Path, split: str) -> tuple[list[Sample], list[str]]:
    try:
        reader = OxfordIIITPet(root, split=split)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot read annotations/{split}.txt in {root / 'oxford-iiit-pet'}: {error}"
        ) from None
    missing = [path for path in reader._images if not path.exists()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(reader)} {split} images are missing, the first is {missing[0]}: "
            f"delete {root / 'oxford-iiit-pet'} to create it again"
        )
    return list(zip(reader._images, reader._labels, strict=True)), reader.classes


def _read_folder(root: Path, val_fraction: float) -> Splits:
    """train/ and test/; a val/ is the validation split where there is a test/ too, else the test split."""
    has_test, has_val = os.path.isdir(root / "test"), os.path.isdir(root / "val")
    if not (has_test or has_val):
        raise UserError(
            f"--data-dir {root} needs train/ and test/ (or val/), each with a folder for each class"
        )
    train, classes = _read_classes(root, "train")
    test, test_classes = _read_classes(root, "test" if has_test else "val")
    val, val_classes = _read_classes(root, "val") if has_test and has_val else ([], classes)
    if not classes == test_classes == val_classes:
        raise UserError(f"{root}: train/ and test/ (or val/) do not hold folders of the same names")
    if not val:
        train, val = split_stratified(train, val_fraction)
    return _checked(Splits(train, val, test, classes), root, val_fraction)


def _read_classes(root: Path, name: str) -> tuple[list[Sample], list[str]]:
    """The images in root/name, and the class names: a folder for each, as in torchvision's ImageFolder.

    Raises UserError for a folder that cannot be read or contains no image.
    """
    needed = f"--data-dir {root} needs {name}/ with a folder of images for each class"
    try:
        entries = sorted(path.name for path in (root / name).iterdir() if path.is_dir())
    except OSError as error:
        raise UserError(f"{needed}: {error.strerror}") from None
    classes = [entry for entry in entries if not entry.startswith(".")]
    images = [find_images(root / name / each) for each in classes]
    empty = [each for each, files in zip(classes, images, strict=True) if not files]
    if empty or not classes:
        raise UserError(f"{needed}: there is none in {empty[0] if empty else name}/")
    return [(file, label) for label, files in enumerate(images) for file in files], classes


def _checked(splits: Splits, root: Path, val_fraction: float) -> Splits:
    """`splits` without duplicates. Raises UserError where a split is then empty, or there is one class."""
    parts = duplicates.remove_duplicates([splits.train, splits.val, splits.test])
    splits = Splits(*parts, splits.classes)
    for name, needed in (("train", True), ("val", val_fraction > 0), ("test", True)):
        if needed and not getattr(splits, name):
            advice = "; --val-fraction 0 trains without one" if name == "val" else ""
            raise UserError(f"{root}: the {name} split is empty{advice}")
    if len(splits.classes) < 2:
        raise UserError(f"{root}: a classifier needs at least two classes, this has {len(splits.classes)}")
    return splits


def split_stratified(samples: list[Sample], fraction: float) -> tuple[list[Sample], list[Sample]]:
    """Splits samples in two, each class in the same proportion (largest remainders), drawn with `SPLIT_SEED`.

    Args:
        samples: (path, label) of the images.
        fraction: Size of the second part, from 0 to below 1.

    Returns:
        (rest, part): `part` has about round(fraction * len(samples)) samples; each class keeps at least one
        sample in `rest`. Both are in the order of `samples`.
    """
    labels = np.array([label for _, label in samples])
    sizes = np.bincount(labels) if len(labels) else np.zeros(0, int)
    quotas = sizes * fraction
    counts = np.floor(quotas).astype(int)
    order = np.argsort(counts - quotas, kind="stable")
    counts[order[: round(fraction * len(labels)) - counts.sum()]] += 1
    counts = np.minimum(counts, np.maximum(sizes - 1, 0))
    rng = np.random.default_rng(SPLIT_SEED)
    chosen = set()
    for label, count in enumerate(counts):
        chosen.update(rng.permutation(np.flatnonzero(labels == label))[:count].tolist())
    rest = [sample for index, sample in enumerate(samples) if index not in chosen]
    return rest, [samples[index] for index in sorted(chosen)]
