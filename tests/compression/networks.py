"""Networks for the tests of compression: with random weights, pruned, quantized."""

import copy
import functools
import itertools

import pytest
import torch
from torch import nn

from common.compression import int8_engines, pruning, quantization
from common.compression.target_devices import TARGET_DEVICES, TargetDevice
from common.models import architectures

CPU = torch.device("cpu")
CLASSES, SIDE = 5, 64
SERVER, EMBEDDED = TARGET_DEVICES["server"], TARGET_DEVICES["embedded"]
SYMMETRIC = TARGET_DEVICES["symmetric"]
each_target = pytest.mark.parametrize("target", [SERVER, EMBEDDED], ids=["server", "embedded"])


def random_network(arch: str) -> nn.Module:
    """A network with random weights whose batch-norm statistics fit them: its logits depend on the image."""
    return copy.deepcopy(_random_network(arch))


@functools.cache
def _random_network(arch: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = architectures.build(arch, CLASSES)
        torch.optim.swa_utils.update_bn([torch.randn(16, 3, SIDE, SIDE) for _ in range(2)], model)
    return model


def prepared_for(target: TargetDevice, model: nn.Module) -> nn.Module:
    """`model` with fake quantization, calibrated; the reference engine for `target` is set, where it runs."""
    int8_engines.use(target, int8_engines.reference_engine(target))
    prepared = quantization.prepare(model, target, SIDE)
    quantization.calibrate(prepared, [(torch.randn(16, 3, SIDE, SIDE), None)], CPU, 1)
    return prepared


def quantized(model: nn.Module, target: TargetDevice) -> tuple[nn.Module, nn.Module]:
    """`model` with fake quantization and in int8; an engine for `target` is set."""
    prepared = prepared_for(target, model)
    return prepared, quantization.convert(prepared).int8


def float_fake_quant_int8(arch: str, target: TargetDevice) -> tuple[nn.Module, nn.Module, nn.Module]:
    """`random_network(arch)`, with fake quantization and in int8; an engine for `target` is set."""
    int8_engines.use(target, int8_engines.reference_engine(target))
    return copy.deepcopy(_float_fake_quant_int8(arch, target))


@functools.cache
def _float_fake_quant_int8(arch: str, target: TargetDevice) -> tuple[nn.Module, nn.Module, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = random_network(arch)
        return model, *quantized(model, target)


def network_options(model: nn.Module, num_classes: int, image_size: int) -> dict:
    """The arguments with which the functions of pruning and budget know a network."""
    return {"classifier": architectures.classifier(model, num_classes), "image_size": image_size}


def pruned_by(model: nn.Module, fraction: float, network: dict, importance="lamp", scope="local"):
    """`model` with a fraction of its channels removed; `network` is the result of `network_options`."""
    groups = pruning.rank(model, importance, scope, **network)
    return pruning.prune(model, groups, pruning.widths_for_fraction(groups, fraction), **network)


def chain(*widths: int, norm: bool = True) -> tuple[nn.Sequential, dict]:
    """Convolutions of these widths, each but the last with a batch norm, and a linear classifier.

    Returns the model and the arguments of `network_options`.
    """
    layers = []
    for before, width in itertools.pairwise((3, *widths)):
        layers += [nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    del layers[-2]
    if not norm:
        layers = [layer for layer in layers if not isinstance(layer, nn.BatchNorm2d)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 4))
    return model, {"classifier": str(len(model) - 1), "image_size": 8}
