"""Plans the RAM of an int8 network: which tensors are kept whole, and in which order rows are computed.

Three schedules, each of which computes every row once:

- layers: operators run one after the other, and every tensor is kept whole.
- rows: a row is computed when the next operator needs it, and is kept in a ring of rows until its last reader
  has run. A few tensors are kept whole between such segments.
- camera: the same, and the image arrives row by row.
"""

from dataclasses import dataclass

from common.integer import arena
from common.integer.arena import Block
from common.integer.blocks import find_blocks, find_gaps
from common.integer.graph import Graph
from common.integer.rows import IMAGE, Event, Network, height

SCHEDULES = ("layers", "rows", "camera")


@dataclass(frozen=True)
class Plan:
    """Where and when each row of the activations is.

    Attributes:
        arena: Bytes of RAM for all activations, the image included.
        events: What is computed, one row after the other.
        blocks: The memory.
        offsets: Of each block, in bytes.
    """

    arena: int
    events: list[Event]
    blocks: list[Block]
    offsets: list[int]


def plan(graph: Graph, schedule: str) -> Plan:
    """Plans a network.

    Args:
        graph: The network.
        schedule: Of `SCHEDULES`.

    Returns:
        The plan.
    """
    network = Network(graph)
    camera = schedule == "camera"
    whole = list(network.tensors) if schedule == "layers" else _whole_tensors(network, camera)
    present = set() if camera else {graph.input.name}
    events = [(IMAGE, row) for row in range(height(graph.input))] if present else []
    events += network.order([name for name in whole if name not in present], present)
    blocks = find_blocks(network, events, present | set(whole), in_place=schedule != "layers")
    gaps = {} if schedule == "layers" else find_gaps(network, events, blocks)
    size, offsets = arena.arrange(blocks, gaps)
    return Plan(size, events, blocks, offsets)


def _whole_tensors(network: Network, camera: bool) -> list[str]:
    """The tensors that are kept whole: a path over the cuts whose largest segment is as small as possible."""
    start, cuts = network.graph.input.name, network.cuts()
    best = {start: (0, 0, ())}  # bytes of the largest segment, number of segments, their ends
    for position, end in enumerate(cuts):
        for source in [*reversed(cuts[:position]), start]:
            size, count, path = best[source]
            if end in best and size > best[end][0]:
                continue
            more, rings = _segment_bytes(network, source, end, arrives=camera and source == start)
            found = max(size, more), count + 1, (*path, end)
            best[end] = min(best.get(end, found), found)
            if rings > best[end][0]:
                break  # a longer segment has these rings too
    return list(best[cuts[-1]][2])


def _segment_bytes(network: Network, source: str, end: str, arrives: bool) -> tuple[int, int]:
    """RAM while `end` is computed from `source`, which arrives row by row or is there whole.

    Returns the bytes, and those of the tensors between the two.
    """
    whole = {end} if arrives else {source, end}
    events = network.order([end], whole - {end})
    if not arrives:
        index = network.writers[source]
        events = [(index, row) for row in range(height(network.tensors[source]))] + events
    blocks = find_blocks(network, events, whole, in_place=True, last=network.writers[end])
    total = sum(block.size for block in blocks)
    for (after, before), gap in find_gaps(network, events, blocks, network.writers[end]).items():
        sizes = blocks[after].size, blocks[before].size
        total -= sum(sizes) - max(gap + sizes[1], sizes[0], sizes[1])
    return total, sum(block.size for block in blocks if not block.whole)
