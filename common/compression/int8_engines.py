"""Which of torch's engines runs int8 models correctly, and fastest, on this machine: a small network tells.

An engine can be listed by torch and lack its instructions, or overflow: kernels without VNNI add products of
uint8 and int8 in pairs in 16 bits. Which ones do depends on the range of the weights too, and with it on the
target device that a model was quantized for.
"""

import contextlib
import functools
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.compression import quantization
from common.compression.target_devices import TargetDevice
from common.system.errors import UserError

TOLERANCE = 0.02  # of the largest logit; correct engines stay below 0.01, one that overflows is off by 0.2
FASTER = 0.9  # an engine is preferred if its time is below this fraction of the best so far
SIDE, RUNS = 112, 20


@dataclass(frozen=True)
class Trial:
    """The result of one engine.

    Attributes:
        failure: Why it cannot be used; "" if it can.
        milliseconds: The shortest time for one image.
    """

    failure: str
    milliseconds: float


def use(target: TargetDevice, engine: str | None = None) -> str:
    """Sets the engine with which torch runs int8 models: the fastest that is correct.

    Args:
        target: The device that the models were quantized for.
        engine: The name of one engine, which must be correct; None for any that torch has.

    Returns:
        The name of the engine.

    Raises:
        UserError: No engine of this machine is correct, or `engine` is missing or incorrect.
    """
    listed = _listed()
    if engine is not None and engine not in listed:
        raise UserError(f"this machine's torch has no engine {engine}; it has {', '.join(listed)}")
    candidates = [engine] if engine else listed
    trials = {name: trial(target, name) for name in candidates}
    best = None
    for name, result in trials.items():
        if not result.failure and (best is None or result.milliseconds < FASTER * trials[best].milliseconds):
            best = name
    if best is None:
        reasons = "; ".join(f"{name} {result.failure}" for name, result in trials.items()) or "torch has none"
        raise UserError(f"no engine of this machine can run int8 models for {target.backend}: {reasons}")
    torch.backends.quantized.engine = best
    return best


def reference_engine(target: TargetDevice) -> str | None:
    """The engine that rounds as ONNX Runtime does: the one with the name of the backend.

    onednn and x86 multiply a sum by its scales in another order. In one value of millions that changes the
    last bit, and a deep network amplifies it, to another prediction for one image in a hundred.

    Args:
        target: The device that the models were quantized for.

    Returns:
        The name of the engine; None where it is missing or incorrect on this machine.
    """
    name = target.backend
    return None if name not in _listed() or trial(target, name).failure else name


def _listed() -> list[str]:
    return [name for name in torch.backends.quantized.supported_engines if name != "none"]


@functools.cache
def trial(target: TargetDevice, engine: str) -> Trial:
    """Compares an engine with fake quantization on a small network, and times it.

    Args:
        target: The device that the network is quantized for.
        engine: The name of an engine that torch lists.

    Returns:
        The result.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode(), _engine(engine):
        fake_quant, images = _fake_quant(target)
        try:
            int8_model = quantization.convert(fake_quant).int8
            logits = int8_model(images)
        except RuntimeError as error:
            return Trial(f"cannot run it ({str(error).partition(chr(10))[0]})", 0)
        expected = fake_quant(images)
        difference = float((logits - expected).abs().max() / expected.abs().max())
        if not difference < TOLERANCE:  # also where it is not a number
            return Trial(f"gives incorrect results, {difference:.0%} off, as when sums overflow", 0)
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            int8_model(images[:1])
            times.append(1000 * (time.perf_counter() - start))
    return Trial("", min(times))


@functools.cache
def _fake_quant(target: TargetDevice) -> tuple[nn.Module, Tensor]:
    """The network, calibrated, and the images: half of them noise, half as bright as possible."""
    torch.manual_seed(0)
    network, images = _Network(), torch.rand(4, 3, SIDE, SIDE)
    images[:2] = 1
    prepared = quantization.trace(network, target, SIDE)
    quantization.calibrate(prepared, [(images, None)], torch.device("cpu"), 1)
    return prepared, images


class _Network(nn.Module):
    """The kinds of layers that a classifier has, with weights of one sign: sums become as large as possible.

    More than 100 channels, since beyond that the x86 engine runs depthwise convolutions with other kernels.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, stride=2, padding=3), nn.ReLU())
        self.expand = nn.Sequential(nn.Conv2d(64, 128, 1), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(128, 128, 3, padding=1, groups=128), nn.ReLU())
        self.project = nn.Conv2d(128, 64, 1)
        self.conv = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(64, 10)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.uniform_(layer.weight, 0.7, 1)
                layer.weight.data /= layer.weight[0].numel()

    def forward(self, images: Tensor) -> Tensor:
        values = self.stem(images)
        values = values + self.project(self.depthwise(self.expand(values)))
        return self.classifier(self.pool(self.conv(values)).flatten(1))


@contextlib.contextmanager
def _engine(name: str):
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
