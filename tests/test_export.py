import json

import onnx
import pytest
import torch

from common import agreement, batches, checkpoint, onnx_file


@pytest.fixture
def place(run, pictures, tmp_path):
    """A squeezenet of the three classes of `pictures` and its int8 form: (folder, data options)."""
    data = ("--dataset", "folder", "--data-dir", pictures, "--output-dir", tmp_path / "w", "--workers", 0)
    training = (*data, "--batch-size", 8, "--image-size", 40, "--lr", 0.001)
    made = run(
        "train_teacher", "--teacher", "squeezenet1_1", "--pretrained", "none", "--epochs", 8, *training
    )
    assert made.code == 0, made.err
    made = run("train_quantization", "--weights", "squeezenet1_1", "--epochs", 0, *training)
    assert made.code == 0, made.err
    return tmp_path, data


def test_an_int8_checkpoint_is_exported_checked_and_compared(run, place):
    folder, data = place
    result = run("export", "quantized_squeezenet1_1", "--output", folder / "m.onnx", *data)
    assert result.code == 0, result.err
    assert "12 test pictures: ONNX Runtime answers 100.00%" in result.out
    path = checkpoint.find("quantized_squeezenet1_1", folder / "w")
    assert (folder / "m.onnx").stat().st_size <= 1.15 * path.stat().st_size
    said = {entry.key: entry.value for entry in onnx.load(folder / "m.onnx").metadata_props}
    assert json.loads(said["classes"]) == ["cat", "dog", "fox"] and said["backend"] == "qnnpack"

    compared = run("evaluate", "quantized_squeezenet1_1", folder / "m.onnx", "--batch-size", 2, *data)
    assert compared.code == 0, compared.err
    for expected in ("int8 qnnpack", "int8 ONNX Runtime", "at batch 2", "m.onnx", "1 pinned thread(s)"):
        assert expected in compared.out
    scores = [line.partition(": ")[2] for line in compared.out.splitlines()[:2]]
    assert scores[0] == scores[1] and "n 12" in scores[0]


def test_a_float_checkpoint_is_exported_in_part_of_the_pictures(run, place):
    folder, data = place
    result = run("export", "squeezenet1_1", "--output", folder / "m.onnx", "--pictures", 5, *data)
    assert result.code == 0, result.err
    assert "5 test pictures: ONNX Runtime answers 100.00%" in result.out


def test_a_file_that_answers_otherwise_is_not_left_behind(run, place, monkeypatch):
    folder, data = place
    right = onnx_file.OnnxModel.forward
    monkeypatch.setattr(onnx_file.OnnxModel, "forward", lambda self, images: -right(self, images))
    result = run("export", "quantized_squeezenet1_1", "--output", folder / "m.onnx", *data)
    assert result.code == 2 and "at least 99% of the answers must be the same" in result.err
    assert [path.name for path in folder.glob("*.onnx")] == []


def test_int8_that_answers_otherwise_than_fake_quantization_is_not_saved(run, place, monkeypatch):
    folder, data = place
    before = sorted((folder / "w").iterdir())
    monkeypatch.setattr(agreement, "ENOUGH", 1.01)
    result = run("train_quantization", "--weights", "squeezenet1_1", "--epochs", 0, "--image-size", 40, *data)
    assert result.code == 2 and "not saved: run by qnnpack" in result.err and result.err.count("\n") == 1
    assert sorted((folder / "w").iterdir()) == before


def test_the_pictures_of_the_check_are_spread_over_the_whole_split(run, place, monkeypatch):
    folder, data = place
    seen, right = [], batches.scoring_loader

    def loader(samples, *rest, **options):
        seen.extend(samples)
        return right(samples, *rest, **options)

    monkeypatch.setattr(batches, "scoring_loader", loader)
    run("export", "squeezenet1_1", "--output", folder / "m.onnx", "--pictures", 7, *data)
    assert len(seen) == 7 and {label for _, label in seen} == {0, 1, 2}


def test_mistakes_end_in_one_line(run, place):
    folder, data = place
    for arguments, expected in (
        (("nothing", "--output", folder / "m.onnx", *data), "no checkpoint 'nothing'"),
        (("squeezenet1_1", "--output", folder / "no" / "m.onnx", *data), "cannot write"),
        (("squeezenet1_1", *data), "--output"),
    ):
        result = run("export", *arguments)
        assert result.code == 2 and expected in result.err and result.err.count("\n") == 1


def test_an_engine_that_would_overflow_is_refused_when_it_is_asked_for(run, place):
    folder, data = place
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this machine's torch has no fbgemm")
    result = run(
        "export", "quantized_squeezenet1_1", "--output", folder / "m.onnx", "--engine", "fbgemm", *data
    )
    assert result.code == 2 and "fbgemm gives wrong results" in result.err and not list(folder.glob("*.onnx"))
