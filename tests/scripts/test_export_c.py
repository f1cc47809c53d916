"""export.py --output FILE.c: what is written, checked and refused, and what runs the file."""

import os
import shutil

import numpy as np
import pytest
from torch.ao.nn.intrinsic.quantized import ConvReLU2d

from common.deployment import c_model
from common.deployment.c_model import CModel
from common.evaluation import latency
from common.integer import from_fx
from common.integer.fx_grids import PlainLayer
from common.models import checkpoint
from common.system.errors import UserError

INT8 = "quantized_squeezenet1_1"
compiled = pytest.mark.skipif(not shutil.which(os.environ.get("CC", "cc")), reason="there is no C compiler")


@pytest.fixture
def data(created, tmp_path, monkeypatch):
    """The current folder: a copy of `created`. Gives the data options."""
    shutil.copytree(created, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        c_model, "FLAGS", tuple(each.replace("-O3", "-O1") for each in c_model.FLAGS)
    )  # compiled sooner
    return "--dataset", "folder", "--data-dir", "images", "--output-dir", "w", "--workers", 0


def written(folder):
    """The files in a folder, without its folders."""
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@compiled
def test_a_c_file_is_exported_checked_evaluated_and_predicts(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "others_load", lambda: 0.0)
    monkeypatch.setattr(latency, "MEASURED_SECONDS", 0)
    options = "--schedule", "camera", "--rounding", "once"
    result = run("export", INT8, "--output", "net.c", *options, *data)
    assert result.code == 0, result.err
    equal = "12 test images: C and the checkpoint agree on 100.00%, with equal logits for 12; "
    assert equal in result.out and written(tmp_path) == ["net.c", "net.h"]

    evaluated = run("evaluate", INT8, "net.c", "--runtimes", *data)
    assert evaluated.code == 0, evaluated.err
    metrics = [line.partition(": ")[2] for line in evaluated.out.splitlines() if ": top-1" in line]
    assert metrics[0] == metrics[1] and "n 12" in metrics[0]
    ram = int((tmp_path / "net.h").read_text().partition("_RAM ")[2].split()[0])
    assert f" {ram / 1024:.0f} KiB " in evaluated.out and "int8 C" in evaluated.out
    image = next((tmp_path / "images" / "test" / "dog").iterdir())
    predicted = [run("predict", file, image, "--output-dir", "w") for file in ("net.c", INT8)]
    assert predicted[0].code == 0 and predicted[0].out == predicted[1].out


def test_the_options_change_the_file_and_a_compiler_is_not_needed_without_a_check(
    run, data, tmp_path, monkeypatch
):
    monkeypatch.setenv("CC", str(tmp_path / "nonexistent"))
    ram = {}
    for name, *options in (
        ("rows", "--rounding", "once"),
        ("layers", "--schedule", "layers"),
        ("camera", "--schedule", "camera"),
        ("less", "--schedule", "camera", "--extra-macs", 0.5),
    ):
        result = run("export", INT8, "--output", f"{name}.c", "--no-check", *options, *data)
        assert result.code == 0 and "agree" not in result.out, result.err
        header = (tmp_path / f"{name}.h").read_text()
        schedule = "camera" if name == "less" else name
        rounding = "once" if name == "rows" else "twice"
        assert f'Schedule "{schedule}"; sums are rounded {rounding}.' in header
        ram[name] = int(header.partition("_RAM ")[2].split()[0])
    assert ram["layers"] > ram["rows"] > ram["camera"] >= ram["less"]


def test_without_a_compiler_nothing_is_written(run, data, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "/nonexistent")
    result = run("export", INT8, "--output", "net.c", *data)
    expected = "net.c needs a C compiler to run: there is no /nonexistent on PATH"
    assert result.code == 2 and expected in result.err and result.err.count("\n") == 1
    assert written(tmp_path) == []


def test_a_network_with_a_float_layer_is_refused_by_the_name_of_the_layer(run, data, tmp_path, monkeypatch):
    path = checkpoint.find(INT8, "w")
    content = checkpoint.load(path)
    del content["int8"]["graph"]
    path.unlink()
    checkpoint.save(content, tmp_path / "w")
    for kind in (ConvReLU2d, PlainLayer):  # with torch's kernels, and without
        monkeypatch.delitem(from_fx.LAYERS, kind)
    for name, message in (
        (INT8, "features_0, the operator ConvReLU2d, has no integer form"),
        ("teacher_squeezenet1_1", "net.c is not written: only int8 checkpoints have a form in C"),
    ):
        result = run("export", name, "--output", "net.c", *data)
        assert result.code == 2 and message in result.err and result.err.count("\n") == 1, result.err
    assert written(tmp_path) == []


@pytest.mark.parametrize("name", ["Net-1.c", "1net.c", "ärm.c"])
def test_a_name_that_is_no_identifier_is_refused(run, data, tmp_path, name):
    result = run("export", INT8, "--output", name, *data)
    expected = f"{name}: its name becomes a part of C identifiers"
    assert result.code == 2 and expected in result.err and result.err.count("\n") == 1
    assert written(tmp_path) == []


@pytest.mark.parametrize("options", [("--schedule", "rows"), ("--extra-macs", 0.1), ("--no-check",)])
@pytest.mark.parametrize("name", ["m.onnx", "m.tflite"])
def test_the_options_of_c_are_refused_for_other_files(run, data, tmp_path, name, options):
    result = run("export", INT8, "--output", name, *options, *data)
    assert result.code == 2 and "need --output FILE.c" in result.err and result.err.count("\n") == 1
    assert written(tmp_path) == []


@pytest.mark.parametrize("file", ["net.c", "net.h"])
def test_a_changed_file_is_refused_and_so_is_one_without_its_header(run, data, tmp_path, file):
    assert run("export", INT8, "--output", "net.c", "--no-check", *data).code == 0
    path = tmp_path / file
    path.write_text(path.read_text() + "\n")
    for script, *arguments in (("evaluate", "net.c", *data), ("predict", "net.c", "images/test/dog")):
        result = run(script, *arguments)
        assert result.code == 2 and "does not match its checksum" in result.err
        assert result.err.count("\n") == 1
    path.unlink()
    with pytest.raises(UserError, match=f"^cannot read .*{file}: No such file or directory$"):
        CModel(tmp_path / "net.c")


@pytest.mark.parametrize("metadata", ['{"a": }', "{}", '{"sha256": 1}'])
def test_damaged_metadata_are_one_line(data, tmp_path, metadata):
    (tmp_path / "net.c").write_text(f"/* metadata {metadata} */\n")
    (tmp_path / "net.h").write_text("")
    with pytest.raises(UserError, match=r"does not match its checksum$"):
        CModel(tmp_path / "net.c")


@compiled
def test_a_file_with_another_logit_is_not_written_and_the_former_one_stays(run, data, tmp_path, monkeypatch):
    for suffix in "ch":
        (tmp_path / f"net.{suffix}").write_text("former")
    compute = CModel.forward

    def one_step_more(self, images):
        logits = compute(self, images).numpy()
        logits[-1, -1] = np.nextafter(logits[-1, -1], np.inf)
        return compute(self, images).copy_(type(images)(logits))

    monkeypatch.setattr(c_model.CModel, "forward", one_step_more)
    result = run("export", INT8, "--output", "net.c", *data)
    assert result.code == 2 and "net.c is not written: in C all logits must be equal" in result.err
    assert written(tmp_path) == ["net.c", "net.h"]
    assert {(tmp_path / name).read_text() for name in written(tmp_path)} == {"former"}
