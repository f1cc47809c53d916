"""An int8 network as plain data: tensors, and operators in the order in which they run.

A value is scale * (integer - zero point), with an integer from -128 to 127 (Jacob et al., CVPR 2018,
equation 1). Shapes are those of one image, [C, H, W] or [C]. `operators` has the operators, which refuse what
does not fit. `reference` computes a graph; the writers of LiteRT and ONNX files read it.
"""

from dataclasses import dataclass

import numpy as np

LOW, HIGH = -128, 127
FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Tensor:
    """The int8 values of one image that an operator reads or writes.

    Attributes:
        name: Unique in its graph.
        shape: [C, H, W] or [C].
        scale: Of float32, positive.
        zero_point: From -128 to 127.
    """

    name: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int

    def __post_init__(self):
        sizes = all(isinstance(size, int) and size > 0 for size in self.shape)
        require(sizes and len(self.shape) in (1, 3), self, f"the shape {self.shape}")
        positive = 0 < self.scale <= FLOAT32_MAX
        require(positive and float(np.float32(self.scale)) == self.scale, self, f"the scale {self.scale}")
        require(self.zero_point in range(LOW, HIGH + 1), self, f"the zero point {self.zero_point}")

    @property
    def grid(self) -> tuple[float, int]:
        """(scale, zero point)."""
        return self.scale, self.zero_point


@dataclass(frozen=True)
class Operator:
    """One step of the network.

    Attributes:
        inputs: What it reads.
        output: What it writes.
    """

    inputs: tuple[Tensor, ...]
    output: Tensor

    @property
    def source(self) -> Tensor:
        """The input of an operator that has only one.

        Raises:
            ValueError: It has none, or several.
        """
        require(len(self.inputs) == 1, self.output, f"{len(self.inputs)} inputs")
        return self.inputs[0]

    def require_output(self, shape: tuple[int, ...], *, same_grid: bool = False) -> None:
        """Refuses another output.

        Args:
            shape: What it must have.
            same_grid: Whether it must have the scale and zero point of the inputs.

        Raises:
            ValueError: It differs.
        """
        require(self.output.shape == tuple(shape), self.output, f"another shape than {shape}")
        if same_grid:
            equal = all(tensor.grid == self.output.grid for tensor in self.inputs)
            require(equal, self.output, "another scale or zero point than its inputs")


@dataclass(frozen=True)
class Graph:
    """A network.

    Attributes:
        input: The normalized image, [3, S, S].
        operators: In the order in which they run; the last one writes the logits, [C].
    """

    input: Tensor
    operators: tuple[Operator, ...]

    def __post_init__(self):
        known = {self.input.name: self.input}
        for operator in self.operators:
            for tensor in operator.inputs:
                require(known.get(tensor.name) == tensor, tensor, "no operator before that writes it")
            require(operator.output.name not in known, operator.output, "a name that is taken")
            known[operator.output.name] = operator.output
        require(bool(self.operators), self.input, "no operator")

    @property
    def output(self) -> Tensor:
        """The logits."""
        return self.operators[-1].output

    @property
    def has_4_bits(self) -> bool:
        """Whether a layer has weights of 4 bits."""
        return any(getattr(operator, "weight_bits", 8) == 4 for operator in self.operators)


def require(condition: bool, tensor: Tensor, fault: str) -> None:
    """Refuses a graph.

    Args:
        condition: What must hold.
        tensor: Where it does not.
        fault: What the tensor has then.

    Raises:
        ValueError: The condition does not hold.
    """
    if not condition:
        raise ValueError(f"{tensor.name} has {fault}")
