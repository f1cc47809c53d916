"""Networks of a few layers, quantized."""

from dataclasses import fields

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from common.compression import int8_engines, quantization
from tests.compression.networks import CPU, EMBEDDED

SIDE = 16


class Net(nn.Module):
    """A convolution, what is tested, and its values as logits."""

    def __init__(self, middle):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.layer = middle if isinstance(middle, nn.Module) else nn.Identity()
        self.middle = (lambda net, x: net.layer(x)) if isinstance(middle, nn.Module) else middle
        self.conv, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.row = nn.Parameter(torch.rand(8) + 0.5)
        self.linear = nn.Linear(8, 6)

    def forward(self, images):
        return self.middle(self, self.stem(images)).flatten(1)


def prepared(model):
    """A network with random weights and fake quantization, calibrated, and the images for that."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    int8_engines.use(EMBEDDED, int8_engines.reference_engine(EMBEDDED))
    traced = quantization.trace(model.eval(), EMBEDDED, SIDE)
    images = torch.randn(8, 3, SIDE, SIDE)
    quantization.calibrate(traced, [(images, None)], CPU, 1)
    return traced, images


def int8(model):
    """The same in int8."""
    traced, images = prepared(model)
    return quantization.convert(traced), images


class NoQuantizedKernels(TorchDispatchMode):
    """Refuses each of torch's quantized kernels, and each tensor of a quantized dtype."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        values = result if isinstance(result, tuple | list) else (result,)
        if "quantized" in func.namespace or any(getattr(each, "is_quantized", False) for each in values):
            raise AssertionError(f"{func} was called")
        return result


def differences(expected, actual):
    """Names of operators and their attributes that differ between two graphs."""
    found = [] if expected.input == actual.input else ["input"]
    for one, other in zip(expected.operators, actual.operators, strict=True):
        found += [] if type(one) is type(other) else [one.output.name]
        for name in (each.name for each in fields(one)):
            pair = getattr(one, name), getattr(other, name)
            same = np.array_equal(*pair) if isinstance(pair[0], np.ndarray) else pair[0] == pair[1]
            found += [] if same else [f"{one.output.name}.{name}"]
    return found
