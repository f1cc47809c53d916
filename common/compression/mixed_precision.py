"""Which layers get weights of 4 bits: those that change the predictions least for a byte that is saved."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.ao.quantization import disable_observer, enable_observer
from torch.nn import functional as F

from common.compression import weight_bits
from common.system import distributed, hardware
from common.system.errors import UserError
from common.system.terminal import progress_bar

BATCHES = 2  # of images on which the predictions are compared
ENTRY = 64  # bytes that a file has besides for a weight of 4 bits
DIVERGENCE = 0.2  # without a limit: of the sum over all layers, what those of 4 bits may have


@dataclass(frozen=True)
class Layer:
    """What weights of 4 bits in one layer change.

    Attributes:
        name: Its name.
        divergence: Of the predictions from those of 8 bits in all layers: KL, in nats.
        saved: Bytes.
    """

    name: str
    divergence: float
    saved: int


def measure(prepared: fx.GraphModule, batches: Iterable, device: torch.device) -> list[Layer]:
    """Rounds the weights of one layer at a time to 4 bits.

    Args:
        prepared: A calibrated model with fake quantization, on `device`; its weights have 8 bits.
        batches: (images, labels).
        device: Where the model is.

    Returns:
        A row for each layer, in the order of the network.
    """
    layers = weight_bits.layers_of(prepared.eval().apply(disable_observer))
    images = [each.to(device) for each, _ in batches]
    expected, rows = _log_probabilities(prepared, images), []
    for name, layer in progress_bar(list(layers.items()), desc="bits", unit="layer"):
        weight_of_8_bits = layer.weight_fake_quant
        weight_bits.use_4_bits(layer)
        actual = _log_probabilities(prepared, images)
        layer.weight_fake_quant = weight_of_8_bits
        divergence = F.kl_div(actual, expected, reduction="batchmean", log_target=True).double()
        divergence = float(distributed.all_reduce(divergence)) / distributed.world_size()
        rows.append(Layer(name, divergence, layer.weight.numel() // 2 - ENTRY))
    prepared.apply(enable_observer)
    return rows


def choose(rows: list[Layer], bytes_of_8_bits: float, limit: float | None) -> list[str]:
    """Chooses the layers with weights of 4 bits: the least divergence for each saved byte first.

    Args:
        rows: The result of `measure`.
        bytes_of_8_bits: Of the file with 8 bits in all layers.
        limit: Of the file, bytes. None: the divergences of the chosen layers add up to at most `DIVERGENCE`
            of the sum of all.

    Returns:
        Their names.

    Raises:
        UserError: With 4 bits in all layers the file is larger.
    """
    ranked = sorted(rows, key=lambda row: row.divergence / max(1, row.saved))
    least = bytes_of_8_bits - sum(row.saved for row in rows)
    if limit is not None and least > limit:
        raise UserError(f"--target-size: {least:,.0f} bytes is the least, with 4 bits in all layers")
    allowed, chosen = DIVERGENCE * sum(row.divergence for row in rows), []
    size, divergence = bytes_of_8_bits, 0.0
    for row in ranked:
        size, divergence = size - row.saved, divergence + row.divergence
        enough = size + row.saved <= limit if limit is not None else divergence > allowed
        if enough:
            break
        chosen.append(row.name)
    return chosen


def summary(rows: list[Layer], chosen: list[str]) -> str:
    """Describes a choice.

    Args:
        rows: The result of `measure`.
        chosen: The result of `choose`.

    Returns:
        One line, with the layers of 8 bits, the largest divergence first.
    """
    others = [row for row in rows if row.name not in chosen]
    others.sort(key=lambda row: row.divergence, reverse=True)
    names = ", ".join(f"{row.name} ({row.divergence:.4f})" for row in others)
    return f"{len(chosen)} layers have 4 bits; 8 bits, and the divergence that 4 would add: {names or 'none'}"


@torch.no_grad()
def _log_probabilities(model: fx.GraphModule, images: list[Tensor]) -> Tensor:
    with hardware.full_float32():
        return torch.cat([model(each) for each in images]).log_softmax(1)
