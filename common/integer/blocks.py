"""The memory that a sequence of rows needs: how many rows of each tensor are kept at once."""

from common.integer import operators as ops
from common.integer.arena import Block
from common.integer.graph import Operator
from common.integer.rows import IMAGE, Event, Network, height, is_view, row_bytes, window

ELEMENTWISE = ops.Add | ops.Multiply | ops.Table | ops.Requantize


class _Liveness:
    """Follows events: how many rows of each tensor have been computed, and the first that is still read."""

    def __init__(self, network: Network, last: int):
        self.network, self.last = network, last
        self.made = dict.fromkeys(network.tensors, 0)
        self.low = dict.fromkeys(network.tensors, 0)
        self.done = [0] * len(network.inputs)

    def write(self, event: Event) -> str:
        """The row is there; its inputs are still there too. Returns the name of its tensor."""
        name = self.network.names[event[0]]
        self.made[name] = event[1] + 1
        return name

    def release(self, event: Event) -> None:
        """The row is there, and its inputs are read."""
        index, row = event
        if index == IMAGE:
            return
        self.done[index] = row + 1
        for name, _, _ in self.network.inputs[index]:
            lows = [first[self.done[each]] for each, first in self.network.readers[name] if each <= self.last]
            self.low[name] = min(lows)

    def rows(self, names: list[str], row: int) -> tuple[int, int]:
        """The first row and the one after the last that are kept of tensors that share a block.

        A row that has just been written needs its place, even if nobody reads it.
        """
        kept = [name for name in names if self.low[name] < self.made[name]]
        return (
            min([row, *(self.low[name] for name in kept)]),
            max([row + 1, *(self.made[name] for name in kept)]),
        )


def find_blocks(
    network: Network, events: list[Event], whole: set[str], *, in_place: bool, last: int | None = None
) -> list[Block]:
    """The blocks of memory of a sequence of rows.

    Args:
        network: The network.
        events: The rows in the order in which they are computed.
        whole: Tensors of which all rows are kept.
        in_place: Whether an elementwise operator writes over its input, and a depthwise convolution over the
            oldest row that it reads.
        last: Operators after this one are not looked at; default: all are.

    Returns:
        Blocks in the order of the network.
    """
    last = len(network.inputs) if last is None else last
    groups = _shared(network, events, in_place, last)
    written = {network.names[index] for index, _ in events}
    rows, birth, death = {}, {}, {}
    alive = _Liveness(network, last)
    for time, event in enumerate(events):
        name = alive.write(event)
        low, high = alive.rows(groups[name], event[1])
        root = groups[name][0]
        rows[root] = max(rows.get(root, 0), high - low)
        birth.setdefault(root, time)
        death[root] = time
        for source, _, _ in network.inputs[event[0]] if event[0] != IMAGE else ():
            death[groups[source][0]] = time
        alive.release(event)
    blocks = {}
    for root in rows:
        names = [name for name in groups[root] if name in written]
        tensor = network.tensors[root]
        keep = any(name in whole for name in names)
        if network.graph.output.name in names:
            death[root] = len(events)
        blocks[root] = Block(
            height(tensor) if keep else rows[root], row_bytes(tensor),
            dict.fromkeys(names, (1, 0, 0)), keep, birth[root], death[root],
        )  # fmt: skip
    if in_place:
        _overlay_depthwise(network, events, groups, blocks, last)
    return [blocks[name] for name in network.tensors if name in blocks]


def _shared(network: Network, events: list[Event], in_place: bool, last: int) -> dict[str, list[str]]:
    """For each tensor those that share its rows: an operator may write over what nobody reads after it."""
    candidates = {
        (index, name): True
        for index, operator in enumerate(network.graph.operators)
        for name, _, _ in network.inputs[index]
        if _may_share(operator, network, name, in_place)
    }
    alive = _Liveness(network, last)
    for event in events:
        alive.write(event)
        alive.release(event)
        if event[0] != IMAGE:
            for name, _, _ in network.inputs[event[0]]:
                if (event[0], name) in candidates and alive.low[name] <= event[1]:
                    candidates[event[0], name] = False
    groups = {name: [name] for name in network.tensors}
    for (index, name), valid in candidates.items():
        output = network.names[index]
        if valid and len(groups[output]) == 1:
            groups[name].append(output)
            groups[output] = groups[name]
    return groups


def _may_share(operator: Operator, network: Network, name: str, in_place: bool) -> bool:
    if is_view(operator):
        return True
    if not in_place:  # what runtimes compute in the layer before
        relu = isinstance(operator, ops.Table) and operator.function == "relu"
        return relu and len(network.readers[name]) == 1
    same = operator.output.shape == network.tensors[name].shape
    return isinstance(operator, ELEMENTWISE) and same


def _overlay_depthwise(
    network: Network, events: list[Event], groups: dict[str, list[str]], blocks: dict[str, Block], last: int
) -> None:
    """Puts a row of a depthwise convolution into the oldest row that it reads, `left` pixels earlier."""
    for index, operator in enumerate(network.graph.operators):
        if not (isinstance(operator, ops.Convolution) and operator.is_depthwise):
            continue
        output, (source, _, _) = operator.output, network.inputs[index][0]
        inner, outer = blocks.get(groups[output.name][0]), blocks.get(groups[source][0])
        if inner is None or outer is None or inner is outer or inner.rows != 1 or outer.whole or inner.whole:
            continue
        kernel, dilation = window(operator)
        slack = operator.padding[2] * operator.source.shape[0]
        step, first = operator.stride[0], -operator.padding[0]
        fits = inner.stride <= outer.stride + slack and outer.rows == (kernel - 1) * dilation + 1
        fits &= operator.output.shape[0] == operator.source.shape[0] and len(network.readers[source]) == 1
        if fits and _is_free(
            network, events, (groups[output.name], step, first), groups[source], outer.rows, last
        ):
            del blocks[groups[output.name][0]]
            outer.stride += slack
            outer.tensors = dict.fromkeys(outer.tensors, (1, 0, slack))
            outer.tensors |= dict.fromkeys(inner.tensors, (step, first, 0))
            outer.death = max(outer.death, inner.death)


def _is_free(network, events, inner, outer: list[str], rows: int, last: int) -> bool:
    """Whether no row of the ring that is still read has the place of a row of the convolution."""
    names, step, first = inner
    alive = _Liveness(network, last)
    near = {network.writers[each] for each in (*names, *outer)}
    near |= {index for each in (*names, *outer) for index, _ in network.readers[each]}
    for event in (each for each in events if each[0] in near):
        name = alive.write(event)
        if name == names[0]:
            alive.release(event)  # the kernel reads what it writes over
        if name in names or name in outer:
            taken, kept = (
                {row for each in group for row in range(alive.low[each], alive.made[each])}
                | ({event[1]} if name in group else set())
                for group in (names, outer)
            )
            taken, kept = {(row * step + first) % rows for row in taken}, {row % rows for row in kept}
            if taken & kept:
                return False
        alive.release(event)
    return True


def find_gaps(
    network: Network, events: list[Event], blocks: list[Block], last: int | None = None
) -> dict[tuple[int, int], int]:
    """How an output may grow into rows of an earlier tensor that are not read any more.

    Args:
        network: The network.
        events: The rows in the order in which they are computed.
        blocks: See `find_blocks`.
        last: See there.

    Returns:
        For pairs of whole blocks (the later one, the earlier one) by how many bytes the later one must begin
        before the other, so that its rows only overwrite rows that are done.
    """
    alive = _Liveness(network, len(network.inputs) if last is None else last)
    owner = {name: index for index, block in enumerate(blocks) for name in block.tensors}
    whole = [index for index, block in enumerate(blocks) if block.whole]
    last_write = {owner[network.names[index]]: time for time, (index, _) in enumerate(events)}
    gaps = {}
    for time, event in enumerate(events):
        name = alive.write(event)
        later = owner[name]
        if blocks[later].whole:
            end = (event[1] + 1) * blocks[later].stride
            for earlier in whole:
                living = blocks[earlier].birth < blocks[later].birth <= blocks[earlier].death
                if living and last_write[earlier] < blocks[later].birth and time <= blocks[earlier].death:
                    kept = [
                        alive.low[each]
                        for each in blocks[earlier].tensors
                        if alive.low[each] < alive.made[each]
                    ]
                    low = min(kept, default=blocks[earlier].rows)
                    gap = end - low * blocks[earlier].stride
                    gaps[later, earlier] = max(gaps.get((later, earlier), gap), gap)
        alive.release(event)
    return gaps
