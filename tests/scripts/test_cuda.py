"""The four stages on a GPU, on a few images; without a GPU none of this runs."""

import csv
import itertools
import math
import re

import pytest
import torch

import train_teacher
from common.data import datasets
from common.data.loaders import make_loaders
from common.evaluation import int8_agreement, metrics
from common.models import checkpoint
from common.stage import Stage
from common.training import loop, resume
from tests.conftest import write_images

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

CPU, DEVICE, SIDE, TESTED = torch.device("cpu"), "cuda", 48, 30
TEACHER = ("--teacher", "resnet18", "--pretrained", "none", "--image-size", SIDE, "--epochs", 6)


@pytest.fixture(autouse=True, scope="module")
def same_settings():
    """What a stage sets for CUDA does not reach the tests of other files."""
    benchmark, precision = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    yield
    torch.backends.cudnn.benchmark = benchmark
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(autouse=True)
def saved_in_any_case(monkeypatch):
    """Hardly trained networks have logits so close to each other that int8 swaps some."""
    monkeypatch.setattr(int8_agreement, "MIN_AGREEMENT", 0.0)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("cuda") / "images", train=12, test=TESTED // 3)


def data_options(images, output):
    return ("--dataset", "folder", "--data-dir", images, "--output-dir", output, "--batch-size", 8,
            "--lr", 0.001, "--workers", 0, "--cache", "off", "--device", DEVICE)  # fmt: skip


@pytest.fixture(scope="module")
def teacher(images, tmp_path_factory):
    """The file of a resnet that distinguishes the colors of the classes, trained on the GPU."""
    words = (*TEACHER, *data_options(images, tmp_path_factory.mktemp("teacher")))
    return train_teacher.main(train_teacher.parse_args([str(word) for word in words]))


@pytest.fixture
def stage(run, images, tmp_path):
    """stage(script, *options, code=0): the saved file and the output; of another code only the output."""

    def run_stage(script, *options, code=0):
        result = run(script, *data_options(images, tmp_path / "w"), *options)
        assert result.code == code, result.err
        if code:
            return None, result.out
        return tmp_path / "w" / re.search(r"saved .*/(\S+\.pt)\n", result.out)[1], result.out

    return run_stage


@pytest.fixture
def scores(monkeypatch):
    """The scores of `Stage.test`, in the order of the calls."""
    test, found = Stage.test, []

    def noting(self, model, device=None):
        found.append(test(self, model, device))
        return found[-1]

    monkeypatch.setattr(Stage, "test", noting)
    return found


def score_on_cpu(path, images):
    """The score of a saved checkpoint, with the model, its images and the engine on the CPU."""
    content = checkpoint.load(path)
    splits = datasets.load_splits("folder", str(images), 0.2)
    batches = make_loaders(splits, content, batch_size=8, seed=0, workers=0).test
    model = checkpoint.rebuild(content, content["metrics"].get("engine"))
    return metrics.evaluate(model, batches, CPU)


def check_float(path, images):
    """The stored accuracy, measured on the GPU, is within 1 point or 1 image of that on the CPU."""
    stored, score = checkpoint.load(path)["metrics"], score_on_cpu(path, images)
    assert stored["n"] == score.n == TESTED
    assert abs(stored["top1"] - score.top1) <= max(0.01, 1 / score.n) + 1e-9
    assert stored["loss"] == pytest.approx(score.loss, rel=0.01, abs=0.001)


def check_int8(path, images, reported):
    """The stored accuracy is exactly that on the CPU, and so is each prediction."""
    stored, score = checkpoint.load(path)["metrics"], score_on_cpu(path, images)
    assert torch.equal(reported.labels, score.labels)
    assert torch.equal(reported.predictions, score.predictions)
    assert (stored["n"], stored["top1"]) == (TESTED, score.top1)
    assert round(stored["top1"] * stored["n"]) == score.correct1


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_the_chain_from_teacher_to_int8(stage, images, scores, precision):
    bfloat16 = precision == "bf16" or (
        precision == "auto" and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    machine = f"{DEVICE}, {'bfloat16' if bfloat16 else 'float32'}"
    common = ("--precision", precision)

    teacher, out = stage("train_teacher", *TEACHER, *common)
    assert f"\n{machine}\n" in out
    student, _ = stage(
        "train_student", "--teacher", teacher, "--student", "mobilenet_v2", "--pretrained", "none",
        "--epochs", 2, "--mixup", *common,
    )  # fmt: skip
    pruned, out = stage(
        "train_pruning", "--weights", teacher, "--teacher", teacher, "--pruning-ratio", 0.5,
        "--pruning-steps", 2, "--importance", "taylor", "--epochs", 4, "--lr", 0.0001, *common,
    )  # fmt: skip
    assert out.count("with batch norm recalibrated, on validation") == 2 and " => " in out
    quantized, out = stage(
        "train_quantization", "--weights", pruned, "--teacher", teacher, "--epochs", 2, *common
    )

    for path in (teacher, student, pruned):
        check_float(path, images)
    int8, fp32, fake_quant = scores[3:]  # the other stages test once
    check_int8(quantized, images, int8)
    stored = checkpoint.load(quantized)["metrics"]
    assert f"test, int8 with {stored['engine']}: {int8}\n" in out
    assert stored["fp32"]["top1"] == fp32.top1 and stored["fake_quant"]["top1"] == fake_quant.top1
    # the float model is that of the parent
    parent = checkpoint.load(pruned)["metrics"]
    assert abs(fp32.top1 - parent["top1"]) <= 1 / TESTED + 1e-9
    for path in (teacher, student, pruned, quantized):
        assert checkpoint.load(path)["lineage"][-1]["machine"] == machine


def test_the_trained_teacher_distinguishes_the_classes(teacher, images):
    check_float(teacher, images)
    assert score_on_cpu(teacher, images).top1 > 0.9


@pytest.mark.parametrize("epochs", [0, 2])
def test_without_validation_images_a_model_is_pruned_and_quantized(stage, teacher, images, scores, epochs):
    """Nothing has moved the model to the GPU before the batch norm is recalibrated."""
    options = ("--val-fraction", 0, "--epochs", epochs)
    pruned, out = stage("train_pruning", "--weights", teacher, "--pruning-ratio", 0.5, *options)
    assert "on validation" not in out
    check_float(pruned, images)
    quantized, out = stage("train_quantization", "--weights", pruned, *options)
    assert "on validation" not in out
    check_int8(quantized, images, scores[1])


@pytest.fixture
def interrupted(stage, monkeypatch):
    """interrupted(script, *options, step): runs it until Ctrl-C in that step; each step writes a state."""
    monkeypatch.setattr(resume, "MIN_INTERVAL", 0)
    monkeypatch.setattr(resume, "MAX_TIME_FRACTION", math.inf)
    monkeypatch.setattr(loop, "CHECK_EVERY", 1)

    def run_stage(script, *options, step):
        original, steps = loop._Training._step, itertools.count(1)

        def interrupting(*arguments):
            if next(steps) == step:
                raise KeyboardInterrupt
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(loop._Training, "_step", interrupting)
            stage(script, *options, code=130)

    return run_stage


STAGES = {
    "train_teacher": ("--teacher", "resnet18", "--pretrained", "none", "--image-size", SIDE),
    "train_student": ("--teacher", "teacher", "--student", "resnet18", "--pretrained", "none"),
    "train_pruning": ("--weights", "teacher", "--pruning-steps", 2),
    "train_quantization": ("--weights", "teacher"),
}
EPOCHS, STEPS = 4, 4  # 29 images for training, in batches of 8


@pytest.mark.parametrize("precision", ["auto", "fp32"])
@pytest.mark.parametrize("script", STAGES)
def test_an_interrupted_run_is_resumed(
    run, stage, interrupted, teacher, images, tmp_path, scores, script, precision
):
    given = [teacher if option == "teacher" else option for option in STAGES[script]]
    options = (*given, "--epochs", EPOCHS, "--precision", precision)
    interrupted(script, *options, step=2 * STEPS + 3)  # in the third epoch; of pruning in its second step
    (state,) = (tmp_path / "w").glob("*.resume")
    path, out = stage(script, *options, "--resume")
    assert f"resumes {state} (epochs done: 2, and 2 steps of the next)" in out
    assert "the run began with" not in out and not state.exists()
    with path.with_suffix(".csv").open() as file:
        assert len(list(csv.DictReader(file))) == EPOCHS
    if script == "train_quantization":
        check_int8(path, images, scores[0])
    else:
        check_float(path, images)
    out = run(script, *data_options(images, tmp_path / "w"), *options, "--resume").out
    assert f"finished before: {path}" in out


def test_a_run_of_the_gpu_continues_on_the_cpu_with_a_note(stage, interrupted, images, tmp_path):
    options = (*STAGES["train_teacher"], "--epochs", 2, "--precision", "fp32")
    interrupted("train_teacher", *options, step=STEPS + 1)
    path, out = stage("train_teacher", *options, "--resume", "--device", "cpu")
    assert f"note: the run began with {DEVICE}, float32; the rest has another precision or speed" in out
    stored, score = checkpoint.load(path)["metrics"], score_on_cpu(path, images)
    assert stored["top1"] == score.top1


def test_the_test_is_in_full_float32_and_the_settings_of_the_training_come_back(stage, monkeypatch, teacher):
    evaluate, seen = metrics.evaluate, []

    def noting(model, batches, device, *arguments, **options):
        tf32 = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
        seen.append((options.get("title"), tf32))
        return evaluate(model, batches, device, *arguments, **options)

    monkeypatch.setattr(metrics, "evaluate", noting)
    stage("train_pruning", "--weights", teacher, "--epochs", 1)
    tested = [tf32 for title, tf32 in seen if title == "test"]
    others = [tf32 for title, tf32 in seen if title != "test"]
    assert tested == [(False, "highest")] and others and set(others) == {(True, "high")}
