"""docs/deploy/camera.c against Pillow, on all values."""

import ctypes
import itertools
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler cc")


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    library = tmp_path_factory.mktemp("camera") / "camera.so"
    source = REPOSITORY / "docs" / "deploy" / "camera.c"
    flags = ("-std=c99", "-O1", "-Wall", "-Wextra", "-pedantic", "-Werror", "-shared", "-fPIC")
    subprocess.run(["cc", *flags, "-o", str(library), str(source)], check=True)
    return ctypes.CDLL(str(library))


def converted(function, row, pixels):
    rgb = np.zeros((pixels, 3), np.uint8)
    function(ctypes.c_void_p(row.ctypes.data), pixels, ctypes.c_void_p(rgb.ctypes.data))
    return rgb


def test_gray(camera):
    row = np.arange(256, dtype=np.uint8)
    assert (converted(camera.rgb_of_gray, row, 256) == row[:, None]).all()


def test_rgb565_is_that_of_pillow(camera):
    row = np.arange(65536, dtype="<u2")
    expected = np.asarray(Image.frombytes("RGB", (256, 256), row.tobytes(), "raw", "BGR;16")).reshape(-1, 3)
    assert (converted(camera.rgb_of_rgb565, row, 65536) == expected).all()


def test_yuyv_is_that_of_pillow_but_for_rounding(camera):
    values = np.array(list(itertools.product(range(0, 256, 5), repeat=3)), np.uint8)  # Y, Cb, Cr
    row = np.stack([values[:, 0], values[:, 1], values[:, 0], values[:, 2]], 1)
    rgb = converted(camera.rgb_of_yuyv, row, 2 * len(row)).astype(int)
    expected = np.asarray(Image.fromarray(values[None], "YCbCr").convert("RGB"))[0]
    assert (rgb[::2] == rgb[1::2]).all()
    assert np.abs(rgb[::2] - expected).max() <= 1


def test_yuyv_worked_by_hand(camera):
    """Y 100, Cb 90, Cr 240: 100 + 1.402 * 112 = 257; 100 + 0.344 * 38 - 0.714 * 112 = 33; 100 - 67 = 33."""
    row = np.array([100, 90, 255, 240], np.uint8)
    assert converted(camera.rgb_of_yuyv, row, 2).tolist() == [[255, 33, 33], [255, 188, 188]]
