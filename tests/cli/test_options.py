import importlib

import pytest
import torch

import compress
import train_student
import train_teacher
from common.cli import options, teacher_options
from common.system import hardware
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
    }
    assert teacher_options.distillation_options(args) == {
        "temperature": 1.0,
        "alpha": 0.5,
        "distillation": "dist",
        "standardize_logits": False,
        "mixup": True,
    }


def test_only_the_second_distillation_of_a_search_is_kd(monkeypatch):
    seen = []
    monkeypatch.setattr(train_student, "main", seen.append)
    args = compress.parse_args(["--weights", "a", "--target-size", "0.5"])
    for alpha in (args.alpha, 0.3):
        compress.stages(args).distill("resnet18", 64, 3, "teacher.pt", alpha)
    settings = [(each.distillation, each.temperature, each.alpha) for each in seen]
    assert settings == [("dist", 1.0, 0.5), ("kd", 3.0, 0.3)]
