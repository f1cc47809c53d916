"""evaluate.py on its own; with the stages before it in test_chain.py, with ONNX files in test_export.py."""

import importlib.util
import json
import shutil
import sys

import pytest

from common.deployment import onnx_latency, onnx_model
from common.evaluation import memory
from common.models import architectures, checkpoint, lineage
from common.system.errors import UserError
from tests.conftest import write_images

pytestmark = pytest.mark.usefixtures("shallow_networks")

METRICS = {"top1": 0.5, "ci95": [0.4, 0.6], "n": 100, "params": 724_000, "macs": 1}


def saved(folder, classes, name):
    """Saves an untrained squeezenet of `classes`."""
    new = lineage.new_checkpoint("squeezenet1_1", classes, 40) | {"metrics": METRICS}
    state = checkpoint.float_state(architectures.build("squeezenet1_1", len(classes)))
    return checkpoint.save(new | {"stage": "teacher", "name": name, "state_dict": state}, folder)


@pytest.fixture
def options(tmp_path, brief_timing):
    """The options of a data set of cat, dog and fox, and of a folder for checkpoints."""
    # test_chain.py measures as users do
    data = write_images(tmp_path / "images", train=1, test=2)
    (tmp_path / "w").mkdir()
    return ("--dataset", "folder", "--data-dir", data, "--output-dir", tmp_path / "w", "--workers", 0)


def test_all_checkpoints_that_fit_the_data_set_are_compared(run, options, tmp_path):
    saved(tmp_path / "w", ["cat", "dog", "fox"], "teacher_pets")
    saved(tmp_path / "w", ["car", "bus", "van"], "teacher_cars")
    result = run("evaluate", *options, "--runtimes")
    assert result.code == 0, result.err
    assert "teacher_cars_0.5000.pt: ignored" in result.out
    assert [line.split()[1] for line in result.out.splitlines() if line.startswith("| teacher")] == [
        "teacher_pets_0.5000"
    ] * 2
    result = run("evaluate", "teacher_cars", *options, "--runtimes")
    assert result.code == 2 and "does not fit this data set" in result.err


def test_no_checkpoint_that_fits_is_an_error(run, options, tmp_path):
    saved(tmp_path / "w", ["car", "bus", "van"], "teacher_cars")
    result = run("evaluate", *options, "--runtimes")
    assert result.code == 2 and "has the classes of this data set" in result.err


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_folder_without_training_images_is_evaluated(run, options, tmp_path, split):
    shutil.rmtree(tmp_path / "images" / "train")
    (tmp_path / "images" / "test").rename(tmp_path / "images" / split)
    path = saved(tmp_path / "w", ["cat", "dog", "fox"], "teacher_pets")
    result = run("evaluate", path, *options, "--runtimes", "--json", tmp_path / "results.json")
    assert result.code == 0, result.err
    assert "6 test images of folder" in " ".join(result.out.split())
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert row["n"] == 6 and f"{path}: top-1 {row['top1']:.2%}" in result.out
    # 64 channels of 19 x 19 pixels before the first pooling and 9 x 9 after it, 4 bytes for each value
    assert row["ram_bytes"] == 4 * 64 * (19**2 + 9**2) and " 110 KiB |" in result.out
    # of other classes it is refused as before
    path = saved(tmp_path / "w", ["car", "bus", "van"], "teacher_cars")
    assert "does not fit this data set" in run("evaluate", path, *options).err


def test_checkpoints_beside_the_scripts_are_evaluated_from_another_folder(
    run, options, tmp_path, monkeypatch
):
    (tmp_path / "scripts" / "weights").mkdir(parents=True)
    path = saved(tmp_path / "scripts" / "weights", ["cat", "dog", "fox"], "teacher_pets")
    monkeypatch.setattr(checkpoint, "SCRIPTS", tmp_path / "scripts")
    monkeypatch.chdir(tmp_path)
    for named in ((), ("pets",)):
        result = run("evaluate", *named, *options, "--runtimes", "--output-dir", "weights")
        assert result.code == 0, result.err
        assert f"{path}: top-1 " in result.out


def test_ram_is_unknown_for_a_network_that_cannot_be_traced(run, options, tmp_path, monkeypatch):
    def peak(*_):
        raise UserError("the RAM of SqueezeNet is not known: control flow")

    monkeypatch.setattr(memory, "peak", peak)
    saved(tmp_path / "w", ["cat", "dog", "fox"], "teacher_pets")
    result = run("evaluate", *options, "--runtimes", "--json", tmp_path / "results.json")
    assert result.code == 0 and "note: the RAM of SqueezeNet is not known: control flow\n" in result.out
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert row["ram_bytes"] is None


def test_each_runtime_has_a_column_and_what_cannot_be_timed_a_note(run, options, tmp_path, monkeypatch):
    saved(tmp_path / "w", ["cat", "dog", "fox"], "teacher_pets")
    result = run("evaluate", *options, "--json", tmp_path / "r.json", "--plot", tmp_path / "p.png")
    assert result.code == 0, result.err
    (row,) = json.loads((tmp_path / "r.json").read_text())
    assert list(row["latency_ms"]) == ["torch", "ONNX Runtime"] and row["engine"] == "fp32 torch"
    assert all(0 < each["p50"] <= each["p95"] for each in row["latency_ms"].values())

    def refuse(*_, **__):
        raise UserError("no form in ONNX")

    monkeypatch.setattr(onnx_latency, "load", refuse)
    result = run("evaluate", *options, "--plot", tmp_path / "p.png")
    assert result.code == 0 and "note: no latency in ONNX Runtime: no form in ONNX\n" in result.out
    assert "ONNX Runtime |" not in result.out
    result = run("evaluate", *options, "--runtimes")
    assert result.code == 0 and "ONNX Runtime" not in result.out


def test_the_predictions_of_what_is_timed_are_compared(run, options, tmp_path, monkeypatch):
    saved(tmp_path / "w", ["cat", "dog", "fox"], "teacher_pets")
    result = run("evaluate", *options)
    line = "its ONNX file in ONNX Runtime predicts the same for"
    assert f"\n{line} 100.00% of the images\n" in result.out
    forward = onnx_model.OnnxModel.forward
    monkeypatch.setattr(onnx_model.OnnxModel, "forward", lambda self, images: -forward(self, images))
    result = run("evaluate", *options)
    assert result.code == 0 and f"\nWARNING: {line} 0.00% of the images\n" in result.out


def test_openvino_is_timed_where_it_is_installed(run, options, tmp_path, monkeypatch):
    saved(tmp_path / "w", ["cat", "dog", "fox"], "teacher_pets")
    result = run("evaluate", *options, "--runtimes", "openvino")
    assert result.code == 0, result.err
    if importlib.util.find_spec("openvino"):
        assert "OpenVINO |" in result.out
        assert "OpenVINO computes in float32 what is not int8." in " ".join(result.out.split())
        assert "its ONNX file in OpenVINO predicts the same for 100.00% of the images\n" in result.out
    monkeypatch.setitem(sys.modules, "openvino", None)
    result = run("evaluate", *options, "--runtimes", "openvino")
    assert "note: no latency in OpenVINO: OpenVINO is not installed: pip install openvino\n" in result.out


def test_a_printed_line_is_never_wider_than_120_columns(run, options, tmp_path):
    saved(tmp_path / "w", ["cat", "dog", "fox"], "teacher_" + "long" * 30)
    result = run("evaluate", *options)
    tables = result.out.partition("\n\n")[2]  # above it is the path of the file
    assert result.code == 0 and max(map(len, tables.splitlines())) <= 120 and "…" in tables


def test_an_audit_compares_the_first_file_with_its_baseline(run, options, tmp_path):
    parent = saved(tmp_path / "w", ["cat", "dog", "fox"], "teacher_pets")
    child = saved(tmp_path / "w", ["cat", "dog", "fox"], "pruned_pets")
    result = run("evaluate", child.name, "--audit", tmp_path / "audit", *options)
    assert result.code == 2 and "name one with --baseline" in result.err
    result = run("evaluate", "--audit", tmp_path / "audit", *options)
    assert result.code == 2 and "--audit needs the name of a file" in result.err
    assert not (tmp_path / "audit").exists()
    result = run("evaluate", child.name, "--audit", parent, *options)
    assert result.code == 2 and "this is a file, not a folder" in result.err
    files = ("--audit", tmp_path / "audit", "--baseline", parent.name)
    result = run("evaluate", child.name, *files, *options, "--runtimes")
    assert result.code == 0, result.err
    audit = json.loads((tmp_path / "audit" / "report.json").read_text())
    assert (audit["baseline"], audit["model"], audit["n"]) == (parent.name, child.name, 6)
    assert audit["calibration"]["temperature"] is None  # untrained: there is no validation split
    assert audit["accuracy"]["after"]["top1"] == audit["files"][0]["top1"]
    assert f"What did {child.name} forget?" in (tmp_path / "audit" / "report.html").read_text()
