"""Reconstruction after pruning: the layers that are left are fitted to the outputs that they had before.

One layer after the other, in the order of the network, gets weights W + D and an intercept c that minimize

    sum || (W + D) x + c - y ||^2  +  RIDGE * mean(diag(sum x x^T)) * || D ||^2

x are the inputs of the layer in the pruned network, where earlier layers are fitted already. y are the
outputs of the layer in the original network, of the channels that are left. The sums are over training images
and positions. No labels and no gradients are needed. Sources: He, Zhang, Sun, "Channel Pruning for
Accelerating Very Deep Neural Networks", ICCV 2017, section 3.1 (ii); Tang, Wang, Thiele, Saukh, "GRAIL:
Post-hoc Compensation by Linear Reconstruction for Compressed Networks", CPAL 2026, with x of the original
network.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from common.compression import regression
from common.system import hardware
from common.system.errors import UserError
from common.system.terminal import progress_bar

CACHE_BYTES = 2**30  # of the values between two layers, for all images; what is larger is computed again


@dataclass(frozen=True)
class Fit:
    """How well a layer computes the outputs of the original one.

    Attributes:
        layer: Its name.
        before, after: Mean squared error over the mean square of the original outputs.
    """

    layer: str
    before: float
    after: float


def summary(fits: list[Fit]) -> str:
    """Describes what a reconstruction has reached.

    Args:
        fits: The result of `least_squares`.

    Returns:
        One line, with the mean errors.
    """
    before, after = (
        sum(getattr(fit, key) for fit in fits) / max(1, len(fits)) for key in ("before", "after")
    )
    layers = f"{len(fits)} layer{'s' * (len(fits) != 1)}"
    return f"reconstructed {layers}: relative error of the outputs {before:.3f} => {after:.3f}"


@torch.no_grad()
def least_squares(
    pruned: nn.Module, original: nn.Module, kept: dict[str, Tensor], batches: Iterable, device: torch.device
) -> list[Fit]:
    """Fits the layers of a pruned network to the outputs of the original one.

    Conv2d (dense, grouped and depthwise) and Linear layers are fitted, except the largest (see
    `regression.LARGEST`). The intercept becomes part of the bias, or of the running mean of the batch norm
    that follows; a layer with neither gets none. A layer whose outputs are those of the original one stays as
    it is, bit for bit. The sums are those of all processes.

    Args:
        pruned: Changed in place; moved to `device`, and put into eval mode.
        original: The network before it was pruned; moved to `device`, and put into eval mode.
        kept: Of each layer, which output channels of the original one are left: the result of
            `masking.verify`.
        batches: (images, labels); the images are kept in memory.
        device: Where the networks run.

    Returns:
        The error of each layer that was fitted, in the order of the network.

    Raises:
        UserError: The network has control flow, or uses a layer more than once.
    """
    both, fits = _Pair(pruned.to(device).eval(), original.to(device).eval(), batches), []
    with hardware.full_float32():
        for index in progress_bar(both.layers, desc="least squares", unit="layer"):
            layer, name = both.new.layer(index), both.new.nodes[index].target
            norm, channels = both.new.batch_norm_after(index), kept[name].to(device)
            sums = regression.Sums()
            for number, (inputs, outputs, original_outputs) in enumerate(both.run_to(index)):
                positions = regression.positions(layer, outputs, index, number)
                target = regression.rows(layer, original_outputs, positions, channels)
                difference = target - regression.rows(layer, outputs, positions)
                sums += regression.Sums.of(regression.patches(layer, inputs, positions), difference, target)
            sums = sums.all_reduce()
            if not sums.squares:
                continue
            change = sums.ridge(intercept=layer.bias is not None or norm is not None)
            layer.weight += change[:, :-1].mT.reshape(layer.weight.shape).to(layer.weight)
            shift = change[:, -1].flatten().to(layer.weight)
            if layer.bias is not None:
                layer.bias += shift
            elif norm is not None:
                norm.running_mean -= shift
            fits.append(Fit(name, sums.relative_error(0 * change), sums.relative_error(change)))
    return fits


class _Traced:
    """A network as a list of nodes, which can be run in parts."""

    def __init__(self, model: nn.Module):
        try:
            graph = fx.symbolic_trace(model)
        # what the tracer cannot follow: control flow, unsupported calls, assertions of the network's own
        except (TypeError, RuntimeError, AttributeError, AssertionError, ValueError) as error:
            raise UserError(
                f"{type(model).__name__} cannot be traced: {' '.join(str(error).split())}"
            ) from None
        self.modules, self.nodes = dict(graph.named_modules()), list(graph.graph.nodes)
        called = [node.target for node in self.nodes if node.op == "call_module"]
        if twice := next(
            (name for name in called if called.count(name) > 1 and self._has_weights(name)), None
        ):
            raise UserError(f"{type(model).__name__} uses the layer {twice} more than once")
        self._interpreter = fx.Interpreter(graph)
        self._interpreter.args_iter = iter(())  # further arguments of the network have their defaults
        self._last_use = {used: node for node in self.nodes for used in node.all_input_nodes}

    def _has_weights(self, name: str) -> bool:
        return next(self.modules[name].parameters(), None) is not None

    def layer(self, index: int) -> nn.Module | None:
        """The module that a node calls, if any."""
        node = self.nodes[index]
        return self.modules[node.target] if node.op == "call_module" else None

    def batch_norm_after(self, index: int) -> nn.BatchNorm2d | None:
        """The batch norm that alone reads the outputs of a node, if any."""
        users = list(self.nodes[index].users)
        after = self.layer(self.nodes.index(users[0])) if len(users) == 1 else None
        return after if isinstance(after, nn.BatchNorm2d) else None

    def run(self, values: dict[fx.Node, object], start: int, stop: int) -> dict[fx.Node, object]:
        """Runs the nodes from `start` to `stop` - 1.

        `values` are those that nodes from `start` on use; returned are those that nodes from `stop` on use.
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


class _Pair:
    """The pruned and the original network, run on the same images up to one layer after the other.

    `layers` are the indices of the nodes that call a layer that can be fitted.
    """

    def __init__(self, pruned: nn.Module, original: nn.Module, batches: Iterable):
        self.new, self.old = _Traced(pruned), _Traced(original)
        self.layers = [i for i in range(len(self.new.nodes)) if regression.is_possible(self.new.layer(i))]
        start = next(i for i, node in enumerate(self.new.nodes) if node.op == "placeholder")
        # the values of each batch after the last layer for which they are small enough to be stored
        self._cached = [({self.new.nodes[start]: x}, {self.old.nodes[start]: x}) for x, _ in batches]
        self._starts = (start + 1, start + 1)

    def run_to(self, index: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Runs all batches up to a layer; yields its inputs, its outputs, and those of the original layer."""
        ahead, size = [], 0
        for new_values, old_values in self._cached:
            new_values = self.new.run(new_values, self._starts[0], index)
            old_values = self.old.run(old_values, self._starts[1], index + 1)
            inputs = new_values[self.new.nodes[index].all_input_nodes[0]]
            yield inputs, self.new.layer(index)(inputs), old_values[self.old.nodes[index]]
            size += _bytes(new_values) + _bytes(old_values)
            ahead = [*ahead, (new_values, old_values)] if size <= CACHE_BYTES else []
        if size <= CACHE_BYTES:
            self._cached, self._starts = ahead, (index, index + 1)


def _bytes(values: dict[fx.Node, object]) -> int:
    return sum(value.nbytes for value in values.values() if isinstance(value, Tensor))
