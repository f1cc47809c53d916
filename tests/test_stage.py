import copy
import shutil

import pytest
import torch
from PIL import Image
from torch import nn

import train_pruning
from common.compression import layerwise, reconstruction
from common.compression.distillation import cross_entropy, kl_divergence
from common.compression.reconstruction import Fit
from common.evaluation.metrics import complexity, count_parameters
from common.models import checkpoint, lineage
from common.stage import Stage
from common.system import distributed, hardware
from common.system.errors import UserError
from common.training import batch_norm, loop

pytestmark = pytest.mark.usefixtures("shallow_networks")

ARCH, SIDE = "squeezenet1_1", 32


@pytest.fixture
def arguments(image_folder, tmp_path):
    """arguments(*options): the parsed command line of train_pruning.py on a few images."""

    def parse(*options):
        words = [
            "--model", ARCH, "--pretrained", "none", "--dataset", "folder", "--data-dir", image_folder,
            "--output-dir", tmp_path / "weights", "--image-size", SIDE, "--batch-size", 8, "--workers", 0,
            "--cache", "off", "--epochs", 3, *options,
        ]  # fmt: skip
        return train_pruning.parse_args([str(word) for word in words])

    return parse


@pytest.fixture
def new_stage(arguments):
    """new_stage(*options): a stage that starts from an architecture."""
    return lambda *options: Stage("pruned", arguments(*options), arch=ARCH)


@pytest.fixture
def teacher(new_stage):
    """The path of a saved checkpoint."""
    return saved(new_stage("--model-name", "guide"))


def saved(stage):
    """Saves the model of a stage as it is, and returns the path."""
    stage.begin(stage.model)
    return stage.save(
        stage.model, stage.test(stage.model), [], next_command="next_script.py --in {path.name}"
    )


def test_a_new_architecture_starts_a_chain(new_stage):
    stage = new_stage()
    assert (stage.num_classes, stage.image_size, stage.parent_path) == (3, SIDE, None)
    assert stage.classifier == "classifier.1" and stage.device == stage.cpu == torch.device("cpu")
    assert len(stage.splits.train) + len(stage.splits.val) == 24 and len(stage.splits.test) == 12


def test_a_checkpoint_is_continued(arguments, teacher):
    stage = Stage("pruned", arguments("--image-size", 48), parent=str(teacher))
    content = checkpoint.load(teacher)
    assert stage.parent_path == teacher and stage.image_size == 48  # that of the command line
    state = stage.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in content["state_dict"].items())
    assert stage.begin(stage.model) is None
    assert stage.row["parent"] == teacher.name and stage.row["parent_sha256"] == lineage.sha256(teacher)


def test_a_mistyped_architecture_is_refused(arguments):
    with pytest.raises(UserError, match="did you mean squeezenet1_1"):
        Stage("pruned", arguments(), arch="squeezenet1_2")


def test_the_loss_is_cross_entropy_without_a_teacher(new_stage):
    stage = new_stage()
    assert stage.loss_fn() is cross_entropy and stage.teacher_paths == []


@pytest.mark.parametrize("option", ["--standardize-logits", "--distillation=dist", "--crops=4"])
def test_an_option_of_distillation_without_a_teacher_is_refused(new_stage, option):
    with pytest.raises(UserError, match=f"{option.partition('=')[0]} needs --teacher"):
        new_stage(option).loss_fn()


def test_with_a_teacher_the_loss_is_that_of_distillation(new_stage, teacher):
    images, labels = torch.randn(4, 3, SIDE, SIDE), torch.tensor([0, 1, 2, 0])
    model = checkpoint.rebuild(checkpoint.load(teacher)).eval()
    stage = new_stage("--teacher", teacher, "--alpha", 0, "--distillation", "dist", "--standardize-logits")
    loss, logits = stage.loss_fn()(model, images, labels)
    assert torch.equal(logits, model(images))
    assert loss.item() == pytest.approx(cross_entropy(model, images, labels)[0].item(), abs=1e-6)
    # a model that is its own teacher loses nothing
    loss, _ = new_stage("--teacher", teacher, "--alpha", 1).loss_fn()(model, images, labels)
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert stage.teacher_paths == [teacher]
    stage.begin(stage.model)
    assert stage.row["teacher"] == [teacher.name]


def test_several_teachers_are_averaged_and_named_in_the_lineage(new_stage, teacher):
    other = saved(new_stage("--model-name", "other", "--seed", 1))
    images, labels = 100 * torch.randn(4, 3, SIDE, SIDE), torch.tensor([0, 1, 2, 0])
    stage = new_stage("--teacher", teacher, other, "--alpha", 1, "--temperature", 2, "--precision", "fp32")
    teachers = [checkpoint.rebuild(checkpoint.load(path)).eval() for path in (teacher, other)]
    student = stage.model.eval()
    loss, logits = stage.loss_fn()(student, images, labels)
    mean = (teachers[0](images) + teachers[1](images)) / 2
    assert loss.item() == pytest.approx(4 * kl_divergence(logits / 2, mean / 2).item(), rel=1e-4)
    stage.begin(stage.model)
    assert stage.row["teacher"] == [teacher.name, other.name]
    assert stage.row["teacher_sha256"] == [lineage.sha256(teacher), lineage.sha256(other)]


def test_mixup_needs_no_teacher(new_stage, monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "fit", lambda model, loss_fn, *args, **options: seen.append(loss_fn))
    for options in ([], ["--mixup"]):
        stage = new_stage(*options)
        stage.begin(stage.model)
        stage.fit(stage.model, stage.loss_fn())
    images, labels = torch.randn(4, 3, SIDE, SIDE), torch.tensor([0, 1, 2, 0])
    plain, mixed = (loss_fn(stage.model.eval(), images, labels)[1] for loss_fn in seen)
    assert torch.equal(plain, stage.model(images)) and not torch.equal(mixed, plain)


def test_begin_prints_what_is_trained_and_on_what(new_stage, capsys):
    stage = new_stage()
    assert stage.begin(stage.model) is None
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{ARCH}: {count_parameters(stage.model):,} parameters, ")
    assert first.endswith("test images of 3 classes") and second.startswith("cpu, ")
    assert stage.row["stage"] == "pruned" and stage.row["name"] == f"pruned_{ARCH}"


def test_the_budget_is_that_of_the_options(new_stage):
    stage = new_stage()
    stage.begin(stage.model)
    count = count_parameters(stage.model)
    assert (stage.budget(stage.model).kind, stage.budget(stage.model).limit) == (
        "parameters",
        round(count / 2),
    )
    stage = new_stage("--pruning-ratio", 0.3)
    stage.begin(stage.model)
    assert stage.budget(stage.model).limit == round(0.3 * count)
    stage = new_stage("--target-macs", 0.25)
    stage.begin(stage.model)
    budget = stage.budget(stage.model)
    assert (budget.kind, budget.limit) == ("macs", complexity(stage.model, SIDE)["macs"] / 4)


def test_validation_is_printed_and_there_may_be_none(new_stage, capsys):
    stage = new_stage()
    stage.begin(stage.model)
    top1 = stage.validate(stage.model, "before pruning")
    assert f"before pruning, on validation: top-1 {top1:.2%}" in capsys.readouterr().out
    stage = new_stage("--val-fraction", 0)
    stage.begin(stage.model)
    capsys.readouterr()
    assert stage.validate(stage.model, "before pruning") is None and capsys.readouterr().out == ""
    stage = new_stage("--val-fraction", 0, "--score", "val")
    with pytest.raises(UserError, match="needs validation images"):
        stage.begin(stage.model)


def test_training_has_the_options_of_the_command_line(new_stage, monkeypatch):
    stage, calls = new_stage("--lr", 0.25, "--optimizer", "sgd"), []
    stage.begin(stage.model)
    monkeypatch.setattr(loop, "fit", lambda *args, **options: calls.append((args, options)))
    stage.fit(stage.model, cross_entropy)
    stage.fit(stage.model, cross_entropy, 0, before_epoch=len)
    (args, options), (_, other) = calls
    assert args == (stage.model, cross_entropy, stage.loaders.train, stage.loaders.val)
    assert (options["epochs"], options["lr"], options["optimizer"]) == (3, 0.25, "sgd")
    assert options["progress"] is stage.progress and options["precision"] == stage.precision
    assert other["epochs"] == 0 and other["before_epoch"] is len


def test_the_saved_checkpoint_is_evaluated_and_the_next_command_finds_the_same_data(
    new_stage, image_folder, tmp_path, capsys
):
    path = saved(new_stage())
    content = checkpoint.load(path)
    assert path.parent == tmp_path / "weights" and path.name.startswith(f"pruned_{ARCH}_")
    assert content["metrics"]["n"] == 12 and content["metrics"]["split"] == "test"
    *_, test, line, command = capsys.readouterr().out.splitlines()
    assert test.startswith("test: top-1 ") and line == f"saved {path}"
    assert command == (
        f"next: python next_script.py --in {path.name} --dataset folder --data-dir {image_folder} "
        f"--output-dir {tmp_path / 'weights'}"
    )


def test_the_child_is_compared_with_its_parent(arguments, teacher, capsys):
    path = saved(Stage("pruned", arguments(), parent=str(teacher)))
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if " => " in line}
    assert list(lines) == ["top-1", "parameters", "MACs", "RAM,", "bytes"]
    assert checkpoint.load(path)["lineage"][-1]["parent"] == teacher.name


@pytest.fixture
def compared(arguments, image_folder, capsys):
    """compared(parent, *options): the top-1 in the line "before => after" of a child of `parent`."""

    def top1_of(parent, *options):
        capsys.readouterr()
        path = saved(Stage("pruned", arguments(*options), parent=str(parent)))
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  top-1")]
        before, arrow, after = line.split()[1:]
        assert arrow == "=>" and after == f"{checkpoint.load(path)['metrics']['top1']:.2%}"
        return before

    return top1_of


def test_top1_is_compared_where_the_images_and_their_size_are_the_same(compared, teacher, tmp_path):
    parent = checkpoint.load(teacher)
    top1 = f"{parent['metrics']['top1']:.2%}"
    assert parent["metrics"]["image_size"] == SIDE
    assert compared(teacher) == top1
    # copied elsewhere, the images are the same
    shutil.copytree(tmp_path / "images", tmp_path / "copy")
    assert compared(teacher, "--data-dir", str(tmp_path / "copy")) == top1
    # an image of training is not one of those that are compared
    recolor(tmp_path / "copy" / "train" / "cat" / "cat0.jpg")
    assert compared(teacher, "--data-dir", str(tmp_path / "copy")) == top1


def test_top1_is_not_compared_on_other_images_or_at_another_size(compared, teacher, tmp_path):
    assert compared(teacher, "--image-size", 48) == "-"
    recolor(tmp_path / "images" / "test" / "cat" / "cat0.jpg")
    assert compared(teacher) == "-"


def recolor(path):
    """Replaces an image by another one of the same name and size."""
    with Image.open(path) as image:
        side = image.size
    Image.new("RGB", side, "white").save(path)


def test_the_images_that_were_scored_are_stored(new_stage):
    stage = new_stage("--score", "val")
    path = saved(stage)
    stored = checkpoint.load(path)["metrics"]
    assert stored["images"] == stage.splits.fingerprint_of("val") != stage.splits.fingerprint_of("test")
    assert stored["image_size"] == SIDE


def test_only_the_main_process_saves(new_stage, tmp_path, monkeypatch, capsys):
    stage = new_stage()
    stage.begin(stage.model)
    score = stage.test(stage.model)
    capsys.readouterr()
    monkeypatch.setattr(distributed, "is_main_process", lambda: False)
    assert stage.save(stage.model, score, [], next_command="next_script.py") is None
    assert list((tmp_path / "weights").iterdir()) == [] and capsys.readouterr().out == ""


def test_a_finished_run_is_not_repeated(new_stage, capsys):
    path = saved(new_stage())
    stage = new_stage("--resume")
    assert stage.begin(stage.model) == path
    assert f"finished before: {path}" in capsys.readouterr().out
    stage = new_stage("--resume", "--seed", 5)
    assert stage.begin(stage.model) is None


@pytest.mark.parametrize("split", ["train", "test"])  # the accuracy is that of other images
def test_other_images_of_the_same_names_are_another_run(new_stage, tmp_path, capsys, split):
    path = saved(new_stage())
    recolor(tmp_path / "images" / split / "fox" / "fox1.jpg")
    stage = new_stage("--resume")
    assert stage.begin(stage.model) is None
    assert "finished before" not in capsys.readouterr().out and path.exists()


def test_a_finished_run_of_another_machine_needs_no_note(new_stage, monkeypatch, capsys):
    path = saved(new_stage())
    monkeypatch.setattr(hardware, "summary", lambda device, precision: "cuda:7, bfloat16")
    stage = new_stage("--resume")
    assert stage.begin(stage.model) == path
    assert "the run began with" not in capsys.readouterr().out


def test_batch_norm_is_recalibrated_on_the_device_of_the_stage(new_stage, monkeypatch):
    stage, devices = new_stage(), []
    stage.begin(stage.model)

    def update_bn(batches, model, device):
        devices.append(({parameter.device for parameter in model.parameters()}, device, len(batches)))

    monkeypatch.setattr(torch.optim.swa_utils, "update_bn", update_bn)
    stage.device = torch.device("meta")
    batch_norm.recalibrate(stage.model, stage.loaders.train, stage.device)
    assert devices == [({stage.device}, stage.device, len(stage.loaders.train))]


def test_batch_norm_gets_the_statistics_of_the_training_images(new_stage):
    stage = new_stage()
    stage.begin(stage.model)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    batch_norm.recalibrate(model, stage.loaders.train, stage.device)
    means = torch.stack([images.mean((0, 2, 3)) for images, _ in stage.loaders.train.at(0)])
    assert torch.allclose(model[0].running_mean, means.mean(0), atol=1e-5)


def test_a_network_is_reconstructed_on_some_batches_of_training(new_stage, monkeypatch, capsys):
    stage, calls = new_stage("--calibration-batches", 2), []
    stage.begin(stage.model)

    def least_squares(*arguments):
        calls.append([arguments[:3], len(list(arguments[3])), arguments[4]])
        return [Fit("one", 0.5, 0.25), Fit("two", 0.3, 0.05)]

    monkeypatch.setattr(reconstruction, "least_squares", least_squares)
    stage.reconstruct("pruned", "original", {})
    assert calls == [[("pruned", "original", {}), 2, stage.device]]
    assert "2 layers: relative error of the outputs 0.400 => 0.150" in capsys.readouterr().out


def test_a_network_that_cannot_be_reconstructed_is_pruned_with_a_note(new_stage, monkeypatch, capsys):
    stage = new_stage()
    stage.begin(stage.model)
    model = copy.deepcopy(stage.model)
    capsys.readouterr()
    monkeypatch.setattr(layerwise.fx, "symbolic_trace", lambda model: model.missing)
    stage.reconstruct(model, stage.model, {})
    (note,) = capsys.readouterr().out.splitlines()
    assert note.startswith("note: pruned without reconstruction: SqueezeNet cannot be traced")
    assert all(torch.equal(value, stage.model.state_dict()[key]) for key, value in model.state_dict().items())
