"""The dependency graph of torch-pruning, with barriers: operations whose channels are left whole.

A channel that goes through a reshape with five or more dimensions (a channel shuffle, the windows and heads
of attention) has another place afterwards, which torch-pruning does not follow. The layers around it keep all
of their channels, and the other layers are pruned.
"""

import contextlib
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import torch_pruning
from torch_pruning import ops
from torch_pruning.dependency import graph

MOST_STEPS = 10_000_000  # in which the channels of layers are found: seconds; of large networks 1,000,000
MOST_DEPENDENCIES = 5_000  # of one layer; of large networks 500
ENDLESS = "its layers depend on each other in too many ways"


class DependencyGraph(torch_pruning.DependencyGraph):
    """Which channels must be removed together; `passable` tells whether those of a group can be."""

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

    def _add_barrier(self, node) -> None:
        node.type, node.dependencies = ops.OPTYPE.ELEMENTWISE, []  # groups end here
        self._barriers.add(node)

    def passable(self, group: torch_pruning.Group) -> bool:
        """Tells whether the channels of a group can be removed.

        Args:
            group: Of this graph.

        Returns:
            False where it reaches a barrier.
        """
        return not any(dep.target in self._barriers for dep, _ in group)

    def get_in_channels(self, module_or_node):
        """As in torch-pruning, which calls it in each step of a search.

        Args:
            module_or_node: A layer, or its node in the graph.

        Returns:
            The number of its input channels; None for what has none of its own.

        Raises:
            RuntimeError: The search does not end.
        """
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise RuntimeError(ENDLESS)
        return super().get_in_channels(module_or_node)


class _Group(torch_pruning.Group):
    def add_dep(self, dep, idxs):
        if len(self) > MOST_DEPENDENCIES:
            raise RuntimeError(ENDLESS)
        super().add_dep(dep, idxs)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """A context in which torch-pruning uses this graph, and gives up a search that does not end.

    Its warnings are silent: they are about parameters outside of layers, whose last dimension is pruned.
    Where that is wrong, the pruned network does not run, and is refused.
    """
    with (
        warnings.catch_warnings(),
        mock.patch.object(torch_pruning.dependency, "DependencyGraph", DependencyGraph),
        mock.patch.object(graph, "Group", _Group),
    ):
        warnings.filterwarnings("ignore", module="torch_pruning")
        yield
