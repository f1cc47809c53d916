"""Every error that a user can make: one line on stderr, exit code 2, and nothing new in the output folder."""

import os
import shutil

import pytest
import torch
import torchvision
from torch.ao.nn import intrinsic
from torch_pruning.pruner import function

from common import stage
from common.compression import int8_engines, int8_state, quantization
from common.compression.target_devices import TARGET_DEVICES
from common.deployment import qdq
from common.integer import from_fx
from common.models import architectures, checkpoint, lineage
from common.training import loop
from tests.conftest import write_images

pytestmark = pytest.mark.usefixtures("shallow_networks")

SIDE = 32
METRICS = {"top1": 0.5, "ci95": [0.4, 0.6], "n": 100, "params": 724_000, "macs": 1}


@pytest.fixture(scope="module")
def created(tmp_path_factory, shallow_networks):
    """A folder with an untrained squeezenet with the classes of `image_folder`, and its int8 form."""
    folder = tmp_path_factory.mktemp("created")
    model = architectures.build("squeezenet1_1", 3)
    new = lineage.new_checkpoint("squeezenet1_1", ["cat", "dog", "fox"], SIDE) | {"metrics": METRICS}
    teacher = {
        "stage": "teacher",
        "name": "teacher_squeezenet1_1",
        "state_dict": checkpoint.float_state(model),
    }
    checkpoint.save(new | teacher, folder)
    target = TARGET_DEVICES["embedded"]
    int8_engines.use(target)
    prepared = quantization.prepare(model, target, SIDE)
    quantization.calibrate(prepared, [(torch.randn(2, 3, SIDE, SIDE), None)], torch.device("cpu"), 1)
    int8 = {
        "stage": "quantized",
        "name": "quantized_squeezenet1_1",
        "state_dict": int8_state.extract(quantization.convert(prepared).int8),
        "int8": {"backend": target.backend, "float_shapes": architectures.shapes(model)},
    }
    checkpoint.save(new | int8, folder)
    return folder


@pytest.fixture
def weights(created, tmp_path):
    return shutil.copytree(created, tmp_path / "weights")


@pytest.fixture
def refused(run, image_folder, weights, brief_timing):
    """refused(script, *options): runs it on `image_folder` and gives the one line of its error."""

    def refuse(script, *options, dataset=("--dataset", "folder", "--data-dir", image_folder)):
        before = {path: path.read_bytes() for path in weights.rglob("*")}
        fixed = ("--output-dir", weights, "--image-size", SIDE, "--epochs", 1, "--workers", 0)
        result = run(script, *fixed, *dataset, *options)
        assert result.code == 2, result.out + result.err
        lines = [line for line in result.err.replace("\r", "\n").split("\n") if "error:" in line]
        assert len(lines) == 1 and result.err.rstrip().endswith(lines[0]) and "Traceback" not in result.err
        assert {path: path.read_bytes() for path in weights.rglob("*")} == before
        return lines[0]

    return refuse


STAGES = [
    ("train_student", ["--student", "squeezenet1_1", "--pretrained", "none", "--teacher"]),
    ("train_pruning", ["--weights"]),
    ("train_quantization", ["--weights"]),
]
TEACHER = ("train_teacher", "--pretrained", "none", "--teacher")


@pytest.mark.parametrize(("script", "options"), STAGES)
def test_a_missing_checkpoint_lists_the_existing_ones(refused, script, options):
    error = refused(script, *options, "resnet50_0.9160.pt")
    assert "no checkpoint 'resnet50_0.9160.pt'" in error and "teacher_squeezenet1_1_0.5000.pt" in error


@pytest.mark.parametrize(("script", "options"), STAGES)
def test_a_truncated_checkpoint_is_damaged(refused, weights, script, options):
    path = weights / "teacher_squeezenet1_1_0.5000.pt"
    path.write_bytes(path.read_bytes()[:9999])
    assert "is damaged" in refused(script, *options, "squeezenet1_1")


@pytest.mark.parametrize(("script", "options"), STAGES)
def test_an_int8_checkpoint_is_refused(refused, script, options):
    assert "is an int8 model, the end of a chain" in refused(script, *options, "quantized_squeezenet1_1")


@pytest.mark.parametrize(("script", "options"), STAGES)
def test_another_pickle_is_refused_and_not_executed(refused, tmp_path, script, options):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"format": 1, "state_dict": Hostile()}, tmp_path / "other.pt")
    assert "holds Python objects" in refused(script, *options, tmp_path / "other.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(("script", "options"), STAGES)
@pytest.mark.parametrize(
    ("classes", "message"),
    [("cat dog owl", "'owl' is only in the data set"), ("cat dog", "3 classes, not 2")],
)
def test_a_data_set_with_other_classes_is_refused(refused, tmp_path, script, options, classes, message):
    root = write_images(tmp_path / "other", classes.split())
    error = refused(script, *options, "squeezenet1_1", dataset=("--dataset", "folder", "--data-dir", root))
    assert message in error


@pytest.mark.parametrize("ratio", ["0", "1.5", "-0.4", "half", "nan"])
@pytest.mark.parametrize("option", ["--pruning-ratio", "--channel-ratio"])
def test_a_ratio_is_above_0_and_at_most_1(refused, option, ratio):
    assert option in refused("train_pruning", "--weights", "squeezenet1_1", f"{option}={ratio}")


def test_a_pruning_target_out_of_reach_names_the_smallest_network(refused):
    assert "is the least" in refused(
        "train_pruning", "--weights", "squeezenet1_1", "--pruning-ratio", "0.001"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-size", "1KB"], "cannot be pruned to 1,000 bytes"),
        (["--target-size", "1KB", "--target-precision", "int8"], "1,000 bytes (int8): "),
        (["--target-macs", "1000"], "MACs is the least"),
        (["--target-latency", "1us"], "ms (fp32 ONNX Runtime 1."),
        (
            ["--target-latency", "300M"],
            "--target-latency in onnxruntime: '300M' is not a number with one of us",
        ),
        (
            ["--target-latency", "5ms", "--latency-in", "instructions:cortex-m7"],
            "in instructions:cortex-m7: '5ms' is not a number with one of K, M, G",
        ),
        (
            ["--target-latency", "0.5", "--latency-in", "instructions:cortex-m7"],
            "instructions:cortex-m7 counts int8 networks: --target-precision int8",
        ),
        (["--target-latency", "1ms", "--latency-in", "abacus"], "invalid choice: 'abacus'"),
        (["--target-ram", "1KB"], "cannot be pruned to 1,000 bytes of RAM (layer by layer): "),
        (
            ["--target-ram", "1KB", "--target-precision", "int8"],
            "1,000 bytes of RAM (int8, layer by layer): ",
        ),
        (["--target-ram", "1KB", "--ram-schedule", "rows"], "row by row with --ram-schedule camera"),
        (["--target-ram", "1KB", "--ram-schedule", "camera"], "(int8 in C, schedule camera): "),
        (["--target-macs", "1M", "--ram-schedule", "rows"], "--ram-schedule needs --target-ram"),
        (
            ["--target-ram", "9KB", "--ram-schedule", "rows", "--target-precision", "fp32"],
            "--ram-schedule rows is of C, which has no --target-precision fp32",
        ),
        (
            ["--target-latency", "5 parsecs"],
            "'5 parsecs' is not a number with one of us, ms, s, nor a fraction",
        ),
        (["--target-macs", "300M", "--pruning-ratio", "0.5"], "not allowed with"),
        (["--importance", "bn-scale"], "no layer of this network has such a score"),
        (["--importance", "luck"], "invalid choice: 'luck'"),
        (["--sensitivity", "s.png", "--val-fraction", "0"], "needs validation images"),
        (["--sensitivity", "nowhere/s.png"], "there is no folder nowhere"),
        (["--score", "val", "--val-fraction", "0"], "needs validation images"),
    ],
)
def test_a_target_that_is_not_possible_is_refused_before_anything_is_written(refused, options, message):
    assert message in refused("train_pruning", "--weights", "squeezenet1_1", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "squeezenet1_1"], "give one --target, "),
        (["--weights", "quantized_squeezenet1_1", "--target-size", "0.5"], "this needs a float checkpoint"),
        (["--weights", "squeezenet1_1", "--target-size", "5MB"], "nothing to do"),
        (["--weights", "squeezenet1_1", "--target-size", "0.5", "--student", "resnet_18"], "resnet18?"),
        (["--weights", "squeezenet1_1", "--target-size", "0.5", "--teacher", "none"], "no checkpoint 'none'"),
    ],
)
def test_options_of_compress_that_are_not_possible(refused, options, message):
    assert message in refused("compress", *options)


@pytest.mark.parametrize(("script", "options"), [*STAGES, (TEACHER[0], TEACHER[1:])])
def test_images_too_small_for_the_network(refused, script, options):
    name = "squeezenet1_1"
    assert "SqueezeNet does not accept images of 8 pixels" in refused(
        script, *options, name, "--image-size", 8
    )


def test_for_an_unknown_architecture_the_nearest_is_suggested(refused):
    assert "did you mean resnet18?" in refused(*TEACHER, "resnet_18")
    assert "did you mean mobilenet_v2?" in refused("train_pruning", "--model", "mobilenetv2")
    options = ("--teacher", "squeezenet1_1", "--student", "squeeznet1_1")
    assert "did you mean squeezenet1_1?" in refused("train_student", *options)


def test_a_network_that_cannot_be_traced_is_refused_before_the_images_are_read(refused, monkeypatch):
    def forward(self, images):
        return self.classifier(self.features(images if images.sum() > 0 else -images)).flatten(1)

    monkeypatch.setattr(torchvision.models.SqueezeNet, "forward", forward)
    monkeypatch.setattr(stage, "make_loaders", None)
    assert "SqueezeNet cannot be traced for quantization" in refused(
        "train_quantization", "--weights", "squeezenet1_1"
    )


def test_a_network_that_cannot_be_exported_is_refused_before_training(refused, monkeypatch):
    for layers in (from_fx.LAYERS, qdq.LAYERS):
        monkeypatch.delitem(layers, intrinsic.quantized.ConvReLU2d)
    monkeypatch.setattr(loop, "fit", lambda *_, **__: pytest.fail("trained"))
    error = refused("train_quantization", "--weights", "squeezenet1_1")
    assert "a quantized ConvReLU2d, cannot be written as ONNX" in error


def test_an_empty_split(refused):
    assert "the val split is empty" in refused(*TEACHER, "squeezenet1_1", "--val-fraction", "0.001")


def test_an_image_that_cannot_be_read_is_named(refused, image_folder):
    (image_folder / "test" / "fox" / "fox2.jpg").write_bytes(b"\xff\xd8 no image")
    assert "cannot read the image" in refused(*TEACHER, "squeezenet1_1")
    assert "fox2.jpg" in refused(*TEACHER, "squeezenet1_1", "--workers", 1)
    (image_folder / "train" / "cat" / "cat1.jpg").write_bytes(b"")
    error = refused(*TEACHER, "squeezenet1_1", "--cache", "off")
    assert "cannot read 2 images: " in error and "fox2.jpg: " in error and "cat1.jpg: " in error


@pytest.mark.parametrize("script", ["train_teacher", "train_student", "train_pruning", "train_quantization"])
def test_an_output_folder_that_cannot_be_written(refused, tmp_path, script):
    (tmp_path / "file").touch()
    options = dict([*STAGES, (TEACHER[0], TEACHER[1:])])[script]
    error = refused(script, *options, "squeezenet1_1", "--output-dir", tmp_path / "file" / "folder")
    assert "cannot write to --output-dir" in error


def test_weights_for_another_architecture(refused, tmp_path):
    torch.save(architectures.build("squeezenet1_1", 10).state_dict(), tmp_path / "w.pth")
    error = refused("train_teacher", "--teacher", "resnet18", "--pretrained", tmp_path / "w.pth")
    assert "does not fit resnet18" in error
    assert "there is no file" in refused(
        "train_teacher", "--teacher", "resnet18", "--pretrained", "nowhere.pth"
    )


def test_a_missing_data_set(refused, tmp_path):
    for dataset in (("--dataset", "folder"), ("--dataset", "folder", "--data-dir", tmp_path / "nowhere")):
        assert "--data-dir" in refused(*TEACHER, "squeezenet1_1", dataset=dataset)


def test_a_loss_that_teaches_nothing_with_two_classes(refused, tmp_path, weights):
    root = write_images(tmp_path / "two", ["cat", "dog"])
    two = {"dataset": ("--dataset", "folder", "--data-dir", root)}
    content = checkpoint.load(checkpoint.find("squeezenet1_1", weights))
    state = checkpoint.float_state(architectures.build("squeezenet1_1", 2))
    content |= {"name": "teacher_two", "classes": ["cat", "dog"], "state_dict": state}
    checkpoint.save(content, weights)
    student = ("train_student", "--student", "squeezenet1_1", "--pretrained", "none")
    for options in (
        (*student, "--teacher", "two"),
        ("train_pruning", "--weights", "two", "--teacher", "two"),
        ("train_quantization", "--weights", "two", "--teacher", "two"),
        ("compress", "--weights", "two", "--target-size", "0.5"),
    ):
        assert "cannot be used with two classes" in refused(*options, "--standardize-logits", **two)


def test_a_teacher_that_cannot_be_used(refused, weights):
    for script in ("train_pruning", "train_quantization"):
        options = (script, "--weights", "squeezenet1_1", "--teacher")
        assert "no checkpoint 'resnet50'" in refused(*options, "resnet50")
        assert "no checkpoint 'resnet50'" in refused(*options, "squeezenet1_1", "resnet50")  # the second
        assert "is an int8 model" in refused(*options, "quantized_squeezenet1_1")
    content = checkpoint.load(checkpoint.find("squeezenet1_1", weights))
    checkpoint.save(content | {"name": "swapped", "classes": ["dog", "cat", "fox"]}, weights)
    assert "in another order" in refused(
        "train_pruning", "--weights", "squeezenet1_1", "--teacher", "swapped"
    )


def test_results_that_cannot_be_written(run, weights):
    for option, file, expected in (
        ("--json", "r.txt", "must end in .json"),
        ("--plot", "r.jpg", "must end in .png or .svg"),
        ("--csv", "nowhere/r.csv", "there is no folder nowhere"),
    ):
        result = run("evaluate", "--output-dir", weights, option, file)
        assert result.code == 2 and expected in result.err and result.err.count("\n") == 1


def test_evaluating_a_missing_checkpoint(run, tmp_path):
    for arguments in ((), ("resnet50",)):
        result = run("evaluate", "--output-dir", tmp_path, *arguments)
        assert result.code == 2 and result.err.count("\n") == 1 and "checkpoint" in result.err


def test_a_pruned_network_that_cannot_be_rebuilt_is_refused_before_it_is_trained(refused, monkeypatch):
    monkeypatch.setattr(architectures, "_resize", lambda module, widths: None)
    monkeypatch.setattr(stage.Stage, "fit", lambda *_, **__: pytest.fail("it was trained"))
    options = ("--weights", "squeezenet1_1", "--importance", "lamp")
    assert "weights do not fit squeezenet1_1" in refused("train_pruning", *options)


def test_a_network_that_is_pruned_wrongly_is_refused_before_it_is_trained(refused, monkeypatch):
    right = function.ConvPruner.prune_in_channels

    def wrong(self, layer, indices):
        return right(self, layer, [(index + 1) % layer.in_channels for index in indices])

    monkeypatch.setattr(function.ConvPruner, "prune_in_channels", wrong)
    monkeypatch.setattr(stage.Stage, "fit", lambda *_, **__: pytest.fail("it was trained"))
    monkeypatch.setattr(stage.Stage, "reconstruct", lambda *_, **__: pytest.fail("it was reconstructed"))
    options = ("--weights", "squeezenet1_1", "--importance", "lamp")
    assert "cannot follow the channels of SqueezeNet: the logits differ by" in refused(
        "train_pruning", *options
    )
