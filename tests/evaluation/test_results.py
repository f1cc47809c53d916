import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from common.evaluation import results
from tests.evaluation.rows import row_of

HISTORY = [
    {"epoch": 1, "train_loss": 2.0, "train_top1": 0.2, "val_loss": 1.5, "val_top1": 0.4},
    {"epoch": 2, "train_loss": 1.0, "train_top1": 0.6, "val_loss": 0.8, "val_top1": 0.7},
]


def test_the_log_and_the_curves_are_beside_the_checkpoint(tmp_path):
    results.write_history(HISTORY, tmp_path / "kd_x_0.5000.pt")
    with (tmp_path / "kd_x_0.5000.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_top1"]) for row in rows] == [0.4, 0.7]
    with Image.open(tmp_path / "kd_x_0.5000.png") as image:
        assert image.width > 600
    assert len(list(tmp_path.iterdir())) == 2


def test_without_epochs_there_is_no_log(tmp_path):
    results.write_history([], tmp_path / "kd_x_0.5000.pt")
    assert list(tmp_path.iterdir()) == []


def test_curves_without_validation_are_drawn_too(tmp_path):
    results.write_history([{"epoch": 1, "train_loss": 2.0, "train_top1": 0.2}], tmp_path / "kd_x_0.5000.pt")
    assert (tmp_path / "kd_x_0.5000.png").exists()


def test_text_ends_with_a_line_break(tmp_path):
    results.write_text("# Ägyptische Mau", tmp_path / "r.md")
    assert (tmp_path / "r.md").read_text(encoding="utf-8") == "# Ägyptische Mau\n"


def test_metrics_are_written_unrounded_as_json_and_csv(teacher_and_child, tmp_path):
    rows = teacher_and_child
    results.write_rows_json(rows, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == [each.as_dict() for each in rows]
    results.write_rows_csv(rows, tmp_path / "r.csv")
    with (tmp_path / "r.csv").open() as file:
        flat = list(csv.DictReader(file))
    assert float(flat[1]["top1"]) == 0.25 and float(flat[1]["ci95_low"]) == rows[1].score.ci95[0]
    assert (flat[0]["parent"], flat[1]["engine"]) == ("", "fp32 torch")
    assert (flat[1]["latency_torch_p50"], flat[1]["latency_ONNX Runtime_p95"]) == ("4.0", "3.0")


@pytest.mark.parametrize("first", ["=", "+", "-", "@"])
def test_a_text_that_a_spreadsheet_would_run_gets_an_apostrophe(tmp_path, monkeypatch, first):
    monkeypatch.chdir(tmp_path)
    path = Path(f"{first}1+1.pt")
    path.write_bytes(bytes(9))
    results.write_rows_csv([row_of(path)], Path("r.csv"))
    with Path("r.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["path"] == f"'{first}1+1.pt" and row["bytes"] == "9"


def test_numbers_and_other_texts_stay_as_they_are(tmp_path):
    results._write_csv([{"a": -0.5, "b": "a=1", "c": "", "d": -3, "e": None}], tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_text().splitlines() == ["a,b,c,d,e", "-0.5,a=1,,-3,"]
