"""Every script on images as users have them, from training to predictions."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from common.evaluation import int8_agreement
from common.models import checkpoint
from tests.conftest import write_images

pytestmark = pytest.mark.usefixtures("shallow_networks")


@pytest.fixture
def stage(run, tmp_path, monkeypatch, brief_timing):
    """stage(script, *options, data_dir=...): runs the script on that folder and gives its output."""
    # hardly trained networks have logits so close to each other that int8 swaps some
    monkeypatch.setattr(int8_agreement, "MIN_AGREEMENT", 0.0)

    def run_stage(script, *options, data_dir):
        result = run(
            script, *options, "--dataset", "folder", "--data-dir", data_dir, "--output-dir", tmp_path / "w",
            "--workers", 0,
        )  # fmt: skip
        assert result.code == 0, result.err
        return result.out

    return run_stage


def test_two_classes_of_few_odd_images_go_through_the_entire_chain(stage, run, tmp_path):
    """One training image in a class and three in the other, larger batches, names of all kinds."""
    names = ("ネコ $5 'and' \"more\"", b"dog \xff".decode(errors="surrogateescape"))
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, modes in zip(names, (("L",), ("CMYK", "RGB", "P")), strict=True):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for mode in modes:
                image = Image.fromarray(rng.integers(0, 256, (50, 40, 3), np.uint8)).convert(mode)
                suffix = "gif" if mode == "P" else "jpg"
                image.save(tmp_path / "data" / split / name / f"{'写' * 60} {mode}.{suffix}")
    (tmp_path / "data" / "train" / ".git").mkdir()
    (tmp_path / "data" / "train" / names[0] / "._hidden.jpg").write_bytes(b"no image")

    common = ("--epochs", 1, "--batch-size", 64)
    created = []
    for script, options in (
        ("train_teacher", ("--teacher", "resnet18", "--pretrained", "none", "--image-size", 40)),
        ("train_student", ("--teacher", "resnet18", "--student", "squeezenet1_1", "--pretrained", "none")),
        ("train_pruning", ("--weights", "kd_squeezenet1_1")),
        ("train_quantization", ("--weights", "pruned_kd_squeezenet1_1")),
    ):
        fraction = ("--val-fraction", 0.4 if script == "train_teacher" else 0)
        out = stage(script, *options, *common, *fraction, data_dir=tmp_path / "data")
        created.append(re.search(r"saved .*/(\S+\.pt)\n", out)[1])
        assert checkpoint.load(tmp_path / "w" / created[-1])["classes"] == sorted(names)
    stage("evaluate", *created, "--per-class", "--runtimes", data_dir=tmp_path / "data")
    assert (tmp_path / "w" / created[-1]).with_name(f"{created[-1][:-3]}_confusion.png").exists()
    stage("export", created[-1], "--output", tmp_path / "x.onnx", data_dir=tmp_path / "data")
    for file in (created[-1], tmp_path / "x.onnx"):
        result = run(
            "predict", file, tmp_path / "data" / "test", "--output-dir", tmp_path / "w", "--json",
            "--save", tmp_path / "labeled.png",
        )  # fmt: skip
        assert result.code == 0, result.err
        assert [len(prediction["classes"]) for prediction in json.loads(result.out)] == [2] * 4


def test_a_thousand_classes_of_one_image_each_are_trained(stage, tmp_path):
    write_images(tmp_path / "data", [f"{label:03}" for label in range(1000)], train=1, test=1, side=8)
    out = stage(
        "train_teacher", "--teacher", "squeezenet1_1", "--pretrained", "none", "--image-size", 32,
        "--epochs", 1, "--val-fraction", 0, "--batch-size", 111, data_dir=tmp_path / "data",
    )  # fmt: skip
    assert "1000 training, 0 validation and 1000 test images of 1000 classes" in out and "n 1000" in out
