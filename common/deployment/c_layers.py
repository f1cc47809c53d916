"""The form of each operator in C: its constants, and the call that computes one row of its output."""

import numpy as np
import torch

from common.deployment.c_collector import Collector, image_of
from common.deployment.c_constants import (
    blocks_of,
    braces,
    c_float,
    narrow_blocks_of,
    narrow_filters_of,
    padded,
)
from common.integer import operators as ops
from common.integer import reference, rescaling
from common.integer.graph import LOW, Operator
from common.integer.rows import Recomputed, height, is_pixelwise, is_view, row_bytes
from common.system.errors import UserError

SUM_LIMIT = 2**30  # of a sum of products: the kernels double it
NARROW_FACTOR = 16  # by which sums of weights of 4 bits are larger in the kernels
BYTE_MAX = 255  # of a field of the struct
TILE = 4  # columns of the output that recompute.c computes at once
LEFT_MAX = 20  # bits: with more, any sum but 0 exceeds any output all the same


class Layers(Collector):
    """Adds operators."""

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
            case Recomputed():
                return self._recomputed(operator)
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
        channels, rows, columns = image_of(operator.source)
        shape = ", ".join(map(str, image_of(operator.output)))
        source = f"{self._row(operator.source, '0')}, {channels}, {rows * columns}"
        return f"reshape({source}, y, {shape}, {self._row(operator.output)});"

    def _concatenate(self, operator: ops.Concatenate) -> str:
        calls, before, total = [], 0, operator.output.shape[0]
        for tensor in operator.inputs:
            channels, _, columns = image_of(tensor)
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
        layer = self._layer(operator)
        if _is_filter(operator):
            self.scratch = max(self.scratch, self._for_depthwise(operator))
            row = self._row(operator.output)
            return f"{self._find(operator)} depthwise(&{layer}, rows, arena + SCRATCH, {row});"
        if isinstance(operator, ops.Linear) or is_pixelwise(operator):
            self.scratch = max(self.scratch, self._for_pointwise(operator))
            rows = self._row(operator.source, self._top(operator)), self._row(operator.output)
            return f"pointwise(&{layer}, {rows[0]}, arena + SCRATCH, {rows[1]});"
        values = operator.weight[0]
        size = 4 * padded(values.size) + max(len(values), self.overread)
        self.scratch = max(self.scratch, size)
        row = self._row(operator.output)
        return f"{self._find(operator)} convolution(&{layer}, rows, arena + SCRATCH, {row});"

    def _recomputed(self, operator: Recomputed) -> str:
        """Few columns at a time: rows of the expansion are in the scratch memory."""
        first, second = self._layer(operator.expansion, "a"), self._layer(operator.depthwise, "b")
        kernel_rows, kernel_columns = operator.depthwise.weight.shape[2:]
        width = (TILE - 1) * operator.depthwise.stride[1] + kernel_columns
        before = padded(max(self._for_pointwise(operator.expansion), self._for_depthwise(operator.depthwise)))
        self.scratch = max(self.scratch, before + kernel_rows * width * operator.depthwise.groups)
        self.tile_rows = max(self.tile_rows, kernel_rows)
        memory, row = f"arena + SCRATCH, arena + SCRATCH + {before}", self._row(operator.output)
        return f"{self._find(operator)} recompute(&{first}, &{second}, rows, {memory}, {row});"

    def _for_depthwise(self, operator: ops.Convolution) -> int:
        """Bytes of scratch memory."""
        self.taps = max(self.taps, operator.weight[0].size)
        return operator.groups

    def _for_pointwise(self, operator: ops.Convolution | ops.Linear) -> int:
        """Bytes of scratch memory."""
        pixels, values = min(2, image_of(operator.output)[2]), padded(operator.source.shape[0])
        return 2 * pixels * values + self.overread

    def _layer(self, operator: ops.Convolution | ops.Linear, suffix: str = "") -> str:
        """Adds the weights; returns the name of their struct."""
        source, output = operator.source, operator.output
        weight = operator.weight if operator.weight.ndim == 4 else operator.weight[..., None, None]
        outputs, _, kernel_rows, kernel_columns = weight.shape
        convolution = isinstance(operator, ops.Convolution)
        stride, dilation = (operator.stride[1], operator.dilation[1]) if convolution else (1, 1)
        left, groups = (operator.padding[2], operator.groups) if convolution else (0, 1)
        sums = weight.reshape(outputs, -1).astype(np.int64)
        bias = operator.bias - source.zero_point * sums.sum(1)
        narrow = operator.weight_bits == 4
        largest = -LOW * np.abs(sums).sum(1)
        if max((np.abs(bias) + largest).max(), narrow * NARROW_FACTOR * largest.max()) >= SUM_LIMIT:
            raise UserError(f"{output.name} has sums that do not fit into 31 bits")
        if max(kernel_rows, kernel_columns, stride, dilation, left) > BYTE_MAX:
            raise UserError(f"{output.name} has a kernel, a stride, a dilation or a padding above {BYTE_MAX}")
        if narrow:
            packed = narrow_filters_of(weight) if _is_filter(operator) else narrow_blocks_of(weight, groups)
        else:
            packed = weight.transpose(1, 2, 3, 0) if _is_filter(operator) else blocks_of(weight, groups)
        fields = {
            "weights": self._array("ALIGNED int8_t", f"weights{suffix}", packed),
            "bias": self._array("int32_t", f"bias{suffix}", bias),
            **self._factors(operator, suffix),
            "columns": image_of(source)[2], "channels": image_of(source)[0],
            "output_columns": image_of(output)[2], "outputs": outputs, "groups": groups,
            "kernel_rows": kernel_rows, "kernel_columns": kernel_columns,
            "stride": stride, "dilation": dilation, "left": left,
            "zero_in": source.zero_point, "zero_out": output.zero_point, "low": self._low(operator),
        }  # fmt: skip
        if self.narrow:
            fields["bits"] = operator.weight_bits
        return self._struct("weighted", fields, suffix)

    def _factors(self, operator: ops.Convolution | ops.Linear, suffix: str) -> dict[str, str]:
        scale, divisor = operator.source.scale, operator.output.scale
        scales = torch.from_numpy(operator.weight_scales)
        if self.rounding == "once":
            multipliers = rescaling.multiplier(scale, scales, divisor)
            return {"multipliers": self._array("float", f"multipliers{suffix}", multipliers)}
        multipliers, shifts = rescaling.fixed_point(scale, scales, divisor)
        if shifts.min() < 0:
            self.left_shifts = True
        shifts = shifts.clamp(min=-LEFT_MAX)
        return {
            "multipliers": self._array("int32_t", f"multipliers{suffix}", multipliers),
            "shifts": self._array("int8_t", f"shifts{suffix}", shifts),
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

    def _pooling(self, operator: ops.AveragePool | ops.MaxPool) -> str:
        source, output = operator.source, operator.output
        kind = "average" if isinstance(operator, ops.AveragePool) else "maximum"
        kernel_rows, kernel_columns = operator.kernel
        fields = {
            "columns": image_of(source)[2], "channels": image_of(source)[0],
            "output_columns": image_of(output)[2], "kernel_rows": kernel_rows,
            "kernel_columns": kernel_columns, "stride": operator.stride[1], "left": operator.padding[2],
        }  # fmt: skip
        layer = self._struct("pooling", fields)
        return f"{self._find(operator)} {kind}(&{layer}, rows, {self._row(output)});"

    def _table(self, operator: ops.Table | ops.Requantize, values: np.ndarray) -> str:
        table = self._array("int8_t", "table", values)
        source = self._row(operator.source)
        return f"look_up({table}, {source}, {row_bytes(operator.output)}, {self._row(operator.output)});"


def _is_filter(operator: ops.Convolution | ops.Linear) -> bool:
    """Whether it is a depthwise convolution with one output for each channel."""
    return (
        isinstance(operator, ops.Convolution)
        and operator.is_depthwise
        and len(operator.weight) == operator.groups
    )
