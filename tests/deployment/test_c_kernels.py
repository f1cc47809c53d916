"""The C kernels against the reference, on random layers, with the compiler of this machine."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest
import torch

from common.deployment.c_constants import blocks_of, narrow_blocks_of, narrow_filters_of, padded
from common.integer import operators as ops
from common.integer import reference, rescaling
from common.integer.graph import HIGH, LOW, Graph, Tensor
from tests.conftest import REPOSITORY

KERNELS = REPOSITORY / "common/deployment/c"
COMPILER = shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

FILES = {  # in the order in which they are compiled
    "once": ["types", "clamp", "nearest", "rescaled_once", "rescaled4_once"],
    "twice": ["types", "clamp", "rescaled_twice", "rescaled4_twice"],
}
LAYERS = [
    "requantize",
    "wide",
    "padded",
    "four_times",
    "products_narrow",
    "products",
    "pointwise",
    "convolution",
]
LAYERS += ["filter_narrow", "depthwise"]
BITS = pytest.mark.parametrize("bits", [8, 4])
WRAPPERS = """
typedef const struct weighted *layer;
void run_pointwise(layer l, const int8_t *const *rows, int8_t *s, int8_t *o) { pointwise(l, rows[0], s, o); }
void run_convolution(layer l, const int8_t *const *rows, int8_t *s, int8_t *o) { convolution(l, rows, s, o); }
void run_depthwise(layer l, const int8_t *const *rows, int8_t *s, int8_t *o) { depthwise(l, rows, s, o); }
"""
RESCALED = {
    "once": "int run_rescaled(int sum, float multiplier) { return rescaled(sum, multiplier); }",
    "twice": "int run_rescaled(int sum, int q, int shift) { return rescaled(sum, q, shift); }",
}


def source(rounding):
    """One file of all kernels."""
    defines = ["TAPS 49", "LEFT_SHIFTS", "LOWS", "FOUR_BITS", *["ROUND_ONCE"] * (rounding == "once")]
    kernels = [(KERNELS / f"{name}.c").read_text() for name in FILES[rounding] + LAYERS]
    head = ["#include <stdint.h>", "#include <string.h>", *(f"#define {each}" for each in defines)]
    return "\n".join([*head, *kernels, WRAPPERS, RESCALED[rounding]])


@pytest.fixture(scope="module", params=reference.ROUNDINGS)
def kernels(request, tmp_path_factory):
    """(the rounding, the kernels as a library)"""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "kernels.c").write_text(source(request.param))
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fPIC", "-shared"]
    subprocess.run([COMPILER, *flags, "kernels.c", "-o", "kernels.so"], cwd=folder, check=True)
    return request.param, ctypes.CDLL(folder / "kernels.so")


def weighted_type(rounding):
    """`struct weighted`"""
    pointers = ["weights", "bias", "multipliers", *["shifts"] * (rounding == "twice")]
    sizes = ["columns", "channels", "output_columns", "outputs", "groups"]
    small = ["kernel_rows", "kernel_columns", "stride", "dilation", "left"]
    fields = [(name, ctypes.c_void_p) for name in pointers] + [(name, ctypes.c_uint16) for name in sizes]
    fields += [(name, ctypes.c_uint8) for name in small]
    fields += [(name, ctypes.c_int8) for name in ("zero_in", "zero_out", "low")] + [("bits", ctypes.c_uint8)]
    return type("Weighted", (ctypes.Structure,), {"_fields_": fields})


def pointer(array, offset=0):
    return array.ctypes.data + offset


class Layer:
    """What a kernel gets of an operator, and the arrays that it points to."""

    def __init__(self, operator, rounding):
        weight, source, output = operator.weight, operator.source, operator.output
        weight = weight.reshape(*weight.shape, *[1] * (4 - weight.ndim))
        groups, self.depthwise = getattr(operator, "groups", 1), getattr(operator, "is_depthwise", False)
        self.depthwise = self.depthwise and len(weight) == source.shape[0]
        if operator.weight_bits == 4:
            order = narrow_filters_of(weight) if self.depthwise else narrow_blocks_of(weight, groups)
        else:
            order = weight[:, 0].transpose(1, 2, 0).ravel() if self.depthwise else blocks_of(weight, groups)
        sums = weight.reshape(len(weight), -1).sum(1, dtype=np.int32)
        factors = source.scale, torch.from_numpy(operator.weight_scales), output.scale
        scales = [rescaling.multiplier(*factors)] if rounding == "once" else rescaling.fixed_point(*factors)
        scales = [
            each.numpy().astype(kind)
            for each, kind in zip(scales, ["f4"] if rounding == "once" else ["i4", "i1"], strict=True)
        ]
        self.arrays = [order.copy(), operator.bias - source.zero_point * sums, *scales]
        stride, dilation = getattr(operator, "stride", (1, 1)), getattr(operator, "dilation", (1, 1))
        sizes = (source.shape[-1] if len(source.shape) > 1 else 1, source.shape[0])
        sizes += (output.shape[-1] if len(source.shape) > 1 else 1, output.shape[0], groups)
        self.struct = weighted_type(rounding)(
            *map(pointer, self.arrays),
            *sizes,
            *weight.shape[2:],
            stride[1],
            dilation[1],
            getattr(operator, "padding", (0, 0, 0, 0))[2],
            source.zero_point,
            output.zero_point,
            output.zero_point if operator.relu else LOW,
            operator.weight_bits,
        )
        values = padded(weight[0].size)
        self.scratch = np.zeros(
            source.shape[0] if self.depthwise else 4 * values + source.shape[0] + 8, np.int8
        )


def image(rng, *shape):
    return rng.integers(LOW, HIGH + 1, shape, dtype=np.int8)


def convolution(rng, channels, outputs, kernel, size, relu=False, linear=False, bits=8, **how):
    """A random layer whose outputs mostly do not saturate."""
    groups = how.get("groups", 1)
    weight = image(rng, outputs, channels // groups, *kernel)
    if bits == 4:
        weight = weight % 14 - 7
        weight += weight >= 0
    grids = (0.05, int(rng.integers(-100, 100))), (0.5, int(rng.integers(-100, 100)))
    values = weight[0].size
    scales = (0.08 * (1 if bits == 8 else 16) * rng.uniform(0.5, 2, outputs) / values**0.5).astype(np.float32)
    bias = rng.integers(-3000, 3000, outputs, dtype=np.int32) // (1 if bits == 8 else 16)
    source = Tensor("x", (channels, *size), float(np.float32(grids[0][0])), grids[0][1])
    if linear:
        output = Tensor("y", (outputs,), 0.5, grids[1][1])
        source = Tensor("x", (channels,), *source.grid)
        return ops.Linear((source,), output, weight[:, :, 0, 0], scales, bias, relu, bits)
    padding, defaults = how.get("padding", (0, 0, 0, 0)), {"stride": (1, 1), "dilation": (1, 1)}
    steps = {**defaults, **how}
    out = ops.windows(size, kernel, steps["stride"], padding, steps["dilation"])
    output = Tensor("y", (outputs, *out), 0.5, grids[1][1])
    return ops.Convolution((source,), output, weight, scales, bias, relu, bits, **how)


def expected(operator, values, rounding):
    """The reference, as [rows, columns, channels]."""
    moved = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))
    moved = moved if len(operator.source.shape) == 3 else moved[:, 0, 0]
    result = reference.run(Graph(operator.source, (operator,)), moved[None], rounding)[0].numpy()
    return result.transpose(1, 2, 0) if result.ndim == 3 else result[None, None]


def windows_of(operator, values):
    """For each row of the output the rows of the input, None outside of the image."""
    if isinstance(operator, ops.Linear):
        return [[values[0]]]
    kernel, step, dilation = operator.weight.shape[2], operator.stride[0], operator.dilation[0]
    first = (y * step - operator.padding[0] for y in range(operator.output.shape[1]))
    return [
        [values[r] if 0 <= (r := y + k * dilation) < len(values) else None for k in range(kernel)]
        for y in first
    ]


def computed(operator, values, rounding, kernel):
    layer, output = Layer(operator, rounding), []
    for rows in windows_of(operator, values):
        pointers = (ctypes.c_void_p * len(rows))(*(None if row is None else pointer(row) for row in rows))
        to = np.full((layer.struct.output_columns + 2, layer.struct.outputs), 99, np.int8)
        inside = to[1:-1]
        kernel(
            ctypes.byref(layer.struct),
            pointers,
            ctypes.c_void_p(pointer(layer.scratch)),
            ctypes.c_void_p(pointer(inside)),
        )
        assert (to[[0, -1]] == 99).all()
        output.append(inside)
    return np.stack(output)


@BITS
@pytest.mark.parametrize("columns", [1, 2, 3, 6])
@pytest.mark.parametrize(("channels", "outputs"), [(1, 1), (3, 2), (8, 5), (16, 4), (37, 11), (44, 8)])
def test_pointwise(kernels, channels, outputs, columns, bits):
    rounding, library = kernels
    rng = np.random.default_rng(columns)
    operator = convolution(rng, channels, outputs, (1, 1), (2, columns), relu=columns == 2, bits=bits)
    values = image(rng, 2, columns, channels)
    result = computed(operator, values, rounding, library.run_pointwise)
    np.testing.assert_array_equal(result, expected(operator, values, rounding))
    assert len(np.unique(result)) > 1


@BITS
def test_linear(kernels, bits):
    rounding, library = kernels
    rng = np.random.default_rng(0)
    operator = convolution(rng, 70, 9, (1, 1), (1, 1), linear=True, bits=bits)
    values = image(rng, 1, 1, 70)
    result = computed(operator, values, rounding, library.run_pointwise)
    np.testing.assert_array_equal(result, expected(operator, values, rounding))


@BITS
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "size", "how"),
    [
        (3, 8, (3, 3), (9, 9), {"stride": (2, 2), "padding": (1, 1, 1, 1)}),
        (4, 6, (3, 2), (5, 8), {"dilation": (2, 3), "padding": (2, 1, 0, 3)}),
        (12, 6, (1, 3), (3, 7), {"groups": 3, "padding": (0, 0, 1, 1)}),
        (6, 18, (3, 3), (4, 5), {"groups": 6, "padding": (1, 1, 1, 1)}),
        (5, 3, (1, 1), (5, 5), {"stride": (2, 3)}),
        (2, 4, (5, 5), (3, 2), {"padding": (2, 2, 2, 2)}),
    ],
)
def test_convolution(kernels, channels, outputs, kernel, size, how, bits):
    rounding, library = kernels
    rng = np.random.default_rng(1)
    operator = convolution(rng, channels, outputs, kernel, size, bits=bits, **how)
    values = image(rng, *size, channels)
    result = computed(operator, values, rounding, library.run_convolution)
    np.testing.assert_array_equal(result, expected(operator, values, rounding))


DEPTHWISE = [
    (2, (3, 3), (5, 5), {"padding": (1, 1, 1, 1)}),
    (8, (3, 3), (5, 6), {"padding": (1, 1, 1, 1)}),
    (21, (3, 3), (6, 7), {"padding": (1, 1, 1, 1), "stride": (2, 2)}),
    (12, (5, 5), (4, 3), {"padding": (2, 2, 2, 2)}),
    (9, (3, 2), (7, 9), {"dilation": (2, 3), "padding": (0, 2, 3, 0)}),
    (10, (7, 7), (7, 7), {}),
]


@BITS
@pytest.mark.parametrize(("channels", "kernel", "size", "how"), DEPTHWISE)
def test_depthwise(kernels, channels, kernel, size, how, bits):
    rounding, library = kernels
    rng = np.random.default_rng(2)
    operator = convolution(rng, channels, channels, kernel, size, True, groups=channels, bits=bits, **how)
    values = image(rng, *size, channels)
    result = computed(operator, values, rounding, library.run_depthwise)
    np.testing.assert_array_equal(result, expected(operator, values, rounding))


@pytest.mark.parametrize(("channels", "kernel", "size", "how"), DEPTHWISE)
def test_depthwise_in_place(kernels, channels, kernel, size, how):
    rounding, library = kernels
    rng = np.random.default_rng(3)
    operator = convolution(rng, channels, channels, kernel, size, groups=channels, **how)
    values = image(rng, *size, channels)
    layer, results = Layer(operator, rounding), expected(operator, values, rounding)
    before = layer.struct.left * channels
    for row, rows in zip(results, windows_of(operator, values), strict=True):
        if rows[0] is None:
            continue
        buffer = np.concatenate([np.zeros(before, np.int8), rows[0].ravel()])
        pointers = [pointer(buffer, before), *(None if each is None else pointer(each) for each in rows[1:])]
        places = (ctypes.c_void_p * len(rows))(*pointers)
        where = (ctypes.c_void_p(pointer(each)) for each in (layer.scratch, buffer))
        library.run_depthwise(ctypes.byref(layer.struct), places, *where)
        np.testing.assert_array_equal(buffer[: row.size], row.ravel())


def rescaled(kernels, sums, scale):
    """What the C function gives for sum * scale."""
    rounding, library = kernels
    if rounding == "once":
        return [library.run_rescaled(each, ctypes.c_float(scale)) for each in sums]
    q, shift = (int(each) for each in rescaling.fixed_point(scale, 1.0, 1.0))
    return [library.run_rescaled(each, q, shift) for each in sums]


def test_halves(kernels):
    """-3.5 to 3.5: half to even; or half up in the product, and away from 0 in the shift."""
    even = [-4, -2, -2, 0, 0, 2, 2, 4]
    up, away = [-3, -2, -1, 0, 1, 2, 3, 4], [-4, -3, -2, -1, 1, 2, 3, 4]
    product, shift = (even, even) if kernels[0] == "once" else (up, away)
    assert rescaled(kernels, [-7, -5, -3, -1, 1, 3, 5, 7], 1 / 2) == product
    assert rescaled(kernels, [-14, -10, -6, -2, 2, 6, 10, 14], 1 / 4) == shift


def test_scales_above_one(kernels):
    assert rescaled(kernels, [-42, -1, 0, 1, 41], 3.0) == [-126, -3, 0, 3, 123]
    low, high = rescaled(kernels, [-(2**29), 2**29], 1000.0)
    assert low < -256 and high > 256  # saturates, with any zero point


def test_tiny_scales(kernels):
    assert rescaled(kernels, [-(2**29), -1, 1, 2**29], 2.0**-40) == [0, 0, 0, 0]
    assert rescaled(kernels, [-(2**29), 2**29], 2.0**-29) == [-1, 1]
