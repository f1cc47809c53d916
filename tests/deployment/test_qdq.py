import copy
import functools

import pytest
import torch
from torch import nn
from torch.ao.nn import intrinsic
from torch.ao.nn import quantized as nnq
from torch.ao.quantization.fx import _lower_to_native_backend as lowering
from torch.ao.quantization.quantization_mappings import DEFAULT_FLOAT_TO_QUANTIZED_OPERATOR_MAPPINGS
from torch.nn import functional as F

from common.compression import int8_state, quantization
from common.deployment import onnx_model, qdq
from common.system.errors import UserError
from tests.compression.networks import CLASSES, EMBEDDED, SERVER, SIDE, prepared_for, quantized
from tests.deployment.contents import content_of

REPLACED = {nnq.Dropout, nnq.ELU, nnq.PReLU}  # before a network is traced
ONEDNN_ONLY = {intrinsic.quantized.LinearLeakyReLU, intrinsic.quantized.LinearTanh}
REFUSED = {
    nnq.ConvTranspose1d: lambda: in_one_dimension(nn.ConvTranspose1d(8, 8, 1)),
    nnq.ConvTranspose2d: lambda: nn.ConvTranspose2d(8, 8, 2, 2),
    nnq.ConvTranspose3d: lambda: in_three_dimensions(nn.ConvTranspose3d(8, 8, 1)),
    nnq.InstanceNorm1d: lambda: in_one_dimension(nn.InstanceNorm1d(8)),
    nnq.InstanceNorm2d: lambda: nn.InstanceNorm2d(8),
    nnq.InstanceNorm3d: lambda: in_three_dimensions(nn.InstanceNorm3d(8)),
    torch.ops.quantized.instance_norm: lambda: Function(F.instance_norm),
}


def test_all_that_fx_quantization_creates_has_a_form_in_onnx_or_is_refused():
    fused = {quantized for _, quantized in lowering.STATIC_LOWER_FUSED_MODULE_MAP.values()}
    layers = {*lowering.STATIC_LOWER_MODULE_MAP.values(), *lowering.SPECIAL_PATTERN_LOWER_MODULE_MAP.values()}
    assert set(qdq.LAYERS) == (layers | fused) - REPLACED - ONEDNN_ONLY - set(REFUSED)
    operators = {*lowering.QBIN_OP_MAPPING.values(), *lowering.QBIN_RELU_OP_MAPPING.values()}
    operators |= set(DEFAULT_FLOAT_TO_QUANTIZED_OPERATOR_MAPPINGS.values())
    assert set(qdq.FUNCTIONS) == operators - set(REFUSED) | {torch.ops.quantized.cat}  # of earlier versions


@pytest.mark.parametrize("build", REFUSED.values(), ids=[str(each) for each in REFUSED])
def test_what_has_no_form_in_onnx_is_refused_before_training(build):
    model = Branches(branch=build()).eval()
    check = functools.partial(onnx_model.check, {"arch": "x", "image_size": SIDE})
    with pytest.raises(UserError, match=r"cannot be written as ONNX|cannot run in int8") as error:
        quantization.prepare(model, EMBEDDED, SIDE, check)
    assert "\n" not in str(error.value)


class EveryLayer(nn.Module):
    """Layers and operations with an int8 form, used as in densenet, convnext and efficientnet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU())
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(8)
        self.norm_relu = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())
        self.swish, self.silu = nn.Hardswish(), nn.SiLU()
        self.layer_norm = nn.LayerNorm(16)
        self.linear_relu = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
        self.classifier = nn.Linear(16, CLASSES)
        for norm in (self.norm, self.norm_relu[0], self.layer_norm):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.uniform_(norm.bias, -0.5, 1)

    def forward(self, images):
        values = self.norm_relu(self.norm(F.max_pool2d(self.stem(images), 2)))
        values = F.relu(values + self.conv(values)) + values
        values = torch.cat([self.swish(values), self.silu(values) * values], 1).permute(0, 2, 3, 1)
        values = F.layer_norm(self.layer_norm(values), (16,)).mean((1, 2))
        return self.classifier(self.linear_relu(values))


def test_a_network_of_many_layers_computes_the_same_in_onnx_runtime(tmp_path):
    model = EveryLayer()
    torch.optim.swa_utils.update_bn([torch.randn(64, 3, SIDE, SIDE)], model)
    _, int8_model = quantized(model, EMBEDDED)
    content = content_of("densenet121", model, int8_model, EMBEDDED)
    with onnx_model.export(content, int8_model, tmp_path / "m.onnx") as exported:
        images = torch.randn(64, 3, SIDE, SIDE)
        expected, actual = int8_model(images), exported(images)
    # a value that lies halfway between two integers can be rounded differently
    assert (actual - expected).norm() < 0.03 * expected.norm()
    assert (actual == expected).double().mean() > 0.8


def in_one_dimension(*layers):
    return nn.Sequential(nn.Flatten(2), *layers, nn.Unflatten(2, (4, 4)))


def in_three_dimensions(*layers):
    return nn.Sequential(nn.Unflatten(2, (2, 2)), *layers, nn.Flatten(2, 3))


class Branches(nn.Module):
    """One form in each branch, each on the same values; the logits are what all of them return."""

    def __init__(self, **branches):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 16, stride=16), nn.BatchNorm2d(8))
        self.branches = nn.ModuleDict(branches)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
            elif name.endswith("weight") and len(parameter) > 1:
                nn.init.uniform_(parameter, 0.5, 1.5)

    def forward(self, images):
        values = self.stem(images)
        return torch.cat([branch(values).flatten(1) for branch in self.branches.values()], 1)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


LAYERS = {
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "softmax": lambda: nn.Softmax(1),
    "elu": lambda: nn.ELU(0.7),
    "prelu": lambda: nn.PReLU(8),
    "conv1d": lambda: in_one_dimension(nn.Conv1d(8, 8, 3, padding=1)),
    "conv1d_norm_relu": lambda: in_one_dimension(nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU()),
    "reflect": lambda: nn.Conv2d(8, 8, 3, padding=(1, 2), padding_mode="reflect"),
    "reflect_norm": lambda: nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8), nn.ReLU()
    ),
    "batch_norm3d": lambda: in_three_dimensions(nn.BatchNorm3d(8)),
    "batch_norm3d_relu": lambda: in_three_dimensions(nn.BatchNorm3d(8), nn.ReLU()),
    "partial_window": lambda: nn.AvgPool2d(3, 2, ceil_mode=True),
}
FUNCTIONS = {
    "leaky_relu": lambda x: F.leaky_relu(x, negative_slope=0.2),
    "hardswish": F.hardswish,
    "elu": lambda x: F.elu(x, 0.5),
    "dropout": lambda x: F.dropout(x, 0.5, False),
    "mul_relu": lambda x: F.relu(x * x.flip(1)),
    "matmul": lambda x: torch.matmul(x, x),
    "add_scalar_relu": lambda x: F.relu(x + 0.5),
}
CONV3D = {  # qnnpack has none
    "conv3d": lambda: in_three_dimensions(nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0))),
    "conv3d_norm_relu": lambda: in_three_dimensions(nn.Conv3d(8, 8, 1), nn.BatchNorm3d(8), nn.ReLU()),
}


@pytest.mark.parametrize(
    ("target", "forms"),
    [
        (EMBEDDED, LAYERS),
        (
            EMBEDDED,
            {name: lambda function=function: Function(function) for name, function in FUNCTIONS.items()},
        ),
        (SERVER, CONV3D),
    ],
    ids=["layers", "functions", "conv3d"],
)
def test_each_form_computes_the_same_trained_converted_loaded_and_exported(target, forms, tmp_path):
    torch.manual_seed(0)
    model, images = (
        Branches(**{name: build() for name, build in forms.items()}),
        torch.randn(64, 3, SIDE, SIDE),
    )
    torch.optim.swa_utils.update_bn([images], model)
    prepared = prepared_for(target, model)
    converted = quantization.convert(prepared)
    loaded = quantization.skeleton(copy.deepcopy(model), target, SIDE)
    int8_state.load(loaded, int8_state.extract(converted.int8))
    content = content_of("x", model, converted.int8, target)
    with torch.inference_mode():
        expected = converted.int8(images)
        content["classes"] = [str(number) for number in range(expected.shape[1])]
        with onnx_model.export(content, converted.int8, tmp_path / "m.onnx") as exported:
            results = {"fake_quant": converted.fake_quant, "loaded": loaded, "ONNX": exported}
            results = {name: run(images) for name, run in results.items()}
    assert torch.equal(results["loaded"], expected)
    step = torch.unique(expected).diff().min()
    widths = [build(torch.zeros(1, 8, 4, 4)).numel() for build in model.eval().branches.values()]
    for place, result in results.items():
        for name, part, wanted in zip(forms, result.split(widths, 1), expected.split(widths, 1), strict=True):
            steps = (part - wanted).abs() / step
            # a value that lies halfway between two integers can be rounded differently
            assert (steps < 2.5).double().mean() > 0.99, (place, name, float(steps.max()))


def test_a_layer_that_is_called_twice_has_a_bias_for_each_scale_of_its_inputs(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.shared = nn.Conv2d(3, 8, 8, stride=8), nn.Conv2d(8, 8, 1)
            self.classifier = nn.Linear(8, CLASSES)

        def forward(self, images):
            return self.classifier(self.shared(self.shared(self.stem(images)) * 7.0).mean((2, 3)))

    torch.manual_seed(0)
    model, images = Twice(), torch.randn(64, 3, SIDE, SIDE)
    _, int8_model = quantized(model, EMBEDDED)
    content = content_of("x", model, int8_model, EMBEDDED)
    with onnx_model.export(content, int8_model, tmp_path / "m.onnx") as exported:
        expected, actual = int8_model(images), exported(images)
    step = torch.unique(expected).diff().min()
    assert len(torch.unique(expected)) > 20 and (actual - expected).abs().max() < 1.5 * step
