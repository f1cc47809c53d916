"""Two processes (gloo) train like one, and fail with one message."""

import contextlib
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
from common.training import loop
from tests import processes
from tests.conftest import REPOSITORY, write_images

pytestmark = pytest.mark.usefixtures("shallow_networks")

CPU = torch.device("cpu")
STAGES = {
    "train_teacher": ["--teacher", "mobilenet_v2", "--pretrained", "none"],
    "train_student": ["--teacher", "TEACHER", "--student", "squeezenet1_1", "--pretrained", "none"],
    "train_pruning": ["--weights", "TEACHER", "--pruning-steps", 2],
    "train_quantization": ["--weights", "TEACHER", "--target-device", "server"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with 51 training images in `images`, and an untrained teacher in `teacher`."""
    folder = tmp_path_factory.mktemp("distributed")
    write_images(folder / "images", train=17, test=5)
    options = arguments("train_teacher", folder, "teacher", "--teacher", "squeezenet1_1", "--epochs", 0)
    processes.run_with_kills("train_teacher", options, folder / "teacher.log")
    return folder


def arguments(script, folder, output, *more):
    teacher = next((folder / "teacher").glob("teacher*.pt"), None)
    options = [teacher if option == "TEACHER" else option for option in STAGES[script]]
    # 41 training images: the last batch has 9, of which one process gets 5 and the other 4
    return [*options, "--dataset", "folder", "--data-dir", folder / "images",
            "--output-dir", folder / output, "--image-size", 32, "--batch-size", 16, "--lr", 0.001,
            "--workers", 0, "--epochs", 2, "--cache", folder / "cache", *more]  # fmt: skip


def saved(folder, output):
    (path,) = [path for path in (folder / output).glob("*.pt") if not path.name.startswith(".")]
    return checkpoint.load(path)


def steps(log, *ranks):
    return [[json.loads(line) for line in log.with_suffix(f".steps{rank}").read_text().splitlines()]
            for rank in ranks]  # fmt: skip


@pytest.fixture(scope="module")
def log_of_two(folder):
    """log_of_two(script): the log of two processes that run it to its end, once for all tests."""

    @functools.cache
    def run(script):
        log = folder / f"{script}2.log"
        pair = processes.start_two(script, arguments(script, folder, f"{script}2"), log)
        for process in pair:
            process.join()
        assert [process.exitcode for process in pair] == [0, 0], log.read_text()
        return log

    return run


@pytest.mark.parametrize("script", STAGES)
def test_two_processes_use_the_batches_of_one_and_get_its_score(folder, log_of_two, script):
    log = folder / f"{script}1.log"
    processes.run_with_kills(script, arguments(script, folder, f"{script}1"), log)
    (one,) = steps(log, "")
    log = log_of_two(script)
    first, second = steps(log, 0, 1)
    assert [size for size, _ in one] == [16, 16, 9] * 2
    assert [size + other for (size, _), (other, _) in zip(first, second, strict=True)] == [16, 16, 9] * 2
    assert [total for _, total in first] == [total for _, total in second] == [16, 16, 9] * 2

    text = log.read_text()
    assert text.count("saved") == 1 and text.count("test: ") + text.count("test, int8") == 1
    content = saved(folder, f"{script}2")
    splits = datasets.load_splits("folder", str(folder / "images"), 0.2)
    loaders = make_loaders(splits, content, batch_size=4, seed=0)
    score = metrics.evaluate(checkpoint.rebuild(content), loaders.test, CPU)
    assert (score.n, score.top1) == (content["metrics"]["n"], content["metrics"]["top1"])
    assert score.loss == pytest.approx(content["metrics"]["loss"], rel=1e-4)


def test_when_one_process_is_killed_the_other_stops_with_one_message_and_both_resume(folder, log_of_two):
    """The final weights are those of two processes that were not interrupted."""
    log_of_two("train_teacher")
    options = arguments("train_teacher", folder, "killed")
    log = folder / "killed.log"
    pair = processes.start_two("train_teacher", options, log)
    while not list((folder / "killed").glob("teacher*.resume")):
        assert pair[1].is_alive(), log.read_text()
        time.sleep(0.01)
    pair[1].kill()
    for process in pair:
        process.join()
    assert pair[0].exitcode == 2
    assert log.read_text().count("error:") == 1 and "Traceback" not in log.read_text()
    assert "another process has ended; the same command with --resume continues" in log.read_text()

    pair = processes.start_two("train_teacher", [*options, "--resume"], log)
    for process in pair:
        process.join()
    assert [process.exitcode for process in pair] == [0, 0], log.read_text()
    assert "resumes" in log.read_text() and not list((folder / "killed").glob("*.resume"))
    one, other = (saved(folder, name)["state_dict"] for name in ("train_teacher2", "killed"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_an_error_of_one_process_ends_both(folder):
    log = folder / "unreadable.log"
    options = arguments("train_teacher", folder, "unreadable", "--epochs", 1, "--cache", "off")
    with unreadable(folder) as image:
        pair = processes.start_two("train_teacher", options, log)
        for process in pair:
            process.join()
    assert [process.exitcode for process in pair] == [2, 2]
    assert "Traceback" not in log.read_text() and log.read_text().count("cannot read the image") == 1
    assert f"train_teacher.py: error: cannot read the image {image}" in log.read_text()


@contextlib.contextmanager
def unreadable(folder):
    """Damages an image that only the second process reads: the first gets the first image of each batch."""
    image = sorted((folder / "images" / "test" / "cat").iterdir())[1]
    content = image.read_bytes()
    try:
        image.write_bytes(b"no image")
        yield image
    finally:
        image.write_bytes(content)


@pytest.mark.long  # the other tests set what torchrun sets
def test_torchrun_starts_a_stage_and_an_error_is_reported_once(folder):
    def torchrun(*more):
        # --standalone: on a free port
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        options = map(str, arguments("train_teacher", folder, "torchrun", *more))
        return subprocess.run(
            [*command, "train_teacher.py", *options], cwd=REPOSITORY, capture_output=True, text=True
        )

    result = torchrun("--epochs", 1)
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"saved .*teacher_mobilenet_v2_[01]\.\d{4}\.pt", result.stdout)) == 1
    with unreadable(folder) as image:
        result = torchrun("--epochs", 1, "--cache", "off", "--model-name", "second")
    assert result.returncode != 0
    assert result.stderr.count("train_teacher.py: error:") == 1
    assert f"train_teacher.py: error: cannot read the image {image}" in result.stderr


def _train_linear(images, weights, environment):
    os.environ.update(environment)
    torch.set_num_threads(1)
    if environment:
        distributed.start()
    torch.manual_seed(distributed.rank())  # all get the weights of the main process
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 3))
    view = {"image_size": 16, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    loaders = make_loaders(datasets.load_splits("folder", images, 0.2), view, 16, 1, workers=0)
    model, history = loop.fit(
        model, cross_entropy, loaders.train, loaders.val, epochs=2, lr=0.001, weight_decay=0.1, device=CPU,
        optimizer="sgd",
    )  # fmt: skip
    if distributed.is_main_process():
        torch.save({"weights": model[1].weight, "losses": [row["val_loss"] for row in history],
                    "train": [row["train_loss"] for row in history]}, weights)  # fmt: skip
    distributed.stop()


def test_without_batch_norm_two_processes_get_the_weights_of_one(folder, tmp_path):
    """Although the last batch has 9 images, 5 in one process and 4 in the other."""
    for name, meetings in (("one", [{}]), ("two", processes.meetings(2))):
        fixed = (str(folder / "images"), tmp_path / name)
        pool = [processes.CONTEXT.Process(target=_train_linear, args=(*fixed, each)) for each in meetings]
        for process in pool:
            process.start()
        for process in pool:
            process.join()
    one, two = (torch.load(tmp_path / name) for name in ("one", "two"))
    assert torch.allclose(one["weights"], two["weights"], atol=1e-6)
    assert one["losses"] == pytest.approx(two["losses"]) and one["train"] == pytest.approx(two["train"])


def test_processes_with_different_options_are_stopped(folder):
    log, meetings = folder / "different.log", processes.meetings(2)
    pair = [
        processes.start(
            "train_teacher", arguments("train_teacher", folder, "different", "--seed", seed), log, meeting
        )
        for seed, meeting in enumerate(meetings)
    ]
    for process in pair:
        process.join()
    assert [process.exitcode for process in pair] == [2, 2]
    message = "error: the processes differ in their options, images or checkpoints to start from"
    assert log.read_text().count(message) == 1


def _create_on(machine, folder, environment):
    os.environ.update(environment)
    distributed.start()
    with distributed.main_process_first():
        if not distributed.local_rank():
            time.sleep(int(machine))  # the second machine is the slower one
            (folder / machine).mkdir()
        exists = (folder / machine).exists()
    (folder / f"{machine}{distributed.local_rank()}{exists}").touch()
    distributed.stop()


def test_on_each_machine_the_other_processes_wait_for_what_the_first_creates(tmp_path):
    pool = []
    for rank, environment in enumerate(processes.meetings(6)):
        environment |= {"LOCAL_RANK": str(rank % 3)}
        target = (str(rank // 3), tmp_path, environment)
        pool.append(processes.CONTEXT.Process(target=_create_on, args=target))
        pool[-1].start()
    for process in pool:
        process.join()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["0", "00True", "01True", "02True", "1", "10True", "11True", "12True"]


def _create_once(folder, environment):
    os.environ.update(environment)
    distributed.start()
    with distributed.main_process_first():
        if not (folder / "shared").exists():
            time.sleep(1)  # one that does not wait for this comes to the same conclusion
            (folder / "shared").touch()
            (folder / f"created by {distributed.rank()}").touch()
        with (folder / "order").open("a") as file:
            file.write(f"{distributed.rank()}\n")
    distributed.stop()


@pytest.mark.parametrize("size", [1, 2])
def test_machines_that_share_a_disk_create_a_thing_once(tmp_path, size):
    """The main process comes first, then the first process of the other machine, then the rest."""
    pool = []
    for rank, environment in enumerate(processes.meetings(2 * size)):
        environment |= {"LOCAL_RANK": str(rank % size), "LOCAL_WORLD_SIZE": str(size)}
        pool.append(processes.CONTEXT.Process(target=_create_once, args=(tmp_path, environment)))
        pool[-1].start()
    for process in pool:
        process.join()
    assert [process.exitcode for process in pool] == [0] * len(pool)
    assert [path.name for path in tmp_path.glob("created by *")] == ["created by 0"]
    order = list(map(int, (tmp_path / "order").read_text().split()))
    assert order[:2] == [0, size] and sorted(order) == list(range(2 * size))


def test_the_processes_of_one_machine_are_counted(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert distributed.local_world_size() == 1  # the variable is left over: no group has been joined
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert distributed.local_world_size() == 4
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert distributed.local_world_size() == 1


def test_one_process_is_a_group_of_its_own():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main_process()) == (0, 1, True)
    model = torch.nn.Linear(2, 2)
    assert distributed.data_parallel(model, CPU) is model
    assert distributed.all_gather(3) == [3] and distributed.broadcast("x") == "x"
    assert distributed.is_first_to_fail()
    assert distributed.all_reduce(torch.ones(2)).tolist() == [1, 1]
