"""From the nodes of an int8 model to the tensors of a LiteRT file: shapes, scales, padding, weights."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, fx, nn

from common.compression.recorder import Recorder
from common.deployment.litert_file import Grid, LiteRtFile

SAME, VALID = 0, 1  # of the schema's Padding
LOWEST = -128
Pair = tuple[int, int]  # vertical, horizontal


class Graph:
    """A LiteRT file that is not finished.

    Attributes:
        model: The int8 model.
        file: The file.
        values: What each node returns for a black image, by its name.
        tensors: The index in the file of the value of each node that was converted.
    """

    def __init__(self, model: fx.GraphModule, image_size: int):
        """Runs the model once.

        Args:
            model: The int8 model.
            image_size: Side of the images, in pixels.
        """
        self.model, self.file = model, LiteRtFile()
        self.tensors: dict[fx.Node, int] = {}
        recorder = Recorder(model)
        with torch.inference_mode():
            recorder.run(torch.zeros(1, 3, image_size, image_size))
        self.values = recorder.values

    def grid(self, node: fx.Node) -> Grid | None:
        """The scale and the zero point of a value in int8.

        Args:
            node: The node that returns it.

        Returns:
            Our uint8 zero point minus 128; None for float.
        """
        value = self.values[node.name]
        return (value.q_scale(), value.q_zero_point() + LOWEST) if value.is_quantized else None

    def shape(self, node: fx.Node) -> list[int]:
        """The shape of a value in LiteRT.

        Args:
            node: The node that returns it.

        Returns:
            [N, H, W, C] for images.
        """
        shape = list(self.values[node.name].shape)
        return [shape[0], *shape[2:], shape[1]] if len(shape) == 4 else shape

    def result(self, node: fx.Node) -> int:
        """Adds the tensor of a node's value.

        Args:
            node: The node.

        Returns:
            The index of the tensor.
        """
        self.tensors[node] = self._tensor(node.name, self.shape(node), self.grid(node))
        return self.tensors[node]

    def add_operand(self, node: fx.Node) -> None:
        """Adds the constant that a parameter or a buffer is, where operators read it as a value.

        Args:
            node: The node that gets it from the model, in float, or that quantizes it.
        """
        values, users = self.values[node.name], [user for user in node.users if user.name in self.values]
        if values.ndim == 0 or all(user.target is torch.quantize_per_tensor for user in users):
            return  # a scale or a zero point, or a constant that is added in int8
        values, grid = values.detach(), self.grid(node)
        dimensions = max(self.values[user.name].ndim for user in users)
        values = values.reshape([1] * (dimensions - values.ndim) + list(values.shape))
        if dimensions == 4:
            values = values.permute(0, 2, 3, 1)
        if grid is None:
            self.tensors[node] = self.file.constant(node.name, values.float().numpy())
        else:
            integers = (values.int_repr().to(torch.int16) + LOWEST).to(torch.int8).numpy()
            self.tensors[node] = self.file.constant(node.name, integers, [grid[0]], zero_point=grid[1])

    def add(self, name: str, node: fx.Node, inputs: list[int], **options) -> int:
        """Adds an operator that computes the value of a node.

        Args:
            name: See `LiteRtFile.operator`, as for `inputs` and `options`.
            node: The node.
            inputs: Indices of tensors.
            **options: Of the operator.

        Returns:
            The index of the node's tensor.
        """
        output = self.result(node)
        self.file.operator(name, inputs, [output], **options)
        return output

    def add_between(
        self, name: str, label: str, shape: list[int], grid: Grid | None, inputs: list[int], **options
    ) -> int:
        """Adds an operator whose result is the value of no node.

        Args:
            name: See `LiteRtFile.operator`, as for `inputs` and `options`.
            label: The name of the new tensor.
            shape: Its shape.
            grid: Its scale and zero point; None for float.
            inputs: Indices of tensors.
            **options: Of the operator.

        Returns:
            The index of the new tensor.
        """
        output = self._tensor(label, shape, grid)
        self.file.operator(name, inputs, [output], **options)
        return output

    def _tensor(self, name: str, shape: list[int], grid: Grid | None) -> int:
        return self.file.tensor(name, shape, "float32" if grid is None else "int8", grid)

    def integers(self, name: str, values) -> int:
        """Adds a constant of int32.

        Args:
            name: Its name.
            values: Integers, or a nested list of them.

        Returns:
            Its index.
        """
        return self.file.constant(name, np.array(values, np.int32))

    def padded(
        self, node: fx.Node, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, lowest: bool = False,
        may_add: bool = True,
    ) -> tuple[int | None, int]:  # fmt: skip
        """Pads the input of a convolution or of a pooling.

        LiteRT's own padding, SAME, is not symmetric where it is odd. Then an operator is added that pads.

        Args:
            node: The convolution or pooling.
            kernel: Its height and width.
            stride: Vertical, horizontal.
            padding: Vertical, horizontal; the same before and after the image.
            dilation: Vertical, horizontal.
            lowest: Whether the lowest integer is added around the image, and not 0.
            may_add: Whether an operator may be added.

        Returns:
            (the index of the input, SAME or VALID); None where an operator would have to be added.
        """
        source = node.args[0]
        pads, same = [], True
        for size, out, k, s, p, d in zip(
            self.shape(source)[1:3], self.shape(node)[1:3], kernel, stride, padding, dilation, strict=True
        ):
            total = max((out - 1) * s + d * (k - 1) + 1 - size, 0)
            pads.append((p, max(total - p, 0)))
            same &= out == math.ceil(size / s) and p == total // 2
        if not any(itertools.chain(*pads)):
            return self.tensors[source], VALID
        if same:
            return self.tensors[source], SAME
        if not may_add:
            return None, VALID
        batch, height, width, channels = self.shape(source)
        shape = [batch, height + sum(pads[0]), width + sum(pads[1]), channels]
        grid = self.grid(source)
        inputs = [self.tensors[source], self.integers(f"{node.name}_pads", [(0, 0), *pads, (0, 0)])]
        if lowest:
            value = np.array([LOWEST], np.int8)
            inputs.append(self.file.constant(f"{node.name}_lowest", value, [grid[0]], zero_point=grid[1]))
        name = "PADV2" if lowest else "PAD"
        return self.add_between(name, f"{node.name}_padded", shape, grid, inputs), VALID

    def weights(
        self, node: fx.Node, layer: nn.Module, order: Callable[[np.ndarray], np.ndarray], axis: int
    ) -> list[int]:
        """Adds the weight and the bias of a quantized layer.

        Args:
            node: The node of the layer.
            layer: The layer.
            order: Turns a weight [O, I, ...] into LiteRT's order.
            axis: Where the output channels are then.

        Returns:
            The indices of the int8 weight and of the int32 bias.
        """
        weight, bias = layer.weight(), layer.bias()
        if weight.qscheme() == torch.per_tensor_affine:  # of files of earlier versions
            scales = torch.tensor([weight.q_scale()])
        else:
            scales = weight.q_per_channel_scales()
        bias = torch.zeros(len(weight)) if bias is None else bias.detach()
        return self.constants(node, order(weight.int_repr().numpy()), bias, scales, axis)

    def constants(
        self, node: fx.Node, weight: np.ndarray, bias: Tensor, scales: Tensor, axis: int
    ) -> list[int]:
        """Adds a weight and a bias.

        Args:
            node: The node of the layer.
            weight: int8.
            bias: float [O]; rounded to multiples of the scales of the weight and the input (Jacob et al.,
                CVPR 2018, equation 11).
            scales: Of the weight, [O] or [1].
            axis: Of the output channels in the weight.

        Returns:
            The indices of the int8 weight and of the int32 bias.
        """
        steps = scales.double() * self.grid(node.args[0])[0]
        rounded = (bias.double() / steps).round().to(torch.int32).numpy()
        return [
            self.file.constant(f"{node.name}_weight", weight, scales.tolist(), axis),
            self.file.constant(f"{node.name}_bias", rounded, steps.tolist()),
        ]
