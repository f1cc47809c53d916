"""The files in weights/ and the names in docs/pet37-mini/ are as the documents describe them."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from common.data.datasets import Splits
from common.models import checkpoint
from tests.conftest import REPOSITORY

TABLE = (REPOSITORY / "weights" / "README.md").read_text()
NAMES = re.findall(r"^\| `(\S+\.pt)`", TABLE, re.MULTILINE)
MINI = REPOSITORY / "docs" / "pet37-mini"


def samples(split: str) -> list[tuple[Path, int]]:
    lines = [line.split() for line in (MINI / f"{split}.txt").read_text().splitlines()]
    return [(Path(f"{name}.jpg"), int(label) - 1) for name, label, *_ in lines]


def test_the_files_are_small():
    sizes = [(REPOSITORY / "weights" / name).stat().st_size for name in NAMES]
    assert len(sizes) == 9 and max(sizes) < 10e6 and sum(sizes) < 25e6


@pytest.mark.parametrize("name", NAMES)
def test_each_runs_and_is_as_documented(name):
    content = checkpoint.load(REPOSITORY / "weights" / name)
    with torch.inference_mode():
        logits = checkpoint.rebuild(content).eval()(torch.randn(2, 3, 224, 224))
    assert logits.shape == (2, 37) and logits.isfinite().all()

    metrics, created = content["metrics"], content["lineage"][-1]
    row = re.findall(rf"^\| {name.removesuffix('.pt')} +\|(.+)$", TABLE, re.MULTILINE)[0]
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[:2] == [content["stage"], str(metrics["n"])]
    if content["int8"] is None or metrics.get("integers"):  # older files store the accuracy of an engine
        assert (cells[2], cells[4]) == (f"{metrics['top1']:.2%}", f"{metrics['top5']:.2%}")
    assert f"| `{name}`" in TABLE and f"`{created['options']['command']}`" in TABLE
    assert (REPOSITORY / created["options"]["config"]).exists()
    assert not any(str(value).startswith(("/", "..")) for value in created["options"].values())

    # created from the images that docs/pet37-mini names, all for training; older files have no digests
    splits = Splits(samples("trainval"), [], samples("test"), content["classes"])
    documented = re.findall(r"fingerprint `(\w{16})`", (MINI / "README.md").read_text())
    assert created["split"] in (splits.old_fingerprint, *documented) and metrics["n"] == len(splits.test)


def test_no_image_is_in_both_parts_of_pet37_mini():
    train, test = ({path for path, _ in samples(split)} for split in ("trainval", "test"))
    assert (len(train), len(test)) == (926, 906) and not train & test


def test_the_command_of_the_readme_works_after_a_clone(run, tmp_path, monkeypatch):
    Image.effect_noise((300, 240), 60).save(tmp_path / "image.jpg")
    monkeypatch.chdir(REPOSITORY)
    result = run("predict", "quantized_mobilenet_v2", tmp_path / "image.jpg")
    assert result.code == 0 and result.out.count("%") == 5


def test_one_is_found_from_another_folder(run, tmp_path, monkeypatch):
    """Nothing but the path of the script leads to it."""
    Image.new("RGB", (40, 40)).save(tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)
    result = run("predict", "quantized_pruned_16th_mobilenet_v2", "a.jpg")
    assert result.code == 0, result.err
    assert result.out.startswith("a.jpg\n") and result.out.count("%") == 5
