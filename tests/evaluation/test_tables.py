import csv
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from common.evaluation import tables
from tests.test_comparison import row, scored

HISTORY = [
    {"epoch": 1, "train_loss": 2.0, "train_top1": 0.2, "val_loss": 1.5, "val_top1": 0.4},
    {"epoch": 2, "train_loss": 1.0, "train_top1": 0.6, "val_loss": 0.8, "val_top1": 0.7},
]


def test_the_log_and_the_curves_stand_beside_the_checkpoint(tmp_path):
    tables.write_history(HISTORY, tmp_path / "kd_x_0.5000.pt")
    with (tmp_path / "kd_x_0.5000.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_top1"]) for row in rows] == [0.4, 0.7]
    with Image.open(tmp_path / "kd_x_0.5000.png") as picture:
        assert picture.width > 600
    assert len(list(tmp_path.iterdir())) == 2


def test_no_epochs_leave_no_log(tmp_path):
    tables.write_history([], tmp_path / "kd_x_0.5000.pt")
    assert list(tmp_path.iterdir()) == []


def test_curves_without_validation_are_drawn_too(tmp_path):
    tables.write_history([{"epoch": 1, "train_loss": 2.0, "train_top1": 0.2}], tmp_path / "kd_x_0.5000.pt")
    assert (tmp_path / "kd_x_0.5000.png").exists()


def test_before_and_after(tmp_path):
    (tmp_path / "a").write_bytes(bytes(400))
    (tmp_path / "b").write_bytes(bytes(100))
    before = {"top1": 0.9, "params": 1000, "macs": 5000}  # of a version that scored nothing but test
    after = {"split": "test", "top1": 0.88, "params": 250, "macs": 1000}
    lines = tables.before_after(before, tmp_path / "a", after, tmp_path / "b").splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "top-1 90.00% => 88.00%",
        "parameters 1,000 => 250 (25.0%)",
        "MACs 5,000 => 1,000 (20.0%)",
        "bytes 400 => 100 (4.0 times smaller)",
    ]
    assert len(tables.before_after({"params": 1, "macs": 1}, None, after, tmp_path / "b").splitlines()) == 3


def test_accuracies_on_different_splits_are_not_set_side_by_side(tmp_path):
    figures = {"top1": 0.9, "params": 1, "macs": 1}
    for split, shown in (("test", "-"), ("val", "90.00%")):
        lines = tables.before_after(figures | {"split": split}, None, figures | {"split": "val"}, tmp_path)
        assert lines.split()[1] == shown


def cells_of(table):
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def rows(tmp_path):
    """A teacher and its child, half right and a quarter right."""
    teacher, child = tmp_path / "teacher_x_0.5000.pt", tmp_path / "kd_x_0.2500.pt"
    teacher.write_bytes(bytes(4_000_000))
    child.write_bytes(bytes(500_000))
    made = {"parent": teacher.name, "parent_bytes": 4_000_000}
    made["options"] = {"command": "python train_student.py --student x", "seed": 3}
    half, quarter = scored(*[True] * 10, *[False] * 10), scored(*[True] * 5, *[False] * 15)
    return [
        row(teacher, [{"parent": None, "options": {}}], half),
        row(child, [{"parent": None, "options": {}}, made], quarter, parent=teacher, parent_score=half),
    ]


def test_the_tables_say_what_the_rows_hold(rows):
    cells = cells_of(tables.accuracy_table(rows))
    assert cells[2] == [
        "teacher_x_0.5000",
        "kd",
        "20",
        "50.00%",
        "29.9-70.1",
        "100.00%",
        "83.9-100.0",
        "-",
        "-",
    ]
    assert cells[3][3] == "25.00%" and cells[3][7:] == ["-25.00", "0.062"]  # 2 / 2^5
    cells = cells_of(tables.cost_table(rows))
    assert cells[2] == ["teacher_x_0.5000", "2.00 M", "3 M", "4.00 MB", "1.0 x", "2.00 ms", "3.00 ms",
                        "fp32 torch"]  # fmt: skip
    assert cells[3][3:5] == ["0.50 MB", "8.0 x"]


def test_printed_tables_fit_the_width_however_long_the_names(rows):
    long = rows[0].path.with_name("quantized_pruned_kd_" + "very" * 20 + "_long_0.5000.pt")
    rows[0].path.rename(long)
    tables = [
        table([replace(rows[0], path=long), rows[1]], tables.WIDTH)
        for table in (tables.accuracy_table, tables.cost_table)
    ]
    for text in tables:
        cells = cells_of(text)
        assert max(map(len, text.splitlines())) == tables.WIDTH
        assert cells[2][0].startswith("quantized_pruned") and cells[2][0].endswith("long_0.5000")
        assert "…" in cells[2][0] and cells[3][0] == "kd_x_0.2500"


def test_figures_are_written_unrounded_as_json_and_csv(rows, tmp_path):
    tables.write_rows_json(rows, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == [each.as_dict() for each in rows]
    tables.write_rows_csv(rows, tmp_path / "r.csv")
    with (tmp_path / "r.csv").open() as file:
        flat = list(csv.DictReader(file))
    assert float(flat[1]["top1"]) == 0.25 and float(flat[1]["ci95_low"]) == rows[1].score.ci95[0]
    assert (flat[0]["parent"], flat[1]["latency_p50"], flat[1]["latency_engine"]) == ("", "2.0", "fp32 torch")


def test_the_markdown_file_says_how_each_file_was_made(rows, tmp_path):
    tables.write_markdown(rows, "measured here", tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text()
    assert tables.accuracy_table(rows) in text and tables.cost_table(rows) in text and "measured here" in text
    assert "`kd_x_0.2500.pt`" in text and "`python train_student.py --student x`" in text
    assert text.rstrip().endswith("3 |")


def test_the_classes_are_listed_from_the_worst(tmp_path):
    confusion = torch.tensor([[3, 1, 0], [0, 4, 0], [2, 1, 1]])
    cells = cells_of(tables.class_table(confusion, ["cat", "dog", "fox"]))
    assert [line[0] for line in cells[2:]] == ["fox", "cat", "dog"]
    assert cells[2][1:] == ["4", "25.0%", "4.6-69.9", "cat (2)"] and cells[4][4] == "-"
