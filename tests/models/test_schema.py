import math

import pytest
import torch

from common.models import architectures, checkpoint, schema
from common.system import files
from common.system.errors import UserError
from tests.models.test_checkpoint import content

ROW = {"options": {"lr": 0.1}, "split": "x", "parent": None, "parent_sha256": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "checkpoint format 99"),
        ({"classes": "cat"}, "'classes' is missing or has the wrong type"),
        ({"state_dict": None}, "'state_dict' is missing"),
        ({"metrics": {"top1": 0.5}}, "its metrics lack 'ci95'"),
    ],
)
def test_an_incomplete_checkpoint_is_refused(tmp_path, changes, message):
    path = checkpoint.save(content(**changes), tmp_path)
    with pytest.raises(UserError, match=message):
        checkpoint.load(path)


def test_a_bare_state_dict_is_refused_with_a_hint(tmp_path):
    torch.save(architectures.build("squeezenet1_1", 3).state_dict(), tmp_path / "x.pt")
    with pytest.raises(UserError, match="--pretrained"):
        checkpoint.load(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../../elsewhere"}, "its name or its stage"),
        ({"stage": "finished"}, "its name or its stage"),
        ({"classes": ["cat", 3, "fox"]}, "its classes"),
        ({"classes": ["cat", "cat", "fox"]}, "its classes"),
        ({"image_size": 10**9}, "its image size"),
        ({"mean": [0.5, math.nan, 0.5]}, "its image size or normalization"),
        ({"std": [0.5, 0.0, 0.5]}, "its image size or normalization"),
        ({"crop_pct": 0.0}, "its crop_pct"),
        ({"crop_pct": "0.9"}, "its crop_pct"),
        ({"metrics": {"top1": 10**400, "ci95": [0, 1], "n": 1, "params": 1, "macs": 1}}, "its metrics"),
        ({"metrics": {"top1": "1", "ci95": [0, 1], "n": 1, "params": 1, "macs": 1}}, "its metrics"),
        ({"lineage": ["teacher"]}, "its lineage"),
        ({"lineage": [ROW | {"options": None}]}, "its lineage"),
        ({"lineage": [{"options": {}, "split": "x"}]}, "its lineage"),
        ({"state_dict": {3: torch.zeros(1)}}, "its weights"),
        ({"int8": {"backend": "qnnpack"}}, "its int8 part"),
        ({"int8": {"backend": "qnnpack", "float_shapes": {"x": 5}}}, "its int8 part"),
        (
            {"int8": {"backend": "qnnpack", "float_shapes": {"x": [9**9, 9], "y": [-(9**9), 9]}}},
            "its int8 part",
        ),
        ({"int8": {"backend": "qnnpack", "float_shapes": {"x": [10**6, 10**6]}}}, "larger than the file"),
    ],
)
def test_content_that_no_stage_writes_is_refused_even_with_a_correct_checksum(tmp_path, changes, message):
    path = tmp_path / "kd_x_0.5000.pt"
    files.save_checked(content(**changes), path)
    with pytest.raises(UserError, match=message):
        checkpoint.load(path)


def test_a_backend_of_another_version_is_named(tmp_path):
    path = tmp_path / "kd_x_0.5000.pt"
    files.save_checked(content(int8={"backend": "tensorrt", "float_shapes": {}}), path)
    with pytest.raises(UserError, match="unknown quantization backend 'tensorrt'"):
        checkpoint.load(path)


def test_the_content_of_a_new_stage_is_valid(tmp_path):
    (tmp_path / "x.pt").write_bytes(bytes(1000))
    schema.check(content(lineage=[ROW]), tmp_path / "x.pt")
    schema.check(
        content(int8={"backend": "qnnpack", "float_shapes": {"x": [10, 100], "y": []}}), tmp_path / "x.pt"
    )
