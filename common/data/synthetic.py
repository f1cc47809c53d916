"""Generates a small offline data set: animals of 37 invented breeds, in Oxford-IIIT Pet's own folder layout.

A breed is a combination of ears, pattern and coat. Pose, size, light and background differ from image to
image, so that single pixels carry little information: shapes and patterns have to be learned.
"""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

BREEDS = 37
IMAGES_PER_BREED = {"trainval": 50, "test": 20}  # of each breed
SIDE = 96  # pixels
CANVAS = 2 * SIDE  # drawn at twice the size, then reduced: smooth edges

EARS = ("pricked", "lop", "round", "tufted")
PATTERNS = ("plain", "striped", "spotted", "masked", "patched", "banded")
COATS = {
    "ivory": (232, 222, 200),
    "ginger": (214, 126, 48),
    "umber": (120, 78, 50),
    "slate": (106, 120, 146),
    "sable": (62, 56, 58),
}


def breeds() -> list[tuple[str, str, str]]:
    """(coat, pattern, ears) of the 37 breeds; the seven that share coat and pattern with another differ in
    the ears.
    """
    coats, breeds = list(COATS), []
    for number in range(BREEDS):
        coat, pattern = (number // len(PATTERNS)) % len(coats), number % len(PATTERNS)
        again = number // (len(PATTERNS) * len(coats))
        breeds.append((coats[coat], PATTERNS[pattern], EARS[(coat + pattern + again) % len(EARS)]))
    return breeds


def write(root: str | Path) -> None:
    """Writes the data set as `oxford-iiit-pet/{images,annotations}`, unless it exists; completely or not.

    The images are RGB JPEGs of 96 x 96 pixels, the same on every run: the seed is the number of the image.

    Args:
        root: The folder to write it into, created where it is missing.

    Raises:
        OSError: A file cannot be written.
    """
    target = Path(root) / "oxford-iiit-pet"
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".synthetic-", dir=target.parent))
    try:
        folder.chmod(0o755)
        (folder / "images").mkdir()
        (folder / "annotations").mkdir()
        for split, count in IMAGES_PER_BREED.items():
            rows = []
            for label, breed in enumerate(breeds()):
                for index in range(count):
                    name = f"{'_'.join(breed).capitalize()}_{split}{index}"
                    draw(breed, np.random.default_rng([label, index, split == "test"])).save(
                        folder / "images" / f"{name}.jpg", quality=92
                    )
                    rows.append(f"{name} {label + 1} {1 + label % 2} 1\n")
            (folder / "annotations" / f"{split}.txt").write_text("".join(rows))
        try:
            os.replace(folder, target)
        except OSError:
            if not target.is_dir():  # else another run was faster: its images are the same
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def draw(breed: tuple[str, str, str], rng: np.random.Generator) -> Image.Image:
    """Draws one animal.

    Args:
        breed: (coat, pattern, ears).
        rng: Where pose, size, light and background come from.

    Returns:
        An RGB image of 96 x 96 pixels.
    """
    coat, pattern, ears = breed
    color = _shade(COATS[coat], rng.uniform(0.85, 1.15))
    animal = _animal(color, pattern, ears, rng)
    if rng.random() < 0.5:
        animal = animal.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    size = int(CANVAS * rng.uniform(0.75, 1.0))
    animal = animal.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR).resize((size, size))
    image = _background(rng)
    room = CANVAS - size
    corner = tuple(int(room / 2 + rng.uniform(-0.1, 0.1) * CANVAS) for _ in range(2))
    image.paste(animal, corner, animal)
    image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    light = rng.uniform(0.7, 1.25) * rng.uniform(0.9, 1.1, 3)  # brightness and tint
    pixels = np.asarray(image, np.float32) * light + rng.normal(0, 4, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _background(rng: np.random.Generator) -> Image.Image:
    corners = rng.integers(20, 236, (2, 2, 3), dtype=np.uint8)
    image = Image.fromarray(corners).resize((CANVAS, CANVAS), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(3, 8)):
        x, y = rng.uniform(0, CANVAS, 2)
        w, h = rng.uniform(10, 70, 2)
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x - w, y - h, x + w, y + h), fill=tuple(rng.integers(20, 236, 3).tolist()))
    return image.filter(ImageFilter.GaussianBlur(3))


def _animal(color, pattern: str, ears: str, rng: np.random.Generator) -> Image.Image:
    """An RGBA image, head over body, on a transparent canvas."""
    c = CANVAS / 2
    dark = _shade(color, 0.45)
    pale = _shade(color, 1.6 if max(color) < 170 else 0.7)  # seen on an ivory coat too
    outline = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(outline)
    pen.ellipse((c - 46, c + 14, c + 46, CANVAS - 4), fill=255)  # body
    wide = rng.uniform(42, 50)
    pen.ellipse((c - wide, c - 48, c + wide, c + 36), fill=255)  # head
    coat = Image.new("RGB", (CANVAS, CANVAS), color)
    _paint_pattern(ImageDraw.Draw(coat), pattern, dark, pale, rng)
    animal = Image.new("RGBA", (CANVAS, CANVAS))
    _draw_ears(ImageDraw.Draw(animal), ears, color, dark, rng.uniform(0.85, 1.15))
    coat.putalpha(outline)
    animal.alpha_composite(coat)
    pen = ImageDraw.Draw(animal)
    for side in (-1, 1):
        x, y = c + side * 19, c - 10
        pen.ellipse((x - 9, y - 7, x + 9, y + 7), fill=(236, 226, 150, 255))
        pen.ellipse((x - 4, y - 6, x + 4, y + 6), fill=(16, 16, 16, 255))
    pen.polygon([(c - 7, c + 10), (c + 7, c + 10), (c, c + 19)], fill=(60, 30, 34, 255))
    return animal


def _draw_ears(pen: ImageDraw.ImageDraw, ears: str, color, dark, length: float) -> None:
    c = CANVAS / 2
    for side in (-1, 1):
        x, top = c + side * 32, c - 34
        if ears in ("pricked", "tufted"):
            tip = (x + side * 8, top - 46 * length)
            fill = color if ears == "pricked" else dark
            pen.polygon([(x - side * 22, top - 4), tip, (x + side * 16, top + 26)], fill=(*fill, 255))
            if ears == "tufted":
                pen.ellipse((tip[0] - 10, tip[1] - 10, tip[0] + 10, tip[1] + 10), fill=(*color, 255))
        elif ears == "lop":
            reach = 76 * length
            pen.ellipse((x + side * 16 - 15, top - 4, x + side * 16 + 15, top + reach), fill=(*dark, 255))
        else:
            radius = 27 * length
            x, top = x + side * 12, top - 8
            pen.ellipse((x - radius, top - radius, x + radius, top + radius), fill=(*color, 255))


def _paint_pattern(pen: ImageDraw.ImageDraw, pattern: str, dark, pale, rng: np.random.Generator) -> None:
    c, shift = CANVAS / 2, rng.uniform(-6, 6)
    if pattern == "striped":
        for x in range(-CANVAS, 2 * CANVAS, 20):
            pen.line([(x + shift, 0), (x + shift + 20, CANVAS)], fill=dark, width=8)
    elif pattern == "banded":
        for y in range(0, CANVAS, 30):
            pen.rectangle((0, y + shift, CANVAS, y + shift + 12), fill=pale)
    elif pattern == "spotted":
        for x in range(0, CANVAS, 26):
            for y in range(0, CANVAS, 26):
                dx, dy = rng.uniform(-5, 5, 2)
                pen.ellipse((x + dx - 6, y + dy - 6, x + dx + 6, y + dy + 6), fill=dark)
    elif pattern == "masked":
        pen.ellipse((c - 36, c - 26 + shift, c + 36, c + 30 + shift), fill=dark)
        pen.rectangle((0, CANVAS - 34, CANVAS, CANVAS), fill=dark)
    elif pattern == "patched":
        pen.rectangle((c + shift, 0, CANVAS, c + 20), fill=pale)
        pen.rectangle((0, c + 30, c + shift, CANVAS), fill=pale)


def _shade(color, factor: float) -> tuple[int, int, int]:
    return tuple(min(255, int(channel * factor)) for channel in color)
