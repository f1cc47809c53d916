"""Paddings that LiteRT has not: zeros around the kernel, or an operator before the convolution."""

import numpy as np
import pytest
import torch

from common.deployment import layers, litert, litert_file, litert_padding
from common.integer import operators as ops
from common.integer import reference
from common.integer.graph import Graph
from common.integer.memory import peak_bytes
from tests.deployment.graphs import small_graph
from tests.integer.graphs import values, weighted
from tests.integer.test_runtimes import convolution, image, pool, reference_kernels, xnnpack

DRAWS = 40


def drawn_convolution(rng, side, kernel, stride, padding, dilation=1, channels=1):
    """A depthwise convolution of a square image; of its padding, the first number is before the image."""
    source, around = values((channels, side, side), 0.5, 3), (*padding, *padding)
    pairs = {"stride": (stride, stride), "dilation": (dilation, dilation)}
    size = ops.windows((side, side), (kernel, kernel), padding=around, **pairs)
    weights = weighted(rng.integers(-127, 128, (channels, 1, kernel, kernel)), 0.01, 50)
    output = values((channels, *size), 4.0, -5, "y")
    return ops.Convolution((source,), output, **weights, **pairs, padding=around, groups=channels)


def rewritten(step):
    return litert_padding.rewrite(Graph(step.source, (step,))).operators


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding", "dilation", "zeros"),
    [
        (8, 3, 2, (1, 1), 1, (0, 1)),  # SAME pads by 0 and 1
        (7, 3, 2, (1, 1), 1, (0, 0)),  # by 1 and 1
        (8, 5, 2, (2, 2), 1, (0, 1)),  # by 1 and 2
        (16, 7, 4, (3, 3), 1, (0, 3)),  # by 1 and 2; of 10 rows, by 3 and 3
        (8, 3, 2, (0, 1), 1, (0, 0)),
        (7, 3, 2, (0, 2), 1, (1, 0)),  # by 1 and 1; of 4 rows, by 1 and 2: row 0 meets only zeros
        (8, 3, 2, (2, 1), 2, (0, 1)),  # by 1 and 2; of 4 rows 2 apart, by 2 and 3
    ],
)
def test_zeros_around_the_kernel_make_the_padding_same(side, kernel, stride, padding, dilation, zeros):
    step = drawn_convolution(np.random.default_rng(0), side, kernel, stride, padding, dilation)
    (grown,) = rewritten(step)
    before, after = zeros
    size = before + kernel + after
    assert litert_padding.form(grown) == litert_padding.SAME and grown.weight.shape == (1, 1, size, size)
    inner = grown.weight[:, :, before : before + kernel, before : before + kernel]
    assert np.array_equal(inner, step.weight)
    assert np.count_nonzero(grown.weight) == np.count_nonzero(step.weight)


def test_where_no_zeros_help_the_image_is_padded_by_an_operator():
    step = drawn_convolution(np.random.default_rng(0), 8, 3, 2, (2, 2))  # 5 outputs, not ceil(8 / 2)
    pad, valid = rewritten(step)
    assert pad.padding == (2, 2, 2, 2) and pad.output.shape == (1, 12, 12)
    assert litert_padding.form(valid) == litert_padding.VALID and valid.weight is step.weight


def test_zeros_are_found_wherever_there_are_any():
    rng, found = np.random.default_rng(0), []
    for _ in range(10 * DRAWS):
        side, kernel, stride, dilation = (int(rng.integers(1, high)) for high in (16, 6, 5, 5))
        padding = tuple(rng.integers(0, 5, 2).tolist())
        if side + sum(padding) <= dilation * (kernel - 1):
            continue
        step = drawn_convolution(rng, side, kernel, stride, padding, dilation)
        out, possible = step.output.shape[1], not any(padding)
        for above, below in np.ndindex(20, 20):
            total = (out - 1) * stride + dilation * (kernel + above + below - 1) + 1 - side
            possible |= max(total, 0) // 2 == padding[0] + dilation * above and out == -(-side // stride)
        changed = rewritten(step)
        peak = peak_bytes(Graph(step.source, (step,)))
        assert (len(changed) == 1) is possible or peak_bytes(Graph(step.source, changed)) == peak
        found.append(possible)
    assert 0.2 < np.mean(found) < 0.8


def test_only_the_layer_that_would_raise_the_peak_gets_zeros():
    rng = np.random.default_rng(0)
    first = drawn_convolution(rng, 32, 3, 2, (1, 1), channels=8)  # 8192 and 2048 bytes; padded 9248
    pairs = {"stride": (2, 2), "padding": (1, 1, 1, 1)}
    last = ops.Convolution(
        (first.output,),
        values((4, 8, 8), 4.0, 1, "z"),
        **weighted(rng.integers(-9, 9, (4, 8, 3, 3))),
        **pairs,
    )
    graph = Graph(first.source, (first, last))
    grown, pad, valid = litert_padding.rewrite(graph).operators
    assert grown.weight.shape[2:] == (4, 4) and valid.weight is last.weight
    assert pad.output.name == "z_padded" and pad.output.shape == (8, 18, 18)
    assert litert_file.activation_bytes(litert.convert(graph, {})) == peak_bytes(graph) == 10240
    names = set(layers.in_litert(litert.convert(graph, {})))
    assert names == {"images", "y", "z_padded", "logits"}


def test_no_zeros_below_a_peak_that_remains():
    source, output = values((3, 32, 32)), values((24, 16, 16), 4.0, 1, "y")
    weights = weighted(np.ones((24, 3, 3, 3)), 0.01)
    stem = ops.Convolution((source,), output, **weights, stride=(2, 2), padding=(1, 1, 1, 1))
    graph = Graph(source, (stem,))  # 3072 + 6144; padded 3267 + 6144
    assert len(litert_padding.rewrite(graph).operators) == 1
    pooled = values((24, 8, 8), *output.grid, "z")
    maximum = ops.MaxPool((output,), pooled, (3, 3), (2, 2), (1, 1, 1, 1))  # padded: 6144 + 7776
    graph = Graph(source, (stem, maximum))
    assert len(litert_padding.rewrite(graph).operators) == 3
    assert litert_file.activation_bytes(litert.convert(graph, {})) == 6144 + 7776


def test_the_bytes_of_a_file_are_those_that_its_operators_keep():
    source = values((8, 8, 8))
    pooled = ops.MaxPool((source,), values((8, 4, 4), name="y"), (3, 3), (2, 2), (1, 1, 1, 1))
    content = litert.convert(Graph(source, (pooled,)), {})
    assert litert_file.activation_bytes(content) == 8 * 8 * 8 + 8 * 10 * 10
    table = ops.Table((source,), values((8, 8, 8), name="y"), "drawn", np.arange(-128, 128).astype(np.int8))
    content = litert.convert(Graph(source, (table,)), {})
    assert litert_file.activation_bytes(content) == 2 * 4 * 512  # int32 positions, and 128 more


def networks():
    """Two convolutions, or a convolution and a pooling; the second may be padded by an operator."""
    rng = np.random.default_rng(0)
    for draw in range(DRAWS):
        first = convolution(rng, image(rng), depthwise=draw % 2)
        middle = values(first.output.shape, *first.output.grid, "middle")
        first = type(first)(**vars(first) | {"output": middle})
        last = pool(rng, middle) if draw % 4 == 3 else convolution(rng, middle, depthwise=draw % 4 > 1)
        integers = rng.integers(-128, 128, (2, *first.source.shape)).astype(np.int8)
        yield Graph(first.source, (first, last)), torch.from_numpy(integers)


def test_the_integers_stay_the_same():
    kinds = set()
    for graph, integers in networks():
        steps = litert_padding.rewrite(graph)
        once, twice = (reference.run(graph, integers, rounding) for rounding in reference.ROUNDINGS)
        assert torch.equal(reference.run(steps, integers), once)
        assert torch.equal(xnnpack(graph, integers), once)
        assert torch.equal(reference_kernels(graph, integers), twice)
        weights = [each.weight.size for each in graph.operators if isinstance(each, ops.Convolution)]
        grown = [each.weight.size for each in steps.operators if isinstance(each, ops.Convolution)]
        kinds |= {"zeros"} if grown != weights else set()
        kinds |= {"pad"} if len(steps.operators) > 2 else set()
    assert kinds == {"zeros", "pad"}


def run_tflm(content, integers):
    """What TensorFlow Lite for Microcontrollers computes, int8 [N, ...]; it prints its memory."""
    runtime = pytest.importorskip("tflite_micro", reason="tflite-micro is not installed").runtime
    interpreter = runtime.Interpreter.from_bytes(content, arena_size=1 << 20)
    results = []
    for each in integers.movedim(1, -1).contiguous().numpy():
        interpreter.set_input(each[None], 0)
        interpreter.invoke()
        results.append(interpreter.get_output(0).copy())
    interpreter.print_allocations()
    return torch.from_numpy(np.concatenate(results)).movedim(-1, 1)


def test_microcontrollers_compute_the_same_integers_rounded_twice():
    for graph, integers in networks():
        expected = reference.run(graph, integers, "twice")
        assert torch.equal(run_tflm(litert.convert(graph, {}), integers), expected)


def test_microcontrollers_keep_the_bytes_that_are_counted(capfd):
    step = drawn_convolution(np.random.default_rng(0), 32, 3, 2, (1, 1), channels=16)
    padded = drawn_convolution(np.random.default_rng(0), 32, 3, 2, (2, 2), channels=16)
    for graph in (Graph(step.source, (step,)), Graph(padded.source, (padded,)), small_graph()):
        content = litert.convert(graph, {})
        run_tflm(content, torch.zeros(1, *graph.input.shape, dtype=torch.int8))
        head = capfd.readouterr().err.partition("head ")[2].split()[0]
        counted = litert_file.activation_bytes(content)
        assert counted <= int(head) < counted + 16 * 4  # each tensor begins at a multiple of 16
