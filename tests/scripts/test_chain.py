"""The four stages, one after the other, as a user runs them, on a small part of the synthetic data set."""

import csv
import json
import re

import pytest
import torch

from common.data import datasets, synthetic
from common.data.loaders import make_loaders
from common.evaluation import int8_agreement, metrics
from common.models import checkpoint, lineage
from common.system import files


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "IMAGES_PER_BREED", {"trainval": 3, "test": 1})
        synthetic.write(folder / "pictures")
    return folder


@pytest.fixture
def stage(run, place, monkeypatch):
    """stage(script, *options): runs it on the small data set and gives (its output, the saved path)."""
    # what has learned next to nothing has answers so close to each other that int8 swaps some
    monkeypatch.setattr(int8_agreement, "MIN_AGREEMENT", 0.0)

    def run_stage(script, *options, epochs=3):
        fixed = (
            "--dataset",
            "synthetic",
            "--data-dir",
            place / "pictures",
            "--output-dir",
            place / "weights",
        )
        result = run(
            script, *fixed, "--epochs", epochs, "--workers", 0, "--batch-size", 16, "--lr", 0.001, *options
        )
        assert result.code == 0, result.err
        return result.out, place / "weights" / re.search(r"saved .*/(\S+\.pt)\n", result.out)[1]

    return run_stage


def test_the_chain_from_teacher_to_int8(stage, run, place):
    out, teacher = stage("train_teacher", "--teacher", "resnet18", "--pretrained", "none", "--image-size", 48)
    assert re.fullmatch(r"teacher_resnet18_[01]\.\d{4}\.pt", teacher.name)
    assert f"next: python train_student.py --teacher {teacher.name}" in out

    out, student = stage(
        "train_student", "--teacher", teacher.name[8:], "--student", "mobilenet_v2", "--pretrained", "none"
    )
    assert student.name.startswith("kd_mobilenet_v2_") and " => " in out

    out, pruned = stage(
        "train_pruning", "--weights", student.name, "--pruning-ratio", 0.5, "--pruning-steps", 2
    )
    assert pruned.name.startswith("pruned_kd_mobilenet_v2_")
    assert out.count("pruned, on validation") == out.count("with batch norm recalibrated") == 2
    widths = [int(count.replace(",", "")) for count in re.findall(r"step ./2: (\S+) parameters", out)]
    whole = checkpoint.load(student)["metrics"]["params"]
    assert [count / whole for count in widths] == pytest.approx([0.5**0.5, 0.5], abs=0.01)
    with pruned.with_suffix(".csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "2"]

    for target, backend in (("embedded", "qnnpack"), ("server", "fbgemm")):
        out, quantized = stage(
            "train_quantization", "--weights", "pruned_kd_mobilenet_v2", "--target-device", target, epochs=1
        )
        assert quantized.name.startswith("quantized_pruned_kd_mobilenet_v2_")
        assert quantized.stat().st_size < 0.35 * pruned.stat().st_size
        content = checkpoint.load(quantized)
        assert content["int8"]["backend"] == backend
        figures = content["metrics"]
        assert f"test, int8 with {figures['engine']}: top-1 {figures['top1']:.2%}" in out
        for other in ("fp32", "fake_quant"):
            share = f"the int8 model agrees on {figures[other]['agreement']:.2%}"
            assert f"test, {other}: top-1 {figures[other]['top1']:.2%}" in out and share in out
        assert [row["stage"] for row in content["lineage"]] == ["teacher", "kd", "pruned", "quantized"]
        assert [row["parent"] for row in content["lineage"]] == [
            None,
            teacher.name,
            student.name,
            pruned.name,
        ]

    before, after = checkpoint.load(student)["metrics"], checkpoint.load(pruned)["metrics"]
    assert abs(after["params"] / before["params"] - 0.5) < 0.01 and after["macs"] < before["macs"]
    for path in (teacher, student, pruned, quantized):
        assert path.with_suffix(".csv").exists() and path.with_suffix(".png").exists()

    results = [place / f"results.{kind}" for kind in ("json", "csv", "md", "png")]
    files = [text for kind, path in zip(("json", "csv", "markdown", "plot"), results, strict=True)
             for text in (f"--{kind}", path)]  # fmt: skip
    where = ("--dataset", "synthetic", "--data-dir", place / "pictures", "--output-dir", place / "weights")
    result = run("evaluate", teacher.name, quantized.name, "--workers", 0, "--per-class", *where, *files)
    assert result.code == 0, result.err
    rows = json.loads(results[0].read_text())
    for path, row in zip((teacher, quantized), rows, strict=True):
        figures = checkpoint.load(path)["metrics"]
        assert (row["top1"], row["top5"], row["ci95"]) == (figures["top1"], figures["top5"], figures["ci95"])
    # the parent was not asked for, and is scored all the same
    assert rows[1]["parent"] == pruned.name and rows[0]["parent"] is None
    parent = checkpoint.load(pruned)["metrics"]
    assert rows[1]["delta_top1"] == pytest.approx(rows[1]["top1"] - parent["top1"])
    assert "python train_quantization.py --dataset synthetic" in results[2].read_text()
    assert all(f"saved {path}" in result.out and path.stat().st_size for path in results)
    assert quantized.with_name(f"{quantized.stem}_confusion.png").exists()
    assert "most often taken for" in result.out and f"{quantized.stem}" in result.out


def test_a_teacher_takes_part_in_pruning_and_quantization(stage):
    _, teacher = stage(
        "train_teacher", "--teacher", "squeezenet1_1", "--pretrained", "none", "--image-size", 40,
        "--model-name", "guide",
    )  # fmt: skip
    for script, options in (("train_pruning", ["--pruning-ratio", 0.5]), ("train_quantization", [])):
        made = {}
        for name, taught in (("alone", []), ("taught", ["--teacher", teacher.name])):
            _, path = stage(
                script, "--weights", teacher.name, "--model-name", name, *options, *taught, epochs=1
            )
            made[name] = checkpoint.load(path)
        alone, taught = made["alone"]["lineage"][-1], made["taught"]["lineage"][-1]
        assert alone["machine"].startswith("cpu, ") and alone["machine"].endswith(("bfloat16", "float32"))
        assert alone["teacher"] is None and taught["teacher"] == teacher.name
        assert taught["teacher_sha256"] == lineage.sha256(teacher)
        one, other = (files.checksum(made[name]["state_dict"]) for name in ("alone", "taught"))
        assert one != other


def test_the_accuracy_in_the_name_is_that_of_the_file_on_test(stage, place):
    _, parent = stage(
        "train_teacher", "--teacher", "squeezenet1_1", "--pretrained", "none", "--image-size", 40
    )
    _, path = stage("train_quantization", "--weights", parent.name, epochs=2)
    for each in (parent, path):
        content = checkpoint.load(each)
        splits = datasets.load_splits("synthetic", str(place / "pictures"), 0.2)
        loaders = make_loaders(splits, content, batch_size=8, seed=0)
        score = metrics.evaluate(checkpoint.rebuild(content), loaders.test, torch.device("cpu"))
        assert f"_{score.top1:.4f}" in each.name and content["metrics"]["n"] == score.n == 37


def test_no_epochs_prune_or_calibrate_only(stage):
    _, parent = stage(
        "train_teacher", "--teacher", "resnet18", "--pretrained", "none", "--image-size", 40, epochs=0
    )
    assert not parent.with_suffix(".csv").exists()
    _, pruned = stage(
        "train_pruning", "--weights", parent, "--channel-ratio", 0.5, "--model-name", "half", epochs=0
    )
    assert pruned.name.startswith("pruned_half_")
    assert checkpoint.rebuild(checkpoint.load(pruned)).conv1.out_channels == 32
    _, quantized = stage("train_quantization", "--weights", pruned, epochs=0)
    assert quantized.name.startswith("quantized_pruned_half_")


def test_pruning_starts_from_an_architecture_too(stage):
    _, path = stage(
        "train_pruning", "--model", "squeezenet1_1", "--pretrained", "none", "--image-size", 40,
        "--pruning-ratio", 0.6,
    )  # fmt: skip
    content = checkpoint.load(path)
    assert path.name.startswith("pruned_squeezenet1_1_") and content["lineage"][0]["parent"] is None


def test_two_pruning_steps_differ_from_one(stage):
    _, parent = stage(
        "train_teacher", "--teacher", "resnet18", "--pretrained", "none", "--image-size", 40, epochs=1
    )
    options = ("--weights", parent.name, "--pruning-ratio", 0.5)
    kernels = []
    for steps in (1, 2):
        _, path = stage("train_pruning", *options, "--pruning-steps", steps, epochs=2)
        kernels.append(checkpoint.load(path)["state_dict"]["conv1.weight"])
    assert kernels[0].shape != kernels[1].shape or not torch.equal(kernels[0], kernels[1])


def test_the_same_command_twice_gives_the_same_weights_and_a_file_of_its_own(stage):
    options = (
        "--teacher",
        "squeezenet1_1",
        "--pretrained",
        "none",
        "--image-size",
        40,
        "--seed",
        7,
        "--model-name",
        "twice",
    )
    (_, first), (_, second) = stage("train_teacher", *options), stage("train_teacher", *options)
    assert second.name == first.name.replace(".pt", "-2.pt")
    one, other = (checkpoint.load(path)["state_dict"] for path in (first, second))
    assert all(torch.equal(one[key], other[key]) for key in one)
