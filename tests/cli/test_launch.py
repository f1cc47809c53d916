"""How a script starts and ends: its device, Ctrl-C, other ways to start processes."""

import argparse
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from common.cli import launch
from common.system import distributed
from common.system.errors import UserError
from tests.conftest import REPOSITORY

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def hook(monkeypatch):
    """Restores what launch.run replaces in this process."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


def test_a_missing_device_is_named():
    assert launch.pick_device("cpu") == CPU
    with pytest.raises(UserError, match="--device cuda:99: this machine has"):
        launch.pick_device("cuda:99")


def test_each_process_has_an_accelerator_of_its_own(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert launch.pick_device("auto") == launch.pick_device("cuda") == torch.device("cuda:1")
    assert launch.pick_device("cpu") == CPU
    with pytest.raises(UserError, match="--device cuda:0 is one device for 2 processes"):
        launch.pick_device("cuda:0")


def test_a_script_that_is_no_stage_refuses_several_processes(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/export.py"])
    launch.require_single_process()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match=r"^export\.py is one process"):
        launch.require_single_process()


@pytest.mark.parametrize(("result", "code"), [(None, 0), ("a path", 0), (0, 0), (3, 3)])
def test_the_exit_code_is_the_number_that_main_returns(result, code):
    with pytest.raises(SystemExit) as stop:
        launch.run(lambda _: result, argparse.Namespace)
    assert stop.value.code == code


def test_a_user_error_is_one_line_and_exit_code_2(capsys, monkeypatch):
    def main(_):
        raise UserError("there is no\n  file x")

    monkeypatch.setattr(sys, "argv", ["/somewhere/export.py"])
    with pytest.raises(SystemExit) as stop:
        launch.run(main, argparse.Namespace)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "export.py: error: there is no file x\n"


def test_a_bug_keeps_its_traceback():
    def main(_):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        launch.run(main, argparse.Namespace)


def test_ctrl_c_is_one_line_and_exit_code_130_and_the_state_is_kept(image_folder, tmp_path):
    output = tmp_path / "weights"
    command = [sys.executable, "train_teacher.py", "--teacher", "squeezenet1_1", "--pretrained", "none",
               "--dataset", "folder", "--data-dir", image_folder, "--image-size", "32", "--epochs", "100000",
               "--workers", "1", "--output-dir", output, "--cache", tmp_path / "cache"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # a shell lets what it starts in the background ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        while "epoch 2/" not in process.stdout.readline():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)  # like a terminal: to the loader processes as well
        _, error = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert error.rstrip().endswith("train_teacher.py: interrupted; the same command with --resume continues")
    assert "Traceback" not in error
    assert [path.suffix for path in output.iterdir()] == [".resume"]


def test_ctrl_c_in_a_destructor_is_not_lost(capsys):
    """Python drops what a destructor raises: the loop would continue for ever."""

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


@pytest.mark.long  # test_loaders.py pickles what is sent to the processes
def test_a_stage_runs_where_processes_are_spawned_as_on_windows_and_macos(image_folder, tmp_path):
    program = tmp_path / "train_teacher.py"
    start = "import multiprocessing\n    multiprocessing.set_start_method('spawn')\n    launch.run("
    program.write_text(
        (REPOSITORY / "train_teacher.py").read_text().replace("    launch.run(", f"    {start}")
    )
    command = [sys.executable, program, "--teacher", "squeezenet1_1", "--pretrained", "none", "--epochs", "1",
               "--dataset", "folder", "--data-dir", image_folder, "--image-size", "32", "--workers", "1",
               "--output-dir", tmp_path / "weights", "--cache", "off", "--val-fraction", "0"]  # fmt: skip
    result = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "saved" in result.stdout and len(list((tmp_path / "weights").glob("*.pt"))) == 1


def test_waiting_threads_of_a_stage_leave_the_cores_to_others_unless_the_user_sets_it(monkeypatch):
    # only where a model is trained: what is timed has the machine to itself
    stage = {"resume": False}
    for given, options, expected in ((None, stage, "PASSIVE"), ("ACTIVE", stage, "ACTIVE"), (None, {}, None)):
        monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
        if given is None:
            monkeypatch.delenv("OMP_WAIT_POLICY")
        seen = []
        with pytest.raises(SystemExit):
            launch.run(
                lambda args, seen=seen: seen.append(os.environ.get("OMP_WAIT_POLICY")),
                lambda options=options: argparse.Namespace(**options),
            )
        assert seen == [expected]


def stopped(main, **options):
    """The exit code of `main` as a script with these options."""
    with pytest.raises(SystemExit) as stop:
        launch.run(main, lambda: argparse.Namespace(**options))
    return stop.value.code


def out_of_memory(_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\n  GPU 0 has 8 GiB.")


@pytest.mark.parametrize("options", [{}, {"resume": False}], ids=["script", "stage"])
def test_too_little_memory_is_one_line_with_advice_and_exit_code_2(capsys, monkeypatch, options):
    monkeypatch.setattr(sys, "argv", ["/somewhere/train_student.py"])
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert stopped(out_of_memory, **options) == 2
    error = capsys.readouterr().err
    assert error.startswith("train_student.py: error: the device has not enough memory; ")
    assert error.count("\n") == 1 and error.endswith("\n")
    assert "--batch-size" in error and "--image-size" in error and "--device cpu" in error
    assert ("--resume continues" in error) == ("resume" in options)


def test_another_runtime_error_keeps_its_traceback():
    def main(_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        launch.run(main, argparse.Namespace)


def printing(lines):
    """A command that prints so many lines."""
    program = (
        "import argparse, sys; from common.cli import launch\n"
        "def main(_):\n"
        f"    for line in range({lines}):\n"
        "        print(line)\n"
        "launch.run(main, argparse.Namespace)"
    )
    return [sys.executable, "-c", program]


def test_a_reader_that_ends_early_is_no_error():
    process = subprocess.Popen(
        printing(200_000), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline().strip() == b"0"
    process.stdout.close()  # as head -1 does
    assert process.stderr.read() == b"" and process.wait() == 141


def test_a_reader_that_has_ended_before_the_last_line_is_no_error():
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(printing(1), cwd=REPOSITORY, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (result.returncode, result.stderr) == (141, b"")


def test_a_script_prints_control_characters_visibly(capsys):
    assert stopped(lambda _: print("class \x1b[2J\x07 猫\tcat\nnext")) == 0
    assert capsys.readouterr().out == "class \\u001b[2J\\u0007 猫\tcat\nnext\n"


def test_an_error_shows_control_characters_visibly(capsys, monkeypatch):
    def main(_):
        raise UserError("there is no file \x1b]0;title\x07.jpg\u202e")

    monkeypatch.setattr(sys, "argv", ["/somewhere/export.py"])
    assert stopped(main) == 2
    assert capsys.readouterr().err == (
        "export.py: error: there is no file \\u001b]0;title\\u0007.jpg\\u202e\n"
    )
