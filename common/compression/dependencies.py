"""The dependency graph of torch-pruning, with barriers: operations whose channels are left whole.

A channel that goes through a reshape with five or more dimensions (a channel shuffle, the windows and heads
of attention), or through an operation of `MOVES` (a flip, a roll, padding with channels), has another place
afterwards, which torch-pruning does not follow. The layers around it keep all of their channels, and the
other layers are pruned.
"""

import contextlib
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import ClassVar
from unittest import mock

import torch_pruning
from torch_pruning import ops
from torch_pruning.dependency import graph

MOST_STEPS = 10_000_000  # in which the channels of layers are found: seconds; of large networks 1,000,000
MOST_DEPENDENCIES = 5_000  # of one layer; of large networks 500
ENDLESS = "its layers depend on each other in too many ways"

# operations of autograd that move channels: from one, and its number of dimensions, to the axes that move
MOVES = {
    "ConstantPadNd": lambda op, rank: {rank - 1 - i // 2 for i, size in enumerate(op._saved_pad) if size},
    "Flip": lambda op, rank: {_signed(axis) % rank for axis in op._saved_dims},
    "Rot90": lambda op, rank: {_signed(axis) % rank for axis in op._saved_dims},
    "Roll": lambda op, rank: {_signed(axis) % rank for axis in op._saved_dims or range(rank)},
    "Repeat": lambda op, rank: {axis for axis, count in enumerate(op._saved_repeats) if count != 1},
    "Index": lambda op, rank: {axis for axis, index in enumerate(op._saved_indices) if index is not None},
    **dict.fromkeys(
        ("IndexSelect", "Gather", "Sort", "Cumsum"), lambda op, rank: {_signed(op._saved_dim) % rank}
    ),
    **dict.fromkeys(("PixelShuffle", "PixelUnshuffle", "ChannelShuffle", "Im2Col"), lambda op, rank: {1}),
}


class EndlessError(Exception):
    """The search for the channels that must be removed together does not end."""


class DependencyGraph(torch_pruning.DependencyGraph):
    """Which channels must be removed together; `passable` tells whether those of a group can be.

    Attributes:
        followed: The names of the layers whose groups were searched, of all graphs in a context of `bounded`.
    """

    followed: ClassVar[list[str]] = []

    def __init__(self):
        """Starts without a network: see `build_dependency`."""
        super().__init__()
        self._barriers, self._steps = set(), 0

    def _build_dependency(self, module2node):
        super()._build_dependency(module2node)
        for node in module2node.values():
            if node.type == ops.OPTYPE.MHA:
                self._add_barrier(node)
            elif node.type == ops.OPTYPE.RESHAPE:
                sizes = node.grad_fn._saved_self_sym_sizes
                after = [len(getattr(output.grad_fn, "_saved_dims", ())) for output in node.outputs]
                if max(len(sizes), *after, 0) > 4:
                    self._add_barrier(node)
                else:  # the name that torch-pruning reads, from before torch 2
                    node.grad_fn = SimpleNamespace(_saved_self_sizes=sizes)
            elif node.type == ops.OPTYPE.CONCAT:
                self._set_concat_sizes(node)
            elif _moves_channels(node):
                self._add_barrier(node)

    def _add_barrier(self, node) -> None:
        node.type, node.dependencies = ops.OPTYPE.ELEMENTWISE, []  # groups end here
        self._barriers.add(node)

    def _set_concat_sizes(self, node) -> None:
        """Torch-pruning searches the layers before for them, and gives up in a long chain of additions."""
        inputs = [source for source in node.grad_fn.next_functions if source[0] is not None]
        axis = _signed(node.grad_fn._saved_dim)
        if len(inputs) == len(node.inputs):
            node.module.concat_sizes = [op._input_metadata[number].shape[axis] for op, number in inputs]

    def get_pruning_group(self, module, pruning_fn, idxs):
        """As in torch-pruning.

        Args:
            module: The layer whose channels are removed.
            pruning_fn: How.
            idxs: Which.

        Returns:
            What must be removed together.
        """
        self.followed.append(self._module2name.get(module, ""))
        return super().get_pruning_group(module, pruning_fn, idxs)

    def passable(self, group: torch_pruning.Group) -> bool:
        """Tells whether the channels of a group can be removed.

        Args:
            group: Of this graph, with all channels.

        Returns:
            False where it reaches a barrier, or a layer with fewer channels, which are others then.
        """
        for dep, indices in group:
            channels_of = self.get_out_channels if self._removes_outputs(dep) else self.get_in_channels
            channels = channels_of(dep.target)
            if dep.target in self._barriers or (channels is not None and channels < len(indices)):
                return False
        return True

    def channel_groups(self, group: torch_pruning.Group) -> int:
        """In how many parts the channels of a group fall, which torch-pruning keeps equally wide.

        Args:
            group: Of this graph.

        Returns:
            The groups of a grouped convolution or a group norm; 1 where there is none.
        """
        counts = [1]
        for dep, _ in group:
            layer, pruner = dep.target.module, self.get_pruner_of_module(dep.target.module)
            if dep.target.type != ops.OPTYPE.DEPTHWISE_CONV:
                outputs = self._removes_outputs(dep)
                counts.append(
                    (pruner.get_out_channel_groups if outputs else pruner.get_in_channel_groups)(layer)
                )
        return max(counts)

    def _removes_outputs(self, dep) -> bool:
        return self.is_out_channel_pruning_fn(dep.handler)

    def get_in_channels(self, module_or_node):
        """As in torch-pruning, which calls it in each step of a search.

        Args:
            module_or_node: A layer, or its node in the graph.

        Returns:
            The number of its input channels; None for what has none of its own.

        Raises:
            EndlessError: The search does not end.
        """
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise EndlessError(ENDLESS)
        return super().get_in_channels(module_or_node)


def _signed(axis: int) -> int:
    return axis - 2**64 if axis >= 2**63 else axis  # autograd saves axes as unsigned numbers


def _moves_channels(node) -> bool:
    """Tells whether an operation moves channels, or cuts them at a place that pruning would move."""
    op = node.grad_fn
    if node.type in (ops.OPTYPE.SLICE, ops.OPTYPE.SPLIT):
        axis, sizes = _signed(op._saved_dim), op._saved_self_sym_sizes
        channels = 2 if len(sizes) == 3 else 1  # of tokens the last axis
        return axis % len(sizes) == channels and op._input_metadata[0].shape[axis] != sizes[axis]
    moved = MOVES.get(op.name().partition("Backward")[0]) if node.type == ops.OPTYPE.ELEMENTWISE else None
    rank = len(op._input_metadata[0].shape)  # of its output
    return moved is not None and not moved(op, rank).isdisjoint({1, 2} if rank == 3 else {1})


class _Group(torch_pruning.Group):
    def add_dep(self, dep, idxs):
        if len(self) > MOST_DEPENDENCIES:
            raise EndlessError(ENDLESS)
        super().add_dep(dep, idxs)


@contextlib.contextmanager
def bounded() -> Iterator[list[str]]:
    """A context in which torch-pruning uses this graph, and gives up a search that does not end.

    Its warnings are silent: they are about parameters outside of layers, whose last dimension is pruned.
    Where that is wrong, the pruned network does not run, and is refused.

    Yields:
        The names of the layers whose channels torch-pruning has followed so far, the last one at the end.
    """
    with (
        mock.patch.object(DependencyGraph, "followed", []) as followed,
        warnings.catch_warnings(),
        mock.patch.object(torch_pruning.dependency, "DependencyGraph", DependencyGraph),
        mock.patch.object(graph, "Group", _Group),
    ):
        warnings.filterwarnings("ignore", module="torch_pruning")
        yield followed
