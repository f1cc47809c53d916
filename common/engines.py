"""Which of torch's engines runs int8 models right, and fastest, on this machine: found by running one.

An engine can be listed by torch and lack its instructions, or overflow: kernels without VNNI add products of
uint8 and int8 in pairs in 16 bits. Which ones do also depends on the activations' range that a model was
trained for.
"""

import contextlib
import functools
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common import quantization
from common.errors import UserError

TOLERANCE = 0.02  # of the largest logit; right engines stay under 0.01, one that overflows is off by 0.2
FASTER = 0.9  # share of the best time so far that another engine must stay under to be preferred
SIDE, RUNS = 112, 20


@dataclass(frozen=True)
class Trial:
    """What became of one engine: `failure` ("" for none, else why it is of no use) and milliseconds."""

    failure: str
    milliseconds: float


def use(backend: str, engine: str | None = None) -> str:
    """Makes torch run models quantized for `backend` with `engine`, or the fastest that is right; its name.

    A model for qnnpack runs with qnnpack, whose full range of activations others need VNNI for; any other
    with every engine that is right. Raises UserError where there is none, or `engine` is not there or gives
    wrong results.
    """
    listed = _listed()
    if engine is not None and engine not in listed:
        raise UserError(f"this machine's torch has no engine {engine}; it has {', '.join(listed)}")
    candidates = [engine] if engine else [name for name in listed if backend != "qnnpack" or name == backend]
    trials = {name: trial(backend, name) for name in candidates}
    best = None
    for name, result in trials.items():
        if not result.failure and (best is None or result.milliseconds < FASTER * trials[best].milliseconds):
            best = name
    if best is None:
        reasons = "; ".join(f"{name} {result.failure}" for name, result in trials.items()) or "torch has none"
        raise UserError(f"no engine of this machine can run int8 models made for {backend}: {reasons}")
    torch.backends.quantized.engine = best
    return best


def own(backend: str) -> str | None:
    """`backend` itself where it runs right here, else None: the engine that rounds as ONNX Runtime does.

    onednn and x86 multiply a sum by its scales in another order. Of one value in millions that changes the
    last bit, and a deep network makes more of it, up to another answer for one picture in a hundred.
    """
    return None if backend not in _listed() or trial(backend, backend).failure else backend


def _listed() -> list[str]:
    return [name for name in torch.backends.quantized.supported_engines if name != "none"]


@functools.cache
def trial(backend: str, engine: str) -> Trial:
    """Runs a small network, quantized for `backend`, with `engine`, against its fake-quant form."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(), _engine(engine):
        fake_quant, images = _fake_quant(backend)
        try:
            int8_model = quantization.convert(fake_quant).int8
            logits = int8_model(images)
        except RuntimeError as error:
            return Trial(f"cannot run it ({str(error).partition(chr(10))[0]})", 0)
        wanted = fake_quant(images)
        off = float((logits - wanted).abs().max() / wanted.abs().max())
        if not off < TOLERANCE:  # also where it is not a number
            return Trial(f"gives wrong results, {off:.0%} off, as when sums overflow", 0)
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            int8_model(images[:1])
            times.append(1000 * (time.perf_counter() - start))
    return Trial("", min(times))


@functools.cache
def _fake_quant(backend: str) -> tuple[nn.Module, Tensor]:
    """The network, calibrated, and the pictures: half of them noise, half as bright as can be."""
    torch.manual_seed(0)
    network, images = _Network(), torch.rand(4, 3, SIDE, SIDE)
    images[:2] = 1
    prepared = quantization.trace(network, backend, SIDE)
    quantization.calibrate(prepared, [(images, None)], torch.device("cpu"), 1)
    return prepared, images


class _Network(nn.Module):
    """The kinds of layers that a classifier has, with weights of one sign: sums go as far as they can.

    More than 100 channels, since beyond that the x86 engine hands depthwise convolutions to other kernels.
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
