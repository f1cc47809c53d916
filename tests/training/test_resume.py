"""An interrupted run resumes, and ends with the weights of one that was not interrupted."""

import csv
import errno
import itertools
import math
import random
import re
import signal
import time

import pytest
import torch
from PIL import Image

from common.evaluation import results
from common.models import architectures, checkpoint
from common.system import distributed, files, hardware
from common.system.errors import UserError
from common.training import loop, resume
from tests import processes
from tests.conftest import write_images

SIDE = 32
STAGES = {
    "train_teacher": ["--teacher", "squeezenet1_1", "--pretrained", "none", "--epochs", 4],
    "train_student": ["--teacher", "teacher", "--student", "squeezenet1_1", "--pretrained", "none", "--mixup",
                      "--epochs", 3],
    "train_pruning": ["--weights", "teacher", "--teacher", "teacher", "--pruning-steps", 2, "--epochs", 4,
                      "--schedule", "step", "--optimizer", "sgd"],
    "train_quantization": ["--weights", "teacher", "--epochs", 2],
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The file of a trained teacher, and its images."""
    folder = tmp_path_factory.mktemp("resume")
    images = write_images(folder / "images")
    options = [*STAGES["train_teacher"], *data_options(images, folder)]
    processes.run_with_kills("train_teacher", options, folder / "log")
    return checkpoint.find("teacher", folder), images


def data_options(images, output):
    return ["--dataset", "folder", "--data-dir", images, "--output-dir", output, "--image-size", SIDE,
            "--batch-size", 8, "--lr", 0.001, "--seed", 3, "--val-fraction", 0.3, "--workers", 0,
            "--cache", images / "cache"]  # fmt: skip


@pytest.mark.parametrize("script", STAGES)
def test_a_stage_that_is_killed_several_times_ends_with_the_same_weights(
    teacher, tmp_path, script, pytestconfig
):
    path, images = teacher
    options = [path if option == "teacher" else option for option in STAGES[script]]

    def result(output):
        (file,) = visible(tmp_path / output, "*.pt")
        content = checkpoint.load(file)
        rows = [line.rpartition(",")[0] for line in file.with_suffix(".csv").read_text().splitlines()]
        return content["state_dict"], content["metrics"], content["lineage"][-1]["name"], rows

    start = time.monotonic()
    log = tmp_path / "log of the uninterrupted run"
    arguments = [*options, *data_options(images, tmp_path / "uninterrupted")]
    assert processes.run_with_kills(script, arguments, log) == 0
    seconds = time.monotonic() - start

    kills = pytestconfig.getoption("kills") or (5 if pytestconfig.getoption("long") else 2)
    log = tmp_path / "log of the killed runs"
    # first as soon as there is a state, then at random moments
    process = processes.start(script, [*options, *data_options(images, tmp_path / "1")], log)
    while not visible(tmp_path / "1", "*.resume"):
        assert process.is_alive(), log.read_text()
        time.sleep(0.01)
    process.kill()
    process.join()
    rng, killed, run = random.Random(0), 1, 0
    while not run or killed < kills:
        run += 1
        output = tmp_path / str(run)
        killed += processes.run_with_kills(
            script, [*options, *data_options(images, output)], log, kills - killed, seconds, rng
        )
        assert not visible(output, "*.resume")
        for one, other in zip(result("uninterrupted"), result(str(run)), strict=True):
            assert equal(one, other)
    assert "resumes" in log.read_text()


def visible(folder, pattern):
    """What users see: the name of a file that a killed process was writing begins with a dot."""
    return [path for path in folder.glob(pattern) if not path.name.startswith(".")]


def equal(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return torch.equal(one, other) if torch.is_tensor(one) else one == other


@pytest.fixture
def stage(run, image_folder, tmp_path, monkeypatch):
    """stage(*options, stop_at=None): trains a small teacher, and is interrupted at that step."""
    monkeypatch.setattr(resume, "MIN_INTERVAL", 0)
    monkeypatch.setattr(resume, "MAX_TIME_FRACTION", math.inf)

    def run_stage(*options, stop_at=None, error=KeyboardInterrupt):
        original, steps = loop._Training._step, itertools.count(1)

        def step(*arguments):
            if next(steps) == stop_at:
                raise error
            return original(*arguments)

        arguments = [*STAGES["train_teacher"], *data_options(image_folder, tmp_path / "w"), *options]
        with monkeypatch.context() as patch:
            patch.setattr(loop._Training, "_step", step)
            return run("train_teacher", *arguments)

    return run_stage


def states(tmp_path):
    return visible(tmp_path / "w", "*.resume")


def test_an_interrupted_run_names_resume_and_is_not_started_again_by_mistake(stage, tmp_path):
    result = stage(stop_at=5)
    assert result.code == 130
    assert result.err.endswith("interrupted; the same command with --resume continues\n")
    (state,) = states(tmp_path)
    before = state.read_bytes()
    again = stage()
    assert again.code == 2 and "resume it with --resume, or delete the file to start from" in again.err
    assert "interrupted (epochs done: 2)" in again.err  # 17 images in batches of 8 are two steps
    assert state.read_bytes() == before
    result = stage("--resume")
    assert result.code == 0 and f"resumes {state} (epochs done: 2)" in result.out
    assert "epoch 2/4" not in result.out and "epoch 3/4" in result.out and not states(tmp_path)


def test_with_nothing_to_resume_a_run_starts_and_lists_runs_with_other_options(stage, tmp_path):
    assert stage("--seed", 4, stop_at=5).code == 130
    (other,) = states(tmp_path)
    result = stage("--resume")
    assert result.code == 0 and "nothing to resume, the run starts from the beginning" in result.out
    assert f"note: {other} is of a run with other options" in result.out and states(tmp_path) == [other]


def test_the_learning_rate_may_be_changed_on_resuming_and_the_lineage_records_it(stage, tmp_path):
    assert stage("--epochs", 8, stop_at=5).code == 130
    result = stage("--epochs", 8, "--resume", "--lr", 0.0005)
    assert result.code == 0 and "note: the learning rate was 0.001 until here and is 0.0005" in result.out
    (path,) = visible(tmp_path / "w", "*.pt")
    row = checkpoint.load(path)["lineage"][-1]
    assert row["options"]["lr"] == 0.0005 and row["changes"] == [
        {"at": "epochs done: 2", "lr": [0.001, 0.0005]}
    ]
    with path.with_suffix(".csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert rates[1] > 0.00098 and rates[2] < 0.0005


def test_a_checkpoint_that_was_saved_before_the_interrupt_is_not_saved_twice(stage, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(results, "write_history", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert stage().code == 130
    (path,) = visible(tmp_path / "w", "*.pt")
    assert len(states(tmp_path)) == 1
    assert f"saved {path}" in stage("--resume").out
    assert visible(tmp_path / "w", "*.pt") == [path] and path.with_suffix(".csv").exists()
    assert not states(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [lambda text: text[:-500], lambda text: b"", lambda text: text[:9999] + text[9:9999] + text[19989:]],
)
def test_a_damaged_state_is_refused_with_advice(stage, tmp_path, damage):
    assert stage(stop_at=5).code == 130
    (state,) = states(tmp_path)
    state.write_bytes(damage(state.read_bytes()))
    for options in ((), ("--resume",)):
        result = stage(*options)
        assert result.code == 2 and result.err.count("\n") == 1
        assert "is damaged" in result.err and "; delete it to start from the beginning" in result.err


def test_a_state_without_a_checksum_or_of_another_version_is_refused(stage, tmp_path):
    assert stage(stop_at=5).code == 130
    (state,) = states(tmp_path)
    content = files.load_checked(state)
    torch.save(content, state)
    assert "it has no checksum; delete it" in stage("--resume").err
    files.save_checked(content | {"format": 9}, state)
    assert "was not written by this version; delete it" in stage("--resume").err


@pytest.mark.parametrize("module", ["common.training.resume", "common.models.checkpoint"])
def test_a_folder_that_becomes_read_only_ends_the_run_in_one_line_and_the_state_is_kept(
    stage, tmp_path, monkeypatch, module
):
    """At the second state, or at the checkpoint in the end; `--resume` continues once it can be written."""
    write, calls = files.save_checked, itertools.count(1)

    def save_checked(content, path):
        write(content, path)
        if module == "common.models.checkpoint" or next(calls) == 2:
            raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.save_checked", save_checked)
        result = stage()
    assert result.code == 2 and re.search(r"error: cannot write \S+: Read-only file system\n$", result.err)
    assert len(states(tmp_path)) == 1 and len(list((tmp_path / "w").iterdir())) == 1
    assert stage("--resume").code == 0 and not states(tmp_path)


ROW = {"stage": "kd", "name": "kd_resnet18", "split": "0123", "parent_sha256": None, "teacher_sha256": None,
       "pretrained_sha256": None}  # fmt: skip


def same_run(one, other):
    """Whether two rows, each given as (hashes, options), are those of the same run."""
    keys = [resume.run_key(ROW | hashes | {"options": options}) for hashes, options in (one, other)]
    return keys[0] == keys[1]


@pytest.mark.parametrize(
    ("option", "column"),
    [
        ("weights", "parent_sha256"),
        ("teacher", "parent_sha256"),  # of a student
        ("teacher", "teacher_sha256"),  # of pruning and quantization
        ("pretrained", "pretrained_sha256"),
    ],
)
def test_a_file_that_a_run_starts_from_counts_by_its_content_and_not_by_its_path(option, column):
    first = ({column: "aa"}, {option: "w/a.pt", "seed": 1})
    assert same_run(first, ({column: "aa"}, {option: "/home/w/a.pt", "seed": 1}))
    assert not same_run(first, ({column: "bb"}, {option: "w/a.pt", "seed": 1}))
    assert not same_run(first, ({column: "aa"}, {option: "w/a.pt", "seed": 2}))
    # without a hash the option is all that there is
    assert not same_run(({}, {option: "none"}), ({}, {option: "default"}))
    assert not same_run(first, ({}, {option: "w/a.pt", "seed": 1}))


def test_other_images_of_the_same_names_are_another_run():
    assert not same_run(({"split": "0123"}, {}), ({"split": "4567"}, {}))


@pytest.mark.parametrize(("split", "resumes"), [("test", True), ("train", False)])
def test_a_state_stays_usable_when_only_test_images_changed(stage, image_folder, tmp_path, split, resumes):
    assert stage(stop_at=5).code == 130
    for path in (image_folder / split / "fox").iterdir():
        Image.new("RGB", (40, 40), (*path.name.encode()[:2], 9)).save(path)
    result = stage("--resume")
    assert result.code == 0 and ("nothing to resume" not in result.out) == resumes
    assert len(states(tmp_path)) == (not resumes)  # that of the interrupted run


def test_processes_with_other_test_images_are_refused(tmp_path, monkeypatch):
    row = ROW | {"options": {"lr": 0.1}}
    images = iter(("0123", "4567"))
    monkeypatch.setattr(distributed, "all_gather", lambda value: [value, (value[0], next(images))])
    assert resume.open_run(tmp_path, row, resume=False, images="0123").finished is None
    with pytest.raises(UserError, match="the processes differ in their options, images or checkpoints"):
        resume.open_run(tmp_path, row, resume=False, images="0123")


def test_overwritten_pretrained_weights_are_another_run(stage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "initial.pth"
    options = ("--epochs", 0, "--resume", "--pretrained")

    def write(value):
        state = architectures.build("squeezenet1_1", 3).state_dict()
        state["features.0.bias"].fill_(value)
        torch.save(state, weights)

    write(1)
    assert "finished before" not in stage(*options, weights).out
    for spelling in (weights, "initial.pth", "w/../initial.pth"):
        assert "finished before" in stage(*options, spelling).out
    write(2)
    assert "finished before" not in stage(*options, weights).out
    biases = [
        checkpoint.load(path)["state_dict"]["features.0.bias"][0] for path in visible(tmp_path / "w", "*.pt")
    ]
    assert sorted(biases) == [1, 2]


def test_a_resumed_run_on_another_machine_prints_a_note(stage, tmp_path, monkeypatch):
    assert stage(stop_at=5).code == 130
    with monkeypatch.context() as patch:
        patch.setattr(hardware, "summary", lambda device, precision: "cuda:7, bfloat16")
        assert stage("--resume", stop_at=1).code == 130
        note = stage("--resume").out
    assert re.search(
        r"^note: the run began with cpu, .*; the rest has another precision or speed$", note, re.M
    )
    # the row says where it began
    (path,) = visible(tmp_path / "w", "*.pt")
    assert checkpoint.load(path)["lineage"][-1]["machine"].startswith("cpu, ")


def test_a_run_that_is_resumed_on_the_same_machine_prints_no_note(stage):
    assert stage(stop_at=5).code == 130
    assert "the run began with" not in stage("--resume").out


def _fill_the_disk(arguments, log):
    """Runs a stage until its state can no longer be written."""
    import resource  # not on Windows

    # in place of a full disk there is a limit on the size of a file: the state is really written up to there
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    keep = resume.Progress.keep

    def keep_and_fill_the_disk(self, state, **options):
        if state["epoch"] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
        keep(self, state, **options)

    resume.Progress.keep = keep_and_fill_the_disk
    processes.run("train_teacher", arguments, log, {})


def test_a_full_disk_ends_the_run_in_one_line_and_the_last_state_is_kept(image_folder, tmp_path):
    arguments = [*STAGES["train_teacher"], *data_options(image_folder, tmp_path / "w")]
    log = tmp_path / "log"
    process = processes.CONTEXT.Process(target=_fill_the_disk, args=(arguments, log))
    process.start()
    process.join()
    text = log.read_text()
    assert process.exitcode == 2 and "Traceback" not in text
    assert text.rstrip().rpartition("\n")[2].endswith(": File too large")
    (state,) = states(tmp_path)
    assert files.load_checked(state)["rounds"][0]["epoch"] == 1
    assert [path.name for path in (tmp_path / "w").iterdir()] == [state.name]
