"""The values of a traced model, and in int8 their scales and zero points."""

import torch
from torch import Tensor, fx

ZERO_POINT = 128  # of uint8, where that of int8 is 0


class Recorder(fx.Interpreter):
    """Runs a traced model and keeps the tensor that each node returns, in `values` by the node's name."""

    def __init__(self, model: fx.GraphModule):
        """Starts without values.

        Args:
            model: Float, with fake quantization, or int8.
        """
        super().__init__(model)
        self.values: dict[str, Tensor] = {}

    def run_node(self, node: fx.Node):
        """Runs one node; called by `run`.

        Args:
            node: The node.

        Returns:
            What the node returns.
        """
        value = super().run_node(node)
        if torch.is_tensor(value):
            self.values[node.name] = value
        return value


def grids(int8_model: fx.GraphModule, image_size: int) -> dict[str, tuple[float, int]]:
    """Runs an int8 model on a black image, to find its scales.

    Args:
        int8_model: A converted model.
        image_size: Side of the image, in pixels.

    Returns:
        The (scale, zero point) of every quantized value, by the name of its node; the zero point for uint8.
    """
    recorder = Recorder(int8_model)
    with torch.inference_mode():
        recorder.run(torch.zeros(1, 3, image_size, image_size))
    values = recorder.values.items()
    return {name: (value.q_scale(), value.q_zero_point()) for name, value in values if value.is_quantized}
