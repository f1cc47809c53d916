import pytest

from common.deployment import c_memory, c_writer
from common.integer import operators as ops
from common.integer import planner, recomputation
from common.integer.graph import Graph
from tests.deployment.graphs import small_graph
from tests.integer.graphs import values, weighted
from tests.integer.test_planner import NETWORKS

STATISTICS = [0.5] * 3, [0.25] * 3
GRAPHS = NETWORKS | {"small": small_graph()}


@pytest.mark.parametrize("schedule", planner.SCHEDULES)
@pytest.mark.parametrize("name", GRAPHS)
def test_the_bytes_are_those_of_the_array_that_is_written(name, schedule):
    for extra in (0.0, 0.5):
        graph, plan = recomputation.plan(GRAPHS[name], schedule, extra)
        written = c_writer.write(GRAPHS[name], "net", schedule, "twice", [], *STATISTICS, extra)
        assert c_memory.array_bytes(graph, plan) == written.ram


def test_the_operator_with_the_largest_scratch_memory_is_found():
    # a filter copies one value of each channel, a convolution 4 bytes of each value and 1 of each channel
    image, wide, logits = (
        values(shape, name=name) for shape, name in (((4, 9, 9), "i"), ((4, 9, 9), "w"), ((2, 9, 9), "o"))
    )
    pads = {"padding": (1, 1, 1, 1)}
    filters = ops.Convolution((image,), wide, groups=4, **pads, **weighted([[[[1] * 3] * 3]] * 4))
    dense = ops.Convolution((wide,), logits, **pads, **weighted([[[[1] * 3] * 3] * 4] * 2))
    found, operator = c_memory.largest_scratch(Graph(image, (filters, dense)))
    assert operator is dense and found == 4 * 36 + 4
    assert c_memory.largest_scratch(Graph(image, (filters,))) == (4, filters)
