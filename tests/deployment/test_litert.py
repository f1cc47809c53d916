"""LiteRT files: the same predictions as the int8 model, in the interpreter with both kinds of kernels."""

import random

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from torch import nn
from torch.nn import functional as F

from common.deployment import litert_model, predictor
from common.deployment.litert_file import LiteRtFile
from common.models import checkpoint
from common.system.errors import UserError
from tests.compression.networks import CLASSES, EMBEDDED, SERVER, SIDE, quantized, random_network
from tests.deployment.contents import content_of

pytestmark = pytest.mark.usefixtures("shallow_networks")


class Layers(nn.Module):
    """One operator of each kind, with paddings that LiteRT has and that it has not."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 8, (3, 1), stride=(2, 1), padding=(1, 0), groups=2)
        self.norm = nn.BatchNorm2d(16)
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1), nn.Hardsigmoid())
        self.activation, self.last = nn.Hardswish(), nn.Linear(16 * 3 * 3, CLASSES)
        with torch.no_grad():
            for parameter in self.norm.parameters():
                parameter.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, images):
        x = self.stem(images)
        x = F.relu(x + self.depthwise(x))
        x = torch.cat([F.max_pool2d(self.grouped(x), (1, 2)), F.avg_pool2d(x, 2)], 1)
        x = self.norm(F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True))
        x = self.activation(x * self.squeeze(x))
        return self.last(F.adaptive_avg_pool2d(x, 3).flatten(1))


def exported(model, folder, target=EMBEDDED, arch="resnet18"):
    """The int8 model and its LiteRT file, opened."""
    _, int8_model = quantized(model, target)
    with litert_model.export(content_of(arch, model, int8_model, target), int8_model, folder / "m.tflite"):
        pass
    return int8_model, litert_model.LiteRtModel(folder / "m.tflite")


def test_each_operator_computes_the_same_integers(tmp_path):
    torch.manual_seed(0)
    int8_model, model = exported(Layers().eval(), tmp_path)
    images = torch.randn(32, 3, SIDE, SIDE)
    expected, actual = int8_model(images), model(images)
    step = torch.unique(expected).diff().min()
    assert len(torch.unique(expected)) > 50
    assert (actual - expected).abs().max() < 2.5 * step
    assert ((actual - expected).abs() < 0.5 * step).double().mean() > 0.8
    alone = torch.cat([model(image[None]) for image in images])  # batches may have any size
    assert torch.equal(alone, actual)


@pytest.mark.parametrize("target", [EMBEDDED, SERVER], ids=["embedded", "server"])
@pytest.mark.parametrize("arch", ["mobilenet_v2", "squeezenet1_1"])
def test_a_network_has_the_same_logits_in_litert(arch, target, tmp_path):
    int8_model, model = exported(random_network(arch), tmp_path, target, arch)
    images = torch.randn(5, 3, SIDE, SIDE)
    expected, actual = int8_model(images), model(images)
    # with random weights a value that is rounded to the other neighbor changes more in each layer
    assert (actual - expected).norm() < 0.25 * expected.norm()


def test_the_file_is_int8_from_the_images_to_the_logits_and_no_larger_than_the_checkpoint(tmp_path):
    model = random_network("mobilenet_v2")
    int8_model, opened = exported(model, tmp_path, arch="mobilenet_v2")
    details = opened.interpreter.get_input_details() + opened.interpreter.get_output_details()
    assert [(each["name"], each["dtype"].__name__) for each in details] == [
        ("images", "int8"),
        ("logits", "int8"),
    ]
    content = content_of("mobilenet_v2", model, int8_model, EMBEDDED)
    saved = checkpoint.save(content, tmp_path).stat().st_size
    assert (tmp_path / "m.tflite").stat().st_size < 1.2 * saved
    assert opened.content["classes"] == content["classes"] and opened.content["image_size"] == SIDE
    assert opened.content["backend"] == "qnnpack" and opened.content["std"] == content["std"]


def test_equal_zero_points_are_written_once():
    file, channels = LiteRtFile(), 1000
    for name in ("a", "b"):
        file.constant(name, np.zeros(channels, np.int8), [0.5] * channels)
    numbers = 2 * channels * (1 + 4) + channels * 8  # int8 and float32 of each constant, int64 of both
    assert numbers < len(file.pack([], [], {})) < numbers + 1000


def test_kernels_without_xnnpack_read_the_file_too(tmp_path):
    torch.manual_seed(0)
    int8_model, _ = exported(Layers().eval(), tmp_path)
    interpreter = Interpreter(
        str(tmp_path / "m.tflite"),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    images = torch.randn(1, 3, SIDE, SIDE)
    scale, zero_point = given["quantization"]
    integers = (images.permute(0, 2, 3, 1) / scale).round() + zero_point
    interpreter.set_tensor(given["index"], integers.clamp(-128, 127).to(torch.int8).numpy())
    interpreter.invoke()
    logits = torch.from_numpy(interpreter.get_tensor(result["index"])).double()
    expected = int8_model(images) / result["quantization"][0] + result["quantization"][1]
    assert (logits - expected).abs().max() <= 3


def test_an_operator_without_a_form_in_litert_is_named(tmp_path):
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.LayerNorm(8)
            self.last = nn.Linear(8, CLASSES)

        def forward(self, images):
            return self.last(self.norm(self.conv(images).mean((2, 3))))

    with pytest.raises(UserError, match="norm, the operator LayerNorm, has no integer form"):
        exported(Norm(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_float_checkpoint_is_refused(tmp_path):
    model = random_network("squeezenet1_1")
    with (
        pytest.raises(UserError, match="only int8 checkpoints have a form in LiteRT"),
        litert_model.export(content_of("squeezenet1_1", model), model, tmp_path / "m.tflite"),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_refused_in_one_line(tmp_path):
    exported(Layers().eval(), tmp_path)
    content, path = (tmp_path / "m.tflite").read_bytes(), tmp_path / "damaged.tflite"
    generator = random.Random(0)
    files = [b"", b"TFL3", content[: len(content) // 2], generator.randbytes(1000)]
    for _ in range(100):
        file = bytearray(content)
        for _ in range(generator.choice([1, 8])):
            file[generator.randrange(len(file))] ^= 1 << generator.randrange(8)
        files.append(bytes(file))
    for damaged in files:
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"damaged\.tflite") as error:
            predictor.load(path, None, 1)
        assert "\n" not in str(error.value)
