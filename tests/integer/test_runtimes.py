"""Random graphs of one or two operators: the integers of each runtime are those of the reference.

ONNX Runtime and LiteRT's XNNPACK round once, LiteRT's reference kernels twice. The exceptions are tested too.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from torch.nn import functional as F

from common.deployment import litert, onnx_writer
from common.deployment.onnx_session import open_session
from common.integer import hard_swish, reference
from common.integer import operators as ops
from common.integer.graph import Graph
from tests.integer.graphs import constant, values, weighted

DRAWS = 8  # graphs of each kind


def onnx_runtime(graph, integers):
    """What ONNX Runtime computes: int8 [N, ...]."""
    session = open_session(onnx_writer.build(graph), 1)
    (logits,) = session.run(None, {onnx_writer.INPUT: reference.dequantize(integers, graph.input).numpy()})
    return torch.from_numpy(np.round(logits / graph.output.scale) + graph.output.zero_point).to(torch.int8)


def xnnpack(graph, integers, resolver=OpResolverType.AUTO):
    """What LiteRT computes: int8 [N, ...]."""
    content = litert.convert(graph, {})
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=resolver, num_threads=1)
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    images = integers.movedim(1, -1).contiguous()
    interpreter.resize_tensor_input(given["index"], list(images.shape))
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], images.numpy())
    interpreter.invoke()
    return torch.from_numpy(interpreter.get_tensor(result["index"])).movedim(-1, 1)


def reference_kernels(graph, integers):
    """What LiteRT computes with the kernels that TensorFlow Lite for Microcontrollers has too."""
    return xnnpack(graph, integers, OpResolverType.BUILTIN_REF)


def power(rng, low, high):
    """A scale, from 10^low to 10^high; a third are powers of two, with which halves occur."""
    exponent = rng.uniform(low, high)
    return float(np.float32(2.0 ** round(exponent / np.log10(2)) if rng.random() < 1 / 3 else 10**exponent))


def zero_point(rng):
    return int(rng.integers(-128, 128))


def image(rng, vector=False):
    shape = (int(rng.integers(1, 200)),) if vector else tuple(rng.integers(1, 10, 3).tolist())
    return values(shape, power(rng, -6, 6), zero_point(rng))


def sums(rng, source, weight):
    """Integers and an output whose range the sums fill, or exceed."""
    scales = (power(rng, -6, 6) * 2.0 ** -rng.integers(0, 3, len(weight))).astype(np.float32)
    bias = rng.integers(-20_000, 20_000, len(weight)).astype(np.int32)
    largest = source.scale * float(np.median(scales)) * 9000 * np.sqrt(weight[0].size)
    step = largest / 128 * power(rng, -1, 0.5)
    if rng.random() < 0.3:  # halves
        scales[:], step = 2.0**-3, source.scale * 2.0 ** int(rng.integers(-2, 10))
    relu = bool(rng.random() < 0.5)
    return {"weight": weight, "weight_scales": scales, "bias": bias, "relu": relu}, (step, zero_point(rng))


def convolution(rng, source, depthwise=False):
    channels, *size = source.shape
    groups = channels if depthwise else int(rng.choice([each for each in (1, 2, 3) if channels % each == 0]))
    kernel = tuple(int(rng.integers(1, min(side, 4) + 1)) for side in size)
    dilation = tuple(
        int(rng.integers(1, 3)) if side > 2 * k else 1 for k, side in zip(kernel, size, strict=True)
    )
    stride, padding = tuple(rng.integers(1, 4, 2).tolist()), tuple(rng.integers(0, 3, 4).tolist())
    padding = padding if rng.random() < 0.6 else (0, 0, 0, 0)
    outputs = groups * int(rng.integers(1, 4))
    weight = rng.integers(-127, 128, (outputs, channels // groups, *kernel)).astype(np.int8)
    weights, grid = sums(rng, source, weight)
    size = ops.windows(size, kernel, stride, padding, dilation)
    attributes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return ops.Convolution((source,), values((outputs, *size), *grid, "y"), **weights, **attributes)


def linear(rng, source):
    weight = rng.integers(-127, 128, (int(rng.integers(1, 20)), *source.shape)).astype(np.int8)
    weights, grid = sums(rng, source, weight)
    return ops.Linear((source,), values(len(weight), *grid, "y"), **weights)


def pool(rng, source, kind=ops.MaxPool):
    """Windows of odd numbers of values for a mean."""
    odd = kind is ops.AveragePool
    kernel = [int(rng.integers(1, min(side, 5) + 1)) for side in source.shape[1:]]
    kernel = tuple((each - 1) // 2 * 2 + 1 if odd else each for each in kernel)
    stride = tuple(rng.integers(1, 4, 2).tolist())
    padding = (0,) * 4 if odd else tuple(int(rng.integers(0, kernel[index // 2])) for index in range(4))
    size = ops.windows(source.shape[1:], kernel, stride, padding)
    return kind((source,), values((source.shape[0], *size), *source.grid, "y"), kernel, stride, padding)


def pad(rng, source):
    above, below, left, right = padding = tuple(rng.integers(0, 4, 4).tolist())
    channels, height, width = source.shape
    shape = (channels, height + above + below, width + left + right)
    return ops.Pad((source,), values(shape, *source.grid, "y"), padding)


def select(rng, source):
    def chosen(size):
        first = int(rng.integers(0, size))
        neighbours = range(first, int(rng.integers(first + 1, size + 1)))
        return tuple(neighbours if rng.random() < 0.4 else rng.integers(0, size, rng.integers(1, 8)).tolist())

    indices = tuple(map(chosen, source.shape))
    return ops.Select((source,), values(tuple(map(len, indices)), *source.grid, "y"), indices)


def reshape(rng, source):
    channels, height, width = source.shape
    shapes = [(channels * height * width,), (height, width, channels), (1, channels * height, width),
              (channels, 1, height * width), (channels * width, height, 1)]  # fmt: skip
    return ops.Reshape((source,), values(shapes[rng.integers(len(shapes))], *source.grid, "y"))


def concatenate(rng, source):
    channels, *size = source.shape
    return ops.Concatenate((source, source), values((2 * channels, *size), *source.grid, "y"))


def requantize(rng, source):
    output = values(source.shape, source.scale * power(rng, -1, 1), zero_point(rng), "y")
    return ops.Requantize((source,), output)


def table(rng, source):
    entries = rng.integers(-128, 128, 256).astype(np.int8)
    output = values(source.shape, power(rng, -6, 6), zero_point(rng), "y")
    return ops.Table((source,), output, "drawn", entries)


def function(name, compute, fixed=None):
    def drawn(rng, source):
        source = values(source.shape, power(rng, -2, -1), zero_point(rng))
        scale, zero = fixed or (source.scale * power(rng, -0.3, 0.1), zero_point(rng))
        numbers = reference.dequantize(torch.arange(-128, 128).to(torch.int8), source)
        output = values(source.shape, scale, zero, "y")
        entries = reference.quantize(compute(numbers), output).numpy()
        return ops.Table((source,), output, name, entries)

    return drawn


def elementwise(kind):
    """With scales as `compression.scales` leaves them: no result lies halfway between two integers."""

    def drawn(rng, source):
        odd, output = 1023, power(rng, -2, 2)
        if kind is ops.Multiply:
            scale, odd = power(rng, -2, 2), 2 * int(rng.integers(1, 200)) + 1
            output = source.scale * scale * odd / int(rng.integers(1, 6))
        else:
            first, second = rng.integers(5, 1500, 2) / odd
            source, scale = values(source.shape, output * first, zero_point(rng)), output * second
        shape = source.shape if rng.random() < 0.5 else (source.shape[0], 1, 1)
        other = constant(rng.integers(-128, 128, shape), scale, zero_point(rng))
        output = values(source.shape, output, zero_point(rng), "y")
        return other, kind((source, other.output), output, bool(rng.random() < 0.5))

    return drawn


KINDS = {
    "convolution": convolution,
    "depthwise": lambda rng, source: convolution(rng, source, depthwise=True),
    "max pool": pool,
    "average pool": lambda rng, source: pool(rng, source, ops.AveragePool),
    "pad": pad,
    "select": select,
    "reshape": reshape,
    "concatenate": concatenate,
    "requantize": requantize,
    "table": table,
    "relu": function("relu", F.relu),
    "sigmoid": function("sigmoid", torch.sigmoid, (1 / 256, -128)),
    "tanh": function("tanh", torch.tanh, (1 / 128, 0)),
    "hardsigmoid": function("hardsigmoid", F.hardsigmoid, (1 / 256, -128)),
    "gelu": function("gelu", F.gelu),
    "silu": function("silu", F.silu),
    "leaky_relu": function("leaky_relu 0.1", lambda numbers: F.leaky_relu(numbers, 0.1)),
    "add": elementwise(ops.Add),
    "multiply": elementwise(ops.Multiply),
}
FIRST = ("convolution", "depthwise", "max pool", "pad", "select")
SECOND = (*FIRST, "average pool", "reshape", "concatenate", "requantize", "table")


def assert_equal(graph, rng):
    """Compares the runtimes with the reference; returns how many values differ between its roundings."""
    integers = torch.from_numpy(rng.integers(-128, 128, (2, *graph.input.shape)).astype(np.int8))
    once, twice = (reference.run(graph, integers, rounding) for rounding in reference.ROUNDINGS)
    assert torch.equal(onnx_runtime(graph, integers), once), "ONNX Runtime"
    assert torch.equal(xnnpack(graph, integers), once), "XNNPACK"
    assert torch.equal(reference_kernels(graph, integers), twice), "LiteRT's reference kernels"
    return int((once != twice).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_an_operator_has_the_same_integers_everywhere(kind):
    rng, differing = np.random.default_rng(0), 0
    for _ in range(DRAWS):
        found = KINDS[kind](rng, image(rng))
        steps = found if isinstance(found, tuple) else (found,)
        differing += assert_equal(Graph(steps[-1].inputs[0], steps), rng)
    assert differing or kind not in ("convolution", "depthwise", "requantize", "multiply")


def test_two_operators_have_the_same_integers_everywhere():
    rng = np.random.default_rng(1)
    for _ in range(4 * DRAWS):
        first = KINDS[rng.choice(FIRST)](rng, image(rng))
        middle = values(first.output.shape, *first.output.grid, "middle")
        first = type(first)(**vars(first) | {"output": middle})
        assert_equal(Graph(first.inputs[0], (first, KINDS[rng.choice(SECOND)](rng, middle))), rng)


def test_vectors_have_the_same_integers_everywhere():
    rng = np.random.default_rng(2)
    for kind in (requantize, table, select, concatenate, elementwise(ops.Add)):
        found = kind(rng, image(rng, vector=kind is not KINDS["add"]))
        steps = found if isinstance(found, tuple) else (found,)
        assert_equal(Graph(steps[-1].inputs[0], steps), rng)


def test_linear_layers_have_the_same_integers_everywhere():
    rng = np.random.default_rng(3)
    for _ in range(2 * DRAWS):
        step = linear(rng, image(rng, vector=True))
        integers = torch.from_numpy(rng.integers(-128, 128, (20, *step.source.shape)).astype(np.int8))
        graph = Graph(step.source, (step,))
        once = reference.run(graph, integers, "once")
        assert torch.equal(onnx_runtime(graph, integers), once)
        assert torch.equal(xnnpack(graph, integers), once)


def results(integers, *operators):
    """What the reference, ONNX Runtime, XNNPACK and LiteRT's reference kernels compute, as lists."""
    graph = Graph(operators[-1].inputs[0], operators)
    images = torch.tensor(integers, dtype=torch.int8)[None]
    found = {rounding: reference.run(graph, images, rounding) for rounding in reference.ROUNDINGS}
    runtimes = (onnx_runtime, xnnpack, reference_kernels)
    found |= {runtime.__name__: runtime(graph, images) for runtime in runtimes}
    return {name: each.flatten().tolist() for name, each in found.items()}


def test_halves_of_sums_are_rounded_differently():
    source, other = values((4, 1, 1), 0.5), constant(np.full((4, 1, 1), 4), 0.5)
    step = ops.Add((source, other.output), values((4, 1, 1), 1, 1, "y"))
    found = results([[[1]], [[3]], [[-1]], [[-3]]], other, step)
    # 2.5, 3.5, 1.5, 0.5, and the zero point 1
    assert found == {
        "once": [3, 5, 3, 1],  # half to even, then the zero point
        "twice": [4, 5, 3, 2],  # half away from 0
        "onnx_runtime": [4, 4, 2, 2],  # the zero point of uint8, 129, then half to even
        "xnnpack": [4, 5, 3, 2],  # half up
        "reference_kernels": [4, 5, 3, 2],
    }


def test_halves_of_products_are_rounded_differently_by_onnx_runtime():
    source, other = values((4, 1, 1), 0.5), constant(np.full((4, 1, 1), 3), 1)
    step = ops.Multiply((source, other.output), values((4, 1, 1), 1, 1, "y"))
    found = results([[[1]], [[3]], [[5]], [[7]]], other, step)
    # 1.5, 4.5, 7.5, 10.5, and the zero point 1
    assert found == {
        "once": [3, 5, 9, 11],
        "twice": [3, 6, 9, 12],
        "onnx_runtime": [2, 6, 8, 12],
        "xnnpack": [3, 5, 9, 11],
        "reference_kernels": [3, 6, 9, 12],
    }


@pytest.mark.parametrize("side", [(2, 1), (2, 2), (4, 4), (5, 6), (8, 8), (14, 14), (56, 56)], ids=str)
def test_halves_of_means_of_an_image_are_rounded_away_from_0_everywhere(side):
    rng, count, lower = np.random.default_rng(5), int(np.prod(side)), np.arange(-128, 127)
    for more, rounded in (
        (0, np.where(lower >= 0, lower + 1, lower)),  # the mean is lower + 1/2
        (1, lower + 1),  # slightly above
        (-1, lower),  # slightly below
    ):
        for zero in (0, -128, 127, zero_point(rng)):
            integers = np.repeat(lower[:, None], count, 1) + (np.arange(count) < count // 2 + more)
            integers = torch.from_numpy(integers.reshape(1, -1, *side).astype(np.int8))
            source = values((len(lower), *side), power(rng, -6, 6), zero)
            step = ops.AveragePool((source,), values((len(lower), 1, 1), *source.grid, "y"), side, side)
            for runtime in (reference.run, onnx_runtime, xnnpack, reference_kernels):
                assert runtime(Graph(source, (step,)), integers).flatten().tolist() == rounded.tolist()


def test_means_that_do_not_count_the_padding_are_the_same_in_onnx_runtime():
    rng = np.random.default_rng(6)
    for side, kernel, padding in (
        ((5, 6), (3, 2), (1, 1, 1, 0)),
        ((3, 3), (3, 3), (1, 1, 1, 1)),
        ((4, 4), (2, 2), (1, 0, 0, 1)),
    ):
        source = values((8, *side), power(rng, -6, 6), zero_point(rng))
        size = ops.windows(side, kernel, (1, 1), padding)
        step = ops.AveragePool((source,), values((8, *size), *source.grid, "y"), kernel, (1, 1), padding)
        integers = torch.from_numpy(rng.integers(-128, 128, (4, *source.shape)).astype(np.int8))
        graph = Graph(source, (step,))
        assert torch.equal(onnx_runtime(graph, integers), reference.run(graph, integers))


def test_hard_swish_is_that_of_litert_everywhere():
    rng, differing, draws = np.random.default_rng(4), 0, 4 * DRAWS
    for _ in range(draws):
        step = function("hardswish", F.hardswish)(rng, values((1, 16, 16), power(rng, -3, 1)))
        in_float = step.values
        step = replace(step, values=hard_swish.table(step.source, step.output))
        graph = Graph(step.source, (step,))
        integers = torch.arange(-128, 128).to(torch.int8).view(1, 1, 16, 16)
        for runtime in (reference.run, onnx_runtime, xnnpack, reference_kernels):
            assert np.array_equal(runtime(graph, integers).flatten(), step.values)
        assert np.abs(step.values.astype(int) - in_float).max() <= 1
        differing += int((step.values != in_float).sum())
    assert 0 < differing < 0.02 * draws * 256
    assert names_of(step) == ["HARD_SWISH"]
    assert "GATHER" in names_of(replace(step, values=np.roll(step.values, 1)))


def test_hard_swish_has_no_form_in_16_bits_where_its_output_has_a_tiny_scale():
    assert hard_swish.table(values(1, 1.0), values(1, 0.001)) is None


def names_of(step):
    """The operators of a LiteRT file of one step."""
    content = litert.convert(Graph(step.source, (step,)), {})
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    return [each["op_name"] for each in interpreter._get_ops_details()]


def test_a_relu_of_other_scales_is_a_table_where_litert_s_would_round_otherwise():
    def relu(scale):
        return function("relu", F.relu, (scale, 0))(np.random.default_rng(0), values(9))

    for scale, native in ((relu(1.0).source.scale, True), (relu(1.0).source.scale * 4, False)):
        step = relu(scale)
        names = names_of(step)
        assert (names == ["RELU"]) is native and ("GATHER" in names) is not native


def test_linear_layers_round_once_in_litert_s_reference_kernels_too():
    step = ops.Linear((values(4, 0.25),), values(4, 1, 0, "y"), **weighted(np.eye(4)))
    # 0.25, 0.75, -0.25, 1.5
    assert results([1, 3, -1, 6], step) == {
        "once": [0, 1, 0, 2],
        "twice": [1, 1, 0, 2],
        "onnx_runtime": [0, 1, 0, 2],
        "xnnpack": [0, 1, 0, 2],
        "reference_kernels": [0, 1, 0, 2],
    }
