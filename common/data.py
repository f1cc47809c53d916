"""Pictures and labels: the three data sets and their splits, and how a picture is read."""

import functools
import hashlib
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.datasets import OxfordIIITPet

from common import distributed, duplicates, synthetic
from common.errors import UserError

DEFAULT_DIRS = {"pet37": "data", "synthetic": "data/synthetic"}
SPLIT_SEED = 0  # not --seed: every stage of a chain must set the same pictures aside for validation
# formats of Pillow that are not read: Ghostscript would run an EPS, also one inside an IPTC; of the others
# Pillow knows the first bytes only
LEFT_OUT = {"EPS", "IPTC", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
LONGEST = 100  # times the short side: a longer picture, resized for a network, may not fit into memory

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
        digest = hashlib.sha256("\n".join(self.classes).encode("utf-8", "surrogateescape"))
        for name in ("train", "val", "test"):
            digest.update(name.encode())
            for path, label in sorted((path.name, label) for path, label in getattr(self, name)):
                digest.update(f"{path}\0{label}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]

    def __str__(self) -> str:
        counts = f"{len(self.train)} training, {len(self.val)} validation and {len(self.test)} test pictures"
        return f"{counts} of {len(self.classes)} classes"


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that are read, by Pillow's names; first those that are told by their first bytes."""
    Image.init()
    return tuple(sorted(Image.OPEN.keys() - LEFT_OUT, key=lambda name: (Image.OPEN[name][1] is None, name)))


@functools.cache
def suffixes() -> frozenset[str]:
    """The endings of the files that are pictures, in lower case and with the dot."""
    known = {*formats(), "MPO"}  # a JPEG of several pictures, which the reader of JPEG opens
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def read_picture(path: str | Path) -> Image.Image:
    """The picture in RGB: upright as its EXIF data say, transparent parts on white, of an animation the first
    frame, 16 bits of grey as 8.

    Raises UserError where it cannot be read.
    """
    try:
        with Image.open(path, formats=formats()) as file:
            picture = _rgb(ImageOps.exif_transpose(file))
    except UnidentifiedImageError:
        raise UserError(f"cannot read the picture {path}: it is of no known format") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"cannot read the picture {path}: {getattr(error, 'strerror', '') or error}"
        ) from None
    # Pillow's decoders answer damaged bytes with errors of any kind
    except Exception as error:
        raise UserError(f"cannot read the picture {path}: its decoder fails with {error!r}") from None
    if not 0 < max(picture.size) <= LONGEST * min(picture.size):
        size = f"{picture.width} x {picture.height} pixels"
        raise UserError(
            f"cannot read the picture {path}: it is {size}, one side over {LONGEST} times the other"
        )
    return picture


def _rgb(picture: Image.Image) -> Image.Image:
    # 16 bits of grey: Pillow would make all but the darkest 256 levels white
    if picture.mode.startswith("I"):
        levels = np.asarray(picture, np.float32) / 257
        picture = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def pictures_in(path: str | Path) -> list[Path]:
    """`path` itself, or the pictures in a folder, then those in its folders: the files whose suffix says so.

    Hidden files and folders are left out. Links are followed, to each folder once. Raises UserError for a
    folder that cannot be read.
    """
    if not os.path.isdir(path):  # Path.is_dir raises for a name that is too long
        return [Path(path)]
    found, seen = [], set()
    try:
        for folder, folders, files in os.walk(path, onerror=_raise, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:  # a link to a folder above would lead round for ever
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            shown = (Path(folder, name) for name in sorted(files) if not name.startswith("."))
            found += [file for file in shown if file.suffix.lower() in suffixes()]
    except OSError as error:
        raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from None
    return found


def _raise(error: OSError):
    raise error


def load_splits(dataset: str, data_dir: str | None, val_fraction: float) -> Splits:
    """Reads which pictures a data set has, and sets `val_fraction` of the training part aside.

    `dataset` is pet37, synthetic or folder; the first two are made on first use. Raises UserError for a data
    set that is not there and cannot be had, and for an empty split.
    """
    if not data_dir and dataset not in DEFAULT_DIRS:
        raise UserError(f"--dataset {dataset} needs --data-dir")
    root = Path(data_dir or DEFAULT_DIRS[dataset])
    if dataset == "folder":
        return _read_folder(root, val_fraction)
    with distributed.one_first():
        _make(dataset, root)
    trainval, classes = _read_pet37(root, "trainval")
    test, test_classes = _read_pet37(root, "test")
    if classes != test_classes:
        raise UserError(f"{root}: trainval.txt and test.txt do not name the same classes")
    train, val = split_stratified(trainval, val_fraction)
    return _checked(Splits(train, val, test, classes), root, val_fraction)


def _make(dataset: str, root: Path) -> None:
    """Draws or downloads the pictures, where they are not there yet."""
    if dataset == "synthetic":
        try:
            synthetic.write(root)
        except OSError as error:
            raise UserError(f"cannot write the synthetic pictures to {root}: {error.strerror}") from None
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
            f"{len(missing)} of {len(reader)} {split} pictures are missing, the first is {missing[0]}: "
            f"delete {root / 'oxford-iiit-pet'} to have it made anew"
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
    """The pictures in root/name, and the class names: a folder for each, as in torchvision's ImageFolder.

    Raises UserError for a folder that cannot be read or holds no picture.
    """
    needed = f"--data-dir {root} needs {name}/ with a folder of pictures for each class"
    try:
        entries = sorted(path.name for path in (root / name).iterdir() if path.is_dir())
    except OSError as error:
        raise UserError(f"{needed}: {error.strerror}") from None
    classes = [entry for entry in entries if not entry.startswith(".")]
    pictures = [pictures_in(root / name / each) for each in classes]
    hollow = [each for each, files in zip(classes, pictures, strict=True) if not files]
    if hollow or not classes:
        raise UserError(f"{needed}: there is none in {hollow[0] if hollow else name}/")
    return [(file, label) for label, files in enumerate(pictures) for file in files], classes


def _checked(splits: Splits, root: Path, val_fraction: float) -> Splits:
    """`splits` without what is in two of them. Raises UserError where too little is left."""
    parts = duplicates.kept_apart([splits.train, splits.val, splits.test])
    splits = Splits(*parts, splits.classes)
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
