"""train_quantization.py --weight-bits: the files, and every runtime that reads them."""

import importlib
import os
import re
import shutil

import pytest

from common.deployment import c_model
from common.models import checkpoint, integers
from tests.conftest import write_images

COMPILER = shutil.which(os.environ.get("CC", "cc"))


def data_options(folder):
    return (
        "--dataset", "folder", "--data-dir", folder / "images", "--output-dir", folder / "w",
        "--workers", 0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shallow_networks):
    """A folder with images of three classes, and a mobilenet_v2 of a few layers, trained for an epoch."""
    folder = tmp_path_factory.mktemp("trained")
    write_images(folder / "images")
    words = ["--teacher", "mobilenet_v2", "--pretrained", "none", "--epochs", 1, "--image-size", 32]
    words += [*data_options(folder), "--cache", "off", "--batch-size", 8]
    module = importlib.import_module("train_teacher")
    module.main(module.parse_args(list(map(str, words))))
    return folder


@pytest.fixture
def quantize(run, trained, tmp_path):
    """quantize("--weight-bits", 4, ...): its (output, checkpoint)."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)

    def script(*options, epochs=0, code=0):
        words = "--weights", "mobilenet_v2", *options, "--epochs", epochs, *data_options(tmp_path)
        result = run("train_quantization", *words, "--cache", "off", "--batch-size", 8)
        assert result.code == code, result.err
        found = re.search(r"saved (\S+)", result.out)
        return (result.out, checkpoint.find(found[1], "")) if found else result.err

    return script


def bits_of(path):
    return [
        each.weight_bits for each in integers.read(checkpoint.load(path)).operators if hasattr(each, "weight")
    ]


def test_4_bits_are_trained_saved_exported_and_evaluated(quantize, run, tmp_path, monkeypatch, brief_timing):
    out, path = quantize("--weight-bits", 4, epochs=1)
    assert set(bits_of(path)) == {4} and "100.0% of the weights have 4 bits" in out
    assert f"rounded the weights of {len(bits_of(path))} layers" in out
    content = checkpoint.load(path)
    assert content["metrics"]["int4_fraction"] == content["metrics"]["int8_fraction"] == 1.0
    int8, network = quantize()[1], integers.read(content)
    weights = sum(each.weight.size for each in network.operators if hasattr(each, "weight"))
    assert int8.stat().st_size - path.stat().st_size > 0.45 * weights and set(bits_of(int8)) == {8}

    monkeypatch.setattr(c_model, "FLAGS", tuple(each.replace("-O3", "-O1") for each in c_model.FLAGS))
    data, files = data_options(tmp_path), []
    for name in ("m.onnx", "m.tflite", *["m.c"] * bool(COMPILER)):
        files.append(tmp_path / name)
        result = run("export", path, "--output", files[-1], *data)
        assert result.code == 0, result.err
        assert "with equal logits for 12" in result.out
    evaluated = run("evaluate", path, int8, *files, *data)
    assert evaluated.code == 0, evaluated.err
    assert "| 4 bits |" in evaluated.out and evaluated.out.count("|   100% |") == 1
    metrics = [line.partition(": ")[2] for line in evaluated.out.splitlines() if ": top-1" in line]
    assert metrics[0] == metrics[2]  # of the checkpoint and of the ONNX file


def test_mixed_bits_fit_the_size_that_was_asked_for(quantize):
    out, path = quantize("--weight-bits", "mixed", "--target-size", 0.25)
    limit = checkpoint.load(path)["lineage"][-1]["parent_bytes"] // 4
    assert 0.8 * limit < path.stat().st_size <= limit
    assert set(bits_of(path)) == {4, 8} and "layers have 4 bits" in out

    err = quantize("--weight-bits", "mixed", "--target-size", "10KB", code=2)
    assert re.search(r"--target-size: [\d,]+ bytes is the least, with 4 bits in all layers", err)
    assert len(err.strip().splitlines()) == 1


def test_a_size_needs_mixed_bits(quantize):
    assert "--target-size needs --weight-bits mixed" in quantize("--target-size", "1MB", code=2)
