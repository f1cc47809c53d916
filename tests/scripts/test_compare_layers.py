"""compare_layers.py, and export.py --golden: files of one network, one of which is broken on purpose."""

import json
import shutil

import onnx
import pytest
from onnx import numpy_helper

from common.deployment import litert_model
from common.models import checkpoint, integers
from tests.deployment.graphs import with_broken_bias
from tests.scripts.conftest import SIDE

LAYER = "features_4_expand1x1"
FORMS = ("quantized_squeezenet1_1", "m.onnx", "m.tflite", "golden")


@pytest.fixture
def place(created, tmp_path, monkeypatch, run):
    """The current folder: a copy of `created`, with the files of export.py. Gives the data options."""
    shutil.copytree(created, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    data = "--dataset", "folder", "--data-dir", "images", "--output-dir", "w", "--workers", 0
    for options in (("m.onnx", "--golden", "golden"), ("m.tflite", "--images", 3)):
        result = run("export", "quantized_squeezenet1_1", "--output", *options, *data)
        assert result.code == 0, result.err
    return data


def test_all_forms_of_a_network_are_equal(place, run, tmp_path):
    images = json.loads((tmp_path / "golden" / "manifest.json").read_text())["images"]
    assert images == 3 and (tmp_path / "golden" / "images.bin").stat().st_size == 3 * SIDE * SIDE * 3
    for first, second in zip(FORMS, (*FORMS[1:], FORMS[0]), strict=True):
        result = run("compare_layers", first, second, *place)
        assert result.code == 0 and result.out.endswith("equal (40 layers, 3 images)\n"), result.out


def test_a_golden_folder_has_the_rounding_of_microcontrollers(place, run):
    options = ("--output", "again.onnx", "--golden", "twice", "--rounding", "twice", "--images", 1)
    result = run("export", "quantized_squeezenet1_1", *options, *place)
    assert result.code == 0 and "saved twice: 3 test images, " in result.out
    # the rounding of a folder is that of the checkpoint and of the kernels
    for other in ("quantized_squeezenet1_1", "m.tflite"):
        assert run("compare_layers", "twice", other, *place).code == 0
    different = run("compare_layers", "twice", "golden")
    assert different.code == 1 and "microcontrollers round twice" in different.out


def break_onnx(path):
    proto = onnx.load(path)
    (bias,) = [each for each in proto.graph.initializer if each.name == f"{LAYER}_bias"]
    values = numpy_helper.to_array(bias).copy()
    values[0] += 10**6
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(proto, path)


def break_litert(path):
    content = checkpoint.load(checkpoint.find("quantized_squeezenet1_1", "w"))
    graph = with_broken_bias(integers.read(content), LAYER, 10**6)
    with litert_model.export(content, graph, path):
        pass


@pytest.mark.parametrize(("file", "break_file"), [("m.onnx", break_onnx), ("m.tflite", break_litert)])
@pytest.mark.parametrize("other", ["quantized_squeezenet1_1", "golden"])
def test_the_layer_with_a_broken_bias_is_named(place, run, tmp_path, file, break_file, other):
    break_file(tmp_path / file)
    result = run("compare_layers", other, file, *place)
    assert result.code == 1, result.err
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in result.out.splitlines() if "|" in line
    ]
    assert rows[0] == ["layer", "operator", "shape", "values", "differ", "steps"]
    assert rows[2][:4] == [LAYER, "Convolution", "64x14x14", f"{3 * 64 * 196:,}"]
    assert rows[-1][0] == "logits" and rows[2][4] == str(3 * 196)  # one channel of each image
    before = [
        row["name"] for row in json.loads((tmp_path / "golden" / "manifest.json").read_text())["layers"]
    ]
    assert (
        f"different ({len(before)} layers, 3 images): {LAYER} is the first layer that differs" in result.out
    )
    assert f"before it, {before.index(LAYER)} layers are equal\n" in result.out
    assert [row[0] for row in rows[2:]] == before[before.index(LAYER) :]
    assert "round twice" not in result.out


def test_the_dumps_of_a_device_may_lack_layers(place, run, tmp_path):
    dumps = shutil.copytree(tmp_path / "golden", tmp_path / "dumps")
    kept = ("images", "features_0", "features_4_squeeze", LAYER, "logits")
    for path in dumps.glob("*.bin"):
        if path.stem not in kept:
            path.unlink()
    assert "equal (5 of " in run("compare_layers", "golden", "dumps").out
    content = bytearray((dumps / f"{LAYER}.bin").read_bytes())
    content[7] ^= 1
    (dumps / f"{LAYER}.bin").write_bytes(content)
    result = run("compare_layers", "golden", "dumps")
    assert result.code == 1
    values = f"in 1 of {len(content):,} values, by 1 step"
    assert f"{LAYER} is the first layer that differs, {values}; before it, 3 layers are equal\n" in result.out
    (dumps / "features_4_squeeze.bin").unlink()
    names = [row["name"] for row in json.loads((dumps / "manifest.json").read_text())["layers"]]
    between = names.index(LAYER) - names.index("features_0") - 1
    expected = f"before it, 2 layers are equal, and {between} between them and it not compared\n"
    assert between > 5 and expected in run("compare_layers", "golden", "dumps").out
    (dumps / "images.bin").write_bytes(bytes(SIDE * SIDE * 3))
    assert (
        "it is the input: the images were prepared differently"
        in run("compare_layers", "golden", "dumps").out
    )


def test_mistakes_are_one_line(place, run, tmp_path):
    float_form = "teacher_squeezenet1_1"
    assert run("export", float_form, "--output", "f.onnx", *place).code == 0
    for name in ("no_manifest", "no_images", "other", "short"):
        shutil.copytree(tmp_path / "golden", tmp_path / name)
    (tmp_path / "no_manifest" / "manifest.json").unlink()
    (tmp_path / "no_images" / "images.bin").unlink()
    (tmp_path / "short" / "logits.bin").write_bytes(bytes(4))
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    manifest["layers"][3]["scale"] *= 2
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest))
    proto = onnx.load(tmp_path / "m.onnx")  # with other names, as files of earlier versions
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [name if name in ("images", "logits") else f"old_{name}" for name in names]
    for constant in proto.graph.initializer:
        constant.name = f"old_{constant.name}"
    onnx.save(proto, tmp_path / "old.onnx")
    for second, message in (
        ("gone", "there is no file or folder gone, and no checkpoint 'gone'"),
        ("gone.onnx", "cannot read gone.onnx"),
        ("gone.tflite", "cannot read gone.tflite"),
        ("images", "images has no manifest.json"),
        ("no_manifest", "no_manifest has no manifest.json"),
        ("no_images", "no_images has no images.bin"),
        ("other", "they are of two networks: "),
        ("short", "logits.bin has 4 bytes, not 3 for each image: int8 [3]"),
        (float_form, "has no integers to compare: it is a float network"),
        ("f.onnx", "f.onnx has no integers to compare: it is a float network"),
        ("old.onnx", "have no layer in common"),
    ):
        result = run("compare_layers", "m.tflite", second, *place)
        assert result.code == 2 and message in result.err, (second, result.err, result.out)
        assert result.err.count("\n") == 1


def test_golden_is_refused_before_anything_is_written(place, run, tmp_path):
    for arguments, message in (
        (
            ("quantized_squeezenet1_1", "--golden", "golden"),
            "golden exists: remove it, or name another folder",
        ),
        (("quantized_squeezenet1_1", "--golden", "no/golden"), "there is no folder no"),
        (
            ("teacher_squeezenet1_1", "--golden", "new"),
            "--golden needs an int8 checkpoint without float layers",
        ),
    ):
        result = run("export", *arguments, "--output", "new.onnx", *place)
        assert result.code == 2 and message in result.err and result.err.count("\n") == 1
        assert not list(tmp_path.glob("new*"))
