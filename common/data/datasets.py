"""The three data sets and their splits into training, validation and test images."""

import hashlib
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torchvision.datasets import OxfordIIITPet

from common.data import content, duplicates, folders, synthetic
from common.data.duplicates import Sample
from common.system import distributed
from common.system.errors import UserError

DEFAULT_DIRS = {"pet37": "data", "synthetic": "data/synthetic"}
SPLIT_SEED = 0  # not --seed: every stage of a chain must use the same images for validation


@dataclass(frozen=True)
class Splits:
    """The images of training, validation and test, and the class names in the order of the labels.

    Attributes:
        train: (path, label) of the training images; `val` and `test` likewise.
        classes: The class names.
        digests: The content of the images, see `content.digests`.
    """

    train: list[Sample]
    val: list[Sample]
    test: list[Sample]
    classes: list[str]
    digests: dict[Path, bytes] = field(default_factory=dict, repr=False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the class names and the names, labels and contents of the images, 16 hex digits.

        Two data sets with the same fingerprint have the same images in the same splits, in whichever folder.
        """
        return self._hash(("train", "val", "test"), self.digests)

    @property
    def training_fingerprint(self) -> str:
        """The same without the test images: of all that a training depends on."""
        return self._hash(("train", "val"), self.digests)

    @property
    def old_fingerprint(self) -> str:
        """What checkpoints of earlier versions have in place of the fingerprint: without the contents."""
        return self._hash(("train", "val", "test"), {})

    def trained(self, checkpoint: dict) -> bool:
        """Whether the last stage of a checkpoint had the same training and validation images.

        Args:
            checkpoint: Its `lineage` has the fingerprint of these, in earlier versions that of all images.

        Returns:
            False also where only the test images of a checkpoint of an earlier version differ.
        """
        known = (self.training_fingerprint, self.fingerprint, self.old_fingerprint)
        return checkpoint["lineage"][-1]["split"] in known

    def fingerprint_of(self, split: str) -> str:
        """The fingerprint of one split.

        Args:
            split: "train", "val" or "test".

        Returns:
            16 hex digits.
        """
        return self._hash((split,), self.digests)

    def _hash(self, splits: tuple[str, ...], digests: dict[Path, bytes]) -> str:
        value = hashlib.sha256("\n".join(self.classes).encode("utf-8", "surrogateescape"))
        for name in splits:
            value.update(name.encode())
            images = getattr(self, name)
            for file, label, digest in sorted((p.name, label, digests.get(p, b"")) for p, label in images):
                value.update(f"{file}\0{label}\n".encode("utf-8", "surrogateescape") + digest)
        return value.hexdigest()[:16]

    def __str__(self) -> str:
        counts = f"{len(self.train)} training, {len(self.val)} validation and {len(self.test)} test images"
        return f"{counts} of {len(self.classes)} classes"


def load_splits(
    dataset: str, data_dir: str | None, val_fraction: float, *, index_dir: str | Path | None = None
) -> Splits:
    """Lists the images of a data set and splits the training part into training and validation.

    Args:
        dataset: "pet37" (downloaded on first use), "synthetic" (generated on first use) or "folder".
        data_dir: Its folder; None for the default.
        val_fraction: Fraction of the training images that become the validation split, from 0 to below 1.
        index_dir: Folder of the index of their contents, see `content.digests`; None for no index.

    Returns:
        The three splits.

    Raises:
        UserError: The data set is missing and cannot be created, or a split is empty.
    """
    root = _find_root(dataset, data_dir)
    if dataset == "folder":
        splits = _read_folder(root, val_fraction)
    else:
        trainval, classes = _read_pet37(root, "trainval")
        test, test_classes = _read_pet37(root, "test")
        folders.check_same(root, classes, test_classes, "trainval.txt", "test.txt")
        splits = Splits(*split_stratified(trainval, val_fraction), test, classes)
    return _checked(splits, root, val_fraction, index_dir)


def load_test_split(dataset: str, data_dir: str | None) -> Splits:
    """Lists the test images of a data set, which may lack its training images.

    Args:
        dataset: See `load_splits`.
        data_dir: Its folder; None for the default.

    Returns:
        Splits without training and validation images.

    Raises:
        UserError: The data set is missing and cannot be created.
    """
    root = _find_root(dataset, data_dir)
    if dataset != "folder":
        return Splits([], [], *_read_pet37(root, "test"))
    only_val = os.path.isdir(root / "val") and not os.path.isdir(root / "test")
    (test,), classes = folders.read(root, ["val" if only_val else "test"])
    return Splits([], [], test, classes)


def _find_root(dataset: str, data_dir: str | None) -> Path:
    """The folder of the data set, which is created first where that is possible."""
    if not data_dir and dataset not in DEFAULT_DIRS:
        raise UserError(f"--dataset {dataset} needs --data-dir")
    root = Path(data_dir or DEFAULT_DIRS[dataset])
    if dataset != "folder":
        with distributed.main_process_first():
            _create(dataset, root)
    return root


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
    names = ["train", "test", "val"] if has_test and has_val else ["train", "test" if has_test else "val"]
    (train, test, *val), classes = folders.read(root, names)
    train, val = (train, val[0]) if val else split_stratified(train, val_fraction)
    return Splits(train, val, test, classes)


def _checked(splits: Splits, root: Path, val_fraction: float, index_dir: str | Path | None) -> Splits:
    """`splits` without duplicates. Raises UserError where a split is then empty, or there is one class."""
    parts = [splits.train, splits.val, splits.test]
    place = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]
    index = Path(index_dir, f"{place}.digests") if index_dir else None
    digests = content.digests([path for samples in parts for path, _ in samples], index)
    splits = Splits(*duplicates.remove_duplicates(parts, digests), splits.classes, digests)
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


def spread(samples: list[Sample], count: int) -> list[Sample]:
    """Chooses samples that are evenly spread over a list, which is in the order of the classes.

    Args:
        samples: The list.
        count: How many, at most.

    Returns:
        The chosen ones, in order.
    """
    count = min(count, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]
