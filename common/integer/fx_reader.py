"""Follows the values of a traced int8 model from node to node: what `from_fx` builds its graph with.

The model runs once, on a black image (see `fx_grids`). What only moves values (views, transposes, chunks,
slices) is run a second time, on their positions. What torch computes in float32 between two int8 values
becomes a table, if it is a function of one value.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import fx

from common.integer import hard_swish, reference
from common.integer import operators as ops
from common.integer.fx_grids import ZERO_POINT, GridRunner
from common.integer.fx_values import Value, image_shape, selection, whole
from common.integer.graph import HIGH, LOW, Graph, Tensor
from common.system.errors import UserError, first_line


class Reader(GridRunner):
    """Runs a model and collects the operators of its graph.

    Attributes:
        operators: Those of the nodes so far.
        images: The input of the graph.
        values: What each node returns that depends on the image; a tuple where it returns several.
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
        logits = self.tensor(output.args[0], replace(value, is_float=False), "")
        needed, operators = {logits.name}, []
        for each in reversed(self.operators):  # a network may have parts that its logits do not depend on
            if each.output.name in needed:
                operators.append(each)
                needed |= {tensor.name for tensor in each.inputs}
        return Graph(self.images, tuple(reversed(operators)))

    def run_node(self, node: fx.Node):
        """Runs one node; called by `run`.

        Args:
            node: The node.

        Returns:
            See `GridRunner`.

        Raises:
            UserError: The node has no integer form.
        """
        result = super().run_node(node)
        if node.op == "placeholder" and torch.is_tensor(result):  # an optional argument is None
            self.images = Tensor("input", tuple(result.shape[1:]), *self._input_grid(node))
            self.values[node] = replace(whole(self.images, result.shape), is_float=True)
        elif node.op != "output" and _has_tensors(result) and self.values.keys() & set(node.all_input_nodes):
            try:
                self.values[node] = self.form(self, node)
            except (ValueError, TypeError, IndexError, RuntimeError) as error:
                raise UserError(f"{self._name(node)}: {first_line(error)}") from None
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
        if not grids:
            raise self.refuse(images, " of float32 values")
        low = min(-zero_point * scale for scale, zero_point in grids)
        high = max((HIGH - LOW - zero_point) * scale for scale, zero_point in grids)
        scale = grids.pop()[0] if len(grids) == 1 else (high - low) / (HIGH - LOW)
        return float(np.float32(scale)), round(-low / scale) - ZERO_POINT

    def _name(self, node: fx.Node) -> str:
        """A node and its operator, for messages."""
        target = type(self.fetch_attr(node.target)) if node.op == "call_module" else node.target
        return f"{node.name}, the operator {getattr(target, '__name__', target)}"

    def refuse(self, node: fx.Node, reason: str = "") -> UserError:
        """The error for a node.

        Args:
            node: The node.
            reason: Further words, with a comma before them.

        Returns:
            The error, to be raised.
        """
        return UserError(f"{self._name(node)}{reason}, has no integer form")

    def arguments(self, node: fx.Node) -> tuple[list, dict]:
        """The arguments of a node.

        Args:
            node: The node.

        Returns:
            (args, kwargs), with a `Value` for each that depends on the image, else torch's result.
        """
        known = self.results | self.values
        return list(fx.node.map_arg(node.args, known.get)), fx.node.map_arg(node.kwargs, known.get)

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
        return getattr(self, node.op)(node.target, tuple(args), kwargs)

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

    def result(self, kind: type, node: fx.Node, inputs: Sequence[Tensor], **attributes) -> Value:
        """Adds an operator whose output is the result of its node.

        Args:
            kind: Of `operators`.
            node: The node.
            inputs: What it reads.
            **attributes: Of the operator.

        Returns:
            The result.
        """
        shape = self.results[node].shape
        output = self.emit(kind, node, inputs, image_shape(shape), self.grids[node], **attributes)
        return whole(output, shape)

    def tensor(self, node: fx.Node, value: Value, suffix: str = "_input") -> Tensor:
        """The tensor of the graph that has a value, moved if its values are elsewhere in their source.

        Args:
            node: The node that reads it, for messages and names.
            value: int8.
            suffix: Of the name, where an operator is added.

        Returns:
            The tensor.

        Raises:
            UserError: The value is not int8, or is moved in a way that no operator has.
        """
        if value.functions or value.is_float:
            raise self.refuse(node, " of float32 values")
        source, shape = value.source, image_shape(value.shape)
        if not value.is_whole:
            indices = selection(value)
            if indices is None:
                raise self.refuse(node, " of values in this order")
            chosen = tuple(map(len, indices))
            source = self.emit(ops.Select, node, [source], chosen, source.grid, suffix, indices=indices)
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
        source = value.source
        if value.functions:
            output = replace(source, scale=grid[0], zero_point=grid[1])
            function = ", ".join(name for name, _ in value.functions)
            entries = hard_swish.table(source, output) if function == "hardswish" else None
            if entries is None:
                numbers = reference.dequantize(torch.arange(LOW, HIGH + 1), source)
                for _, compute in value.functions:
                    numbers = compute(numbers)
                entries = reference.quantize(numbers, output).numpy()
            attributes = {"function": function, "values": entries}
            source = self.emit(ops.Table, node, [source], source.shape, grid, suffix, **attributes)
        elif source.grid != grid:
            source = self.emit(ops.Requantize, node, [source], source.shape, grid, suffix)
        return replace(value, source=source, functions=(), is_float=False)


def _has_tensors(result) -> bool:
    """Whether a node returns one tensor or several, and not sizes."""
    parts = result if isinstance(result, tuple | list) else (result,)
    return len(parts) > 0 and all(isinstance(part, torch.Tensor) for part in parts)
