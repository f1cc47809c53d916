"""Runs a network on some images, up to one layer after the other, which can be changed before it runs."""

import copy
from collections.abc import Iterator

from torch import Tensor, fx, nn

from common.compression import regression
from common.system.errors import UserError

CACHE_BYTES = 2**29  # of the values between two layers, for all images; what is larger is computed again


class Traced:
    """A network as a list of nodes, which can be run in parts.

    Attributes:
        modules: By name.
        nodes: In the order in which they run.
        fitted: The indices of the nodes that call a layer whose weights a regression can find.
    """

    def __init__(self, model: nn.Module):
        """Traces a network.

        Args:
            model: A network; a traced one is used as it is.

        Raises:
            UserError: The network has control flow, or uses a layer more than once.
        """
        try:
            graph = model if isinstance(model, fx.GraphModule) else fx.symbolic_trace(model)
        # what the tracer cannot follow: control flow, unsupported calls, assertions of the network's own
        except (TypeError, RuntimeError, AttributeError, AssertionError, ValueError) as error:
            raise UserError(
                f"{type(model).__name__} cannot be traced: {' '.join(str(error).split())}"
            ) from None
        self.modules, self.nodes = dict(graph.named_modules(remove_duplicate=False)), list(graph.graph.nodes)
        called = [node.target for node in self.nodes if node.op == "call_module"]
        if twice := next(
            (name for name in called if called.count(name) > 1 and self._has_weights(name)), None
        ):
            raise UserError(f"{type(model).__name__} uses the layer {twice} more than once")
        self._interpreter = fx.Interpreter(graph)
        self._interpreter.args_iter = iter(())  # further arguments of the network have their defaults
        self.fitted = [i for i in range(len(self.nodes)) if regression.is_possible(self.layer(i))]
        self._last_use = {used: node for node in self.nodes for used in node.all_input_nodes}

    def _has_weights(self, name: str) -> bool:
        return next(self.modules[name].parameters(), None) is not None

    def layer(self, index: int) -> nn.Module | None:
        """The module that a node calls, if any.

        Args:
            index: Of the node.

        Returns:
            The module or None.
        """
        node = self.nodes[index]
        return self.modules[node.target] if node.op == "call_module" else None

    def batch_norm_after(self, index: int) -> nn.BatchNorm2d | None:
        """The batch norm that alone reads the outputs of a node, if any.

        Args:
            index: Of the node.

        Returns:
            The batch norm or None.
        """
        users = list(self.nodes[index].users)
        after = self.layer(self.nodes.index(users[0])) if len(users) == 1 else None
        return after if isinstance(after, nn.BatchNorm2d) else None

    def run(self, values: dict[fx.Node, object], start: int, stop: int) -> dict[fx.Node, object]:
        """Runs the nodes from `start` to `stop` - 1.

        Args:
            values: What nodes from `start` on use.
            start: Index of the first node.
            stop: Index of the first node that does not run.

        Returns:
            What nodes from `stop` on use.
        """
        # copies, since some layers work in place
        values = {node: copy.deepcopy(value) for node, value in values.items()}
        self._interpreter.env = values
        for node in self.nodes[start:stop]:
            values[node] = self._interpreter.run_node(node)
            for used in node.all_input_nodes:
                if self._last_use[used] is node:
                    del values[used]
        return values


class Progress:
    """A network that runs on the same images up to one node after the other.

    Attributes:
        network: It.
    """

    def __init__(self, network: Traced, images: list[Tensor]):
        """Starts before the first node.

        Args:
            network: Its layers may be changed before they run.
            images: Batches, float32 [N, 3, S, S], which are kept in memory.
        """
        self.network = network
        start = next(i for i, node in enumerate(network.nodes) if node.op == "placeholder")
        # the values of each batch after the last layer for which they are small enough to be stored
        self._cached, self._start = [{network.nodes[start]: each} for each in images], start + 1

    def run_to(self, index: int) -> Iterator[dict[fx.Node, object]]:
        """Runs all batches up to a node, to their end.

        Args:
            index: Of the first node that does not run.

        Yields:
            For each batch the values that nodes from this one on use.
        """
        ahead, size = [], 0
        for cached in self._cached:
            values = self.network.run(cached, self._start, index)
            yield values
            size += sum(value.nbytes for value in values.values() if isinstance(value, Tensor))
            ahead = [*ahead, values] if size <= CACHE_BYTES else []
        if size <= CACHE_BYTES:
            self._cached, self._start = ahead, index
