import pytest

from common.evaluation.comparison import find_parent, pareto_front
from common.models import checkpoint, lineage
from tests.evaluation.rows import row_of, score_of

KEYS = (
    "name path stage arch image_size n top1 top5 ci95 parent delta_top1 mcnemar_p params macs bytes "
    "ram_bytes engine threads latency_ms"
)


def test_a_row_is_compared_with_its_parent(tmp_path):
    (tmp_path / "kd.pt").write_bytes(bytes(100))
    child = row_of(
        tmp_path / "kd.pt",
        [{"parent": None}, {"parent": "teacher.pt", "parent_bytes": 800}, {"parent": "b", "parent_bytes": 9}],
        score_of(True, False, False, False),
        parent=tmp_path / "teacher.pt",
        parent_score=score_of(True, True, True, False),
        ram_bytes=5000,
    )
    values = child.as_dict()
    assert list(values) == KEYS.split()
    assert values["ram_bytes"] == 5000
    assert values["delta_top1"] == -0.5 and values["mcnemar_p"] == 0.5 and values["parent"] == "teacher.pt"
    assert values["latency_ms"] == {
        "torch": {"p50": 4.0, "p95": 5.0, "batch": 1},
        "ONNX Runtime": {"p50": 2.0, "p95": 3.0, "batch": 1},
    }
    assert (values["engine"], values["threads"]) == ("fp32 torch", 1)
    assert child.compression == 8  # compared with the first ancestor, not with the parent


def test_without_a_parent_the_difference_is_not_known(tmp_path):
    (tmp_path / "t.pt").write_bytes(bytes(100))
    alone = row_of(tmp_path / "t.pt", [{"parent": None}])
    assert alone.as_dict()["delta_top1"] is None and alone.as_dict()["mcnemar_p"] is None
    assert alone.compression == 1.0 and alone.as_dict()["ram_bytes"] is None
    (tmp_path / "m.onnx").write_bytes(bytes(10))
    assert row_of(tmp_path / "m.onnx").compression is None
    assert row_of(tmp_path / "T.PT", [{"parent": None}]).compression == 1.0
    # files that were created before sizes were stored
    assert row_of(tmp_path / "t.pt", [{"parent": None}, {"parent": "a.pt"}]).compression is None


def test_the_parent_is_found_by_its_content_and_not_by_its_name(tmp_path):
    parent, renamed, other = (tmp_path / name for name in ("parent.pt", "renamed.pt", "child.pt"))
    parent.write_bytes(b"the parent")
    content = {"lineage": [{"parent": "parent.pt", "parent_sha256": lineage.sha256(parent)}]}
    assert find_parent(other, content, []) == parent
    parent.rename(renamed)
    assert find_parent(other, content, []) is None
    assert find_parent(other, content, [renamed]) == renamed
    parent.write_bytes(b"another file of that name")
    assert find_parent(other, content, []) is None
    assert find_parent(other, {"lineage": [{"parent": None}]}, [parent]) is None
    assert find_parent(other, {"lineage": []}, [parent]) is None


def test_without_its_parent_a_file_is_compared_with_the_nearest_ancestor(tmp_path):
    files = [tmp_path / f"{name}.pt" for name in ("teacher", "student", "pruned")]
    for file in files:
        file.write_bytes(file.name.encode())
    rows = [{"parent": file.name, "parent_sha256": lineage.sha256(file)} for file in files]
    content = {"lineage": [{"parent": None}, *rows]}
    for expected in (*reversed(files), None):
        assert find_parent(tmp_path / "child.pt", content, []) == expected
        if expected:
            expected.unlink()


def test_the_parent_is_found_among_the_candidates_too(tmp_path):
    parent = tmp_path / checkpoint.CANDIDATES / "parent.pt"
    parent.parent.mkdir()
    parent.write_bytes(b"the parent")
    content = {"lineage": [{"parent": "parent.pt", "parent_sha256": lineage.sha256(parent)}]}
    assert find_parent(tmp_path / "child.pt", content, []) == parent


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
