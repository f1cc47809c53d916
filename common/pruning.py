"""Structured pruning to a target with DepGraph, through torch-pruning.

Whole channels go, together with everything that depends on them (Fang et al., "DepGraph: Towards Any
Structural Pruning", CVPR 2023); the least important first, by the mean L2 norm of a channel over its group of
layers.
"""

import copy
import math
from collections.abc import Callable

import torch
import torch_pruning
from torch import nn

from common.errors import UserError
from common.metrics import count_parameters

CLOSE_ENOUGH = 0.005  # of all parameters: half of the point that is promised
ROUND_TO = 8  # widths stay multiples of this: odd ones are slow, and some int8 kernels crash on them


def prune_to_parameters(model: nn.Module, target: int, *, protect: nn.Module, image_size: int) -> nn.Module:
    """A pruned copy of `model` that has as nearly `target` parameters as widths in steps of 8 allow.

    Every layer loses the same share of its channels, found by bisection. Because many layers then jump by 8
    channels at once, only the first k layers take the last jump, k found in the same way; and where the layer
    that tips the scale is a large one, another layer is made 8 channels wider or narrower. No layer falls
    below 8 channels. `protect` (the classifier) keeps its outputs.

    Raises UserError where the target lies below what can be reached, or the network cannot be pruned.
    """
    total, widths = count_parameters(model), _widths(model)
    if target >= total:
        return copy.deepcopy(model)

    def excess(shares: dict[str, float]) -> int:
        pruned = _prune(model, shares, protect=protect, image_size=image_size)
        return count_parameters(pruned) - target

    least = target + excess(dict.fromkeys(widths, 1.0))
    if least > target:
        raise UserError(
            f"this network cannot be pruned to {target:,} parameters: "
            f"{least:,} ({least / total:.1%}) is the least"
        )
    low, high = _bisect(lambda share: excess(dict.fromkeys(widths, share)) > 0, 0.0, 1.0, 1e-4)

    def jumping(k: int) -> dict[str, float]:
        return dict.fromkeys(widths, low) | dict.fromkeys(list(widths)[:k], high)

    few, many = _bisect(lambda k: excess(jumping(k)) > 0, 0, len(widths), 1)
    best = min(jumping(few), jumping(many), key=lambda shares: abs(excess(shares)))
    closest = abs(excess(best))
    for start, sign in ((jumping(few), 1), (jumping(many), -1)):
        for name, width in widths.items():
            if closest <= CLOSE_ENOUGH * total:
                break
            shares = start | {name: start[name] + sign * ROUND_TO / width}
            if (missed := abs(excess(shares))) < closest:
                best, closest = shares, missed
    return _prune(model, best, protect=protect, image_size=image_size)


def prune_channels(model: nn.Module, ratio: float, *, protect: nn.Module, image_size: int) -> nn.Module:
    """A copy of `model` of which every layer has lost the share `ratio` of its channels, rounded to 8.

    Raises UserError where the network cannot be pruned.
    """
    return _prune(model, dict.fromkeys(_widths(model), ratio), protect=protect, image_size=image_size)


def _widths(model: nn.Module) -> dict[str, int]:
    """The number of output channels of each layer that can be pruned, by name."""
    layers = model.named_modules()
    return {name: layer.weight.shape[0] for name, layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)}


def _bisect(too_large: Callable, low, high, tolerance):
    """Narrows (low, high) down to `tolerance`, `too_large` being true at `low` and false at `high`."""
    while high - low > tolerance:
        middle = (low + high) / 2 if isinstance(tolerance, float) else (low + high) // 2
        low, high = (middle, high) if too_large(middle) else (low, middle)
    return low, high


def _prune(model: nn.Module, shares: dict[str, float], *, protect: nn.Module, image_size: int) -> nn.Module:
    """A copy of `model` in which each layer named in `shares` loses that share of its output channels."""
    protected = next(name for name, module in model.named_modules() if module is protect)
    pruned = copy.deepcopy(model).eval()
    ratios = {}
    for name, share in shares.items():
        module = pruned.get_submodule(name)
        width = module.weight.shape[0]
        # the library rounds down, which halves a layer of 16 for the smallest share: it is given the width
        # rounded to the nearest, and half a channel more because it truncates
        kept = max(1, math.floor(width * (1 - share) / ROUND_TO + 0.5)) * ROUND_TO
        ratios[module] = max(0.0, 1 - (kept + 0.5) / width)
    device = next(model.parameters()).device
    try:
        torch_pruning.pruner.BasePruner(
            pruned,
            torch.zeros(1, 3, image_size, image_size, device=device),
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio_dict=ratios,
            ignored_layers=[pruned.get_submodule(protected)],
            round_to=ROUND_TO,
        ).step()
    except (ZeroDivisionError, RuntimeError, IndexError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"torch-pruning cannot prune {type(model).__name__}: {error}") from None
    return pruned.train(model.training)
