"""Two processes over gloo train as one does, and fail with one message."""

import functools
import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch

from common.compression.distillation import cross_entropy
from common.data import datasets
from common.data.loaders import make_loaders
from common.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from common.evaluation import metrics
from common.models import checkpoint
from common.system import distributed
from common.system.errors import UserError
from common.training import loop
from tests import processes
from tests.conftest import REPOSITORY, write_pictures

CPU = torch.device("cpu")
STAGES = {
    "train_teacher": ["--teacher", "resnet18", "--pretrained", "none"],
    "train_student": ["--teacher", "TEACHER", "--student", "squeezenet1_1", "--pretrained", "none"],
    "train_pruning": ["--weights", "TEACHER", "--pruning-steps", 2],
    "train_quantization": ["--weights", "TEACHER", "--target-device", "server"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with 51 training pictures in `pictures`, and an untrained teacher in `teacher`."""
    folder = tmp_path_factory.mktemp("distributed")
    write_pictures(folder / "pictures", train=17, test=5)
    options = arguments("train_teacher", folder, "teacher", "--teacher", "squeezenet1_1", "--epochs", 0)
    processes.run_with_kills("train_teacher", options, folder / "teacher.log")
    return folder


def arguments(script, folder, output, *more):
    teacher = next((folder / "teacher").glob("teacher*.pt"), None)
    options = [teacher if option == "TEACHER" else option for option in STAGES[script]]
    # 41 training pictures: the last batch has 9, of which one process gets 5 and the other 4
    return [*options, "--dataset", "folder", "--data-dir", folder / "pictures",
            "--output-dir", folder / output, "--image-size", 32, "--batch-size", 16, "--lr", 0.001,
            "--workers", 0, "--epochs", 2, "--cache", folder / "cache", *more]  # fmt: skip


def saved(folder, output):
    (path,) = [path for path in (folder / output).glob("*.pt") if not path.name.startswith(".")]
    return checkpoint.load(path)


def steps(log, *ranks):
    return [[json.loads(line) for line in log.with_suffix(f".steps{rank}").read_text().splitlines()]
            for rank in ranks]  # fmt: skip


@pytest.fixture(scope="module")
def run_by_two(place):
    """run_by_two(script): the log of two processes that run it whole, once for all tests."""

    @functools.cache
    def run(script):
        log = place / f"{script}2.log"
        pair = processes.start_two(script, arguments(script, place, f"{script}2"), log)
        for process in pair:
            process.join()
        assert [process.exitcode for process in pair] == [0, 0], log.read_text()
        return log

    return run


@pytest.mark.parametrize("script", STAGES)
def test_two_processes_take_the_steps_of_one_and_their_score_is_that_of_one(place, run_by_two, script):
    log = place / f"{script}1.log"
    processes.run_with_kills(script, arguments(script, place, f"{script}1"), log)
    (one,) = steps(log, "")
    log = run_by_two(script)
    first, second = steps(log, 0, 1)
    assert [here for here, _ in one] == [16, 16, 9] * 2
    assert [here + there for (here, _), (there, _) in zip(first, second, strict=True)] == [16, 16, 9] * 2
    assert [count for _, count in first] == [count for _, count in second] == [16, 16, 9] * 2

    text = log.read_text()
    assert text.count("saved") == 1 and text.count("test: ") + text.count("test, int8") == 1
    content = saved(place, f"{script}2")
    splits = datasets.load_splits("folder", str(place / "pictures"), 0.2)
    loaders = make_loaders(splits, content, batch_size=4, seed=0)
    score = metrics.evaluate(checkpoint.rebuild(content), loaders.test, CPU)
    assert (score.n, score.top1) == (content["metrics"]["n"], content["metrics"]["top1"])
    assert score.loss == pytest.approx(content["metrics"]["loss"], rel=1e-4)


def test_a_process_that_is_killed_ends_the_other_with_one_message_and_both_go_on(place, run_by_two):
    """The weights in the end are those of two processes that were not interrupted."""
    run_by_two("train_teacher")
    options = arguments("train_teacher", place, "killed")
    log = place / "killed.log"
    pair = processes.start_two("train_teacher", options, log)
    while not list((place / "killed").glob("teacher*.resume")):
        assert pair[1].is_alive(), log.read_text()
        time.sleep(0.01)
    pair[1].kill()
    for process in pair:
        process.join()
    assert pair[0].exitcode == 2
    assert log.read_text().count("error:") == 1 and "Traceback" not in log.read_text()
    assert "another process has ended; the same command with --resume goes on" in log.read_text()

    pair = processes.start_two("train_teacher", [*options, "--resume"], log)
    for process in pair:
        process.join()
    assert [process.exitcode for process in pair] == [0, 0], log.read_text()
    assert "resumes" in log.read_text() and not list((place / "killed").glob("*.resume"))
    one, other = (saved(place, name)["state_dict"] for name in ("train_teacher2", "killed"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_torchrun_starts_a_stage_and_a_failing_process_says_why_once(place):
    def torchrun(*more):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "train_teacher.py"]
        return subprocess.run(
            [*command, *map(str, arguments("train_teacher", place, "torchrun", *more))],
            cwd=REPOSITORY, capture_output=True, text=True,
        )  # fmt: skip

    result = torchrun("--epochs", 1)
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"saved .*teacher_resnet18_[01]\.\d{4}\.pt", result.stdout)) == 1
    # the first picture of each batch is the first process's: only the second finds this one
    picture = sorted((place / "pictures" / "test" / "cat").iterdir())[1]
    whole = picture.read_bytes()
    try:
        picture.write_bytes(b"no picture")
        result = torchrun("--epochs", 1, "--cache", "off", "--model-name", "second")
    finally:
        picture.write_bytes(whole)
    assert result.returncode != 0
    assert result.stderr.count("train_teacher.py: error:") == 1
    assert f"train_teacher.py: error: cannot read the picture {picture}" in result.stderr


def _train_linear(pictures, weights, environment):
    os.environ.update(environment)
    torch.set_num_threads(1)
    if environment:
        distributed.start()
    torch.manual_seed(distributed.rank())  # the first one's weights count
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3))
    view = {"image_size": 16, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    loaders = make_loaders(datasets.load_splits("folder", pictures, 0.2), view, 16, 1, workers=0)
    model, history = loop.fit(
        model, cross_entropy, loaders.train, loaders.val, epochs=2, lr=0.001, weight_decay=0.1, device=CPU,
        optimizer="sgd",
    )  # fmt: skip
    if distributed.is_main_process():
        torch.save({"weights": model[1].weight, "losses": [row["val_loss"] for row in history],
                    "train": [row["train_loss"] for row in history]}, weights)  # fmt: skip
    distributed.stop()


def test_without_batch_norm_two_processes_learn_what_one_learns(place, tmp_path):
    """Also from a last batch of 9 pictures, of which one process has 5 and the other 4."""
    for name, meetings in (("one", [{}]), ("two", processes.meetings(2))):
        fixed = (str(place / "pictures"), tmp_path / name)
        pool = [processes.CONTEXT.Process(target=_train_linear, args=(*fixed, each)) for each in meetings]
        for process in pool:
            process.start()
        for process in pool:
            process.join()
    one, two = (torch.load(tmp_path / name) for name in ("one", "two"))
    assert torch.allclose(one["weights"], two["weights"], atol=1e-6)
    assert one["losses"] == pytest.approx(two["losses"]) and one["train"] == pytest.approx(two["train"])


def test_processes_that_set_out_to_do_different_things_are_stopped(place):
    log, meetings = place / "different.log", processes.meetings(2)
    pair = [
        processes.start(
            "train_teacher", arguments("train_teacher", place, "different", "--seed", seed), log, meeting
        )
        for seed, meeting in enumerate(meetings)
    ]
    for process in pair:
        process.join()
    assert [process.exitcode for process in pair] == [2, 2]
    assert log.read_text().count("error: the processes have not the same options, pictures and files") == 1


def _make_on(node, folder, environment):
    os.environ.update(environment)
    distributed.start()
    with distributed.main_process_first():
        if not distributed.local_rank():
            time.sleep(int(node))  # the second machine is the slower one
            (folder / node).mkdir()
        there = (folder / node).exists()
    (folder / f"{node}{distributed.local_rank()}{there}").touch()
    distributed.stop()


def test_on_each_machine_one_process_makes_what_the_others_wait_for(tmp_path):
    pool = []
    for rank, environment in enumerate(processes.meetings(6)):
        environment |= {"LOCAL_RANK": str(rank % 3)}
        pool.append(processes.CONTEXT.Process(target=_make_on, args=(str(rank // 3), tmp_path, environment)))
        pool[-1].start()
    for process in pool:
        process.join()
    seen = sorted(path.name for path in tmp_path.iterdir())
    assert seen == ["0", "00True", "01True", "02True", "1", "10True", "11True", "12True"]


def test_one_process_is_its_own_group():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main_process()) == (0, 1, True)
    model = torch.nn.Linear(2, 2)
    assert distributed.data_parallel(model, CPU) is model
    assert (
        distributed.all_gather(3) == [3]
        and distributed.broadcast("x") == "x"
        and distributed.is_first_to_fail()
    )
    assert distributed.all_reduce(torch.ones(2)).tolist() == [1, 1]


def test_each_process_has_an_accelerator_of_its_own(monkeypatch):
    from common.cli import launch

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert launch.pick_device("auto") == launch.pick_device("cuda") == torch.device("cuda:1")
    assert launch.pick_device("cpu") == CPU
    with pytest.raises(UserError, match="--device cuda:0 is one device for 2 processes"):
        launch.pick_device("cuda:0")
