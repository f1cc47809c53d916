"""Less RAM for more work: rows of a layer of 1 x 1 are not kept, but computed for each row that reads them.

A network of inverted residuals (Sandler et al., CVPR 2018) keeps most bytes between an expansion of 1 x 1
and the depthwise convolution that reads it; the input of the expansion has a sixth of the channels. Patches
(Lin et al., MCUNetV2, NeurIPS 2021) compute parts of all layers twice; here it is parts of single layers.
"""

import math

from common.integer import planner
from common.integer.graph import Graph
from common.integer.operators import Convolution, Linear
from common.integer.planner import Plan
from common.integer.rows import Recomputed, height, is_pixelwise, reads

LARGE = 1 / 8  # of the RAM


def plan(graph: Graph, schedule: str, extra: float) -> tuple[Graph, Plan]:
    """Plans a network, with layers computed again while this lowers the RAM.

    Args:
        graph: The network.
        schedule: Of `planner.SCHEDULES`.
        extra: How many multiply-accumulates may be added, as a fraction of those of the network.

    Returns:
        The network with `Recomputed` operators, and its plan.
    """
    chosen, best = {}, planner.plan(graph, schedule)
    limit = extra * sum(_macs(each) for each in graph.operators if isinstance(each, Convolution | Linear))
    candidates = _candidates(graph)
    while True:
        spent = sum(_extra_macs(each) for each in chosen.values())
        found = []
        for name in _large(best) & candidates.keys() - chosen.keys():
            trial = chosen | {name: candidates[name]}
            if spent + _extra_macs(candidates[name]) <= limit:
                planned = planner.plan(_replaced(graph, trial), schedule)
                found.append((planned.arena, _extra_macs(candidates[name]), name, planned))
        if not found or min(found)[0] >= best.arena:
            return _replaced(graph, chosen), best
        *_, name, best = min(found, key=lambda each: each[:3])
        chosen[name] = candidates[name]


def _candidates(graph: Graph) -> dict[str, Recomputed]:
    """By the name of the expansion's output."""
    readers = {}
    for operator in graph.operators:
        for tensor in operator.inputs:
            readers.setdefault(tensor.name, []).append(operator)
    found = {}
    for operator in graph.operators:
        name = operator.output.name
        if isinstance(operator, Convolution) and is_pixelwise(operator) and len(readers.get(name, ())) == 1:
            (reader,) = readers[name]
            if isinstance(reader, Convolution) and reader.is_depthwise and reader.dilation == (1, 1):
                found[name] = Recomputed(operator.inputs, reader.output, operator, reader)
    return found


def _extra_macs(pair: Recomputed) -> int:
    """What the expansion computes more, since its rows are read more than once."""
    rows = height(pair.expansion.output)
    spans = [reads(pair.depthwise, 0, row) for row in range(height(pair.output))]
    return max(sum(end - first for first, end in spans) - rows, 0) * _macs(pair.expansion) // rows


def _macs(operator: Convolution | Linear) -> int:
    positions = math.prod(operator.output.shape[1:])
    return operator.weight.size * positions


def _large(plan: Plan) -> set[str]:
    """The tensors of blocks that are large enough to matter."""
    large = [block for block in plan.blocks if block.size > LARGE * plan.arena]
    return {name for block in large for name in block.tensors}


def _replaced(graph: Graph, chosen: dict[str, Recomputed]) -> Graph:
    """The network with both operators of each pair in the place of the second one."""
    seconds = {each.output.name: each for each in chosen.values()}
    return Graph(
        graph.input,
        tuple(
            seconds.get(operator.output.name, operator)
            for operator in graph.operators
            if operator.output.name not in chosen
        ),
    )
