import pytest
import torch

from common.evaluation.comparison import Row, find_parent, pareto_front
from common.evaluation.latency import Latency
from common.evaluation.metrics import Score
from common.models import lineage

KEYS = (
    "name path stage arch image_size n top1 top5 ci95 parent delta_top1 mcnemar_p params macs bytes "
    "latency_ms"
)


def scored(*right: bool) -> Score:
    return Score(torch.zeros(len(right), dtype=torch.long), 1 - torch.tensor(right).long(), len(right), 1.0)


def row(path, lineage=(), score=None, **options) -> Row:
    content = {"name": "kd_x", "stage": "kd", "arch": "x", "image_size": 32, "lineage": list(lineage)}
    content["metrics"] = {"params": 2_000_000, "macs": 3_000_000}
    return Row(path, content, "fp32 torch", score or scored(True, False), Latency(2.0, 3.0, 1), 1, **options)


def test_a_row_is_compared_with_its_parent(tmp_path):
    (tmp_path / "kd.pt").write_bytes(bytes(100))
    child = row(
        tmp_path / "kd.pt",
        [{"parent": None}, {"parent": "teacher.pt", "parent_bytes": 800}, {"parent": "b", "parent_bytes": 9}],
        scored(True, False, False, False),
        parent=tmp_path / "teacher.pt",
        parent_score=scored(True, True, True, False),
    )
    figures = child.as_dict()
    assert list(figures) == KEYS.split()
    assert figures["delta_top1"] == -0.5 and figures["mcnemar_p"] == 0.5 and figures["parent"] == "teacher.pt"
    assert figures["latency_ms"] == {
        "p50": 2.0,
        "p95": 3.0,
        "batch": 1,
        "threads": 1,
        "engine": "fp32 torch",
    }
    assert child.compression == 8  # against the first ancestor, not the parent


def test_without_a_parent_nothing_is_made_up(tmp_path):
    (tmp_path / "t.pt").write_bytes(bytes(100))
    alone = row(tmp_path / "t.pt", [{"parent": None}])
    assert alone.as_dict()["delta_top1"] is None and alone.as_dict()["mcnemar_p"] is None
    assert alone.compression == 1.0
    (tmp_path / "m.onnx").write_bytes(bytes(10))
    assert row(tmp_path / "m.onnx").compression is None
    # files of before sizes were kept
    assert row(tmp_path / "t.pt", [{"parent": None}, {"parent": "a.pt"}]).compression is None


def test_the_parent_is_known_by_its_content_and_not_by_its_name(tmp_path):
    parent, renamed, other = (tmp_path / name for name in ("parent.pt", "renamed.pt", "child.pt"))
    parent.write_bytes(b"the parent")
    content = {"lineage": [{"parent": "parent.pt", "parent_sha256": lineage.sha256(parent)}]}
    assert find_parent(other, content, []) == parent
    parent.rename(renamed)
    assert find_parent(other, content, []) is None
    assert find_parent(other, content, [renamed]) == renamed
    parent.write_bytes(b"another of that name")
    assert find_parent(other, content, []) is None
    assert find_parent(other, {"lineage": [{"parent": None}]}, [parent]) is None
    assert find_parent(other, {"lineage": []}, [parent]) is None


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(4, 0.9), (2, 0.8), (3, 0.7), (1, 0.5)], [3, 1, 0]),  # the third costs more than the second
        ([(1, 0.9), (2, 0.9)], [0]),  # no better for twice the cost
        ([(1, 0.5), (1, 0.6)], [1]),
        ([(1, 0.5), (1, 0.5)], [0, 1]),  # neither is preferable
        ([(1, 0.0)], [0]),
    ],
)
def test_the_pareto_front(points, front):
    assert pareto_front(points) == front
