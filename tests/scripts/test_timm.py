"""The stages with networks of timm: their names, their normalization, a resumed run, and no timm."""

import importlib.util
import re
import sys

import pytest
import torch

import train_student
from common.data.transforms import Normalize
from common.models import checkpoint
from common.stage import Stage


@pytest.fixture
def stage(run, small_synthetic, tmp_path):
    """stage(script, *arguments): runs it for one epoch; gives (its output, the content that it saved)."""

    data = ["--dataset", "synthetic", "--data-dir", small_synthetic, "--output-dir", tmp_path / "weights"]

    def run_stage(script, *arguments):
        training = ["--workers", 0, "--image-size", 32, "--epochs", 1, "--batch-size", 16]
        result = run(script, *data, *training, *arguments)
        assert result.code == 0, result.err
        path = tmp_path / "weights" / re.search(r"(?:saved|finished).*/(\S+\.pt)", result.out)[1]
        return result.out, checkpoint.load(path)

    run_stage.data = data
    return run_stage


def test_a_teacher_and_its_student_see_the_images_that_they_were_trained_on(stage):
    pytest.importorskip("timm")
    _, teacher = stage("train_teacher", "--teacher", "timm/test_resnet", "--pretrained", "none")
    assert teacher["arch"] == "timm/test_resnet" and teacher["name"] == "teacher_timm_test_resnet"
    assert teacher["mean"] == teacher["std"] == [0.5, 0.5, 0.5]
    student = ("--teacher", "timm/test_resnet", "--student", "timm/test_efficientnet", "--pretrained", "none")
    _, taught = stage("train_student", *student)
    assert taught["mean"] == [0.485, 0.456, 0.406] and taught["image_size"] == 32
    again, _ = stage("train_student", *student, "--resume")
    assert "finished before" in again and "epoch 1/1" not in again

    args = train_student.parse_args([*map(str, stage.data), *student])
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    own, others = (Normalize(each["mean"], each["std"])(pixels) for each in (teacher, taught))
    with torch.no_grad():
        expected = checkpoint.rebuild(teacher).eval()(own)
        seen = Stage("kd", args, parent=args.teacher[0], arch=args.student).model.eval()(others)
    assert torch.allclose(seen, expected, atol=1e-4)

    _, pruned = stage(
        "train_pruning", "--weights", "kd_timm_test_efficientnet", "--teacher", "timm/test_resnet",
    )  # fmt: skip
    assert pruned["name"] == "pruned_kd_timm_test_efficientnet"
    assert pruned["metrics"]["params"] < 0.6 * taught["metrics"]["params"]


def test_without_timm_a_script_ends_with_one_line(run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    result = run("train_teacher", "--teacher", "timm/lcnet_050", "--dataset", "synthetic")
    assert result.code == 2 and result.out == ""
    message = "timm/lcnet_050 is a model of timm, which is not installed: pip install timm"
    assert result.err == f"train_teacher.py: error: {message}\n"
