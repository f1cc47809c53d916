"""The values of a traced model, and in int8 their scales and zero points."""

import torch
from torch import Tensor, fx

from common.integer.fx_grids import ZERO_POINT, GridRunner
from common.system.errors import first_line


class Recorder(fx.Interpreter):
    """Runs a traced model and keeps the tensor that each node returns, in `values` by the node's name."""

    def __init__(self, model: fx.GraphModule):
        """Starts without values.

        Args:
            model: Float, with fake quantization, or int8.
        """
        super().__init__(model)
        self.extra_traceback = False  # it would lengthen the messages of errors
        self.values: dict[str, Tensor] = {}

    def run_node(self, node: fx.Node):
        """Runs one node; called by `run`.

        Args:
            node: The node.

        Returns:
            What the node returns.

        Raises:
            RuntimeError: The node cannot run; the message names it and what it reads.
        """
        try:
            value = super().run_node(node)
        except (TypeError, RuntimeError, AttributeError, AssertionError, ValueError, LookupError) as error:
            read = ", ".join(each.name for each in node.all_input_nodes)
            operator = getattr(node.target, "__name__", node.target)
            raise RuntimeError(f"{node.name}, {operator} of {read}: {first_line(error)}") from error
        if torch.is_tensor(value):
            self.values[node.name] = value
        return value


def grids(int8_model: fx.GraphModule, image_size: int) -> dict[str, tuple[float, int]]:
    """Finds the scales of an int8 model.

    Args:
        int8_model: A converted model.
        image_size: Side of the images, in pixels.

    Returns:
        The (scale, zero point) of every quantized value, by the name of its node; the zero point for uint8.
    """
    runner = GridRunner(int8_model)
    with torch.inference_mode():
        runner.run(torch.zeros(1, 3, image_size, image_size))
    return {
        node.name: (scale, zero_point + ZERO_POINT)
        for node, (scale, zero_point) in runner.grids.items()
        if torch.is_tensor(runner.results[node])
    }
