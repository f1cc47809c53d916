"""Blocks of memory that live at the same time, packed into one array."""

import random
from dataclasses import dataclass

TRIES = 100  # orders in which the blocks are placed


@dataclass
class Block:
    """A ring of rows, of one tensor or of several that take turns in it.

    Attributes:
        rows: How many rows it holds.
        stride: Bytes from one row to the next.
        tensors: For each tensor (step, first, start): its row y begins at byte start of the block's row
            (y * step + first) modulo rows.
        whole: Whether it holds all rows of its tensors.
        birth: The event in which its first row is written.
        death: The last event that reads one.
    """

    rows: int
    stride: int
    tensors: dict[str, tuple[int, int, int]]
    whole: bool
    birth: int
    death: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.rows * self.stride


def arrange(blocks: list[Block], gaps: dict[tuple[int, int], int]) -> tuple[int, list[int]]:
    """Finds an offset for each block: each one as low as possible, in many orders.

    Args:
        blocks: What must find room.
        gaps: For pairs (block, another one that dies row by row while the first is written): by how many
            bytes the first must begin before the other one. Pairs without an entry do not overlap.

    Returns:
        Bytes in all, and the offset of each block.
    """
    indices = range(len(blocks))
    distance = {}  # bytes from the beginning of a block to that of one above it
    for first in indices:
        for second in indices:
            together = (
                blocks[first].birth <= blocks[second].death and blocks[second].birth <= blocks[first].death
            )
            if first != second and together:
                distance[first, second] = min(
                    gaps.get((first, second), blocks[first].size), blocks[first].size
                )
    neighbors = [[other for other in indices if (other, index) in distance] for index in indices]

    def place(order):
        offsets = {}
        for index in order:
            placed = [other for other in neighbors[index] if other in offsets]
            candidates = sorted({0, *(max(offsets[other] + distance[other, index], 0) for other in placed)})
            offsets[index] = next(
                offset
                for offset in candidates
                if all(
                    offsets[other] + distance[other, index] <= offset
                    or offset + distance[index, other] <= offsets[other]
                    for other in placed
                )
            )
        return max(offsets[index] + blocks[index].size for index in indices), [offsets[i] for i in indices]

    by_size = sorted(indices, key=lambda index: -blocks[index].size)
    by_birth = sorted(by_size, key=lambda index: not blocks[index].whole)
    best = min(place(by_size), place(by_birth), place(by_birth[::-1]))
    generator = random.Random(0)
    orders = [by_size, by_birth]
    for attempt in range(TRIES):
        order = list(orders[attempt % 2])
        first, second = generator.sample(indices, 2) if len(order) > 1 else (0, 0)
        order.insert(second, order.pop(first))
        found = place(order)
        if found[0] <= best[0]:
            best, orders[attempt % 2] = found, order
    return best
