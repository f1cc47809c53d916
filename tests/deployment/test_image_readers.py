"""The three programs that read images (the project, classify.py, classify.cpp) read the same pixels."""

import importlib.util
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from common.data.images import read_image
from tests.conftest import REPOSITORY

DEPLOY = REPOSITORY / "docs" / "deploy"
DUMP = """
#define main classify_main
#include "classify.cpp"
#undef main
int main(int, char** paths) {
    while (*++paths) {
        const cv::Mat image = decoded(*paths);
        std::fwrite(image.data, 1, image.total() * image.elemSize(), stdout);
    }
}
"""


def png(pixels: np.ndarray) -> bytes:
    """A PNG of 16-bit color, which Pillow cannot write."""
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def bmp(pixels: np.ndarray) -> bytes:
    """A BMP of 16 bits: 5 for each color."""
    height, width = pixels.shape
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 16, 0, 2 * pixels.size, 2835, 2835, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54 + 2 * pixels.size, 0, 0, 54) + header + pixels.tobytes()


def pnm(form: str, pixels: np.ndarray, white: int) -> bytes:
    height, width = pixels.shape[:2]
    return f"{form}\n# a comment\n{width} {height}\n{white}\n".encode() + pixels.tobytes()


RNG = np.random.default_rng(0)
COLOR8 = RNG.integers(0, 256, (64, 64, 3), np.uint8)
COLOR12 = RNG.integers(0, 4096, (64, 64, 3)).astype(">u2")
COLOR16 = RNG.integers(0, 65536, (64, 64, 3)).astype(">u2")
GRAY4 = np.arange(4096, dtype=np.uint8).reshape(64, 64) % 16
GRAY12 = np.arange(4096, dtype=">u2").reshape(64, 64)  # each value once
GRAY16 = GRAY12.astype(np.uint16) * 16 + 15
TEXT12 = b"P2 64 64 4095\n" + b"\n".join(b"%d" % value for value in range(4096)) + b"\n"
WHITE5 = np.full((64, 64), 0x7FFF, np.uint16)


def gray8(values, white):
    """Gray values, `white` the highest, rounded to 8 bits, in three channels."""
    return np.rint(values.astype(float) * 255 / white).repeat(3).reshape(64, 64, 3)


# name, an image or the bytes of a file, the pixels that are correct, by how much classify.cpp differs
KINDS = [
    ("color.png", Image.fromarray(COLOR8), COLOR8, 0),
    ("gray.png", Image.fromarray(COLOR8[..., 0]), COLOR8[..., :1].repeat(3, axis=2), 0),
    ("color.bmp", Image.fromarray(COLOR8), COLOR8, 0),
    ("gray16.png", Image.fromarray(GRAY16), gray8(GRAY16, 65535), 0),
    ("gray16.tif", Image.fromarray(GRAY16), gray8(GRAY16, 65535), 0),
    ("gray16.pgm", pnm("P5", GRAY16.astype(">u2"), 65535), gray8(GRAY16, 65535), 0),
    ("gray12.pgm", pnm("P5", GRAY12, 4095), gray8(GRAY12, 4095), 0),
    ("text12.pgm", TEXT12, gray8(GRAY12, 4095), 0),
    ("gray4.pgm", pnm("P5", GRAY4, 15), gray8(GRAY4, 15), 0),
    ("color12.ppm", pnm("P6", COLOR12, 4095), np.rint(COLOR12 / 4095 * 255), 0),
    ("color16.ppm", pnm("P6", COLOR16, 65535), np.rint(COLOR16 / 257), 0),
    ("color16.png", png(COLOR16), COLOR16 // 256, 1),  # Pillow drops the lower 8 bits
    ("white.bmp", bmp(WHITE5), np.full((64, 64, 3), 255), 7),  # OpenCV fills the lower 3 bits with zeros
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """An image file of each kind."""
    folder = tmp_path_factory.mktemp("images")
    for name, image, _, _ in KINDS:
        image.save(folder / name) if isinstance(image, Image.Image) else (folder / name).write_bytes(image)
    return [folder / name for name, *_ in KINDS]


def test_the_project_and_the_python_program_read_the_same_pixels(paths):
    spec = importlib.util.spec_from_file_location("classify", DEPLOY / "classify.py")
    classify = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(classify)
    for path, (_, _, expected, _) in zip(paths, KINDS, strict=True):
        with Image.open(path) as image:
            pixels = np.asarray(classify.upright(image))
        assert np.array_equal(pixels, expected), path.name
        assert np.array_equal(np.asarray(read_image(path)), expected), path.name


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """dump(paths): the pixels [images, 64, 64, 3] that classify.cpp reads, in RGB."""
    folder = tmp_path_factory.mktemp("dump")
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    if not shutil.which("g++") or not library:
        pytest.skip("needs g++ and the library of ONNX Runtime for Linux")
    (folder / "libonnxruntime.so.1").symlink_to(library)
    (folder / "dump.cpp").write_text(DUMP)
    command = ["g++", "-std=c++17", "dump.cpp", "-o", "dump", f"-I{DEPLOY}", "-I/usr/include/opencv4"]
    command += ["-I/usr/include/onnxruntime", "-lopencv_core", "-lopencv_imgcodecs"]
    command += [str(folder / "libonnxruntime.so.1"), f"-Wl,-rpath,{folder}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if "No such file or directory" in done.stderr or "cannot find -l" in done.stderr:
        pytest.skip(f"needs the packages of docs/DEPLOY.md, section 3: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr

    def run(paths):
        pixels = subprocess.run([folder / "dump", *paths], capture_output=True, check=True).stdout
        return np.frombuffer(pixels, np.uint8).reshape(-1, 64, 64, 3)[..., ::-1]

    return run


def test_the_program_in_cpp_reads_the_same_pixels_with_two_exceptions(paths, dump):
    for pixels, (name, _, expected, steps) in zip(dump(paths), KINDS, strict=True):
        assert np.abs(pixels.astype(int) - expected).max() == steps, name
