"""What the forms of operators in C have in common: constants are collected, and rows are found."""

from common.deployment.c_constants import array, bytes_of
from common.integer import operators as ops
from common.integer.graph import LOW, Operator, Tensor
from common.integer.rows import Recomputed, height, row_bytes, window

STRUCT = 40  # bytes of the largest struct
NARROW_OVERREAD = 8  # 4 values of 16 bits


class Collector:
    """Collects constants, calls, and what the calls need.

    Attributes:
        rounding: See `reference`.
        constants: Definitions in C.
        calls: For each operator the statements that compute row y; "" where nothing is to be done.
        flash: Bytes of the constants, on a processor with pointers of 4 bytes.
        scratch: Bytes that a call needs besides its inputs and its output.
        rows: The most rows of an input that a call reads.
        taps: The most values of the kernel of a depthwise convolution.
        tile_rows: The most rows of a tile that is computed again; 0 without one.
        left_shifts: Whether a sum is scaled up.
        lows: Whether the smallest output of a layer is not -128.
        narrow: Whether a layer has weights of 4 bits; `overread` are the bytes that their kernels read after
            their inputs, and do not use.
    """

    def __init__(self, rounding: str, narrow: bool = False):
        """Begins with nothing.

        Args:
            rounding: See `reference`.
            narrow: See there.
        """
        self.narrow, self.overread = narrow, NARROW_OVERREAD if narrow else 0
        self.rounding, self.constants, self.calls = rounding, [], []
        self.scratch, self.rows, self.taps, self.flash = 0, 1, 1, 0
        self.tile_rows = 0
        self.left_shifts = self.lows = False
        self._fixed: dict[str, str] = {}  # the arrays of constant tensors

    def _broadcast(self, tensor: Tensor, output: Tensor, position: int) -> str:
        """A row of an input in the shape of the output."""
        row = self._input(tensor)
        channels, _, columns = image_of(output)
        own_channels, _, own_columns = image_of(tensor)
        if (own_channels, own_columns) == (channels, columns):
            return row
        self.scratch = max(self.scratch, 2 * row_bytes(output))
        wide, deep = int(own_columns > 1), int(own_channels > 1)
        offset = position * row_bytes(output)
        # with one column and all channels, or with one channel and all columns, or with a single value
        return f"broadcast({row}, {wide}, {deep}, {columns}, {channels}, arena + SCRATCH + {offset})"

    def _find(self, operator: ops.Convolution | ops.AveragePool | ops.MaxPool | Recomputed) -> str:
        kernel, dilation = window(operator)
        self.rows = max(self.rows, kernel)
        number = self._numbers[operator.source.name]
        return f"find(rows, {number}, {self._top(operator)}, {kernel}, {dilation});"

    def _top(self, operator: Operator) -> str:
        if isinstance(operator, ops.Linear):
            return "y"
        moving = operator.depthwise if isinstance(operator, Recomputed) else operator
        step, above = moving.stride[0], moving.padding[0]
        return ("y" if step == 1 else f"{step} * y") + (f" - {above}" if above else "")

    def _input(self, tensor: Tensor) -> str:
        """A row of a tensor in RAM or of a constant; where it has one row, it is that one."""
        row = "y" if height(tensor) > 1 else "0"
        if tensor.name in self._fixed:
            return f"{self._fixed[tensor.name]} + {row} * {row_bytes(tensor)}"
        return self._row(tensor, row)

    def _row(self, tensor: Tensor, row: str = "y") -> str:
        return f"row({self._numbers[tensor.name]}, {row})"

    def _low(self, operator: Operator) -> int:
        low = operator.output.zero_point if operator.relu else LOW
        if low > LOW:
            self.lows = True
        return low

    def _array(self, kind: str, name: str, values) -> str:
        name = f"{name}_{self._index}"
        self.constants.append(array(kind, name, values))
        self.flash += bytes_of(kind, values)
        return name

    def _struct(self, kind: str, fields: dict, suffix: str = "") -> str:
        name = f"layer{suffix}_{self._index}"
        body = ", ".join(f".{field} = {value}" for field, value in fields.items())
        self.constants.append(f"static const struct {kind} {name} = {{{body}}};\n")
        self.flash += STRUCT
        return name


def image_of(tensor: Tensor) -> tuple[int, int, int]:
    """The shape of a tensor; a vector is one pixel.

    Args:
        tensor: Of a graph.

    Returns:
        Channels, rows, columns.
    """
    return tensor.shape if len(tensor.shape) == 3 else (tensor.shape[0], 1, 1)
