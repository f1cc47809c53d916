"""The widths with which a network meets a budget, found by bisection."""

import math
from collections.abc import Callable

from torch import nn

from common.budget.target import Budget
from common.compression.pruning import ROUND_TO, Group, Widths, prune, widths_for_fraction
from common.system import distributed
from common.system.errors import UserError

MEASURED_MARGIN = 0.97  # of the limit is aimed at where each measurement is a little different
CLOSE_ENOUGH = 0.005  # of the cost before pruning: half of the point that is promised


def widths_for_budget(
    model: nn.Module, groups: list[Group], budget: Budget, *, classifier: str, image_size: int
) -> Widths:
    """Chooses widths, multiples of 8, so that the pruned model comes as close to a budget as possible.

    The fraction of the channels that is removed is found by bisection. Then, if the layer that decides is a
    large one, another layer gets 8 channels more or less. No layer keeps fewer than 8 channels. Of several
    processes the main one searches for all: a measured cost differs between them.

    Args:
        model: The network; not changed.
        groups: The result of `rank` for this model.
        budget: What the pruned model may cost.
        classifier: Name of the layer that yields the logits.
        image_size: Side of the images, in pixels.

    Returns:
        The width of each layer in `groups`; {} for a model that meets the budget already.

    Raises:
        UserError: The budget cannot be met.
    """

    def cost(widths: Widths) -> float:
        return budget.cost(prune(model, groups, widths, classifier=classifier, image_size=image_size))

    found = None
    if distributed.is_main_process():
        start = budget.cost(model)
        found = {} if start <= budget.limit else _search(groups, budget, cost, start)
    return distributed.broadcast(found)


def _search(groups: list[Group], budget: Budget, cost: Callable[[Widths], float], start: float) -> Widths:
    channels = sum(len(group.scores) for group in groups)
    steps = channels if budget.exact else min(channels, budget.TRIALS)
    aim = budget.limit if budget.exact else MEASURED_MARGIN * budget.limit

    def at(step: int) -> Widths:
        return widths_for_fraction(groups, step / steps)

    def too_large(step: int) -> bool:
        return cost(at(step)) > aim

    least = cost(at(steps))
    if least > budget.limit:
        raise UserError(
            f"this network cannot be pruned to {budget.describe(budget.limit)}: {budget.describe(least)} is "
            f"the least, {least / start:.1%} of {budget.describe(start)}"
        )
    few, many = _bisect(too_large, 0, steps)
    if budget.exact:
        return _adjust(groups, budget, cost, [(at(few), few / steps), (at(many), many / steps)], start)
    while many < steps and too_large(many):  # a measurement that has met the limit once may not do so again
        many += 1
    return at(many)


def _adjust(
    groups: list[Group],
    budget: Budget,
    cost: Callable[[Widths], float],
    neighbors: list[tuple[Widths, float]],
    start: float,
) -> Widths:
    """The closest of two neighbors (widths, fraction), or one with 8 channels more or less in one group."""

    def miss(widths: Widths) -> float:
        excess = cost(widths) - budget.limit
        return math.inf if excess > 0 and budget.strict else abs(excess)

    best, closest = min(((widths, miss(widths)) for widths, _ in neighbors), key=lambda pair: pair[1])
    for (widths, fraction), change in zip(neighbors, (-ROUND_TO, ROUND_TO), strict=True):
        for group in groups:
            if closest <= CLOSE_ENOUGH * start:
                break
            width = min(max(ROUND_TO, group.width(fraction) + change), len(group.scores))
            candidate = widths | dict.fromkeys(group.layers, width)
            if (missed := miss(candidate)) < closest:
                best, closest = candidate, missed
    return best


def _bisect(too_large: Callable[[int], bool], low: int, high: int) -> tuple[int, int]:
    """Narrows (low, high) down to neighbors, `too_large` being true at `low` and false at `high`."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if too_large(middle) else (low, middle)
    return low, high
