"""evaluate.py on its own; with the stages before it in test_chain.py, with ONNX files in test_export.py."""

import pytest

from common.evaluation import latency
from common.models import architectures, checkpoint, lineage
from tests.conftest import write_pictures

FIGURES = {"top1": 0.5, "ci95": [0.4, 0.6], "n": 100, "params": 724_000, "macs": 1}


def saved(folder, classes, name):
    """An untrained squeezenet of `classes`."""
    blank = lineage.new_checkpoint("squeezenet1_1", classes, 40) | {"metrics": FIGURES}
    state = checkpoint.float_state(architectures.build("squeezenet1_1", len(classes)))
    return checkpoint.save(blank | {"stage": "teacher", "name": name, "state_dict": state}, folder)


@pytest.fixture
def where(tmp_path, monkeypatch):
    # how long is measured is no matter here; test_chain.py runs it as it is
    monkeypatch.setattr(latency, "others_load", lambda: 0.0)
    monkeypatch.setattr(latency, "WARMUP_SECONDS", 0)
    monkeypatch.setattr(latency, "MEASURED_SECONDS", 0)
    data = write_pictures(tmp_path / "pictures", train=1, test=2)
    (tmp_path / "w").mkdir()
    return ("--dataset", "folder", "--data-dir", data, "--output-dir", tmp_path / "w", "--workers", 0)


def test_all_that_fit_the_data_set_are_compared(run, where, tmp_path):
    saved(tmp_path / "w", ["cat", "dog", "fox"], "teacher_pets")
    saved(tmp_path / "w", ["car", "bus", "van"], "teacher_cars")
    result = run("evaluate", *where)
    assert result.code == 0, result.err
    assert "teacher_cars_0.5000.pt: left out" in result.out
    assert [line.split()[1] for line in result.out.splitlines() if line.startswith("| teacher")] == [
        "teacher_pets_0.5000"
    ] * 2
    result = run("evaluate", "teacher_cars", *where)
    assert result.code == 2 and "does not fit this data set" in result.err


def test_nothing_that_fits_is_a_mistake(run, where, tmp_path):
    saved(tmp_path / "w", ["car", "bus", "van"], "teacher_cars")
    result = run("evaluate", *where)
    assert result.code == 2 and "has the classes of this data set" in result.err


def test_a_printed_line_is_never_wider_than_120_columns(run, where, tmp_path):
    saved(tmp_path / "w", ["cat", "dog", "fox"], "teacher_" + "long" * 30)
    result = run("evaluate", *where)
    tables = result.out.partition("\n\n")[2]  # above it stands the file's path
    assert result.code == 0 and max(map(len, tables.splitlines())) <= 120 and "…" in tables
