"""An int8 network as one C99 file with its header: constant weights, a static array for the activations.

It calls no function but memcpy, memmove and memset, and computes one row of a layer after the other, in the
order and in the memory of a plan (`common.integer.planner`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from common.data.transforms import Normalize
from common.deployment import c_kernels
from common.deployment.c_constants import array, bytes_of, c_string, padded
from common.deployment.c_layers import TILE, Layers
from common.integer import recomputation, reference
from common.integer.graph import Graph
from common.integer.planner import Plan
from common.integer.rows import IMAGE, Network, height, row_bytes

PLACE = 16  # bytes in which the place of a tensor is described


@dataclass(frozen=True)
class Written:
    """A network in C.

    Attributes:
        source: The content of NAME.c.
        header: The content of NAME.h.
        ram: Bytes of its static array: the activations, and what the largest layer needs besides.
        flash: Bytes of its constants; the code is not counted.
    """

    source: str
    header: str
    ram: int
    flash: int


def write(
    graph: Graph, name: str, schedule: str, rounding: str, classes: Sequence[str], mean: Sequence[float],
    std: Sequence[float], extra_macs: float = 0.0,
) -> Written:  # fmt: skip
    """Writes a network.

    Args:
        graph: The network.
        name: An identifier, with which the names in the header begin.
        schedule: Of `planner.SCHEDULES`.
        rounding: Of `reference.ROUNDINGS`.
        classes: Their names.
        mean: Of each channel, for pixels from 0 to 1.
        std: Of each channel, for pixels from 0 to 1.
        extra_macs: See `recomputation.plan`.

    Returns:
        The source and its header.

    Raises:
        UserError: An operator has no form in C; the message names it.
    """
    narrow = graph.has_4_bits
    graph, plan = recomputation.plan(graph, schedule, extra_macs)
    network = Network(graph)
    numbers = {tensor: index for index, tensor in enumerate(network.tensors)}
    layers = Layers(rounding, narrow)
    for operator in graph.operators:
        layers.add(operator, numbers)
    scratch = padded(plan.arena)  # where words may begin
    ram = scratch + layers.scratch
    defines = [f"SCRATCH {scratch}", f"TAPS {layers.taps}"]
    if layers.tile_rows:
        defines += [f"TILE {TILE}", f"TILE_ROWS {layers.tile_rows}"]
    flags = {"ROUND_ONCE": rounding == "once", "LEFT_SHIFTS": layers.left_shifts, "LOWS": layers.lows}
    flags["FOUR_BITS"] = narrow
    defines += [flag for flag, needed in flags.items() if needed]
    unused = tuple(each for each in reference.ROUNDINGS if each != rounding)
    unused += () if narrow else ("narrow",)
    order = _order(graph, plan)
    parts = [
        f'#include <string.h>\n\n#include "{name}.h"\n\n',
        *(f"#define {each}\n" for each in defines),
        *(f"\n{text}" for text in c_kernels.select([*layers.calls, *layers.constants], unused)),
        "\n",
        *layers.constants,
        _memory(name, network, plan, numbers),
        _compute(layers),
        _run(name, graph, order, numbers),
        _tables(name, graph, classes, mean, std),
    ]
    names = sum(len(each.encode(errors="surrogateescape")) + 5 for each in classes)  # a pointer and the end
    flash = layers.flash + PLACE * len(numbers) + bytes_of(*order) + names + 3 * 256
    return Written("".join(parts), _header(name, graph, schedule, rounding, ram), ram, flash)


def _header(name: str, graph: Graph, schedule: str, rounding: str, ram: int) -> str:
    upper, (_, side, _) = name.upper(), graph.input.shape
    classes = graph.output.shape[0]
    return f"""/* An int8 image classifier.
 *
 * Schedule "{schedule}"; sums are rounded {rounding}. The functions return 0, or what the source of rows
 * returned. They use one static array: one image at a time.
 */
#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

#define {upper}_SIDE {side} /* pixels */
#define {upper}_CLASSES {classes}
#define {upper}_ROW_BYTES {row_bytes(graph.input)}
#define {upper}_RAM {ram} /* bytes of the static array */
#define {upper}_INPUT_SCALE {float(graph.input.scale).hex()} /* value = scale * (integer - zero point) */
#define {upper}_INPUT_ZERO_POINT {graph.input.zero_point}
#define {upper}_LOGIT_SCALE {float(graph.output.scale).hex()}
#define {upper}_LOGIT_ZERO_POINT {graph.output.zero_point}

extern const char *const {name}_class_names[{upper}_CLASSES];

/* The input for each byte of red, green and blue: scaled, normalized and quantized. */
extern const int8_t {name}_input_of_rgb[3][256];

/* Turns pixels of 3 bytes, red, green and blue, into inputs; both may be the same memory. */
void {name}_quantize(const uint8_t *rgb, int pixels, int8_t *inputs);

/* Computes the logits of an image, [rows][columns][3]. */
int {name}_run(const int8_t *image, int8_t *logits);

/* The same, with the rows of the image from a function, from the first on, in order: it writes
 * {upper}_ROW_BYTES inputs and returns 0. Another value ends the run and is returned. Rows at the end that no
 * layer reads are not asked for. */
typedef int {name}_source(void *context, int row, int8_t *inputs);
int {name}_run_rows({name}_source *source, void *context, int8_t *logits);

#endif
"""


def _memory(name: str, network: Network, plan: Plan, numbers: dict[str, int]) -> str:
    """The static array, and where in it the rows of each tensor are."""
    places = {}
    for block, offset in zip(plan.blocks, plan.offsets, strict=True):
        for tensor, (step, first, start) in block.tensors.items():
            rows = height(network.tensors[tensor])
            places[numbers[tensor]] = offset + start, block.stride, block.rows, step, first % block.rows, rows
    lines = ",\n".join(f"  {{{', '.join(map(str, places[number]))}}}" for number in sorted(places))
    return f"""
/* Activations; the union aligns them. */
static union {{
  int8_t bytes[{name.upper()}_RAM];
  int64_t alignment;
}} memory;
#define arena memory.bytes

/* Where the rows of each tensor are: row y is in place (y * step + first) % places. */
static const struct {{
  uint32_t offset, stride;
  uint16_t places, step, first, rows;
}} tensors[] = {{
{lines}
}};

static int8_t *row(int tensor, int y)
{{
  const int place = (y * tensors[tensor].step + tensors[tensor].first) % tensors[tensor].places;
  return arena + tensors[tensor].offset + (uint32_t)place * tensors[tensor].stride;
}}
"""


def _compute(layers: Layers) -> str:
    cases = "".join(f"  case {index}: {call} break;\n" for index, call in enumerate(layers.calls) if call)
    find = """
/* Rows of a tensor, from `top` on; NULL outside of the image. */
static void find(const int8_t **rows, int tensor, int top, int count, int dilation)
{
  for (int k = 0, y = top; k < count; k++, y += dilation)
    rows[k] = y < 0 || y >= tensors[tensor].rows ? NULL : row(tensor, y);
}
"""
    uses_rows = "find(" in cases
    return f"""{find if uses_rows else ""}
/* Computes row y of the output of an operator. */
static void compute(int operator, int y)
{{
{f"  const int8_t *rows[{layers.rows}];" if uses_rows else ""}
  switch (operator) {{
{cases}  }}
}}
"""


def _order(graph: Graph, plan: Plan) -> tuple[str, list[int]]:
    count = len(graph.operators)
    values = [count if index == IMAGE else index for index, _ in plan.events]
    return "uint8_t" if count < 256 else "uint16_t", values


def _run(name: str, graph: Graph, order: tuple[str, list[int]], numbers: dict[str, int]) -> str:
    count, (kind, values), upper = len(graph.operators), order, name.upper()
    result = f"  memcpy(logits, row({numbers[graph.output.name]}, 0), {upper}_CLASSES);\n  return 0;\n"
    return (
        f"\n/* The operators whose next rows are computed; {count}: a row of the image arrives. */\n"
        + array(kind, "order", values)
        + f"""
int {name}_run_rows({name}_source *source, void *context, int8_t *logits)
{{
  uint16_t next[{count + 1}] = {{0}}; /* row of each operator */
  for (unsigned i = 0; i < sizeof order / sizeof order[0]; i++) {{
    const int operator = order[i], y = next[operator]++;
    if (operator == {count}) {{
      const int stopped = source(context, y, row(0, y));
      if (stopped) return stopped;
    }} else {{
      compute(operator, y);
    }}
  }}
{result}}}

static int copy_row(void *image, int y, int8_t *inputs)
{{
  memcpy(inputs, (const int8_t *)image + y * {upper}_ROW_BYTES, {upper}_ROW_BYTES);
  return 0;
}}

int {name}_run(const int8_t *image, int8_t *logits)
{{
  return {name}_run_rows(copy_row, (void *)image, logits);
}}
"""
    )


def _tables(
    name: str, graph: Graph, classes: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> str:
    """The names of the classes, and the preprocessing of each of the 256 values of a byte."""
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 256, 1).expand(1, 3, 256, 1)
    inputs = reference.quantize(Normalize(mean, std)(values.contiguous()), graph.input)[0, :, :, 0].tolist()
    names = ",\n".join(f"  {c_string(each)}" for each in classes)
    rows = ",\n".join("  {" + ",".join(map(str, each)) + "}" for each in inputs)
    upper = name.upper()
    return f"""
const char *const {name}_class_names[{upper}_CLASSES] = {{
{names}
}};

const int8_t {name}_input_of_rgb[3][256] = {{
{rows}
}};

void {name}_quantize(const uint8_t *rgb, int pixels, int8_t *inputs)
{{
  for (int i = 0; i < 3 * pixels; i++) inputs[i] = {name}_input_of_rgb[i % 3][rgb[i]];
}}
"""
