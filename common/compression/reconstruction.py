"""Reconstruction after pruning: the layers that are left are fitted to the outputs that they had before.

One layer after the other, in the order of the network, gets weights W + D and an intercept c that minimize

    sum || (W + D) x + c - y ||^2  +  RIDGE * mean(diag(sum x x^T)) * || D ||^2

x are the inputs of the layer in the pruned network, where earlier layers are fitted already. y are the
outputs of the layer in the original network, of the channels that are left. The sums are over training images
and positions. No labels and no gradients are needed. Sources: He, Zhang, Sun, "Channel Pruning for
Accelerating Very Deep Neural Networks", ICCV 2017, section 3.1 (ii); Tang, Wang, Thiele, Saukh, "GRAIL:
Post-hoc Compensation by Linear Reconstruction for Compressed Networks", CPAL 2026, with x of the original
network.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.compression import regression
from common.compression.layerwise import Progress, Traced
from common.system import hardware
from common.system.terminal import progress_bar


@dataclass(frozen=True)
class Fit:
    """How well a layer computes the outputs of the original one.

    Attributes:
        layer: Its name.
        before, after: Mean squared error over the mean square of the original outputs.
    """

    layer: str
    before: float
    after: float


def summary(fits: list[Fit]) -> str:
    """Describes what a reconstruction has reached.

    Args:
        fits: The result of `least_squares`.

    Returns:
        One line, with the mean errors.
    """
    before, after = (
        sum(getattr(fit, key) for fit in fits) / max(1, len(fits)) for key in ("before", "after")
    )
    layers = f"{len(fits)} layer{'s' * (len(fits) != 1)}"
    return f"reconstructed {layers}: relative error of the outputs {before:.3f} => {after:.3f}"


@torch.no_grad()
def least_squares(
    pruned: nn.Module, original: nn.Module, kept: dict[str, Tensor], batches: Iterable, device: torch.device
) -> list[Fit]:
    """Fits the layers of a pruned network to the outputs of the original one.

    Conv2d (dense, grouped and depthwise) and Linear layers are fitted, except the largest (see
    `regression.LARGEST`). The intercept becomes part of the bias, or of the running mean of the batch norm
    that follows; a layer with neither gets none. A layer whose outputs are those of the original one stays as
    it is, bit for bit. The sums are those of all processes.

    Args:
        pruned: Changed in place; moved to `device`, and put into eval mode.
        original: The network before it was pruned; moved to `device`, and put into eval mode.
        kept: Of each layer, which output channels of the original one are left: the result of
            `masking.verify`.
        batches: (images, labels); the images are kept in memory.
        device: Where the networks run.

    Returns:
        The error of each layer that was fitted, in the order of the network.

    Raises:
        UserError: The network has control flow, or uses a layer more than once.
    """
    images = [each for each, _ in batches]
    new, old = (Progress(Traced(each.to(device).eval()), images) for each in (pruned, original))
    network, fits = new.network, []
    with hardware.full_float32():
        for index in progress_bar(network.fitted, desc="least squares", unit="layer"):
            layer, node = network.layer(index), network.nodes[index]
            norm, channels = network.batch_norm_after(index), kept[node.target].to(device)
            sums, runs = regression.Sums(), zip(new.run_to(index), old.run_to(index + 1), strict=True)
            for number, (values, old_values) in enumerate(runs):
                inputs = values[node.all_input_nodes[0]]
                outputs, original_outputs = layer(inputs), old_values[old.network.nodes[index]]
                positions = regression.positions(layer, outputs, index, number)
                target = regression.rows(layer, original_outputs, positions, channels)
                difference = target - regression.rows(layer, outputs, positions)
                sums += regression.Sums.of(regression.patches(layer, inputs, positions), difference, target)
            sums = sums.all_reduce()
            if not sums.squares:
                continue
            change = sums.ridge(intercept=layer.bias is not None or norm is not None)
            layer.weight += change[:, :-1].mT.reshape(layer.weight.shape).to(layer.weight)
            shift = change[:, -1].flatten().to(layer.weight)
            if layer.bias is not None:
                layer.bias += shift
            elif norm is not None:
                norm.running_mean -= shift
            fits.append(Fit(node.target, sums.relative_error(0 * change), sums.relative_error(change)))
    return fits
