"""Random graphs in C: compiled, run, and compared with the reference, in every schedule and rounding."""

import ctypes
import itertools
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch

from common.deployment import c_writer
from common.integer import operators as ops
from common.integer import planner, reference
from common.integer.graph import Graph
from common.system.errors import UserError
from tests.deployment.graphs import small_graph, with_4_bits
from tests.integer.graphs import values, weighted
from tests.integer.test_runtimes import FIRST, KINDS, SECOND, image

COMPILER = os.environ.get("CC", "cc")
STRICT = ("-std=c99", "-O1", "-Wall", "-Wextra", "-pedantic", "-Werror")
pytestmark = pytest.mark.skipif(not shutil.which(COMPILER), reason=f"there is no C compiler {COMPILER}")


def compiled(graphs, folder, function="run"):
    """Functions net<i>_run of one library: for each graph in one schedule, and each rounding."""
    planned = zip(graphs, itertools.cycle(planner.SCHEDULES), strict=False)
    cases = [(*each, rounding) for each in planned for rounding in reference.ROUNDINGS]
    for index, (graph, schedule, rounding) in enumerate(cases):
        written = c_writer.write(
            graph, f"net{index}", schedule, rounding, ["?"] * len(graph.output.shape), *STATS
        )
        (folder / f"net{index}.c").write_text(written.source)
        (folder / f"net{index}.h").write_text(written.header)
    sources = [str(folder / f"net{index}.c") for index in range(len(cases))]
    subprocess.run(
        [COMPILER, *STRICT, "-shared", "-fPIC", "-o", str(folder / "nets.so"), *sources], check=True
    )
    library = ctypes.CDLL(str(folder / "nets.so"))
    return [(*case, getattr(library, f"net{index}_{function}")) for index, case in enumerate(cases)]


STATS = ([0.5] * 3, [0.25] * 3)


def computed(run, graph, integers):
    """What C computes of one image: int8, of the shape of the output."""
    given = np.ascontiguousarray(integers.numpy().transpose(1, 2, 0))
    result = np.zeros(graph.output.shape, np.int8)
    assert run(ctypes.c_void_p(given.ctypes.data), ctypes.c_void_p(result.ctypes.data)) == 0
    return torch.from_numpy(result)


def as_vector(steps):
    """The operators, and what makes a vector of their output."""
    last = steps[-1].output
    return (*steps, ops.Reshape((last,), values(int(np.prod(last.shape)), *last.grid, "logits")))


def assert_equal(graphs, folder):
    rng = np.random.default_rng(0)
    for graph, schedule, rounding, run in compiled(graphs, folder):
        integers = torch.from_numpy(rng.integers(-128, 128, (2, *graph.input.shape)).astype(np.int8))
        for given, expected in zip(integers, reference.run(graph, integers, rounding), strict=True):
            assert torch.equal(computed(run, graph, given), expected), (graph, schedule, rounding)


@pytest.mark.parametrize("kind", KINDS)
def test_an_operator_has_the_integers_of_the_reference(kind, tmp_path):
    rng, graphs = np.random.default_rng(0), []
    for _ in range(3):
        found = KINDS[kind](rng, image(rng))
        steps = found if isinstance(found, tuple) else (found,)
        graphs.append(Graph(steps[-1].inputs[0], as_vector(steps)))
    assert_equal(graphs, tmp_path)


def test_two_operators_have_the_integers_of_the_reference(tmp_path):
    rng, graphs = np.random.default_rng(1), []
    for _ in range(12):
        first = KINDS[rng.choice(FIRST)](rng, image(rng))
        middle = values(first.output.shape, *first.output.grid, "middle")
        first = type(first)(**vars(first) | {"output": middle})
        graphs.append(Graph(first.inputs[0], as_vector((first, KINDS[rng.choice(SECOND)](rng, middle)))))
    assert_equal(graphs, tmp_path)


def test_a_mean_of_more_than_255_rows_has_the_integers_of_the_reference(tmp_path):
    image = values((2, 260, 257), 0.1, 3)
    mean = ops.AveragePool((image,), values((2, 1, 1), *image.grid, "mean"), (260, 257), (260, 257))
    assert_equal([Graph(image, as_vector((mean,)))], tmp_path)


def test_a_source_that_stops_ends_the_run(tmp_path):
    graph, rng, rows = small_graph(), np.random.default_rng(2), []
    image = torch.from_numpy(rng.integers(-128, 128, graph.input.shape).astype(np.int8))
    content, stop = np.ascontiguousarray(image.numpy().transpose(1, 2, 0)), None

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def source(context, row, inputs):
        assert context is None
        rows.append(row)
        ctypes.memmove(inputs, content[row].ctypes.data, content[row].nbytes)
        return 7 if row == stop else 0

    for *_, rounding, run_rows in compiled([graph] * len(planner.SCHEDULES), tmp_path, "run_rows"):
        (expected,) = reference.run(graph, image[None], rounding).numpy()
        for stop in (5, None, 0):
            logits = np.zeros(graph.output.shape, np.int8)
            returned = run_rows(source, None, ctypes.c_void_p(logits.ctypes.data))
            if stop is None:  # after a run that was stopped
                assert returned == 0 and rows == list(range(len(content))) and (logits == expected).all()
            else:
                assert returned == 7 and rows == list(range(stop + 1)) and not logits.any()
            rows.clear()


def test_a_kernel_that_no_field_can_hold_is_refused():
    source = values((1, 300, 1), name="x")
    weights = weighted(np.ones((1, 1, 256, 1)))
    layer = ops.Convolution((source,), values((1, 45, 1), name="y"), **weights)
    with pytest.raises(UserError, match="y has a kernel, a stride, a dilation or a padding above 255"):
        c_writer.write(Graph(source, as_vector((layer,))), "net", "rows", "once", ["?"] * 45, *STATS)


def test_the_bytes_of_flash_count_two_for_each_row_of_a_network_with_many_operators():
    source = values((1, 2, 1), name="t0")
    steps = [
        ops.Requantize((values((1, 2, 1), name=f"t{index}"),), values((1, 2, 1), name=f"t{index + 1}"))
        for index in range(255)
    ]
    sizes = []
    for count in (254, 255):  # with the reshape 255 and 256 operators
        graph = Graph(source, as_vector(tuple(steps[:count])))
        sizes.append(c_writer.write(graph, "net", "layers", "once", ["?"] * 2, *STATS).flash)
    rows = 2 + 254 * 2 + 1  # of the image, of 254 tables, of the logits: one byte more for each
    assert sizes[1] - sizes[0] == rows + 256 + 16 + 2 * 2


def test_weights_of_4_bits_take_half_of_the_flash_and_bytes_that_are_read_after_the_inputs():
    graph = small_graph()
    wide, narrow = (
        c_writer.write(each, "net", "rows", "once", [*"abcde"], *STATS)
        for each in (graph, with_4_bits(graph))
    )
    assert narrow.ram == wide.ram + 5  # 8 after the gathered pixels, where 3 are of the padding
    sizes = [each.weight.size for each in graph.operators if hasattr(each, "weight")]
    assert sizes == [216, 72, 40]
    # blocks of 4 outputs and 8 values (4 with 8 bits, and 48 bytes at the end); a depthwise one has no blocks
    expected = (2 * 4 * 28 + 48 + 72 + 2 * 4 * 8 + 48) - (2 * 4 * 32 // 2 + 72 // 2 + 2 * 4 * 8 // 2)
    assert wide.flash - narrow.flash == expected
    assert "static void filter4(" in narrow.source and "static void filter4(" not in wide.source


def test_layers_of_4_bits_have_the_integers_of_the_reference(tmp_path):
    rng, graphs = np.random.default_rng(5), []
    for draw in range(18):
        step = KINDS[("convolution", "depthwise")[draw % 2]](rng, image(rng))
        graphs.append(with_4_bits(Graph(step.source, as_vector((step,)))))
    assert_equal(graphs, tmp_path)
