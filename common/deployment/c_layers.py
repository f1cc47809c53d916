"""The constants of each operator in C, and the call that computes one row of its output."""

import math

import numpy as np
import torch

from common.deployment.c_constants import array, blocks_of, braces, c_float, padded
from common.integer import operators as ops
from common.integer import reference, rescaling
from common.integer.graph import LOW, Operator, Tensor
from common.integer.rows import height, is_view, row_bytes, window
from common.system.errors import UserError

SUM_LIMIT = 2**30  # of a sum of products: the kernels double it
LEFT_MAX = 20  # bits: with more, any sum but 0 exceeds any output all the same


class Layers:
    """Collects constants, calls, and what the calls need.

    Attributes:
        rounding: See `reference`.
        constants: Definitions in C.
        calls: For each operator the statements that compute row y; "" where nothing is to be done.
        scratch: Bytes that a call needs besides its inputs and its output.
        rows: The most rows of an input that a call reads.
        taps: The most values of the kernel of a depthwise convolution.
        left_shifts: Whether a sum is scaled up.
        lows: Whether the smallest output of a layer is not -128.
    """

    def __init__(self, rounding: str):
        """Begins with nothing.

        Args:
            rounding: See `reference`.
        """
        self.rounding, self.constants, self.calls = rounding, [], []
        self.scratch, self.rows, self.taps = 0, 1, 1
        self.left_shifts = self.lows = False
        self._fixed: dict[str, str] = {}  # the arrays of constant tensors

    def add(self, operator: Operator, numbers: dict[str, int]) -> None:
        """Adds the next operator.

        Args:
            operator: One of a graph.
            numbers: The tensors in RAM by their names.

        Raises:
            UserError: It has no form in C.
        """
        self._numbers, self._index = numbers, len(self.calls)
        self.calls.append(self._call(operator))

    def _call(self, operator: Operator) -> str:
        match operator:
            case ops.Constant():
                values = np.moveaxis(operator.values, 0, -1)
                self._fixed[operator.output.name] = self._array("int8_t", "values", values)
                return ""
            case ops.Convolution() | ops.Linear():
                return self._weighted(operator)
            case ops.Add() | ops.Multiply():
                return self._elementwise(operator)
            case ops.AveragePool() | ops.MaxPool():
                return self._pooling(operator)
            case ops.Table():
                return self._table(operator, operator.values)
            case ops.Requantize():
                table = reference.requantize_table(operator.source, operator.output, self.rounding)
                return self._table(operator, table)
            case _:
                return self._moved(operator)

    def _moved(self, operator: Operator) -> str:
        """Operators that compute nothing."""
        match operator:
            case ops.Reshape():
                return "" if is_view(operator) else self._reshape(operator)
            case ops.Concatenate():
                return self._concatenate(operator)
            case ops.Pad():
                return self._pad(operator)
            case ops.Select():
                return self._select(operator)
        raise UserError(f"{operator.output.name}: {type(operator).__name__} has no form in C")

    def _reshape(self, operator: ops.Reshape) -> str:
        channels, rows, columns = _image(operator.source)
        shape = ", ".join(map(str, _image(operator.output)))
        source = f"{self._row(operator.source, '0')}, {channels}, {rows * columns}"
        return f"reshape({source}, y, {shape}, {self._row(operator.output)});"

    def _concatenate(self, operator: ops.Concatenate) -> str:
        calls, before, total = [], 0, operator.output.shape[0]
        for tensor in operator.inputs:
            channels, _, columns = _image(tensor)
            place = f"{self._row(operator.output)} + {before}"
            calls.append(f"join({self._input(tensor)}, {channels}, {columns}, {total}, {place});")
            before += channels
        return " ".join(calls)

    def _pad(self, operator: ops.Pad) -> str:
        source, output = operator.source, operator.output
        above, _, left, _ = operator.padding
        sizes = f"{row_bytes(source)}, {left * source.shape[0]}, {output.zero_point}, {row_bytes(output)}"
        find = f"find(rows, {self._numbers[source.name]}, y - {above}, 1, 1);"
        return f"{find} pad(rows[0], {sizes}, {self._row(output)});"

    def _select(self, operator: ops.Select) -> str:
        source, output = operator.source, operator.output
        channels, rows, columns = (*operator.indices, (0,), (0,))[:3]
        same = rows == tuple(range(height(source)))
        row = "y" if same else f"{self._array('uint16_t', 'rows', rows)}[y]"
        chosen = [
            f"{self._array('uint16_t', name, indices)}, {len(indices)}"
            for name, indices in (("columns", columns), ("channels", channels))
        ]
        given = f"{self._row(source, row)}, {source.shape[0]}"
        return f"choose({given}, {', '.join(chosen)}, {self._row(output)});"

    def _weighted(self, operator: ops.Convolution | ops.Linear) -> str:
        source, output = operator.source, operator.output
        weight = operator.weight if operator.weight.ndim == 4 else operator.weight[..., None, None]
        outputs, _, kernel_rows, kernel_columns = weight.shape
        convolution = isinstance(operator, ops.Convolution)
        depthwise = convolution and operator.is_depthwise and outputs == operator.groups
        stride, dilation = (operator.stride[1], operator.dilation[1]) if convolution else (1, 1)
        left, groups = (operator.padding[2], operator.groups) if convolution else (0, 1)
        sums = weight.reshape(outputs, -1).astype(np.int64)
        bias = operator.bias - source.zero_point * sums.sum(1)
        if (np.abs(bias) + -LOW * np.abs(sums).sum(1)).max() >= SUM_LIMIT:
            raise UserError(f"{output.name} has sums that do not fit into 31 bits")
        packed = weight.transpose(1, 2, 3, 0) if depthwise else blocks_of(weight, groups)
        fields = {
            "weights": self._array("ALIGNED int8_t", "weights", packed),
            "bias": self._array("int32_t", "bias", bias),
            **self._factors(operator),
            "columns": _image(source)[2], "channels": _image(source)[0],
            "output_columns": _image(output)[2], "outputs": outputs, "groups": groups,
            "kernel_rows": kernel_rows, "kernel_columns": kernel_columns,
            "stride": stride, "dilation": dilation, "left": left,
            "zero_in": source.zero_point, "zero_out": output.zero_point, "low": self._low(operator),
        }  # fmt: skip
        layer = self._struct("weighted", fields)
        if depthwise:
            return self._depthwise(operator, layer)
        padding = convolution and any(operator.padding)
        if not padding and (kernel_rows, kernel_columns, stride, groups) == (1, 1, 1, 1):
            return self._pointwise(operator, layer)
        self.scratch = max(self.scratch, 4 * padded(weight[0].size) + weight.shape[1])
        return f"{self._find(operator)} convolution(&{layer}, rows, arena + SCRATCH, {self._row(output)});"

    def _depthwise(self, operator: ops.Convolution, layer: str) -> str:
        kernel = operator.weight.shape[2:]
        self.taps, self.scratch = max(self.taps, math.prod(kernel)), max(self.scratch, operator.groups)
        row = self._row(operator.output)
        return f"{self._find(operator)} depthwise(&{layer}, rows, arena + SCRATCH, {row});"

    def _pointwise(self, operator: ops.Convolution | ops.Linear, layer: str) -> str:
        pixels, values = min(2, _image(operator.output)[2]), padded(operator.source.shape[0])
        self.scratch = max(self.scratch, 2 * pixels * values)
        rows = self._row(operator.source, self._top(operator)), self._row(operator.output)
        return f"pointwise(&{layer}, {rows[0]}, arena + SCRATCH, {rows[1]});"

    def _factors(self, operator: ops.Convolution | ops.Linear) -> dict[str, str]:
        scale, divisor = operator.source.scale, operator.output.scale
        scales = torch.from_numpy(operator.weight_scales)
        if self.rounding == "once":
            multipliers = rescaling.multiplier(scale, scales, divisor)
            return {"multipliers": self._array("float", "multipliers", multipliers)}
        multipliers, shifts = rescaling.fixed_point(scale, scales, divisor)
        if shifts.min() < 0:
            self.left_shifts = True
        shifts = shifts.clamp(min=-LEFT_MAX)
        return {
            "multipliers": self._array("int32_t", "multipliers", multipliers),
            "shifts": self._array("int8_t", "shifts", shifts),
        }

    def _elementwise(self, operator: ops.Add | ops.Multiply) -> str:
        output, (first, second) = operator.output, operator.inputs
        is_sum = isinstance(operator, ops.Add)
        kind = "add" if is_sum else "multiply"
        zeros = f"{{{first.zero_point}, {second.zero_point}, {output.zero_point}}}"
        fields = {"zeros": zeros, "low": self._low(operator)}
        scales = first.scale, second.scale, output.scale
        if is_sum and self.rounding == "once":
            ratios = [min(scale / output.scale, 2**20) for scale in scales[:2]]
            fields |= {
                "scales": braces(map(float.hex, scales)),
                "ratios": braces(map(c_float, ratios)),
                "sure": c_float(0.5 - 2**-12 * sum(ratios)),  # 4 times the error of float32
            }
        elif self.rounding == "once":
            fields["multiplier"] = c_float(rescaling.multiplier(*scales))
        else:
            common = 2 * max(first.scale, second.scale)
            triples = (
                [
                    (first.scale, 1.0, common),
                    (second.scale, 1.0, common),
                    (common, 2.0**-reference.ADD_SHIFT, output.scale),
                ]
                if is_sum
                else [scales]
            )
            factors = [[int(each) for each in rescaling.fixed_point(*triple)] for triple in triples]
            factors = [(q, max(shift, -LEFT_MAX)) for q, shift in factors]
            if min(shift for _, shift in factors) < 0:
                self.left_shifts = True
            multipliers, shifts = zip(*factors, strict=True)
            fields |= (
                {"multipliers": braces(multipliers), "shifts": braces(shifts)}
                if is_sum
                else {"multiplier": multipliers[0], "shift": shifts[0]}
            )
        layer = self._struct("sum" if is_sum else "product", fields)
        inputs = [
            self._broadcast(tensor, output, position) for position, tensor in enumerate(operator.inputs)
        ]
        return f"{kind}(&{layer}, {', '.join(inputs)}, {row_bytes(output)}, {self._row(output)});"

    def _broadcast(self, tensor: Tensor, output: Tensor, position: int) -> str:
        """A row of an input in the shape of the output."""
        row = self._input(tensor)
        channels, _, columns = _image(output)
        own_channels, _, own_columns = _image(tensor)
        if (own_channels, own_columns) == (channels, columns):
            return row
        self.scratch = max(self.scratch, 2 * row_bytes(output))
        wide, deep = int(own_columns > 1), int(own_channels > 1)
        offset = position * row_bytes(output)
        # with one column and all channels, or with one channel and all columns, or with a single value
        return f"broadcast({row}, {wide}, {deep}, {columns}, {channels}, arena + SCRATCH + {offset})"

    def _pooling(self, operator: ops.AveragePool | ops.MaxPool) -> str:
        source, output = operator.source, operator.output
        kind = "average" if isinstance(operator, ops.AveragePool) else "maximum"
        kernel_rows, kernel_columns = operator.kernel
        fields = {
            "columns": _image(source)[2], "channels": _image(source)[0], "output_columns": _image(output)[2],
            "kernel_rows": kernel_rows, "kernel_columns": kernel_columns, "stride": operator.stride[1],
            "left": operator.padding[2],
        }  # fmt: skip
        layer = self._struct("pooling", fields)
        return f"{self._find(operator)} {kind}(&{layer}, rows, {self._row(output)});"

    def _table(self, operator: ops.Table | ops.Requantize, values: np.ndarray) -> str:
        table = self._array("int8_t", "table", values)
        source = self._row(operator.source)
        return f"look_up({table}, {source}, {row_bytes(operator.output)}, {self._row(operator.output)});"

    def _find(self, operator: ops.Convolution | ops.AveragePool | ops.MaxPool) -> str:
        kernel, dilation = window(operator)
        self.rows = max(self.rows, kernel)
        number = self._numbers[operator.source.name]
        return f"find(rows, {number}, {self._top(operator)}, {kernel}, {dilation});"

    def _top(self, operator: Operator) -> str:
        if isinstance(operator, ops.Linear):
            return "y"
        step, above = operator.stride[0], operator.padding[0]
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
        return name

    def _struct(self, kind: str, fields: dict) -> str:
        name = f"layer_{self._index}"
        body = ", ".join(f".{field} = {value}" for field, value in fields.items())
        self.constants.append(f"static const struct {kind} {name} = {{{body}}};\n")
        return name


def _image(tensor: Tensor) -> tuple[int, int, int]:
    """Channels, rows and columns; a vector is one pixel."""
    return tensor.shape if len(tensor.shape) == 3 else (tensor.shape[0], 1, 1)
