"""The four stages, one after the other, as a user runs them, on a small part of the synthetic data set."""

import copy
import csv
import json
import re

import pytest
import torch
from PIL import Image

from common.data import datasets, synthetic
from common.data.loaders import make_loaders
from common.evaluation import int8_agreement, metrics, plots
from common.models import checkpoint, lineage
from common.system import files
from common.training import batch_norm

pytestmark = pytest.mark.usefixtures("shallow_networks")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The synthetic data set with 3 training images and 1 test image of each breed."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "IMAGES_PER_BREED", {"trainval": 3, "test": 1})
        synthetic.write(folder)
    return folder


@pytest.fixture
def options(images, tmp_path):
    """The options that all scripts get here."""
    return (
        "--dataset", "synthetic", "--data-dir", images, "--output-dir", tmp_path / "weights", "--workers", 0,
    )  # fmt: skip


@pytest.fixture
def stage(run, options, tmp_path, monkeypatch):
    """stage(script, *arguments): runs it on the synthetic images and gives (its output, the saved path)."""
    # hardly trained networks have logits so close to each other that int8 swaps some
    monkeypatch.setattr(int8_agreement, "MIN_AGREEMENT", 0.0)

    def run_stage(script, *arguments, epochs=3):
        training = ("--epochs", epochs, "--batch-size", 16, "--lr", 0.001)
        result = run(script, *options, *training, *arguments)
        assert result.code == 0, result.err
        return result.out, tmp_path / "weights" / re.search(r"saved .*/(\S+\.pt)\n", result.out)[1]

    return run_stage


@pytest.fixture
def statistics(monkeypatch):
    """The state of a network after each recalibration of its batch norm."""
    states, recalibrate = [], batch_norm.recalibrate

    def recorded(model, *arguments):
        recalibrate(model, *arguments)
        states.append(copy.deepcopy(model.state_dict()))

    monkeypatch.setattr(batch_norm, "recalibrate", recorded)
    return states


def test_the_chain_from_teacher_to_int8(stage, run, options, tmp_path, statistics, monkeypatch):
    monkeypatch.setattr("common.evaluation.results.draw_curves", plots.draw_curves)  # which `run` replaces
    out, teacher = stage(
        "train_teacher", "--teacher", "resnet18", "--pretrained", "none", "--image-size", 48, epochs=1
    )
    assert re.fullmatch(r"teacher_resnet18_[01]\.\d{4}\.pt", teacher.name)
    assert f"next: python train_student.py --teacher {teacher.name}" in out

    out, student = stage(
        "train_student",
        "--teacher",
        teacher.name[8:],
        "--student",
        "mobilenet_v2",
        "--pretrained",
        "none",
        epochs=1,
    )
    assert student.name.startswith("kd_mobilenet_v2_") and " => " in out

    out, pruned = stage(
        "train_pruning", "--weights", student.name, "--pruning-ratio", 0.5, "--pruning-steps", 2,
        "--importance", "lamp", "--calibration-batches", 1, epochs=2,
    )  # fmt: skip
    assert pruned.name.startswith("pruned_kd_mobilenet_v2_")
    assert out.count("pruned, on validation") == out.count("with batch norm recalibrated") == 2
    widths = [int(count.replace(",", "")) for count in re.findall(r"step ./2: (\S+) parameters", out)]
    full = checkpoint.load(student)["metrics"]["params"]
    assert [count / full for count in widths] == pytest.approx([0.5**0.5, 0.5], abs=0.01)
    with pruned.with_suffix(".csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]
    # fine-tuning after pruning changes the weights, and keeps the statistics of batch norm
    state = checkpoint.load(pruned)["state_dict"]
    for name, equal in (("weight", False), ("running_mean", True), ("running_var", True)):
        assert torch.equal(state[f"features.0.1.{name}"], statistics[-1][f"features.0.1.{name}"]) == equal

    for device, backend in (("embedded", "qnnpack"), ("server", "fbgemm")):
        out, quantized = stage(
            "train_quantization", "--weights", "pruned_kd_mobilenet_v2", "--target-device", device, epochs=1
        )
        assert quantized.name.startswith("quantized_pruned_kd_mobilenet_v2_")
        assert quantized.stat().st_size < 0.35 * pruned.stat().st_size
        content = checkpoint.load(quantized)
        assert content["int8"]["backend"] == backend
        stored = content["metrics"]
        assert f"test, int8: top-1 {stored['top1']:.2%}" in out and stored["integers"]
        for other in ("fp32", "fake_quant"):
            agreement = f"int8 agrees on {stored[other]['agreement']:.2%}"
            assert f"test, {other}: top-1 {stored[other]['top1']:.2%}" in out and agreement in out
        assert [row["stage"] for row in content["lineage"]] == ["teacher", "kd", "pruned", "quantized"]
        parents = [row["parent"] for row in content["lineage"]]
        assert parents == [None, teacher.name, student.name, pruned.name]

    before, after = checkpoint.load(student)["metrics"], checkpoint.load(pruned)["metrics"]
    assert abs(after["params"] / before["params"] - 0.5) < 0.01 and after["macs"] < before["macs"]
    for path in (teacher, student, pruned, quantized):
        assert path.with_suffix(".csv").exists()
        with Image.open(path.with_suffix(".png")) as image:
            assert image.size == (1080, 432)

    results = [tmp_path / f"results.{kind}" for kind in ("json", "csv", "md", "png")]
    files = [text for kind, path in zip(("json", "csv", "markdown", "plot"), results, strict=True)
             for text in (f"--{kind}", path)]  # fmt: skip
    result = run("evaluate", teacher.name, quantized.name, "--per-class", "--runtimes", *options, *files)
    assert result.code == 0, result.err
    rows = json.loads(results[0].read_text())
    for path, row in zip((teacher, quantized), rows, strict=True):
        stored = checkpoint.load(path)["metrics"]
        assert (row["top1"], row["top5"], row["ci95"]) == (stored["top1"], stored["top5"], stored["ci95"])
    # the parent was not named, and is evaluated too
    assert rows[1]["parent"] == pruned.name and rows[0]["parent"] is None
    parent = checkpoint.load(pruned)["metrics"]
    assert rows[1]["ram_bytes"] == stored["ram_bytes"] == parent["ram_bytes"] / 4  # int8, float32
    assert rows[1]["delta_top1"] == pytest.approx(rows[1]["top1"] - parent["top1"])
    assert "python train_quantization.py --dataset synthetic" in results[2].read_text()
    assert all(f"saved {path}" in result.out and path.stat().st_size for path in results)
    assert quantized.with_name(f"{quantized.stem}_confusion.png").exists()
    assert "most frequent mistake" in result.out and f"{quantized.stem}" in result.out


def test_a_teacher_can_be_used_in_pruning_and_quantization(stage):
    _, teacher = stage(
        "train_teacher", "--teacher", "squeezenet1_1", "--pretrained", "none", "--image-size", 40,
        "--model-name", "guide",
    )  # fmt: skip
    for script, arguments in (("train_pruning", ["--pruning-ratio", 0.5]), ("train_quantization", [])):
        created = {}
        for name, teaching in (("alone", []), ("distilled", ["--teacher", teacher.name])):
            _, path = stage(
                script, "--weights", teacher.name, "--model-name", name, *arguments, *teaching, epochs=1
            )
            created[name] = checkpoint.load(path)
        alone, distilled = created["alone"]["lineage"][-1], created["distilled"]["lineage"][-1]
        assert alone["machine"].startswith("cpu, ") and alone["machine"].endswith(("bfloat16", "float32"))
        assert alone["teacher"] is None and distilled["teacher"] == [teacher.name]
        assert distilled["teacher_sha256"] == [lineage.sha256(teacher)]
        one, other = (files.checksum(created[name]["state_dict"]) for name in ("alone", "distilled"))
        assert one != other


def test_the_accuracy_in_the_name_is_that_of_the_checkpoint_on_test(stage, images):
    _, parent = stage(
        "train_teacher", "--teacher", "squeezenet1_1", "--pretrained", "none", "--image-size", 40
    )
    _, path = stage("train_quantization", "--weights", parent.name, epochs=2)
    for each in (parent, path):
        content = checkpoint.load(each)
        splits = datasets.load_splits("synthetic", str(images), 0.2)
        loaders = make_loaders(splits, content, batch_size=8, seed=0)
        score = metrics.evaluate(checkpoint.rebuild(content), loaders.test, torch.device("cpu"))
        assert f"_{score.top1:.4f}" in each.name and content["metrics"]["n"] == score.n == 37


def test_with_0_epochs_a_model_is_only_pruned_or_calibrated(stage):
    _, parent = stage(
        "train_teacher", "--teacher", "squeezenet1_1", "--pretrained", "none", "--image-size", 40, epochs=0
    )
    assert not parent.with_suffix(".csv").exists()
    _, pruned = stage(
        "train_pruning", "--weights", parent, "--channel-ratio", 0.5, "--model-name", "half", epochs=0
    )
    assert pruned.name.startswith("pruned_half_")
    assert checkpoint.rebuild(checkpoint.load(pruned)).features[0].out_channels == 32
    _, quantized = stage("train_quantization", "--weights", pruned, epochs=0)
    assert quantized.name.startswith("quantized_pruned_half_")


def test_pruning_can_start_from_an_architecture(stage):
    _, path = stage(
        "train_pruning", "--model", "squeezenet1_1", "--pretrained", "none", "--image-size", 40,
        "--pruning-ratio", 0.6,
    )  # fmt: skip
    content = checkpoint.load(path)
    assert path.name.startswith("pruned_squeezenet1_1_") and content["lineage"][0]["parent"] is None


def test_two_pruning_steps_differ_from_one(stage):
    _, parent = stage(
        "train_teacher", "--teacher", "squeezenet1_1", "--pretrained", "none", "--image-size", 40, epochs=1
    )
    arguments = ("--weights", parent.name, "--pruning-ratio", 0.5)
    kernels = []
    for steps in (1, 2):
        _, path = stage("train_pruning", *arguments, "--pruning-steps", steps, epochs=2)
        kernels.append(checkpoint.load(path)["state_dict"]["features.0.weight"])
    assert kernels[0].shape != kernels[1].shape or not torch.equal(kernels[0], kernels[1])


def test_the_same_command_twice_gives_the_same_weights_and_a_file_of_its_own(stage):
    arguments = (
        "--teacher", "squeezenet1_1", "--pretrained", "none", "--image-size", 40, "--seed", 7,
        "--model-name", "twice",
    )  # fmt: skip
    (_, first), (_, second) = stage("train_teacher", *arguments), stage("train_teacher", *arguments)
    assert second.name == first.name.replace(".pt", "-2.pt")
    one, other = (checkpoint.load(path)["state_dict"] for path in (first, second))
    assert all(torch.equal(one[key], other[key]) for key in one)
