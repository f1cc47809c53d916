"""Rounding of weights in which later weights compensate the errors of earlier ones.

Rounded to the nearest integer, each weight has the least error, but not the sum of products. Here the weights
of an output channel are rounded one after the other, and each error is spread over those that are left, so
that the outputs on training images change least: with the inverse U^T U of the covariance of the inputs, the
error of weight k changes each later weight j by -error * U[k, j] / U[k, k]. The mean of what is left becomes
part of the bias. Sources: Frantar, Singh, Alistarh, "Optimal Brain Compression", NeurIPS 2022,
arXiv:2208.11580; Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", ICLR 2023, arXiv:2210.17323; bias: Nagel et
al., "Data-Free Quantization", ICCV 2019, arXiv:1906.04721, section 4.2.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn
from torch.ao.quantization import disable_observer, enable_observer

from common.compression import regression, weight_bits
from common.compression.layerwise import Progress, Traced
from common.compression.reconstruction import Fit
from common.system import hardware
from common.system.terminal import progress_bar

DAMPING = 0.01  # of the mean diagonal of the covariance, added to it
PRECISION = 1e-9  # of a covariance, relative to the mean of the squares


def summary(fits: list[Fit]) -> str:
    """Describes what the rounding has reached.

    Args:
        fits: The result of `compensate`.

    Returns:
        One line, with the mean errors.
    """
    count = max(1, len(fits))
    nearest, compensated = (sum(getattr(fit, key) for fit in fits) / count for key in ("before", "after"))
    return (
        f"rounded the weights of {len(fits)} layers: relative error of the outputs {nearest:.4f} with the "
        f"nearest integers, {compensated:.4f} with errors compensated"
    )


@torch.no_grad()
def compensate(prepared: fx.GraphModule, batches: Iterable, device: torch.device) -> list[Fit]:
    """Rounds the weights of all layers, in their order; each reads what the rounded ones before it yield.

    Layers with more than `regression.LARGEST` weights for an output channel stay as they are. The sums are
    those of all processes.

    Args:
        prepared: A calibrated model with fake quantization; its weights become multiples of their scales.
        batches: (images, labels); the images are kept in memory.
        device: Where the model is.

    Returns:
        Of each layer the error of its outputs with the nearest integers and with these.

    Raises:
        UserError: The network uses a layer more than once.
    """
    network, fits = Traced(prepared), []
    prepared.eval().apply(disable_observer)
    progress = Progress(network, [images.to(device) for images, _ in batches])
    with hardware.full_float32():
        quantized = [i for i in network.fitted if hasattr(network.layer(i), "weight_fake_quant")]
        for index in progress_bar(quantized, desc="rounding", unit="layer"):
            layer, node = network.layer(index), network.nodes[index]
            sums = regression.Sums()
            for number, values in enumerate(progress.run_to(index)):
                inputs = values[node.all_input_nodes[0]]
                outputs = layer(inputs)
                positions = regression.positions(layer, outputs, index, number)
                x = regression.patches(layer, inputs, positions)
                y = regression.rows(layer, outputs, positions)
                sums += regression.Sums.of(x, torch.zeros_like(y), y)
            fits.append(_round_layer(layer, node.target, sums.all_reduce()))
    prepared.apply(enable_observer)
    return fits


def _round_layer(layer: nn.Module, name: str, sums: regression.Sums) -> Fit:
    folded, groups = layer.weight * weight_bits.factor_of(layer), len(sums.gram)
    weight = folded.double().cpu().view(groups, len(folded) // groups, -1)
    quantizer = layer.weight_fake_quant
    scale = quantizer.scale.double().cpu().view(groups, -1, 1)
    nearest = (weight / scale).round().clamp(quantizer.quant_min, quantizer.quant_max)
    # inputs that are nearly constant have a covariance of rounding errors
    noise = torch.diag_embed(PRECISION * sums.gram[:, :-1, :-1].diagonal(dim1=1, dim2=2))
    rounded = columns(weight / scale, sums.covariance() + noise, quantizer.quant_max)
    error, before = (scale * each - weight for each in (rounded, nearest))
    shift = -(error @ sums.mean()).flatten()
    weight_bits.set_weight(layer, (scale * rounded).view_as(folded).to(folded))
    if (bias := weight_bits.bias_of(layer)) is not None:
        bias += shift.to(bias)
    return Fit(name, *(_relative_error(each, sums) for each in (before, error)))


def columns(weight: Tensor, covariance: Tensor, largest: int) -> Tensor:
    """Rounds the columns of weights one after the other, those of the largest inputs first.

    Args:
        weight: In units of the scale, float64 [groups, O, K].
        covariance: Of the inputs, float64 [groups, K, K].
        largest: The largest absolute value of an integer.

    Returns:
        Integers, float64 [groups, O, K].
    """
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    damping = (DAMPING * diagonal.mean(1, keepdim=True)).clamp(min=regression.TINY)
    order = diagonal.argsort(1, descending=True)
    damped = covariance + torch.diag_embed(damping.expand_as(diagonal))
    damped = damped.gather(1, order.unsqueeze(2).expand_as(damped))
    damped = damped.gather(2, order.unsqueeze(1).expand_as(damped))
    # one unit in all rows: factors that are huge or tiny would overflow
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped / damping.unsqueeze(2)))
    upper = torch.linalg.cholesky(inverse, upper=True)
    places = order.unsqueeze(1).expand_as(weight)
    left = weight.gather(2, places)
    rounded = torch.empty_like(left)
    for k in range(left.shape[2]):
        rounded[..., k] = left[..., k].round().clamp(-largest, largest)
        error = (left[..., k] - rounded[..., k]) / upper[:, k, k, None]
        left[..., k + 1 :] -= error.unsqueeze(2) * upper[:, k, None, k + 1 :]
    return torch.empty_like(rounded).scatter(2, places, rounded)


def _relative_error(error: Tensor, sums: regression.Sums) -> float:
    """The variance of the error of the outputs over the mean square of the outputs."""
    squares = (error @ sums.covariance() * error).sum()
    return float(squares / sums.target)
