"""Pictures and labels: the three data sets and their splits, and how a picture is read."""

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.datasets import ImageFolder, OxfordIIITPet

from common import synthetic
from common.errors import UserError

DEFAULT_DIRS = {"pet37": "data", "synthetic": "data/synthetic"}
SPLIT_SEED = 0  # not --seed: every stage of a chain must set the same pictures aside for validation

Sample = tuple[Path, int]  # a picture and its label


@dataclass(frozen=True)
class Splits:
    """Which pictures train, choose (validation) and score (test), and the class names in label order."""

    train: list[Sample]
    val: list[Sample]
    test: list[Sample]
    classes: list[str]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the class names and the file names and labels of the three splits, 16 hex digits."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for name in ("train", "val", "test"):
            digest.update(name.encode())
            for path, label in sorted((path.name, label) for path, label in getattr(self, name)):
                digest.update(f"{path}\0{label}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]

    def __str__(self) -> str:
        counts = f"{len(self.train)} training, {len(self.val)} validation and {len(self.test)} test pictures"
        return f"{counts} of {len(self.classes)} classes"


def read_picture(path: str | Path) -> Image.Image:
    """The picture in RGB: upright as its EXIF data say, transparent parts on white, of an animation the first
    frame.

    Raises UserError where it cannot be read.
    """
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return picture.convert("RGB")
    except UnidentifiedImageError:
        raise UserError(f"cannot read the picture {path}: it is of no known format") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"cannot read the picture {path}: {getattr(error, 'strerror', '') or error}"
        ) from None


def pictures_in(path: str | Path) -> list[Path]:
    """`path` itself, or of a folder the pictures at any depth, by name: the files whose suffix says so."""
    if not Path(path).is_dir():
        return [Path(path)]
    suffixes = Image.registered_extensions()
    return sorted(file for file in Path(path).rglob("*") if file.suffix.lower() in suffixes)


def load_splits(dataset: str, data_dir: str | None, val_fraction: float) -> Splits:
    """Reads which pictures a data set has, and sets `val_fraction` of the training part aside.

    `dataset` is pet37, synthetic or folder; the first two are made on first use. Raises UserError for a data
    set that is not there and cannot be had, and for an empty split.
    """
    if data_dir is None and dataset not in DEFAULT_DIRS:
        raise UserError(f"--dataset {dataset} needs --data-dir")
    root = Path(data_dir or DEFAULT_DIRS[dataset])
    if dataset == "folder":
        return _read_folder(root, val_fraction)
    if dataset == "synthetic":
        try:
            synthetic.write(root)
        except OSError as error:
            raise UserError(f"cannot write the synthetic pictures to {root}: {error.strerror}") from None
    else:
        _download_pet37(root)
    trainval, classes = _read_pet37(root, "trainval")
    test, test_classes = _read_pet37(root, "test")
    if classes != test_classes:
        raise UserError(f"{root}: trainval.txt and test.txt do not name the same classes")
    train, val = split_stratified(trainval, val_fraction)
    return _checked(Splits(train, val, test, classes), root, val_fraction)


def _download_pet37(root: Path) -> None:
    try:
        OxfordIIITPet(root, download=True)
    except (OSError, RuntimeError, EOFError, ValueError, tarfile.TarError) as error:
        urls = [url for url, _ in OxfordIIITPet._RESOURCES]
        if (root / "oxford-iiit-pet" / "annotations" / "trainval.txt").exists():
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
            f"{len(missing)} of {len(reader)} {split} pictures are missing, the first is {missing[0]}: "
            f"delete {root / 'oxford-iiit-pet'} to have it made anew"
        )
    return list(zip(reader._images, reader._labels, strict=True)), reader.classes


def _read_folder(root: Path, val_fraction: float) -> Splits:
    """train/ and test/; a val/ is the validation split where there is a test/ too, else the test split."""

    def read(name: str) -> tuple[list[Sample], list[str]]:
        try:
            reader = ImageFolder(root / name)
        except FileNotFoundError as error:
            raise UserError(
                f"--data-dir {root} needs {name}/ with a folder of pictures for each class: {error}"
            ) from None
        return [(Path(path), label) for path, label in reader.samples], reader.classes

    has_test, has_val = (root / "test").is_dir(), (root / "val").is_dir()
    if not (has_test or has_val):
        raise UserError(
            f"--data-dir {root} needs train/ and test/ (or val/), each with a folder for each class"
        )
    train, classes = read("train")
    test, test_classes = read("test" if has_test else "val")
    val, val_classes = read("val") if has_test and has_val else ([], classes)
    if not classes == test_classes == val_classes:
        raise UserError(f"{root}: train/ and test/ (or val/) do not hold folders of the same names")
    if not val:
        train, val = split_stratified(train, val_fraction)
    return _checked(Splits(train, val, test, classes), root, val_fraction)


def _checked(splits: Splits, root: Path, val_fraction: float) -> Splits:
    for name, needed in (("train", True), ("val", val_fraction > 0), ("test", True)):
        if needed and not getattr(splits, name):
            advice = "; --val-fraction 0 does without" if name == "val" else ""
            raise UserError(f"{root}: the {name} split is empty{advice}")
    if len(splits.classes) < 2:
        raise UserError(f"{root}: a classifier needs at least two classes, this has {len(splits.classes)}")
    return splits


def split_stratified(samples: list[Sample], fraction: float) -> tuple[list[Sample], list[Sample]]:
    """(rest, part): `part` holds round(fraction * len(samples)) samples, shared among the classes by size.

    Seats go by largest remainder; a class always keeps one sample in the rest. Drawn with `SPLIT_SEED`.
    """
    labels = np.array([label for _, label in samples])
    sizes = np.bincount(labels) if len(labels) else np.zeros(0, int)
    quotas = sizes * fraction
    seats = np.floor(quotas).astype(int)
    order = np.argsort(seats - quotas, kind="stable")
    seats[order[: round(fraction * len(labels)) - seats.sum()]] += 1
    seats = np.minimum(seats, np.maximum(sizes - 1, 0))
    rng = np.random.default_rng(SPLIT_SEED)
    chosen = set()
    for label, count in enumerate(seats):
        chosen.update(rng.permutation(np.flatnonzero(labels == label))[:count].tolist())
    rest = [sample for index, sample in enumerate(samples) if index not in chosen]
    return rest, [samples[index] for index in sorted(chosen)]
