import hashlib

import pytest

from common.data.datasets import Splits
from common.models import lineage
from common.system.errors import UserError
from tests.models.test_checkpoint import content


@pytest.mark.parametrize(
    ("stage", "base", "model_name", "expected"),
    [
        ("teacher", "resnet50", None, "teacher_resnet50"),
        ("kd", "resnet18", None, "kd_resnet18"),
        ("pruned", "teacher_resnet50", None, "pruned_resnet50"),
        ("pruned", "kd_mobilenet_v2", None, "pruned_kd_mobilenet_v2"),
        ("quantized", "pruned_kd_resnet18", None, "quantized_pruned_kd_resnet18"),
        ("pruned", "pruned_resnet18", None, "pruned_pruned_resnet18"),
        ("pruned", "resnet18", None, "pruned_resnet18"),
        ("quantized", "pruned_kd_resnet18", "cats", "quantized_pruned_kd_cats"),
        ("teacher", "resnet50", "cats", "teacher_cats"),
    ],
)
def test_names_describe_the_chain(stage, base, model_name, expected):
    assert lineage.next_name(stage, base, model_name) == expected


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["dog", "cat", "fox"], "in another order"),
        (["cat", "dog"], "3 classes, not 2: 'fox' is only in the checkpoint;"),
        (["cat", "dog", "owl"], "'fox' is only in the checkpoint; 'owl' is only in the data set"),
        (["cat", "dog", "f\u00f6x"], "'f\u00f6x' is only in the data set"),
    ],
)
def test_other_classes_are_refused(classes, message):
    with pytest.raises(UserError, match=message):
        lineage.check_fits(content(), Splits([], [], [], classes))


def test_classes_that_differ_in_their_unicode_form_are_refused_with_the_reason():
    splits = Splits([], [], [], ["cat", "dog", "fo\u0302x"])
    checkpoint = content(classes=["cat", "dog", "f\u00f4x"])
    with pytest.raises(UserError, match=r"another Unicode form in the checkpoint \(NFC\) than in the data"):
        lineage.check_fits(checkpoint, splits)


def test_another_split_is_reported_in_a_note(capsys):
    splits = Splits([], [], [], ["cat", "dog", "fox"])
    lineage.check_fits(content(lineage=[{"split": splits.fingerprint}]), splits)
    assert capsys.readouterr().out == ""
    lineage.check_fits(content(lineage=[{"split": "0123"}]), splits)
    assert "another split" in capsys.readouterr().out


def test_a_stage_adds_a_row_and_keeps_what_it_does_not_change(tmp_path):
    parent = content(lineage=[{"stage": "teacher", "split": "0123"}])
    path = tmp_path / "teacher_squeezenet1_1_0.5000.pt"
    path.write_bytes(b"the parent")
    options = {"model_name": None, "lr": 0.1, "resume": True}
    row = lineage.new_row(parent, path, "pruned", options=options, machine="cpu", split="0123")
    assert row["stage"] == "pruned" and row["name"] == "pruned_squeezenet1_1"
    assert row["options"] == {"lr": 0.1}
    assert (row["parent"], row["parent_bytes"], row["teacher"]) == (path.name, 10, None)
    assert row["parent_sha256"] == lineage.sha256(path) == hashlib.sha256(b"the parent").hexdigest()
    child = lineage.child(parent, row, metrics={"top1": 0.25})
    assert child["lineage"] == [*parent["lineage"], row]
    changed = {"stage": "pruned", "name": "pruned_squeezenet1_1", "metrics": {"top1": 0.25}}
    assert {key: child[key] for key in changed} == changed
    assert all(child[key] is parent[key] for key in parent.keys() - changed.keys() - {"format", "lineage"})
    assert len(parent["lineage"]) == 1
