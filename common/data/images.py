"""Image files: which files are images, and how one is read."""

import functools
import os
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from common.system.errors import UserError

# formats of Pillow that are not read: Ghostscript would run an EPS, also one inside an IPTC; of the others
# Pillow knows the first bytes only
EXCLUDED = {"EPS", "IPTC", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
# photos that Pillow cannot read, and the Python package that can
READERS = {
    "pillow-heif": (".heic", ".heif", ".hif"),
    "pillow-jxl-plugin": (".jxl",),
    "rawpy": (
        *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos"),
        *(".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".srf", ".srw", ".x3f"),
    ),
}
READER_OF = {suffix: reader for reader, own in READERS.items() for suffix in own}
CANNOT_READ = "cannot read the image "  # how the message of `read_image` begins
SHOWN = 20  # of the files that cannot be read, in a message
MAX_ASPECT_RATIO = 100  # a longer image, resized for a network, may not fit into memory


class UnreadableImages(UserError):
    """One error for all image files that cannot be read.

    `reasons` has the message of each.
    """

    def __init__(self, reasons: list[str]):
        """Joins the messages, the first `SHOWN` of many.

        Args:
            reasons: The message of `read_image` for each file.
        """
        self.reasons = reasons
        text = reasons[0]
        if len(reasons) > 1:
            parts = [reason.removeprefix(CANNOT_READ) for reason in reasons[:SHOWN]]
            more = [f"and {len(reasons) - SHOWN} more"] if len(reasons) > SHOWN else []
            text = f"cannot read {len(reasons)} images: {'; '.join(parts + more)}"
        super().__init__(text)

    def __reduce__(self):
        return type(self), (self.reasons,)


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that are read, by Pillow's names; first those that are recognized by their first bytes."""
    Image.init()
    return tuple(sorted(Image.OPEN.keys() - EXCLUDED, key=lambda name: (Image.OPEN[name][1] is None, name)))


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes of image files, in lower case and with the dot."""
    known = {*formats(), "MPO"}  # a JPEG of several images, which the reader of JPEG opens
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def read_image(path: str | Path) -> Image.Image:
    """Reads an image file: upright by its EXIF data, transparent parts on white, of an animation the first
    frame, 16-bit gray as 8-bit.

    Args:
        path: The file.

    Returns:
        The image in RGB.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        with Image.open(path, formats=formats()) as file:
            image = _rgb(ImageOps.exif_transpose(file))
    except UnidentifiedImageError:
        reader = READER_OF.get(_suffix(path))
        advice = f" ({reader} reads it: convert it to JPEG or PNG)" if reader else ""
        raise UserError(f"{CANNOT_READ}{path}: its format is unknown{advice}") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{CANNOT_READ}{path}: {getattr(error, 'strerror', '') or error}") from None
    # Pillow's decoders raise errors of any kind on damaged bytes
    except Exception as error:
        raise UserError(f"{CANNOT_READ}{path}: its decoder fails with {error!r}") from None
    if not 0 < max(image.size) <= MAX_ASPECT_RATIO * min(image.size):
        size = f"{image.width} x {image.height} pixels"
        raise UserError(
            f"{CANNOT_READ}{path}: it has {size}, one side over {MAX_ASPECT_RATIO} times the other"
        )
    return image


def _rgb(image: Image.Image) -> Image.Image:
    # 16-bit gray: Pillow would make all but the darkest 256 levels white
    if image.mode.startswith("I"):
        levels = np.asarray(image, np.float32) / 257
        image = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def find_images(path: str | Path) -> tuple[list[Path], list[Path]]:
    """Finds image files by their suffixes.

    Hidden files and folders are ignored. Links are followed, to each folder once.

    Args:
        path: A file, or a folder that is searched at any depth.

    Returns:
        (images, left out): `path` itself, or the images in the folder, then those in its subfolders, sorted
        by name; and in the same order the photos that cannot be read, see `READERS`.

    Raises:
        UserError: A folder cannot be read.
    """
    if not os.path.isdir(path):  # Path.is_dir raises for a name that is too long
        return [Path(path)], []
    found, left_out, seen = [], [], set()
    try:
        for folder, folders, files in os.walk(path, onerror=_raise, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:  # a link to a folder above would be an endless loop
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            base, visible = Path(folder), [name for name in sorted(files) if not name.startswith(".")]
            found += [base / name for name in visible if _suffix(name) in suffixes()]
            left_out += [base / name for name in visible if _suffix(name) in READER_OF]
    except OSError as error:
        raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from None
    return found, left_out


def describe_left_out(paths: list[Path]) -> str:
    """Describes photos that cannot be read.

    Args:
        paths: Their files, see `find_images`.

    Returns:
        Such as "6 photos are left out, the first is 'a.HEIC': 6 .heic (pillow-heif reads them); convert them
        to JPEG or PNG"; "" for none.
    """
    if not paths:
        return ""
    counts, kinds = Counter(map(_suffix, paths)), []
    for reader, own in READERS.items():
        if present := [f"{counts[suffix]} {suffix}" for suffix in own if suffix in counts]:
            kinds.append(f"{', '.join(present)} ({reader} reads them)")
    counted = "1 photo is" if len(paths) == 1 else f"{len(paths)} photos are"
    return (
        f"{counted} left out, the first is {str(paths[0])!r}: {', '.join(kinds)}; convert them to JPEG or PNG"
    )


def _suffix(path: str | Path) -> str:
    return os.path.splitext(path)[1].lower()


def _raise(error: OSError):
    raise error
