"""Structured pruning to a budget with DepGraph, through torch-pruning.

Whole channels go, together with everything that depends on them (Fang et al., "DepGraph: Towards Any
Structural Pruning", CVPR 2023): layers that lose the same channels form a group. An importance scores the
channels, a scope says which of them compete, and how many go is found by bisection.
"""

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning import importance as scorers
from tqdm import tqdm

from common import distributed
from common.budgets import Budget
from common.distillation import cross_entropy
from common.errors import UserError
from common.metrics import count_parameters

MEASURED = 0.97  # of a limit is aimed at where each measurement comes out a little different
CLOSE_ENOUGH = 0.005  # of the cost before: half of the point that is promised
LAYERS = nn.Conv2d | nn.Linear
ROUND_TO = 8  # widths stay multiples of this: odd ones are slow, and some int8 kernels crash on them
SHARES = (0.125, 0.25, 0.5, 0.75, 0.875)  # of a layer's channels, of which the sensitivity is shown
GRADIENT_BATCHES = 16  # of training pictures, for what is driven by data
IMPORTANCES = {
    "magnitude": scorers.GroupMagnitudeImportance(p=2),
    "taylor": scorers.GroupTaylorImportance(),
    "lamp": scorers.LAMPImportance(p=2),
    "bn-scale": scorers.BNScaleImportance(),
    "random": scorers.RandomImportance(),
}

Widths = dict[str, int]  # output channels that a layer keeps, by its name


@dataclass(frozen=True)
class Group:
    """`layers` that lose the same channels, by their names, the root first; of each channel the score and its
    place among those it competes with, from 0 (goes first) to 1, both float32 [channels].
    """

    layers: tuple[str, ...]
    scores: Tensor
    places: Tensor

    def width(self, share: float) -> int:
        """How many channels stay when the `share` that comes first in its scope goes; a multiple of 8."""
        return _rounded(float((self.places > share).sum()))


def rank(
    model: nn.Module, importance: str, scope: str, *, protect: nn.Module, image_size: int
) -> list[Group]:
    """The groups of `model` whose channels can go, all but those of `protect` (the classifier).

    `importance`: magnitude (the squared L2 norm, mean over the layers of the group), lamp (that over the sum
    of those in the group that are no smaller; Lee et al., ICLR 2021), bn-scale (batch norm's factor; Liu et
    al., ICCV 2017), taylor (weight times gradient, which `take_gradients` leaves there; Molchanov et al.,
    CVPR 2019) or random; all but lamp and random over their mean in the group. `scope`, within which channels
    compete: local (their group), global (all) or isomorphic (groups of the same structure; Fang et al.,
    ECCV 2024).

    Raises UserError where the network cannot be pruned, or nothing in it has such a score.
    """
    names = {module: name for name, module in model.named_modules()}
    picture = torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device)
    layers, scores, scopes, was_training = [], [], [], model.training
    with _refusing(model):
        graph = torch_pruning.DependencyGraph().build_dependency(model, picture)
        for group in graph.get_all_groups(ignored_layers=[protect], root_module_types=[nn.Conv2d, nn.Linear]):
            score = IMPORTANCES[importance](group)
            if score is None:
                continue
            out = graph.is_out_channel_pruning_fn
            pruned = [dep.target.module for dep, _ in group if out(dep.handler)]
            layers.append(tuple(dict.fromkeys(names[one] for one in pruned if isinstance(one, LAYERS))))
            # of a group that is all zeros the score is 0 / 0
            scores.append(score.nan_to_num(nan=0.0).float().cpu())
            structure = tuple((type(dep.target.module), out(dep.handler)) for dep, _ in group)
            scopes.append({"local": layers[-1], "global": None, "isomorphic": structure}[scope])
    model.train(was_training)
    if not layers:
        raise UserError(f"no layer of this network has a {importance} score: choose another --importance")
    places = [None] * len(layers)
    for competing in set(scopes):
        members = [index for index, each in enumerate(scopes) if each == competing]
        order = torch.cat([scores[index] for index in members]).argsort(stable=True).argsort()
        shares = ((order + 0.5) / len(order)).split([len(scores[index]) for index in members])
        for index, share in zip(members, shares, strict=True):
            places[index] = share
    return [Group(*each) for each in zip(layers, scores, places, strict=True)]


def take_gradients(model: nn.Module, batches: Iterable, device: torch.device) -> None:
    """Leaves in the parameters the sum of the cross-entropy's gradients over the first 16 of `batches` of
    training pictures, in all processes together; statistics and weights stay as they are.
    """
    model.to(device).eval().zero_grad()
    for images, labels in itertools.islice(batches, GRADIENT_BATCHES):
        cross_entropy(model, images.to(device), labels.to(device))[0].backward()
    for parameter in model.parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = distributed.total(gradient)


def prune(
    model: nn.Module, groups: list[Group], widths: Widths, *, protect: nn.Module, image_size: int
) -> nn.Module:
    """A copy of `model` in which each layer named in `widths` keeps that many of its channels, those with the
    highest scores in `groups`. Raises UserError where the network cannot be pruned.
    """
    protected = next(name for name, module in model.named_modules() if module is protect)
    pruned = copy.deepcopy(model).eval()
    names = {module: name for name, module in pruned.named_modules()}
    scores = {group.layers[0]: group.scores for group in groups}
    # half a channel more, because the library truncates
    ratios = {
        (layer := pruned.get_submodule(name)): max(0.0, 1 - (width + 0.5) / layer.weight.shape[0])
        for name, width in widths.items()
    }
    picture = torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device)
    with _refusing(model):
        torch_pruning.pruner.BasePruner(
            pruned,
            picture,
            importance=lambda group: scores.get(names[group[0].dep.target.module]),
            pruning_ratio=0.0,
            pruning_ratio_dict=ratios,
            ignored_layers=[pruned.get_submodule(protected)],
            round_to=ROUND_TO,
        ).step()
    return pruned.train(model.training)


def widths_of(state: dict[str, Tensor], groups: list[Group]) -> Widths:
    """The widths that the layers of `groups` have in the state dict of a pruned model."""
    return {name: len(state[f"{name}.weight"]) for group in groups for name in group.layers}


def share_widths(groups: list[Group], share: float) -> Widths:
    """The widths when in each scope the `share` of the channels goes that scores lowest, rounded to 8."""
    return {name: group.width(share) for group in groups for name in group.layers}


def budget_widths(
    model: nn.Module, groups: list[Group], budget: Budget, *, protect: nn.Module, image_size: int
) -> Widths:
    """The widths, in steps of 8, with which `model` comes as near to `budget` as they allow.

    The share that goes is found by bisection; where the layer that tips the scale is a large one, another
    layer is made 8 channels wider or narrower. No layer falls below 8 channels. Raises UserError where the
    budget lies below what can be reached.
    """
    channels = sum(len(group.scores) for group in groups)
    steps = channels if budget.exact else min(channels, budget.TRIALS)

    aim = budget.limit if budget.exact else MEASURED * budget.limit

    def excess(widths: Widths) -> float:
        pruned = prune(model, groups, widths, protect=protect, image_size=image_size)
        return budget.cost(pruned) - aim

    def at(step: int) -> Widths:
        return share_widths(groups, step / steps)

    def miss(widths: Widths) -> float:
        over = excess(widths)
        return math.inf if over > 0 and budget.strict else abs(over)

    start = budget.cost(model)
    if start <= budget.limit:
        return {}  # not even rounded
    least = aim + excess(at(steps))
    if least > budget.limit:
        raise UserError(
            f"this network cannot be pruned to {budget.shown(budget.limit)}: {budget.shown(least)} is the "
            f"least, {least / start:.1%} of {budget.shown(start)}"
        )
    few, many = _bisect(lambda step: excess(at(step)) > 0, 0, steps)
    if not budget.exact:  # measured: what fitted once may not fit twice
        while many < steps and excess(at(many)) > 0:
            many += 1
        return at(many)
    best, closest = min(((at(step), miss(at(step))) for step in (few, many)), key=lambda pair: pair[1])
    for step, change in ((few, -ROUND_TO), (many, ROUND_TO)):
        for group in groups:
            if closest <= CLOSE_ENOUGH * start:
                break
            width = min(max(ROUND_TO, group.width(step / steps) + change), len(group.scores))
            widths = at(step) | dict.fromkeys(group.layers, width)
            if (missed := miss(widths)) < closest:
                best, closest = widths, missed
    return best


def sensitivity(
    model: nn.Module,
    groups: list[Group],
    score: Callable[[nn.Module], float],
    *,
    protect: nn.Module,
    image_size: int,
) -> Tensor:
    """What `score` says of `model` when of one group alone a share of its channels is gone, without any
    training: float32 [groups, SHARES], nan where rounding to 8 takes none.
    """
    whole = count_parameters(model)
    table = torch.full((len(groups), len(SHARES)), math.nan)
    for row, group in enumerate(
        tqdm(groups, desc="sensitivity", unit="group", leave=False, disable=not distributed.is_first())
    ):
        width = len(group.scores)
        for column, share in enumerate(SHARES):
            kept = _rounded(width * (1 - share))
            if kept < width:
                widths = dict.fromkeys(group.layers, kept)
                pruned = prune(model, groups, widths, protect=protect, image_size=image_size)
                if count_parameters(pruned) < whole:  # grouped convolutions may keep what they have
                    table[row, column] = score(pruned)
    return table


def _rounded(width: float) -> int:
    return max(1, math.floor(width / ROUND_TO + 0.5)) * ROUND_TO


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
