import copy
import importlib

import pytest
import torch

import compress
import train_student
import train_teacher
from common.cli import options, teacher_options
from common.system import hardware
from common.system.errors import UserError
from tests.conftest import REPOSITORY


def test_the_next_stage_is_told_where_the_data_is():
    args = train_teacher.parse_args(["--teacher", "resnet18", "--dataset", "folder", "--data-dir", "my pets"])
    assert options.data_arguments(args) == " --dataset folder --data-dir 'my pets'"
    assert options.data_arguments(train_teacher.parse_args(["--teacher", "resnet18"])) == ""


def test_the_cache_is_on_unless_it_is_switched_off():
    for arguments, expected in (
        ([], "auto"),
        (["--cache", "off"], None),
        (["--cache", "elsewhere"], "elsewhere"),
    ):
        assert train_teacher.parse_args(["--teacher", "resnet18", *arguments]).cache == expected


def test_every_choice_of_precision_can_be_picked():
    for choice in options.PRECISIONS:
        assert hardware.pick_precision(choice, torch.device("cpu"), torch.nn.Linear(1, 1)).is_floating_point


def test_the_published_recipes_fit_their_scripts():
    stages = ("train_teacher", "train_student", "train_pruning", "train_quantization")
    needed = {"train_teacher": ["--teacher", "x"], "train_student": ["--teacher", "x", "--student", "y"]}
    for stage in stages:
        parse = importlib.import_module(stage).parse_args
        args = parse(
            [*needed.get(stage, ["--weights", "x"]), "--config", str(REPOSITORY / "configs/survey.yaml")]
        )
        assert (args.optimizer, args.schedule, args.lr, args.epochs) == ("adam", "step", 0.001, 100)
    for path in sorted((REPOSITORY / "configs").glob("pet37_mini_*.yaml")):
        stage = path.read_text().split()[2].removesuffix(".py")  # its first line is the command
        importlib.import_module(stage).parse_args(["--config", str(path)])


def test_only_compress_takes_several_image_sizes(capsys, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("image-size: 96\n")
    for given, expected in (
        ([], None),
        (["--image-size", "160"], [160]),
        (["--image-size", "224", "160", "128"], [224, 160, 128]),
        (["--config", str(config)], [96]),
    ):
        assert compress.parse_args(["--weights", "x", "--target-ram", "0.5", *given]).image_size == expected
    with pytest.raises(SystemExit):
        train_teacher.parse_args(["--teacher", "x", "--image-size", "224", "160"])
    assert "unrecognized arguments: 160" in capsys.readouterr().err


def test_training_and_distillation_get_their_own_options():
    args = train_student.parse_args(
        ["--teacher", "a", "--student", "b", "--lr", "0.1", "--optimizer", "sgd", "--seed", "3", "--mixup"]
    )
    assert options.fit_options(args) == {
        "lr": 0.1,
        "weight_decay": 0.05,
        "optimizer": "sgd",
        "schedule": "cosine",
        "seed": 3,
        "crops": None,
    }
    teacher_options.settle(args, "kd", 37)
    assert teacher_options.distillation_options(args) == {
        "temperature": 1.0,
        "alpha": 0.5,
        "distillation": "dist",
        "standardize_logits": False,
        "keep_logits": False,
    }
    assert args.mixup


def test_only_the_second_distillation_of_a_search_is_kd(monkeypatch):
    seen = []
    monkeypatch.setattr(train_student, "main", seen.append)
    args = compress.parse_args(["--weights", "a", "--target-size", "0.5"])
    for alpha in (args.alpha, 0.3):
        compress.stages(args).distill("resnet18", 64, 3, "teacher.pt", alpha)
    for classes, first in ((37, ("dist", 1.0, 0.5)), (2, ("kd", 3.0, 0.9))):
        settled = [copy.copy(each) for each in seen]
        for each in settled:
            teacher_options.settle(each, "kd", classes)
        settings = [(each.distillation, each.temperature, each.alpha) for each in settled]
        assert settings == [first, ("kd", 3.0, 0.3)]


@pytest.mark.parametrize(
    ("stage", "classes", "given", "expected"),
    [
        ("kd", 3, [], ("dist", 1.0, 0.5)),
        ("kd", 2, [], ("kd", 3.0, 0.9)),
        ("kd", 2, ["--alpha", "0.4"], ("kd", 3.0, 0.4)),
        ("kd", 3, ["--distillation", "kd"], ("kd", 3.0, 0.9)),
        ("pruned", 3, [], ("kd", 3.0, 0.9)),
        ("quantized", 2, ["--distillation", "dist"], ("dist", 1.0, 0.5)),
    ],
)
def test_the_default_loss_depends_on_the_stage_and_on_the_number_of_classes(stage, classes, given, expected):
    args = train_student.parse_args(["--teacher", "a", "--student", "b", *given])
    teacher_options.settle(args, stage, classes)
    assert (args.distillation, args.temperature, args.alpha) == expected


@pytest.mark.parametrize(
    ("classes", "given", "note"),
    [
        (2, [], ""),
        (2, ["--distillation", "kd"], ""),
        (3, ["--distillation", "dist", "--standardize-logits"], ""),
        (2, ["--distillation", "dist"], "note: with two classes, only the relations between the images of a"),
        (3, ["--distillation", "dist", "--batch-size", "2"], "note: with batches of two images, only the"),
    ],
)
def test_a_loss_that_loses_half_of_its_gradient_says_so(capsys, classes, given, note):
    args = train_student.parse_args(["--teacher", "a", "--student", "b", *given])
    teacher_options.check(args, classes)
    out = capsys.readouterr().out
    assert out.startswith(note) and out.count("\n") == bool(note)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--standardize-logits"], "--standardize-logits cannot be used with two classes"),
        (
            ["--distillation", "dist", "--batch-size", "2"],
            "dist has no gradient with two classes and batches",
        ),
    ],
)
def test_a_loss_without_any_gradient_is_refused(given, message):
    args = train_student.parse_args(["--teacher", "a", "--student", "b", *given])
    with pytest.raises(UserError, match=message):
        teacher_options.check(args, 2)
