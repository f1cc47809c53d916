"""Structured pruning to a target with DepGraph, through torch-pruning.

Whole channels go, together with everything that depends on them (Fang et al., "DepGraph: Towards Any
Structural Pruning", CVPR 2023); in a layer the least important first, by the mean squared L2 norm of a
channel over its group of layers. How many each layer loses is either the same share everywhere, or found by
comparing the channels of all layers (LAMP).
"""

import contextlib
import copy
import math
from collections.abc import Callable

import torch
import torch_pruning
from torch import Tensor, nn

from common.errors import UserError
from common.metrics import count_parameters

CLOSE_ENOUGH = 0.005  # of all parameters: half of the point that is promised
LAYERS = nn.Conv2d | nn.Linear
ROUND_TO = 8  # widths stay multiples of this: odd ones are slow, and some int8 kernels crash on them


def prune_to_parameters(model: nn.Module, target: int, *, protect: nn.Module, image_size: int) -> nn.Module:
    """A pruned copy of `model` that has as nearly `target` parameters as widths in steps of 8 allow.

    The channels of all layers are ranked by their LAMP scores: a channel's squared norm over the sum of those
    of its layer that are no smaller (Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning",
    ICLR 2021). How many go is found by bisection; where the layer that tips the scale is a large one, another
    layer is made 8 channels wider or narrower. No layer falls below 8 channels. `protect` (the classifier)
    keeps its outputs.

    Raises UserError where the target lies below what can be reached, or the network cannot be pruned.
    """
    total = count_parameters(model)
    if target >= total:
        return copy.deepcopy(model)
    scores = _lamp_scores(model, protect=protect, image_size=image_size)
    ranking = torch.cat(list(scores.values())).sort().values

    def lowest(count: int) -> dict[str, float]:
        """The share of each layer that is among the `count` lowest scores."""
        threshold = ranking[count - 1] if count else -1
        return {name: float((score <= threshold).float().mean()) for name, score in scores.items()}

    def excess(shares: dict[str, float]) -> int:
        pruned = _prune(model, shares, protect=protect, image_size=image_size)
        return count_parameters(pruned) - target

    least = target + excess(lowest(len(ranking)))
    if least > target:
        raise UserError(
            f"this network cannot be pruned to {target:,} parameters: "
            f"{least:,} ({least / total:.1%}) is the least"
        )
    few, many = _bisect(lambda count: excess(lowest(count)) > 0, 0, len(ranking))
    best = min(lowest(few), lowest(many), key=lambda shares: abs(excess(shares)))
    closest = abs(excess(best))
    for start, sign in ((lowest(few), 1), (lowest(many), -1)):
        for name, score in scores.items():
            if closest <= CLOSE_ENOUGH * total:
                break
            shares = start | {name: start[name] + sign * ROUND_TO / len(score)}
            if (missed := abs(excess(shares))) < closest:
                best, closest = shares, missed
    return _prune(model, best, protect=protect, image_size=image_size)


def prune_channels(model: nn.Module, ratio: float, *, protect: nn.Module, image_size: int) -> nn.Module:
    """A copy of `model` of which every layer has lost the share `ratio` of its channels, rounded to 8.

    Raises UserError where the network cannot be pruned.
    """
    layers = [name for name, layer in model.named_modules() if isinstance(layer, LAYERS)]
    return _prune(model, dict.fromkeys(layers, ratio), protect=protect, image_size=image_size)


def _lamp_scores(model: nn.Module, *, protect: nn.Module, image_size: int) -> dict[str, Tensor]:
    """The LAMP score of every channel of each layer that can be pruned, by the layer's name.

    Layers that are pruned together have the same scores.
    """
    names = {module: name for name, module in model.named_modules()}
    picture = torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device)
    scores = {}
    with _refusing(model):
        graph = torch_pruning.DependencyGraph().build_dependency(model, picture)
        for group in graph.get_all_groups(ignored_layers=[protect], root_module_types=[nn.Conv2d, nn.Linear]):
            score = torch_pruning.importance.LAMPImportance()(group)
            for dependency, _ in group:
                layer = dependency.target.module
                if isinstance(layer, LAYERS) and graph.is_out_channel_pruning_fn(dependency.handler):
                    scores[names[layer]] = score
    return scores


def _bisect(too_large: Callable[[int], bool], low: int, high: int) -> tuple[int, int]:
    """Narrows (low, high) down to neighbours, `too_large` being true at `low` and false at `high`."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if too_large(middle) else (low, middle)
    return low, high


@contextlib.contextmanager
def _refusing(model: nn.Module):
    """Turns the errors of torch-pruning on networks that it cannot prune into a UserError."""
    try:
        yield
    except (ZeroDivisionError, RuntimeError, IndexError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"torch-pruning cannot prune {type(model).__name__}: {error}") from None


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
    with _refusing(model):
        torch_pruning.pruner.BasePruner(
            pruned,
            torch.zeros(1, 3, image_size, image_size, device=device),
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio_dict=ratios,
            ignored_layers=[pruned.get_submodule(protected)],
            round_to=ROUND_TO,
        ).step()
    return pruned.train(model.training)
