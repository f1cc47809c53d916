"""What several test files use: a small data set, and a way to run a script as a user does."""

import importlib
import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models._api import BUILTIN_MODELS

from common.cli import launch
from common.data import cache, synthetic
from common.evaluation import latency
from tests import shallow

REPOSITORY = Path(__file__).parents[1]


def pytest_addoption(parser):
    parser.addoption("--write-docs", action="store_true", help="write docs/ARCHITECTURES.md")
    parser.addoption("--long", action="store_true", help="run the tests that take long, too")
    parser.addoption("--kills", type=int, help="how often each stage is killed; default: 2, with --long 5")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes long, and runs with --long"))


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test leaves decoded images behind."""
    monkeypatch.setattr(cache, "DEFAULT_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def shallow_networks():
    """squeezenet1_1, mobilenet_v2 and resnet18 have fewer layers."""
    with mock.patch.dict(BUILTIN_MODELS, shallow.NETWORKS):
        yield


def write_images(
    root: Path, classes=("cat", "dog", "fox"), train: int = 8, test: int = 4, side: int = 40
) -> Path:
    """A folder data set of colored noise, one color for each class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 90, (side, side, 3))
                pixels[..., label % 3] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}{index}.jpg")
    return root


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """A folder data set of 3 classes with 8 training and 4 test images each."""
    return write_images(tmp_path / "images")


@pytest.fixture
def run(capsys, monkeypatch):
    """run("train_teacher", "--epochs", 1, ...): the script in this process, as (code, out, err).

    The plot of the training curves is an empty file.
    """
    monkeypatch.setattr("common.evaluation.results.draw_curves", lambda history, path: path.touch())

    def run_script(script: str, *arguments) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        module = importlib.import_module(script)
        code = 0
        capsys.readouterr()
        monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # which launch.run replaces
        try:
            launch.run(module.main, module.parse_args)
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run_script


@pytest.fixture
def brief_timing(monkeypatch):
    """For tests of latency in which the times do not matter."""
    monkeypatch.setattr(latency, "others_load", lambda: 0.0)
    for name in ("WARMUP_SECONDS", "MEASURED_SECONDS"):
        monkeypatch.setattr(latency, name, 0)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """The synthetic data set with 4 training and 2 test images of each breed; not to be changed."""
    folder = tmp_path_factory.mktemp("drawn") / "synthetic"
    with mock.patch.object(synthetic, "IMAGES_PER_BREED", {"trainval": 4, "test": 2}):
        synthetic.write(folder)
    return folder


@pytest.fixture
def small_synthetic(drawn, tmp_path, monkeypatch) -> Path:
    """A copy of it."""
    monkeypatch.setattr(synthetic, "IMAGES_PER_BREED", {"trainval": 4, "test": 2})
    return shutil.copytree(drawn, tmp_path / "synthetic")
