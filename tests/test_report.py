import csv

from PIL import Image

from common import report
from common.latency import Latency

HISTORY = [
    {"epoch": 1, "train_loss": 2.0, "train_top1": 0.2, "val_loss": 1.5, "val_top1": 0.4},
    {"epoch": 2, "train_loss": 1.0, "train_top1": 0.6, "val_loss": 0.8, "val_top1": 0.7},
]


def test_the_log_and_the_curves_stand_beside_the_checkpoint(tmp_path):
    report.write_history(HISTORY, tmp_path / "kd_x_0.5000.pt")
    with (tmp_path / "kd_x_0.5000.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_top1"]) for row in rows] == [0.4, 0.7]
    with Image.open(tmp_path / "kd_x_0.5000.png") as picture:
        assert picture.width > 600
    assert len(list(tmp_path.iterdir())) == 2


def test_no_epochs_leave_no_log(tmp_path):
    report.write_history([], tmp_path / "kd_x_0.5000.pt")
    assert list(tmp_path.iterdir()) == []


def test_curves_without_validation_are_drawn_too(tmp_path):
    report.write_history([{"epoch": 1, "train_loss": 2.0, "train_top1": 0.2}], tmp_path / "kd_x_0.5000.pt")
    assert (tmp_path / "kd_x_0.5000.png").exists()


def test_before_and_after(tmp_path):
    (tmp_path / "a").write_bytes(bytes(400))
    (tmp_path / "b").write_bytes(bytes(100))
    before, after = {"top1": 0.9, "params": 1000, "macs": 5000}, {"top1": 0.88, "params": 250, "macs": 1000}
    lines = report.before_after(before, tmp_path / "a", after, tmp_path / "b").splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "top-1 90.00% => 88.00%",
        "parameters 1,000 => 250 (25.0%)",
        "MACs 5,000 => 1,000 (20.0%)",
        "bytes 400 => 100 (4.0 times smaller)",
    ]
    assert len(report.before_after({"params": 1, "macs": 1}, None, after, tmp_path / "b").splitlines()) == 3


def row(path, size, top1=0.5):
    path.write_bytes(bytes(size))
    figures = {"top1": top1, "ci95": [top1 - 0.1, top1 + 0.1], "n": 100}
    return path, {"metrics": {**figures, "params": 2_000_000, "macs": 3_000_000}}


def cells_of(table):
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_compares_sizes_with_the_first_row(tmp_path):
    cells = cells_of(
        report.comparison([row(tmp_path / "teacher_x_0.5000.pt", 4_000_000), row(tmp_path / "q.pt", 500_000)])
    )
    assert cells[2] == ["teacher_x_0.5000", "50.00%", "40.0% to 60.0%", "100", "2.00 M", "3 M", "4.00 MB",
                        "1.0 x"]  # fmt: skip
    assert cells[3][6:] == ["0.50 MB", "8.0 x"]


def test_the_latencies_are_compared_with_the_first_row():
    rows = [
        ("teacher", "fp32", Latency(8.0, 9.0, 1), Latency(6.0, 7.0, 4)),
        ("int8", "onednn", Latency(2.0, 2.5, 1), Latency(1.0, 1.25, 4)),
    ]
    cells = cells_of(report.latencies(rows))
    assert cells[0][2:] == ["batch 1: p50", "p95", "faster", "batch 4: p50", "p95"]
    assert cells[3] == ["int8", "onednn", "2.00 ms", "2.50 ms", "4.0 x", "1.00 ms", "1.25 ms"]
