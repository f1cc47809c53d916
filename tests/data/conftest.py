"""A small folder data set for the tests of folders and of duplicates."""

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two images of each of two classes in train/, one in test/; no two files are the same."""
    for split, count in (("train", 2), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                color = (99 * label, 99 * index, len(split))
                Image.new("RGB", (8, 8), color).save(tmp_path / split / name / f"{name}{index}.png")
    return tmp_path
