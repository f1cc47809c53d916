"""Structured pruning to a target with DepGraph, through torch-pruning.

Whole channels go, together with everything that depends on them (Fang et al., "DepGraph: Towards Any
Structural Pruning", CVPR 2023); the least important first, by the mean L2 norm of a channel over its group of
layers.
"""

import copy
from collections.abc import Callable, Sequence

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
    that tips the scale is a large one, a later layer takes its place. A layer never falls below 8 channels.
    `protect` (the classifier) keeps its outputs.

    Raises UserError where the target lies below what can be reached, or the network cannot be pruned.
    """
    total = count_parameters(model)
    if target >= total:
        return copy.deepcopy(model)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]

    def pruned_by(share: float, higher: float = 0.0, jumping: Sequence[str] = ()) -> nn.Module:
        shares = dict.fromkeys(layers, share) | dict.fromkeys(jumping, higher)
        return _prune(model, shares, protect=protect, image_size=image_size)

    smallest = count_parameters(pruned_by(1.0))
    if target < smallest:
        raise UserError(
            f"this network cannot be pruned to {target:,} parameters: "
            f"{smallest:,} ({smallest / total:.1%}) is the least"
        )
    low, high = _bisect(lambda share: count_parameters(pruned_by(share)) > target, 0.0, 1.0, 1e-4)
    few, many = _bisect(
        lambda k: count_parameters(pruned_by(low, high, layers[:k])) > target, 0, len(layers), 1
    )

    def miss(candidate: nn.Module) -> int:
        return abs(count_parameters(candidate) - target)

    best = min((pruned_by(low, high, layers[:k]) for k in (few, many)), key=miss)
    for name in layers[many:]:
        if miss(best) <= CLOSE_ENOUGH * total:
            break
        best = min(best, pruned_by(low, high, [*layers[:few], name]), key=miss)
    return best


def prune_channels(model: nn.Module, ratio: float, *, protect: nn.Module, image_size: int) -> nn.Module:
    """A copy of `model` of which every layer has lost the share `ratio` of its channels, rounded to 8.

    Raises UserError where the network cannot be pruned.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return _prune(model, dict.fromkeys(layers, ratio), protect=protect, image_size=image_size)


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
        # half a channel more than 8: the library truncates
        ratios[module] = min(share, max(0.0, 1 - (ROUND_TO + 0.5) / width))
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
