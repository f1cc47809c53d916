import pytest

from tests.evaluation.rows import row_of, score_of


@pytest.fixture
def teacher_and_child(tmp_path):
    """The rows of a teacher with half of its predictions correct and of its child with a quarter."""
    teacher, child = tmp_path / "teacher_x_0.5000.pt", tmp_path / "kd_x_0.2500.pt"
    teacher.write_bytes(bytes(4_000_000))
    child.write_bytes(bytes(500_000))
    created = {"parent": teacher.name, "parent_bytes": 4_000_000}
    created["options"] = {"command": "python train_student.py --student x", "seed": 3}
    half, quarter = score_of(*[True] * 10, *[False] * 10), score_of(*[True] * 5, *[False] * 15)
    first = {"parent": None, "options": {}}
    return [
        row_of(teacher, [first], half),
        row_of(child, [first, created], quarter, parent=teacher, parent_score=half),
    ]
