"""Every file is read as an image or refused in one line, whatever it contains; no other program is run."""

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from common.data.images import describe_left_out, find_images, read_image
from common.system.errors import UserError

SEED, MUTATED = 0, 50  # of each file of `valid_files`


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def valid_files() -> list[bytes]:
    """A small image in seven formats."""
    pixels = np.random.default_rng(SEED).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    pixels[4:12] = 200
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    return [
        encoded(image, "JPEG", exif=exif),
        encoded(image.convert("RGBA"), "PNG"),
        encoded(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
        encoded(image, "WEBP", exif=exif),
        encoded(image, "TIFF", compression="tiff_lzw"),
        encoded(image, "BMP"),
        encoded(image, "PPM"),
    ]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """`content` with flipped bits, truncated, with bytes inserted or removed, or with a block of zeros.

    At least half of the damage is in the first 80 bytes, where the header is.
    """

    def position() -> int:
        return rng.randrange(rng.choice((80, len(content))))

    changed, start, length = bytearray(content), position(), rng.randint(1, 40)
    match rng.randrange(5):
        case 0:
            for _ in range(rng.choice((1, 8, 40))):
                changed[position()] ^= 1 << rng.randrange(8)
        case 1:
            del changed[start:]
        case 2:
            changed[start:start] = rng.randbytes(length)
        case 3:
            del changed[start : start + length]
        case 4:
            changed[start : start + length] = bytes(len(changed[start : start + length]))
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged EXIF data
def test_damaged_files_are_read_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**5)  # a changed size may ask for gigabytes
    rng, path, read, refused = random.Random(SEED), tmp_path / "damaged.jpg", 0, 0
    for content in valid_files():
        path.write_bytes(content)
        assert read_image(path).size in ((32, 24), (24, 32))
        for _ in range(MUTATED):
            path.write_bytes(mutated(content, rng))
            try:
                assert read_image(path).mode == "RGB"
                read += 1
            except UserError as error:
                assert str(error).startswith(f"cannot read the image {path}: ")
                refused += 1
    assert read + refused == 7 * MUTATED and read > 50 and refused > 50


@pytest.mark.parametrize(
    "error", [struct.error, ValueError, IndexError, EOFError, zlib.error, MemoryError, ZeroDivisionError]
)
def test_any_error_of_a_decoder_is_one_line(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error(7)

    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (2, 2)), "PNG"))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(UserError, match=rf"a\.png: its decoder fails with {error.__name__}\(7\)"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its format is unknown"),
        (b"not an image but text", "its format is unknown$"),
        (encoded(Image.new("RGB", (64, 64)), "PNG")[:60], "truncated"),
        (
            encoded(Image.new("L", (101, 1)), "PNG"),
            "it has 101 x 1 pixels, one side over 100 times the other",
        ),
        (
            encoded(Image.new("L", (1, 101)), "PNG"),
            "it has 1 x 101 pixels, one side over 100 times the other",
        ),
        (None, "Is a directory"),
    ],
)
def test_other_files_are_refused_with_the_reason(tmp_path, content, message):
    path = tmp_path / "x.jpg"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=f"cannot read the image {path}: .*{message}"):
        read_image(path)


def test_an_impossible_file_name_is_one_line():
    assert find_images("x" * 300) == ([Path("x" * 300)], [])
    with pytest.raises(UserError, match="xxx: File name too long"):
        read_image("x" * 300)


def test_an_image_of_gigabytes_is_refused_by_its_header(tmp_path):
    bomb = bytearray(encoded(Image.new("RGB", (1, 1)), "PNG"))
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(UserError, match=r"bomb\.png: Image size \(3600000000 pixels\) exceeds limit"):
        read_image(tmp_path / "bomb.png")


def iptc(content: bytes) -> bytes:
    """An IPTC file of one pixel with another file inside."""

    def field(record: int, number: int, value: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, record, number, len(value)) + value

    # layers and component, width, height, compression (JPEG); then the content, its length in two more bytes
    head = field(3, 60, b"\1\0") + field(3, 20, b"\1") + field(3, 30, b"\1") + field(3, 120, b"\5")
    return head + struct.pack(">BBBBBH", 0x1C, 8, 10, 128 + 2, 0, len(content)) + content


@pytest.mark.parametrize("name", ["x.eps", "x.jpg", "x.iim"])
def test_no_file_is_passed_to_another_program(tmp_path, monkeypatch, name):
    run = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: run.append("Ghostscript"))
    postscript = encoded(Image.new("RGB", (1, 1)), "EPS")
    (tmp_path / name).write_bytes(iptc(postscript) if name == "x.iim" else postscript)
    with pytest.raises(UserError, match=f"{name}: its format is unknown"):
        read_image(tmp_path / name)
    assert run == []


def test_only_files_with_the_suffix_of_a_readable_format_are_found(tmp_path):
    for name in (
        "a.JPG",
        "b.mpo",
        "c.eps",
        "d.ps",
        "e.iim",
        "f.h5",
        "g.mpg",
        "h.pdf",
        "i.txt",
        "j",
        "k.webp",
        "l.avif",
        "m.HEIC",
        "n.Cr2",
    ):
        (tmp_path / name).touch()
    found, left_out = find_images(tmp_path)
    assert [path.name for path in found] == ["a.JPG", "b.mpo", "k.webp", "l.avif"]
    assert [path.name for path in left_out] == ["m.HEIC", "n.Cr2"]


def test_photos_that_are_left_out_are_counted_by_suffix_with_what_reads_them():
    assert describe_left_out([]) == ""
    assert describe_left_out([Path("x/a.JXL")]) == (
        "1 photo is left out, the first is 'x/a.JXL': 1 .jxl (pillow-jxl-plugin reads them); "
        "convert them to JPEG or PNG"
    )
    names = ("b.nef", "a.HEIC", "a.cr2", "c.heif", "b.heic")
    assert describe_left_out([Path(name) for name in names]) == (
        "5 photos are left out, the first is 'b.nef': 2 .heic, 1 .heif (pillow-heif reads them), "
        "1 .cr2, 1 .nef (rawpy reads them); convert them to JPEG or PNG"
    )


def test_a_photo_that_the_user_names_is_refused_with_what_reads_it(tmp_path):
    path = tmp_path / "a.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(UserError, match=r"unknown \(pillow-heif reads it: convert it to JPEG or PNG\)"):
        read_image(path)


SIXTEEN_BITS = Image.fromarray(np.array([[0, 257, 128 * 257, 65535]], np.uint16))
FAINT_BLACK = Image.new("LA", (1, 1), (0, 51))  # a fifth opaque: on white 4/5 of 255
HOLE = Image.new("P", (2, 1))
HOLE.putpalette([255, 0, 0, 0, 255, 0])
HOLE.putpixel((1, 0), 1)
RED, BLUE = Image.new("RGB", (1, 1), "red"), Image.new("RGB", (1, 1), "blue")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(SIXTEEN_BITS, "PNG"), [(v, v, v) for v in (0, 1, 128, 255)]),
        (encoded(SIXTEEN_BITS, "PNG", transparency=257), [(v, v, v) for v in (0, 1, 128, 255)]),
        (encoded(SIXTEEN_BITS, "TIFF"), [(v, v, v) for v in (0, 1, 128, 255)]),
        (encoded(SIXTEEN_BITS, "PPM"), [(v, v, v) for v in (0, 1, 128, 255)]),
        (encoded(Image.new("L", (1, 1), 77), "PNG"), [(77, 77, 77)]),
        (encoded(FAINT_BLACK, "PNG"), [(204, 204, 204)]),
        (encoded(Image.new("1", (1, 1), 1), "PNG"), [(255, 255, 255)]),
        (encoded(HOLE, "PNG", transparency=1), [(255, 0, 0), (255, 255, 255)]),
        (encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG"), [(0, 0, 0)] * 64),
        (encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), [(255, 255, 255)] * 64),
        (encoded(RED, "GIF", save_all=True, append_images=[BLUE]), [(255, 0, 0)]),
    ],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, content, expected):
    path = tmp_path / "any_name.jpg"
    path.write_bytes(content)
    image = read_image(path)
    assert image.mode == "RGB" and list(image.get_flattened_data()) == expected
