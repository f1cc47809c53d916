"""train_pruning.py with the targets that a user of a device feels: RAM and latency."""

import shutil

import pytest
from torch import nn

from common.deployment import onnx_writer
from common.evaluation import memory
from common.models import architectures, checkpoint
from common.system.errors import UserError
from common.training import loop

pytestmark = pytest.mark.usefixtures("shallow_networks")


@pytest.fixture
def prune(run, image_folder, tmp_path, brief_timing):
    """prune(*options): train_pruning.py on an untrained network, as (result, the content that was saved)."""

    def run_script(*options):
        result = run(
            "train_pruning", "--model", "squeezenet1_1", "--pretrained", "none", "--image-size", 48,
            "--dataset", "folder", "--data-dir", image_folder, "--output-dir", tmp_path / "w", "--workers", 0,
            "--batch-size", 8, "--epochs", 1, *options,
        )  # fmt: skip
        saved = list((tmp_path / "w").glob("*.pt"))
        return result, checkpoint.load(saved[0]) if saved else None

    return run_script


@pytest.mark.parametrize(("precision", "size", "steps"), [("fp32", 4, 1), ("int8", 1, 2)])
def test_a_target_of_ram_is_met(prune, precision, size, steps):
    result, content = prune(
        "--target-ram", "0.5", "--target-precision", precision, "--pruning-steps", steps, "--epochs", steps
    )
    assert result.code == 0, result.err
    full = size * (64 * 23**2 + 64 * 11**2)  # before and after the first pooling
    target = content["metrics"]["target"]
    assert (target["of"], target["precision"], target["limit"]) == ("ram", precision, full / 2)
    peak = memory.peak(checkpoint.rebuild(content), 48)
    assert target["achieved"] == size * peak.values <= full / 2
    assert f"{full // 2:,} bytes of RAM" in result.out


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
@pytest.mark.parametrize(("schedule", "limit", "steps"), [("rows", "12KB", 1), ("camera", "0.5", 2)])
def test_a_target_of_ram_in_c_is_met_by_the_exported_file(
    prune, run, image_folder, tmp_path, schedule, limit, steps
):
    chosen = ("--ram-schedule", schedule, "--pruning-steps", steps, "--epochs", 0)
    result, content = prune("--target-ram", limit, *chosen)
    assert result.code == 0, result.err
    target = content["metrics"]["target"]
    assert f" => {target['achieved']:,} bytes of RAM (int8 in C, schedule {schedule})\n" in result.out

    data = ("--dataset", "folder", "--data-dir", image_folder, "--output-dir", tmp_path / "w", "--workers", 0)
    assert not run("train_quantization", "--weights", "pruned_squeezenet1_1", "--epochs", 0, *data).code
    output = tmp_path / "net.c"
    written = run("export", "quantized", "--output", output, "--schedule", schedule, *data)
    assert written.code == 0, written.err
    ram = int(output.with_suffix(".h").read_text().partition("_RAM ")[2].split()[0])
    assert ram == target["achieved"] <= target["limit"] and f"{ram:,} bytes of RAM, " in written.out


@pytest.mark.parametrize("target", [("--target-macs", 0.6), ("--channel-ratio", 0.4)])
def test_widths_are_multiples_of_what_is_asked_for(prune, target):
    result, content = prune(*target, "--width-multiple", 16)
    assert result.code == 0, result.err
    before = architectures.build("squeezenet1_1", len(content["classes"])).modules()
    widths = [
        after.out_channels
        for layer, after in zip(before, checkpoint.rebuild(content).modules(), strict=True)
        if isinstance(layer, nn.Conv2d) and after.out_channels < layer.out_channels
    ]
    assert len(widths) > 1 and {width % 16 for width in widths} == {0}


@pytest.mark.parametrize(
    ("options", "conditions"),
    [
        (("--threads", 2), "fp32 ONNX Runtime "),
        (("--target-precision", "int8"), "int8 ONNX Runtime "),
    ],
)
def test_a_target_of_latency_is_measured_where_the_network_runs(prune, options, conditions):
    result, content = prune("--target-latency", "30s", *options)
    assert result.code == 0, result.err
    target = content["metrics"]["target"]
    assert target["limit"] == 30_000 and 0 < target["achieved"] < 30_000
    assert target["conditions"].startswith(conditions)
    assert target["conditions"].endswith(f"{2 if '--threads' in options else 1} thread(s)")


def test_an_int8_network_without_a_form_in_onnx_is_refused_before_training(prune, monkeypatch):
    def build(*_):
        raise UserError("the operation x cannot be written as ONNX")

    monkeypatch.setattr(onnx_writer, "build", build)
    monkeypatch.setattr(loop, "fit", lambda *_, **__: pytest.fail("trained"))
    result, content = prune("--target-latency", "0.5", "--target-precision", "int8")
    assert (result.code, content, result.err.count("\n")) == (2, None, 1)
    assert "the operation x cannot be written as ONNX" in result.err
