"""Follows the values of a traced int8 model from node to node: what `from_fx` builds its graph with.

torch runs the model once, on a black image, and tells the shape, scale and zero point of each value. What
only moves values (views, transposes, chunks, slices) is run a second time, on their positions. What torch
computes in float32 between two int8 values becomes a table, if it is a function of one value.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import fx

from common.integer import operators as ops
from common.integer.graph import HIGH, LOW, Graph, Tensor
from common.system.errors import UserError, first_line

ZERO_POINT = 128  # of torch's uint8 values, where that of int8 is 0


@dataclass(frozen=True)
class Value:
    """What a node returns.

    Attributes:
        source: The tensor of the graph that it comes from.
        index: float64 [1, ...]: for each of its values the position in `source`.
        functions: (name, function) of what is applied to each value in float32, in this order.
        is_float: Whether it is dequantized.
    """

    source: Tensor
    index: torch.Tensor
    functions: tuple[tuple[str, Callable], ...] = ()
    is_float: bool = False

    @property
    def shape(self) -> torch.Size:
        """Its shape in torch, [1, ...]."""
        return self.index.shape


class Reader(fx.Interpreter):
    """Runs a model and collects the operators of its graph.

    Attributes:
        operators: Those of the nodes so far.
        images: The input of the graph.
        values: What each node returns that depends on the image; a tuple where it returns several.
        results: What torch returned for each node.
    """

    def __init__(self, model: fx.GraphModule, form: Callable):
        """Starts with an empty graph.

        Args:
            model: A converted model, on the CPU.
            form: Called as form(reader, node) for each node that computes something; gives its value.
        """
        super().__init__(model)
        self.extra_traceback = False  # it would lengthen the messages of errors
        self.form, self.operators, self.images = form, [], None
        self.values: dict[fx.Node, Value | tuple[Value, ...]] = {}
        self.results: dict[fx.Node, object] = {}
        self._names = {"images", "input", "logits"}  # the writers use them

    def graph_of(self, image_size: int) -> Graph:
        """Runs the model.

        Args:
            image_size: Side of the images, in pixels.

        Returns:
            The graph.

        Raises:
            UserError: A node has no integer form; the message names it.
        """
        with torch.inference_mode():
            self.run(torch.zeros(1, 3, image_size, image_size))
        (output,) = (node for node in self.module.graph.nodes if node.op == "output")
        value = self.values.get(output.args[0])
        if not isinstance(value, Value) or value.functions:
            raise UserError("the logits have no integer form")
        self.tensor(output.args[0], replace(value, is_float=False), "")
        return Graph(self.images, tuple(self.operators))

    def run_node(self, node: fx.Node):
        """Runs one node; called by `run`.

        Args:
            node: The node.

        Returns:
            What the node returns in torch.

        Raises:
            UserError: The node has no integer form.
        """
        result = self.results[node] = super().run_node(node)
        if node.op == "placeholder":
            self.images = Tensor("input", tuple(result.shape[1:]), *self._input_grid(node))
            self.values[node] = replace(whole(self.images, result.shape), is_float=True)
        elif (
            node.op.startswith("call_")
            and any(each in self.values for each in node.all_input_nodes)
            and has_tensors(result)
        ):
            try:
                self.values[node] = self.form(self, node)
            except (ValueError, TypeError, IndexError, RuntimeError) as error:
                raise UserError(f"{node.name}, {self.describe(node)}: {first_line(error)}") from None
        return result

    def _input_grid(self, images: fx.Node) -> tuple[float, int]:
        """The scale and the zero point of the images; of all channels, where each is quantized by itself."""
        in_float, grids = {images}, set()
        for node in self.module.graph.nodes:
            if not in_float.isdisjoint(node.all_input_nodes):
                if node.target is torch.quantize_per_tensor:
                    grids.add(tuple(float(self.fetch_attr(each.target)) for each in node.args[1:3]))
                else:
                    in_float.add(node)
        low = min(-zero_point * scale for scale, zero_point in grids)
        high = max((HIGH - LOW - zero_point) * scale for scale, zero_point in grids)
        scale = grids.pop()[0] if len(grids) == 1 else (high - low) / (HIGH - LOW)
        return float(np.float32(scale)), round(-low / scale) - ZERO_POINT

    def describe(self, node: fx.Node) -> str:
        """What a node is, for messages.

        Args:
            node: The node.

        Returns:
            Such as "the operator GELU".
        """
        target = node.target
        if node.op == "call_module":
            target = type(self.fetch_attr(target))
        return f"the operator {getattr(target, '__name__', target)}"

    def refuse(self, node: fx.Node, reason: str = "") -> UserError:
        """The error for a node.

        Args:
            node: The node.
            reason: Further words, with a comma before them.

        Returns:
            The error, to be raised.
        """
        return UserError(f"{node.name}, {self.describe(node)}{reason}, has no integer form")

    def arguments(self, node: fx.Node) -> tuple[list, dict]:
        """The arguments of a node.

        Args:
            node: The node.

        Returns:
            (args, kwargs), with a `Value` for each that depends on the image, else torch's result.
        """

        def known(each: fx.Node):
            return self.values[each] if each in self.values else self.results[each]

        return list(fx.node.map_arg(node.args, known)), fx.node.map_arg(node.kwargs, known)

    def call(self, node: fx.Node, convert: Callable):
        """Runs the operation of a node with other tensors.

        Args:
            node: The node.
            convert: Gives the tensor in the place of a `Value`.

        Returns:
            What the operation returns.
        """
        args, kwargs = (
            fx.node.map_aggregate(each, lambda value: convert(value) if isinstance(value, Value) else value)
            for each in self.arguments(node)
        )
        if node.op == "call_module":
            return self.fetch_attr(node.target)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)

    def only(self, node: fx.Node) -> Value:
        """The value that a node reads.

        Args:
            node: The node.

        Returns:
            The value, of the only one of its inputs that depends on the image.

        Raises:
            UserError: There are several.
        """
        found = [self.values[each] for each in node.all_input_nodes if each in self.values]
        found = list(found[0]) if len(found) == 1 and isinstance(found[0], tuple) else found
        if len({(value.source.name, value.functions, value.is_float) for value in found}) != 1:
            raise self.refuse(node, " of several inputs")
        return found[0]

    def emit(
        self, kind: type, node: fx.Node, inputs: Sequence[Tensor], shape, grid, suffix: str = "", **attributes
    ) -> Tensor:
        """Adds an operator.

        Args:
            kind: Of `operators`.
            node: The node that it belongs to; its output has this name, and `suffix`.
            inputs: What it reads.
            shape: Of its output.
            grid: Of its output.
            suffix: Where the output is not the result of the node.
            **attributes: Of the operator.

        Returns:
            Its output.
        """
        name = node.name + suffix
        while name in self._names:
            name += "_"
        self._names.add(name)
        output = Tensor(name, tuple(shape), *grid)
        self.operators.append(kind(tuple(inputs), output, **attributes))
        return output

    def tensor(self, node: fx.Node, value: Value | torch.Tensor, suffix: str = "_input") -> Tensor:
        """The tensor of the graph that has a value, moved if its values are elsewhere in their source.

        Args:
            node: The node that reads it, for messages and names.
            value: int8, or a quantized constant of torch.
            suffix: Of the name, where an operator is added.

        Returns:
            The tensor.

        Raises:
            UserError: The value is not int8, or is moved in a way that no operator has.
        """
        if isinstance(value, torch.Tensor):
            integers = (value.int_repr().to(torch.int16) - ZERO_POINT).to(torch.int8).numpy()
            shape = image_shape(integers.shape if integers.ndim == 4 else (1, *integers.shape))
            shape = shape if len(shape) in (1, 3) else (1, 1, 1)
            return self.emit(
                ops.Constant, node, (), shape, grid_of(value), suffix, values=integers.reshape(shape)
            )
        if value.functions or value.is_float:
            raise self.refuse(node, " of float32 values")
        source, shape = value.source, image_shape(value.shape)
        index = value.index.numpy().astype(np.int64).reshape(shape)
        if index.size != np.prod(source.shape) or (index.ravel() != np.arange(index.size)).any():
            several = index if len(shape) == len(source.shape) else index.reshape(-1, *source.shape[1:])
            places = np.unravel_index(several, source.shape)
            chosen = [
                np.moveaxis(each, axis, 0).reshape(each.shape[axis], -1)[:, 0]
                for axis, each in enumerate(places)
            ]
            if (np.ravel_multi_index(np.ix_(*chosen), source.shape) != several).any():
                raise self.refuse(node, " of values in this order")
            indices = tuple(tuple(each.tolist()) for each in chosen)
            source = self.emit(
                ops.Select, node, [source], several.shape, source.grid, suffix, indices=indices
            )
        if source.shape != shape:
            source = self.emit(ops.Reshape, node, [source], shape, source.grid, suffix)
        return source

    def tabulate(self, node: fx.Node, value: Value, grid: tuple[float, int], suffix: str = "") -> Value:
        """Quantizes what was computed in float32.

        Args:
            node: The node that quantizes.
            value: Of an int8 source, with any functions.
            grid: Of the result.
            suffix: See `emit`.

        Returns:
            The int8 value.
        """
        whole_source = replace(value, functions=(), is_float=False)
        if not value.functions and value.source.grid == grid:
            return whole_source
        source = value.source
        if not value.functions:
            output = self.emit(ops.Requantize, node, [source], source.shape, grid, suffix)
        else:
            numbers = (torch.arange(LOW, HIGH + 1) - source.zero_point).float() * np.float32(source.scale)
            for _, function in value.functions:
                numbers = function(numbers)
            integers = torch.round(numbers / np.float32(grid[0])) + grid[1]
            table = integers.clamp(LOW, HIGH).to(torch.int8).numpy()
            name = ", ".join(name for name, _ in value.functions)
            output = self.emit(ops.Table, node, [source], source.shape, grid, function=name, values=table)
        return replace(whole_source, source=output)


def whole(tensor: Tensor, shape) -> Value:
    """All values of a tensor, in their order.

    Args:
        tensor: The tensor.
        shape: In torch, [1, ...].

    Returns:
        The value.
    """
    return Value(tensor, torch.arange(np.prod(shape), dtype=torch.float64).reshape(tuple(shape)))


def image_shape(shape) -> tuple[int, ...]:
    """The shape in a graph of a value of torch.

    Args:
        shape: [1, ...].

    Returns:
        [C] or [C, H, W]; a sequence [1, C, L] is an image of one row.
    """
    shape = tuple(shape)[1:]
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


def grid_of(result: torch.Tensor) -> tuple[float, int]:
    """The scale and the zero point of a quantized tensor of torch.

    Args:
        result: quint8.

    Returns:
        Those of int8.
    """
    return float(np.float32(result.q_scale())), result.q_zero_point() - ZERO_POINT


def has_tensors(result) -> bool:
    """Whether a node returns tensors, and not sizes.

    Args:
        result: What torch returned.

    Returns:
        Whether it is a tensor or a sequence of tensors.
    """
    parts = result if isinstance(result, tuple | list) else (result,)
    return len(parts) > 0 and all(isinstance(part, torch.Tensor) for part in parts)
