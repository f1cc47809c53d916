import argparse
import os
import subprocess
import sys

import pytest

import train_pruning
import train_student
import train_teacher
from common.cli import parser
from tests.conftest import REPOSITORY

SCRIPTS = (
    "train_teacher",
    "train_student",
    "train_pruning",
    "train_quantization",
    "compare_layers",
    "compress",
    "evaluate",
    "export",
    "predict",
)


def write(path, text):
    path.write_text(text)
    return str(path)


def refused(capsys, parse, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(list(arguments))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    return error


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_no_torch_and_writes_no_file(script, tmp_path):
    program = (
        f"import sys, {script}\n"
        f"try: {script}.parse_args(['--help'])\n"
        "except SystemExit: sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"python {script}.py" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_config_values_are_defaults_and_the_command_line_wins(tmp_path):
    config = write(
        tmp_path / "c.yaml", "epochs: 7\nlr: 0.01\nbatch_size: 8\nimage-size: 64\nteacher: resnet50\n"
    )
    args = train_teacher.parse_args(["--config", config, "--epochs", "3"])
    assert (args.epochs, args.lr, args.batch_size, args.image_size) == (3, 0.01, 8, 64)
    assert args.teacher == "resnet50"
    assert args.weight_decay == 0.05  # in neither of them: the default of the script


def test_an_option_on_the_command_line_replaces_the_one_it_excludes(tmp_path):
    config = write(tmp_path / "c.yaml", "pruning-ratio: 0.3\nweights: kd_resnet18\n")
    args = train_pruning.parse_args(["--config", config, "--channel-ratio=0.4"])
    assert (args.pruning_ratio, args.channel_ratio, args.weights) == (None, 0.4, "kd_resnet18")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "unknown option 'epoch' - did you mean --epochs?"),
        ("epochs: many", "'many' is not an integer"),
        ("dataset: cifar", "invalid choice: 'cifar'"),
        ("epochs: [1, 2]", "epochs needs one plain value"),
        ("- epochs", "must contain lines of the form"),
        ("epochs: {", "is not valid YAML"),
        ("config: other.yaml", "unknown option 'config'"),
    ],
)
def test_an_invalid_config_is_one_line(tmp_path, capsys, text, message):
    config = write(tmp_path / "c.yaml", text)
    assert message in refused(capsys, train_teacher.parse_args, "--teacher", "resnet18", "--config", config)


def test_a_missing_config_is_one_line(capsys):
    assert "cannot read --config" in refused(capsys, train_teacher.parse_args, "--config", "nowhere.yaml")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (train_teacher, ["--lr", "nan"], "must be above 0"),
        (train_teacher, ["--lr", "0"], "must be above 0"),
        (train_teacher, ["--epochs", "-1"], "must be at least 0"),
        (train_teacher, ["--epochs", "1.5"], "is not an integer"),
        (train_teacher, ["--val-fraction", "1"], "must be at least 0 and below 1"),
        (train_teacher, ["--device", "tpu"], "is not one of auto, cpu, cuda, cuda:N"),
        (train_teacher, ["--model-name", "a/b"], "letters, digits"),
        (train_teacher, ["--epoch", "1"], "unrecognized arguments: --epoch"),
        (train_pruning, ["--weights", "x", "--pruning-ratio", "0"], "must be above 0 and at most 1"),
        (train_pruning, ["--weights", "x", "--pruning-ratio", "1.01"], "must be above 0 and at most 1"),
        (train_pruning, ["--weights", "x", "--channel-ratio", "-0.5"], "must be above 0 and at most 1"),
        (
            train_pruning,
            ["--weights", "x", "--pruning-ratio", "0.5", "--channel-ratio", "0.5"],
            "not allowed with",
        ),
        (train_pruning, [], "one of the arguments --weights --model is required"),
    ],
)
def test_an_invalid_value_is_one_line(capsys, script, arguments, message):
    arguments = arguments if script is train_pruning else ["--teacher", "resnet18", *arguments]
    assert message in refused(capsys, script.parse_args, *arguments)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("auto", "auto"), ("cpu", "cpu"), ("-1", "cpu"), ("0", "cuda:0"), ("3", "cuda:3"), ("cuda:1", "cuda:1")],
)
def test_device_names_of_this_and_of_older_tools(text, expected):
    assert train_teacher.parse_args(["--teacher", "resnet18", "--device", text]).device == expected


def test_an_option_of_several_values_is_a_list_in_a_config(tmp_path, capsys):
    given = ["--student", "b", "--config"]
    for text, teachers in (("a", ["a"]), ("[a, 2]", ["a", "2"])):
        config = write(tmp_path / "c.yaml", f"teacher: {text}\nepochs: 3\n")
        assert train_student.parse_args([*given, config]).teacher == teachers
        assert train_student.parse_args([*given, config, "--teacher", "c", "d"]).teacher == ["c", "d"]
    for text, message in (("[a, [b]]", "teacher needs plain values"), ("[]", "at least one argument")):
        config = write(tmp_path / "c.yaml", f"teacher: {text}\n")
        assert message in refused(capsys, train_student.parse_args, *given, config)


def test_a_switch_in_a_config_is_true_or_false(tmp_path, capsys):
    given = ["--teacher", "a", "--student", "b", "--config"]
    for text, value in (("true", True), ("false", False)):
        config = write(tmp_path / "c.yaml", f"mixup: {text}\n")
        assert train_student.parse_args([*given, config]).mixup is value
    error = refused(capsys, train_student.parse_args, *given, write(tmp_path / "c.yaml", "mixup: 3\n"))
    assert "mixup is true or false, not 3" in error


def test_the_command_line_is_stored_as_it_was_typed(tmp_path, monkeypatch):
    config = write(tmp_path / "my config.yaml", "epochs: 7\n")
    monkeypatch.setattr(sys, "argv", ["/somewhere/train_teacher.py", "--teacher", "x", "--config", config])
    assert train_teacher.parse_args().command == f"python train_teacher.py --teacher x --config '{config}'"
    args = train_teacher.parse_args(["--teacher", "x", "--resume", "--lr", "1"])
    assert args.resume and args.command == "python train_teacher.py --teacher x --lr 1"


def test_a_file_to_write_needs_its_suffix_and_its_folder(tmp_path):
    accept = parser.new_file(".png", ".svg")
    assert accept(str(tmp_path / "x.PNG")) == str(tmp_path / "x.PNG")
    with pytest.raises(argparse.ArgumentTypeError, match=r"x\.pdf must end in \.png or \.svg"):
        accept("x.pdf")
    with pytest.raises(argparse.ArgumentTypeError, match=r"there is no folder .*nowhere"):
        accept(str(tmp_path / "nowhere" / "x.png"))


@pytest.mark.parametrize("text", ["2MB", "0.5", "300 kb"])
def test_an_amount_stays_the_text_that_was_typed(text):
    assert parser.amount("size")(text) == text
    with pytest.raises(argparse.ArgumentTypeError, match="'5ms' is not a number with one of B, KB"):
        parser.amount("size")("5ms")
