import argparse
import importlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import train_pruning
import train_student
import train_teacher
from common.cli import launch, options
from common.system.errors import UserError
from tests.conftest import REPOSITORY

SCRIPTS = (
    "train_teacher",
    "train_student",
    "train_pruning",
    "train_quantization",
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
def test_help_imports_no_torch_and_leaves_no_trace(script, tmp_path):
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
    assert (args.epochs, args.lr, args.batch_size, args.image_size, args.teacher) == (
        3,
        0.01,
        8,
        64,
        "resnet50",
    )
    assert args.weight_decay == 0.05  # neither: the script's own default


def test_an_option_on_the_command_line_replaces_the_one_it_excludes(tmp_path):
    config = write(tmp_path / "c.yaml", "pruning-ratio: 0.3\nweights: kd_resnet18\n")
    args = train_pruning.parse_args(["--config", config, "--channel-ratio=0.4"])
    assert (args.pruning_ratio, args.channel_ratio, args.weights) == (None, 0.4, "kd_resnet18")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "unknown option 'epoch' - did you mean --epochs?"),
        ("epochs: many", "'many' is not a whole number"),
        ("dataset: cifar", "invalid choice: 'cifar'"),
        ("epochs: [1, 2]", "epochs needs one plain value"),
        ("- epochs", "must hold lines of the form"),
        ("epochs: {", "is not valid YAML"),
        ("config: other.yaml", "unknown option 'config'"),
    ],
)
def test_a_wrong_config_is_one_line(tmp_path, capsys, text, message):
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
        (train_teacher, ["--epochs", "1.5"], "is not a whole number"),
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
def test_a_wrong_value_is_one_line(capsys, script, arguments, message):
    arguments = arguments if script is train_pruning else ["--teacher", "resnet18", *arguments]
    assert message in refused(capsys, script.parse_args, *arguments)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("auto", "auto"), ("cpu", "cpu"), ("-1", "cpu"), ("0", "cuda:0"), ("3", "cuda:3"), ("cuda:1", "cuda:1")],
)
def test_device_names_old_and_new(text, expected):
    assert train_teacher.parse_args(["--teacher", "resnet18", "--device", text]).device == expected


def test_a_device_that_is_not_there_is_named():
    assert launch.pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="--device cuda:99: this machine has"):
        launch.pick_device("cuda:99")


def test_the_next_stage_is_told_where_the_data_is():
    args = train_teacher.parse_args(["--teacher", "resnet18", "--dataset", "folder", "--data-dir", "my pets"])
    assert options.data_arguments(args) == " --dataset folder --data-dir 'my pets'"
    assert options.data_arguments(train_teacher.parse_args(["--teacher", "resnet18"])) == ""


def test_a_bug_keeps_its_traceback():
    def main(_):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        launch.run(main, argparse.Namespace)


def test_ctrl_c_ends_in_one_line_and_130_with_the_state_kept(pictures, tmp_path):
    output = tmp_path / "weights"
    command = [sys.executable, "train_teacher.py", "--teacher", "squeezenet1_1", "--pretrained", "none",
               "--dataset", "folder", "--data-dir", pictures, "--image-size", "32", "--epochs", "100000",
               "--workers", "1", "--output-dir", output]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # a shell starts what runs in the background deaf to it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        while "epoch 2/" not in process.stdout.readline():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the loader processes as well
        _, error = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert error.rstrip().endswith("train_teacher.py: interrupted; the same command with --resume goes on")
    assert "Traceback" not in error
    assert [path.suffix for path in output.iterdir()] == [".resume"]


def test_ctrl_c_is_not_lost_in_a_destructor(capsys):
    """Python drops what a destructor raises: the loop would go on for ever."""

    class Pressed:
        def __del__(self):
            raise KeyboardInterrupt

    def main(_):
        Pressed()
        for _ in range(500):
            time.sleep(0.01)
        return 0

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stop:
            launch.run(main, argparse.Namespace)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stop.value.code == 130 and capsys.readouterr().err.endswith("interrupted; nothing was saved\n")


def test_a_stage_runs_where_processes_start_anew_as_on_windows_and_macos(pictures, tmp_path):
    program = tmp_path / "train_teacher.py"
    start = "import multiprocessing\n    multiprocessing.set_start_method('spawn')\n    launch.run("
    program.write_text(
        (REPOSITORY / "train_teacher.py").read_text().replace("    launch.run(", f"    {start}")
    )
    command = [sys.executable, program, "--teacher", "squeezenet1_1", "--pretrained", "none", "--epochs", "1",
               "--dataset", "folder", "--data-dir", pictures, "--image-size", "32", "--workers", "1",
               "--output-dir", tmp_path / "weights", "--cache", "off", "--val-fraction", "0"]  # fmt: skip
    result = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "saved" in result.stdout and len(list((tmp_path / "weights").glob("*.pt"))) == 1


def test_a_switch_in_a_config_is_true_or_false(tmp_path, capsys):
    given = ["--teacher", "a", "--student", "b", "--config"]
    for text, value in (("true", True), ("false", False)):
        config = write(tmp_path / "c.yaml", f"mixup: {text}\n")
        assert train_student.parse_args([*given, config]).mixup is value
    error = refused(capsys, train_student.parse_args, *given, write(tmp_path / "c.yaml", "mixup: 3\n"))
    assert "mixup is true or false, not 3" in error


def test_the_command_line_is_kept_as_it_was_typed(tmp_path, monkeypatch):
    config = write(tmp_path / "my config.yaml", "epochs: 7\n")
    monkeypatch.setattr(sys, "argv", ["/somewhere/train_teacher.py", "--teacher", "x", "--config", config])
    assert train_teacher.parse_args().command == f"python train_teacher.py --teacher x --config '{config}'"
    args = train_teacher.parse_args(["--teacher", "x", "--resume", "--lr", "1"])
    assert args.resume and args.command == "python train_teacher.py --teacher x --lr 1"


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


def test_threads_that_wait_leave_the_cores_to_others_unless_the_user_says_otherwise(monkeypatch):
    # only those that train: what is timed for a board has the machine to itself
    training = {"resume": False}
    for given, resume, expected in (
        (None, training, "PASSIVE"),
        ("ACTIVE", training, "ACTIVE"),
        (None, {}, None),
    ):
        monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
        if given is None:
            monkeypatch.delenv("OMP_WAIT_POLICY")
        seen = []
        with pytest.raises(SystemExit):
            launch.run(
                lambda args, seen=seen: seen.append(os.environ.get("OMP_WAIT_POLICY")),
                lambda resume=resume: argparse.Namespace(**resume),
            )
        assert seen == [expected]


def test_the_cache_is_on_unless_it_is_switched_off():
    for arguments, expected in (
        ([], options.CACHE),
        (["--cache", "off"], None),
        (["--cache", "elsewhere"], "elsewhere"),
    ):
        assert train_teacher.parse_args(["--teacher", "resnet18", *arguments]).cache == expected


def test_the_choices_of_precision_are_those_that_can_be_picked():
    from common.system import hardware

    for choice in options.PRECISIONS:
        assert hardware.pick_precision(choice, torch.device("cpu"), torch.nn.Linear(1, 1)).is_floating_point
