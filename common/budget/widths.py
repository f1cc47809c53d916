"""The widths with which a network meets a budget: found by bisection, for RAM where its peak is."""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import nn

from common.budget.target import Budget
from common.compression.pruning import ROUND_TO, Group, Widths, prune, widths_for_fraction
from common.evaluation.memory import LiveTensor
from common.system import distributed

JAGGED = "latency", "instructions"  # costs that a wider layer may have less of: it fills whole registers
At = tuple[float, tuple[LiveTensor, ...]]  # see `Budget.peak`
CLOSE_ENOUGH = 0.005  # of the cost before pruning: half of the point that is promised


def widths_for_budget(
    model: nn.Module,
    groups: list[Group],
    budget: Budget,
    *,
    classifier: str,
    image_size: int,
    multiple: int | None = None,
) -> Widths:
    """Chooses widths so that the pruned model comes as close to a budget as possible.

    The fraction of the channels that is removed is found by bisection. Then, if the layer that decides is a
    large one, another layer gets a few channels more or less. For RAM only layers are pruned whose outputs
    are kept while it is at its peak. For a latency, layers get back channels while the limit allows it: some
    widths are faster than narrower ones. Of several processes the main one searches for all: a table of
    latencies may differ between them.

    Args:
        model: The network; not changed.
        groups: The result of `rank` for this model.
        budget: What the pruned model may cost.
        classifier: Name of the layer that yields the logits.
        image_size: Side of the images, in pixels.
        multiple: Widths of pruned layers are multiples of it, a multiple of 8; default: 8.

    Returns:
        The width of each layer in `groups`; a layer without an entry keeps all channels. {} for a model that
        meets the budget already.

    Raises:
        UserError: The budget cannot be met.
    """

    def pruned(widths: Widths) -> nn.Module:
        return prune(model, groups, widths, classifier=classifier, image_size=image_size)

    groups = [replace(group, multiple=math.lcm(multiple or ROUND_TO, group.multiple)) for group in groups]
    found = None
    if distributed.is_main_process():
        if budget.kind == "ram":
            found = _search_peak(groups, budget, lambda widths: budget.peak(pruned(widths)))
        elif (start := budget.cost(model)) <= budget.limit:
            found = {}
        else:
            by_pruning = lambda widths: budget.cost(pruned(widths))  # noqa: E731
            found = _search(groups, budget, budget.cost_of_widths or by_pruning, start)
    return distributed.broadcast(found)


def _search(groups: list[Group], budget: Budget, cost: Callable[[Widths], float], start: float) -> Widths:
    cost = _computed_once(cost)
    steps = sum(len(group.scores) for group in groups)

    def at(step: int) -> Widths:
        return widths_for_fraction(groups, step / steps)

    least = cost(at(steps))
    if least > budget.limit:
        raise budget.unreachable(least, start)
    few, many = _bisect(lambda step: cost(at(step)) > budget.limit, 0, steps)
    if budget.kind in JAGGED:
        before, widths = None, at(many)
        while widths != before:  # a layer that has become faster leaves room for others
            before, widths = widths, _give_back(groups, widths, lambda wider: cost(wider) <= budget.limit)
        return widths
    return _adjust(groups, budget, cost, [(at(few), few / steps), (at(many), many / steps)], start)


def _computed_once(cost: Callable[[Widths], float]) -> Callable[[Widths], float]:
    """`cost`, which is computed once for the same widths: after rounding many steps have the same ones."""
    known = functools.cache(lambda widths: cost(dict(widths)))
    return lambda widths: known(tuple(widths.items()))


def _adjust(
    groups: list[Group],
    budget: Budget,
    cost: Callable[[Widths], float],
    neighbors: list[tuple[Widths, float]],
    start: float,
) -> Widths:
    """The closest of two neighbors (widths, fraction), or one that is wider or narrower in one group."""

    def miss(widths: Widths) -> float:
        excess = cost(widths) - budget.limit
        return math.inf if excess > 0 and budget.strict else abs(excess)

    best, closest = min(((widths, miss(widths)) for widths, _ in neighbors), key=lambda pair: pair[1])
    for (widths, fraction), direction in zip(neighbors, (-1, 1), strict=True):
        for group in groups:
            if closest <= CLOSE_ENOUGH * start:
                break
            width = max(group.multiple, group.width(fraction) + direction * group.multiple)
            width = min(width, len(group.scores))
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


def _search_peak(groups: list[Group], budget: Budget, peak: Callable[[Widths], At]) -> Widths:
    """Removes channels where the peak is, until the activations fit.

    A fraction of all channels, as for the other budgets, would first remove channels of late layers, in vain:
    their outputs are small. What is at the peak is narrowed until it should fit; then the peak of the smaller
    network is looked for, which may be elsewhere.
    """
    narrowest = {name: each.multiple for each in groups for name in each.layers if _can_shrink(each, {})}
    widths, (cost, tensors) = {}, peak({})
    if cost > budget.limit and (least := peak(narrowest)[0]) > budget.limit:
        raise budget.unreachable(least, cost)
    while cost > budget.limit:
        smaller = _narrowed(groups, widths, tensors, cost - budget.limit)
        if smaller == widths:
            smaller = narrowest
        widths = smaller
        cost, tensors = peak(widths)
    return _give_back(groups, widths, lambda candidate: peak(candidate)[0] <= budget.limit)


def _narrowed(groups: list[Group], widths: Widths, tensors: Iterable[LiveTensor], excess: float) -> Widths:
    """The widths with a few channels less at a time, until the tensors at the peak have shrunk by `excess`.

    Of the groups with outputs there, the one is pruned that loses the least importance for each byte by which
    the peak shrinks. By importance alone it would often be one with few values there, which would lose most
    of its channels.
    """
    saved = {group.layers: _bytes_per_channel(group, tensors) for group in groups}
    widths = dict(widths)
    while excess > 0:
        choices = [group for group in groups if saved[group.layers] and _can_shrink(group, widths)]
        if not choices:
            break
        chosen = min(choices, key=lambda each: _importance(each, widths, -1) / saved[each.layers])
        width = _next_width(chosen, widths, -1)
        excess -= saved[chosen.layers] * (_width(chosen, widths) - width)
        widths |= dict.fromkeys(chosen.layers, width)
    return widths


def _give_back(groups: list[Group], widths: Widths, fits: Callable[[Widths], bool]) -> Widths:
    """Returns channels, the most important first, that the limit has room for.

    The next width is tried and the one after it: where a wider layer is faster, only that one may fit.
    """
    narrowed = [group for group in groups if _width(group, widths) < len(group.scores)]
    while narrowed:
        group = max(narrowed, key=lambda each: _importance(each, widths, 1))
        wider = widths | dict.fromkeys(group.layers, _next_width(group, widths, 1))
        widest = widths | dict.fromkeys(group.layers, _next_width(group, wider, 1))
        fitting = next(filter(fits, (wider, widest)), None)
        widths = fitting or widths
        if fitting is None or _width(group, widths) == len(group.scores):
            narrowed.remove(group)
    return widths


def _bytes_per_channel(group: Group, tensors: Iterable[LiveTensor]) -> float:
    """How many bytes the peak would shrink by with one channel less."""
    return sum(each.values / each.channels for each in tensors if each.layers & set(group.layers))


def _can_shrink(group: Group, widths: Widths) -> bool:
    return _width(group, widths) > group.multiple


def _width(group: Group, widths: Widths) -> int:
    return widths.get(group.layers[0], len(group.scores))


def _next_width(group: Group, widths: Widths, direction: int) -> int:
    """The next possible width of a group below (-1) its own, or above (1) it, up to all channels."""
    width = _width(group, widths)
    if direction < 0:
        return (width - 1) // group.multiple * group.multiple
    return min(len(group.scores), (width // group.multiple + 1) * group.multiple)


def _importance(group: Group, widths: Widths, direction: int) -> float:
    """The mean quantile of the channels between the width of a group and the next."""
    low, high = sorted((_width(group, widths), _next_width(group, widths, direction)))
    return float(group.quantiles.sort(descending=True).values[low:high].mean())
