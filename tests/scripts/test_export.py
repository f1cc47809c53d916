import importlib
import importlib.util
import json
import shutil

import onnx
import pytest

import export
from common.data import loaders
from common.data.loaders import eval_loader
from common.deployment import onnx_model
from common.evaluation import int8_agreement
from common.models import checkpoint
from tests.conftest import write_images


def data_options(folder):
    return (
        "--dataset", "folder", "--data-dir", folder / "images", "--output-dir", folder / "w",
        "--workers", 0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with images of three classes, a squeezenet trained with them, and its int8 form."""
    folder = tmp_path_factory.mktemp("trained")
    write_images(folder / "images")
    training = (
        *data_options(folder), "--cache", "off", "--batch-size", 8, "--image-size", 40, "--lr", 0.001,
    )  # fmt: skip
    for script, *options in (
        ("train_teacher", "--teacher", "squeezenet1_1", "--pretrained", "none", "--epochs", 8),
        ("train_quantization", "--weights", "squeezenet1_1", "--epochs", 0),
    ):
        module = importlib.import_module(script)
        module.main(module.parse_args([str(option) for option in (*options, *training)]))
    return folder


@pytest.fixture
def place(trained, tmp_path):
    """A copy of `trained`: (folder, data options)."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path, data_options(tmp_path)


def test_an_int8_checkpoint_is_exported_checked_and_compared(run, place, brief_timing):
    folder, data = place
    result = run("export", "quantized_squeezenet1_1", "--output", folder / "m.onnx", *data)
    assert result.code == 0, result.err
    assert "12 test images: ONNX Runtime and the checkpoint agree on 100.00%" in result.out
    path = checkpoint.find("quantized_squeezenet1_1", folder / "w")
    assert (folder / "m.onnx").stat().st_size <= 1.15 * path.stat().st_size
    texts = {entry.key: entry.value for entry in onnx.load(folder / "m.onnx").metadata_props}
    assert json.loads(texts["classes"]) == ["cat", "dog", "fox"] and texts["backend"] == "qnnpack"

    compared = run("evaluate", "quantized_squeezenet1_1", folder / "m.onnx", "--batch-size", 2, *data)
    assert compared.code == 0, compared.err
    # the RAM of an ONNX file is not known
    ram = [line.split("|")[6].strip() for line in compared.out.splitlines() if line.count("|") == 9]
    assert ram[-1] == "-" and ram[-2].endswith(" KiB")
    for expected in ("int8 ONNX Runtime", "at batch 2", "m.onnx", "1 pinned thread(s)"):
        assert expected in " ".join(compared.out.split())
    scores = [line.partition(": ")[2] for line in compared.out.splitlines() if ": top-1" in line]
    assert scores[0] == scores[1] and "n 12" in scores[0]


def test_a_litert_file_is_exported_checked_compared_and_predicts(run, place, brief_timing):
    folder, data = place
    result = run("export", "quantized_squeezenet1_1", "--output", folder / "m.tflite", *data)
    assert result.code == 0, result.err
    assert "12 test images: LiteRT and the checkpoint agree on 100.00%" in result.out
    compared = run("evaluate", "quantized_squeezenet1_1", folder / "m.tflite", "--runtimes", *data)
    assert compared.code == 0, compared.err
    assert "LiteRT |" in compared.out and "int8 LiteRT" in compared.out
    scores = [line.partition(": ")[2] for line in compared.out.splitlines() if ": top-1" in line]
    assert scores[0] == scores[1] and "n 12" in scores[0]
    image = next((folder / "images" / "test" / "cat").iterdir())
    for model in (folder / "m.tflite", "quantized_squeezenet1_1"):
        predicted = run("predict", model, image, "--output-dir", folder / "w")
        assert predicted.code == 0 and predicted.out.split()[2] == "cat"


def test_without_executorch_its_file_is_refused_in_one_line_and_the_former_one_stays(run, place, monkeypatch):
    folder, data = place
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (folder / "m.pte").write_bytes(b"former")
    result = run("export", "quantized_squeezenet1_1", "--output", folder / "m.pte", *data)
    assert result.code == 2 and "m.pte needs the package executorch: pip install executorch==" in result.err
    assert (folder / "m.pte").read_bytes() == b"former" and not list(folder.glob(".unfinished*"))


@pytest.mark.skipif(not importlib.util.find_spec("executorch"), reason="the optional executorch is missing")
def test_an_executorch_file_is_exported_checked_compared_and_predicts(run, place, brief_timing):
    folder, data = place
    result = run("export", "quantized_squeezenet1_1", "--output", folder / "m.pte", *data)
    assert result.code == 0, result.err
    assert "ExecuTorch and the checkpoint agree on 100.00%, with equal logits for 12" in result.out
    compared = run("evaluate", "quantized_squeezenet1_1", folder / "m.pte", "--runtimes", *data)
    assert compared.code == 0 and "int8 ExecuTorch" in compared.out, compared.err
    image = next((folder / "images" / "test" / "cat").iterdir())
    predicted = run("predict", folder / "m.pte", image, "--output-dir", folder / "w")
    assert predicted.code == 0 and predicted.out.split()[2] == "cat"


def test_a_float_checkpoint_is_refused_as_litert_and_no_other_ending_is_known(run, place):
    folder, data = place
    result = run("export", "squeezenet1_1", "--output", folder / "m.tflite", *data)
    assert result.code == 2 and "only int8 checkpoints have a form in LiteRT" in result.err
    result = run("export", "quantized_squeezenet1_1", "--output", folder / "m.bin", *data)
    assert result.code == 2 and ".tflite" in result.err
    assert not list(folder.glob("m.*"))


def test_a_float_checkpoint_is_checked_with_images_spread_over_the_entire_split(run, place, monkeypatch):
    folder, data = place
    seen, build = [], eval_loader

    def loader(samples, *rest, **options):
        seen.extend(samples)
        return build(samples, *rest, **options)

    monkeypatch.setattr(loaders, "eval_loader", loader)
    result = run("export", "squeezenet1_1", "--output", folder / "m.onnx", "--images", 7, *data)
    assert result.code == 0, result.err
    assert "7 test images: ONNX Runtime and the checkpoint agree on 100.00%" in result.out
    assert len(seen) == 7 and {label for _, label in seen} == {0, 1, 2}


def test_the_old_name_of_the_option_images_is_an_alias():
    for option in ("--images", "--pictures"):
        assert export.parse_args(["x", "--output", "m.onnx", option, "7"]).images == 7


def test_a_file_with_other_predictions_is_not_written(run, place, monkeypatch):
    folder, data = place
    forward = onnx_model.OnnxModel.forward
    monkeypatch.setattr(onnx_model.OnnxModel, "forward", lambda self, images: -forward(self, images))
    result = run("export", "squeezenet1_1", "--output", folder / "m.onnx", *data)
    assert result.code == 2 and "is not written: they must agree on at least 99%" in result.err
    assert [path.name for path in folder.glob("*.onnx")] == []


def test_int8_with_other_predictions_than_fake_quantization_is_not_saved(run, place, monkeypatch):
    folder, data = place
    before = sorted((folder / "w").iterdir())
    monkeypatch.setattr(int8_agreement, "MIN_AGREEMENT", 1.01)
    result = run("train_quantization", "--weights", "squeezenet1_1", "--epochs", 0, "--image-size", 40, *data)
    assert result.code == 2 and result.err.count("\n") == 1
    assert "not saved: int8 and fake quantization agree on" in result.err
    assert sorted((folder / "w").iterdir()) == before


def test_errors_are_one_line(run, place):
    folder, data = place
    for arguments, expected in (
        (("nothing", "--output", folder / "m.onnx", *data), "no checkpoint 'nothing'"),
        (("squeezenet1_1", "--output", folder / "no" / "m.onnx", *data), "there is no folder"),
        (("squeezenet1_1", *data), "--output"),
    ):
        result = run("export", *arguments)
        assert result.code == 2 and expected in result.err and result.err.count("\n") == 1
