"""What scores the channels of a group of layers; the lowest scores are removed first."""

import itertools
from collections.abc import Iterable

import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning import importance as scorers

from common.compression import regression
from common.compression.distillation import cross_entropy
from common.system import distributed, hardware
from common.system.terminal import progress_bar

ROUND_TO = 8  # widths stay multiples of this: others are slow, and some int8 kernels crash on odd ones
GRADIENT_BATCHES = 16  # of training images, for the Taylor importance
RIDGE = 1e-3  # of the mean variance of the inputs, as in the reconstruction
TINY = torch.finfo(torch.float32).tiny  # where all values are 0
READS = (torch_pruning.prune_conv_in_channels, torch_pruning.prune_linear_in_channels)
Covariances = dict[str, Tensor]  # of the inputs of each layer, float64 [K, K], by its name

IMPORTANCES = {
    "magnitude": scorers.GroupMagnitudeImportance(p=2),
    "taylor": scorers.GroupTaylorImportance(),
    "lamp": scorers.LAMPImportance(p=2),
    "bn-scale": scorers.BNScaleImportance(),
    "random": scorers.RandomImportance(),
}


def collect(
    importance: str, model: nn.Module, batches: Iterable, device: torch.device, count: int
) -> Covariances | None:
    """Collects what an importance has to know of training images. Weights and statistics do not change.

    Args:
        importance: "taylor": gradients of the cross-entropy, left in the parameters. "reconstruction": the
            covariances. Others need nothing.
        model: Moved to `device`, and put into eval mode.
        batches: (images, labels) of training.
        device: Where the model runs.
        count: Of the batches that are used for the covariances.

    Returns:
        The covariances; None for other importances.
    """
    if importance == "taylor":
        accumulate_gradients(model, batches, device)
    return (
        covariances(model, itertools.islice(batches, count), device)
        if importance == "reconstruction"
        else None
    )


def accumulate_gradients(model: nn.Module, batches: Iterable, device: torch.device) -> None:
    """Leaves gradients of the cross-entropy in the parameters, for the Taylor importance.

    They are summed over the first 16 batches, and over all processes. Weights and batch-norm statistics do
    not change.

    Args:
        model: Moved to `device`, and put into eval mode.
        batches: (images, labels) of training.
        device: Where the model runs.
    """
    model.to(device).eval().zero_grad()
    some = itertools.islice(batches, GRADIENT_BATCHES)
    for images, labels in progress_bar(some, total=GRADIENT_BATCHES, desc="gradients", unit="batch"):
        cross_entropy(model, images.to(device), labels.to(device))[0].backward()
    for parameter in model.parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = distributed.all_reduce(gradient)


@torch.no_grad()
def covariances(model: nn.Module, batches: Iterable, device: torch.device) -> Covariances:
    """Computes the covariance of what each layer multiplies its weights with.

    Args:
        model: Moved to `device`, and put into eval mode.
        batches: (images, labels).
        device: Where the model runs.

    Returns:
        Of each Conv2d that is not grouped, and of each Linear, float64 [K, K] on the CPU, where K are the
        weights of an output channel.
    """
    sums, names = {}, {module: name for name, module in model.named_modules()}

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        name = names[layer]
        chosen = regression.positions(layer, outputs, len(sums))
        nothing = outputs.new_zeros(1, 1, 1)
        patches = regression.patches(layer, inputs[0], chosen)
        new = regression.Sums.of(patches, nothing.expand(1, patches.shape[1], 1), nothing)
        sums[name] = sums.get(name, regression.Sums()) + new

    layers = [layer for layer in names if regression.is_possible(layer) and not _is_grouped(layer)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    try:
        with hardware.full_float32():
            for images, _ in progress_bar(batches, desc="covariances", unit="batch"):
                model.to(device).eval()(images.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: sums[name].all_reduce().covariance() for name in sorted(sums)}


def reconstruction_error(
    group: torch_pruning.Group, names: dict[nn.Module, str], covariances: Covariances
) -> Tensor | None:
    """Scores each channel by the error that is left once the next layers are reconstructed without it.

    Eight channels at a time are removed, those that increase the error least, and the others compensate for
    them as far as they can. Removing the columns c of a layer with weights W and inputs of covariance H adds
    tr(W_c [H^-1]_cc^-1 W_c^T) to its squared error (Optimal Brain Surgeon: Hassibi, Stork, NeurIPS 1992; for
    channels: Kurtic, Frantar, Alistarh, "ZipLM", NeurIPS 2023).

    Args:
        group: Layers that are pruned together.
        names: Of all modules.
        covariances: The result of `covariances`.

    Returns:
        float64 [channels]: the increase of the squared error, relative to the variance of the outputs, summed
        over the layers that read the channels. None where no layer reads them.
    """
    channels, readers = len(group[0].idxs), []
    for dep, indices in group:
        layer = dep.target.module
        if dep.handler in READS and not _is_grouped(layer):
            inputs = torch.tensor(indices).reshape(channels, -1)
            readers.append(_Reader(layer, covariances.get(names[layer]), inputs))
    if not readers:
        return None
    scores, left, highest = torch.zeros(channels, dtype=torch.float64), torch.arange(channels), 0.0
    while len(left):
        errors = sum(reader.errors(left) for reader in readers)
        lowest = errors.argsort(stable=True)[:ROUND_TO]
        # a channel that is removed later never ranks below one that is removed before
        scores[left[lowest]] = errors[lowest].clamp(min=highest)
        highest = float(scores.max())
        for reader in readers:
            reader.remove(left[lowest])
        left = left[~torch.isin(left, left[lowest])]
    return scores


def _is_grouped(layer: nn.Module) -> bool:
    return getattr(layer, "groups", 1) > 1


class _Reader:
    """A layer that reads the channels of a group; one that is too large for a regression cannot compensate.

    `_weight`: W over the standard deviation of the outputs, [outputs, K]. `_inverse`: H^-1, [K, K].
    `_columns`: the columns of W that each channel is multiplied with, [channels, b].
    """

    def __init__(self, layer: nn.Module, covariance: Tensor | None, inputs: Tensor):
        weight, kernel = layer.weight.detach().flatten(1).double().cpu(), layer.weight[0, 0].numel()
        self._columns = (inputs[:, :, None] * kernel + torch.arange(kernel)).flatten(1)
        self._inverse, spread = None, weight
        if covariance is not None:
            spread = weight @ covariance
            ridge = (RIDGE * covariance.diagonal().mean()).clamp(min=TINY)
            self._inverse = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance)).double())
        self._weight = weight / (spread * weight).sum().clamp(min=TINY).sqrt()

    def errors(self, channels: Tensor) -> Tensor:
        """What the removal of each channel adds to the relative squared error, float64 [channels]."""
        columns = self._columns[channels]
        weights = self._weight[:, columns].permute(1, 2, 0)  # [channels, b, outputs]
        if self._inverse is None:
            return weights.square().sum((1, 2))
        blocks = self._inverse[columns[:, :, None], columns[:, None, :]]
        return (torch.linalg.solve(blocks, weights) * weights).sum((1, 2))

    def remove(self, channels: Tensor) -> None:
        """Removes channels; the others compensate for them."""
        if self._inverse is not None:
            gone = self._columns[channels].flatten()
            factor = torch.linalg.solve(self._inverse[gone][:, gone], self._inverse[gone])
            self._weight -= self._weight[:, gone] @ factor
            self._inverse -= self._inverse[:, gone] @ factor
