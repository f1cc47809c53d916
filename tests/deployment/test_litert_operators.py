"""Each operator of the tables, called with positional and keyword arguments, and as a method."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.deployment import litert, litert_model
from common.deployment.litert_file import BuiltinOperator, schema
from common.integer import from_fx
from tests.compression.networks import CLASSES, EMBEDDED, SIDE, quantized
from tests.deployment.contents import content_of


class Network(nn.Module):
    """A form between convolutions, or in the place of the head."""

    def __init__(self, form, head=None):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.BatchNorm2d(8))
        self.after = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.head = head or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.register_buffer("offset", torch.rand(1, 8, 1, 1))
        self.layer = form if isinstance(form, nn.Module) else None
        self.form = (lambda net, x: net.layer(x)) if self.layer else form
        for parameter in self.parameters():
            if parameter.ndim in (2, 4):
                nn.init.normal_(parameter, std=0.3)

    def forward(self, images):
        return self.head(self.after(self.form(self, self.stem(images))))


def difference_in_litert(model, folder) -> float:
    """How far the logits are from those of the int8 model, relative to what the image changes in them."""
    _, int8_model = quantized(model.eval(), EMBEDDED)
    content, images = content_of("x", model, int8_model, EMBEDDED), torch.randn(32, 3, SIDE, SIDE)
    with litert_model.export(content, int8_model, folder / "m.tflite") as exported:
        expected, actual = int8_model(images), exported(images)
    return float((actual - expected).norm() / (expected - expected.mean(0)).norm())


FORMS = {
    "x * parameter": lambda net, x: x * net.scale,
    "parameter * x": lambda net, x: net.scale * x,
    "x + buffer": lambda net, x: x + net.offset,
    "torch.add": lambda net, x: torch.add(x, x.sigmoid()),
    "max_pool2d keywords": lambda net, x: F.max_pool2d(input=x, kernel_size=3, stride=2, padding=1),
    "avg_pool2d": lambda net, x: F.avg_pool2d(x, 2, 2),
    "avg_pool2d keywords": lambda net, x: F.avg_pool2d(x, kernel_size=2, stride=2),
    "adaptive_avg_pool2d": lambda net, x: F.adaptive_avg_pool2d(input=x, output_size=(4, 2)),
    "ceil_mode, partial window": nn.AvgPool2d(3, 2, ceil_mode=True),
    "mean(3)": lambda net, x: x.mean(3, keepdim=True),
    "mean(dim=-2)": lambda net, x: x.mean(dim=-2, keepdim=True),
    "torch.mean": lambda net, x: x * torch.mean(x, dim=(-1, -2), keepdim=True),
    "x.sigmoid()": lambda net, x: x.sigmoid(),
    "sigmoid keywords": lambda net, x: torch.sigmoid(input=x),
    "x.relu()": lambda net, x: x.relu(),
    "relu keywords": lambda net, x: F.relu(x * net.scale, inplace=True),
    "hardsigmoid": lambda net, x: F.hardsigmoid(input=x),
    "hardswish": lambda net, x: F.hardswish(x),
    "leaky_relu": lambda net, x: F.leaky_relu(x, 0.2),
    "LeakyReLU": nn.LeakyReLU(0.2),
    "silu": lambda net, x: F.silu(input=x),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_a_form_computes_what_the_int8_model_does(form, tmp_path):
    assert difference_in_litert(Network(form), tmp_path) < 0.15


class Wide(nn.Module):
    """A head that takes the values of `form`, in which each channel is there twice."""

    def __init__(self, form):
        super().__init__()
        self.form, self.norm, self.last = form, nn.Conv2d(16, 8, 1), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.last(self.norm(self.form(x)).mean((2, 3)))


HEADS = {
    "convolution, Flatten": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, CLASSES, 1), nn.Flatten()
    ),
    "convolution, Identity": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, CLASSES, 1), nn.Flatten(1), nn.Dropout(), nn.Identity()
    ),
    "cat(dim=1)": lambda: Wide(lambda x: torch.cat([x, F.relu(x)], dim=1)),
    "cat": lambda: Wide(lambda x: torch.cat([x, x.sigmoid()], 1)),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=list(HEADS))
def test_a_head_computes_what_the_int8_model_does(head, tmp_path):
    assert difference_in_litert(Network(lambda net, x: x, head()), tmp_path) < 0.15


def test_a_mean_over_the_image_is_an_average_pooling():
    head = Wide(lambda x: torch.cat([x, x], 1))
    graph = from_fx.read(quantized(Network(nn.Identity(), head).eval(), EMBEDDED)[1], SIDE)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(litert.convert(graph, {}), 0))
    kinds = {code.builtinCode for code in model.operatorCodes}
    assert BuiltinOperator.AVERAGE_POOL_2D in kinds and BuiltinOperator.MEAN not in kinds
