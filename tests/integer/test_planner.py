import itertools

import numpy as np
import pytest

from common.integer import arena, memory, planner
from common.integer import operators as ops
from common.integer.arena import Block
from common.integer.blocks import find_blocks, find_gaps
from common.integer.graph import Graph
from common.integer.rows import IMAGE, Network, height, reads, row_bytes
from tests.integer.graphs import values, weighted


def convolution(source, outputs, name, kernel=1, stride=1, depthwise=False):
    groups = source.shape[0] if depthwise else 1
    shape = (outputs, source.shape[0] // groups, kernel, kernel)
    padding = (kernel // 2,) * 4
    size = ops.windows(source.shape[1:], (kernel, kernel), (stride, stride), padding)
    output = values((outputs, *size), name=name)
    weights = weighted(np.zeros(shape))
    return ops.Convolution(
        (source,), output, **weights, stride=(stride, stride), padding=padding, groups=groups
    )


def block(source, name, expansion, outputs, stride):
    """An inverted residual (Sandler et al., CVPR 2018), with its sum where the shapes are equal."""
    wide = expansion * source.shape[0]
    expand = convolution(source, wide, f"{name}_expand")
    depthwise = convolution(expand.output, wide, f"{name}_depthwise", 3, stride, depthwise=True)
    project = convolution(depthwise.output, outputs, f"{name}_project")
    steps = [expand, depthwise, project]
    if project.output.shape == source.shape:
        steps.append(ops.Add((source, project.output), values(source.shape, name=f"{name}_sum")))
    return steps


def network(*stages, side=16):
    """A stem of stride 2, inverted residuals of (expansion, channels, stride), a mean, a linear layer."""
    image = values((3, side, side), name="images")
    steps = [convolution(image, 4, "stem", 3, 2)]
    for index, (expansion, outputs, stride) in enumerate(stages):
        steps += block(steps[-1].output, f"block{index}", expansion, outputs, stride)
    last = steps[-1].output
    mean = values((last.shape[0], 1, 1), name="mean")
    steps.append(ops.AveragePool((last,), mean, last.shape[1:], (1, 1)))
    flat = values(last.shape[0], name="flat")
    steps.append(ops.Reshape((mean,), flat))
    steps.append(ops.Linear((flat,), values(5, name="logits"), **weighted(np.zeros((5, last.shape[0])))))
    return Graph(image, tuple(steps))


NETWORKS = {
    "one block": network((2, 4, 1)),
    "two sums": network((6, 4, 1), (2, 4, 1), (3, 6, 2)),
    "pyramid": network((6, 4, 1), (6, 6, 2), (6, 6, 1), (6, 8, 2), side=32),
}


def assert_no_row_is_lost(graph, plan):
    """Runs the plan on names: each byte knows to which row of which tensor it belongs."""
    bytes_, net = np.full(plan.arena, -1), Network(graph)
    names = list(net.tensors)
    places = {}
    for one, offset in zip(plan.blocks, plan.offsets, strict=True):
        for name, (step, first, start) in one.tensors.items():
            places[name] = one, offset + start, step, first

    def span(name, row):
        one, offset, step, first = places[name]
        begin = offset + (row * step + first) % one.rows * one.stride
        assert begin >= 0 and begin + row_bytes(net.tensors[name]) <= plan.arena
        return slice(begin, begin + row_bytes(net.tensors[name]))

    def label(name, row):
        return names.index(name) * 1000 + row

    made = dict.fromkeys(names, 0)
    for index, row in plan.events:
        name = net.names[index]
        assert made[name] == row
        made[name] += 1
        if index != IMAGE:
            operator = graph.operators[index]
            for position, tensor in enumerate(operator.inputs):
                for each in range(*reads(operator, position, row)):
                    assert (bytes_[span(tensor.name, each)] == label(tensor.name, each)).all(), (name, row)
        bytes_[span(name, row)] = label(name, row)
    assert all(made[name] == height(tensor) for name, tensor in net.tensors.items())


@pytest.mark.parametrize("schedule", planner.SCHEDULES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_row_is_there_when_it_is_read(name, schedule):
    assert_no_row_is_lost(NETWORKS[name], planner.plan(NETWORKS[name], schedule))


@pytest.mark.parametrize("name", NETWORKS)
def test_layer_by_layer_the_arena_is_the_peak(name):
    plan = planner.plan(NETWORKS[name], "layers")
    assert plan.arena == memory.peak_bytes(NETWORKS[name])


def brute_force(graph, camera):
    """The smallest arena of every set of whole tensors, with the blocks placed in every order."""
    net, best = Network(graph), None
    *inner, last = net.cuts()
    present = set() if camera else {graph.input.name}
    for count in range(len(inner) + 1):
        for chosen in itertools.combinations(inner, count):
            events = [(IMAGE, row) for row in range(height(graph.input))] if present else []
            events += net.order([*chosen, last], present)
            blocks = find_blocks(net, events, present | {*chosen, last}, in_place=True)
            size, _ = arena.arrange(blocks, find_gaps(net, events, blocks))
            best = size if best is None else min(best, size)
    return best


@pytest.mark.parametrize("camera", [False, True])
def test_no_other_choice_of_whole_tensors_needs_less(camera):
    graph = network((2, 4, 1), (2, 6, 2), side=16)
    plan = planner.plan(graph, "camera" if camera else "rows")
    assert plan.arena == brute_force(graph, camera)


def test_blocks_are_packed_as_well_as_any_order_can():
    rng = np.random.default_rng(0)
    for _ in range(20):
        births = rng.integers(0, 6, 6)
        blocks = [
            Block(1, int(size), {}, True, int(birth), int(birth + life))
            for size, birth, life in zip(rng.integers(1, 20, 6), births, rng.integers(0, 4, 6), strict=True)
        ]
        size, offsets = arena.arrange(blocks, {})
        for (first, at), (second, other) in itertools.combinations(zip(blocks, offsets, strict=True), 2):
            if first.birth <= second.death and second.birth <= first.death:
                assert at + first.size <= other or other + second.size <= at
        live = [sum(b.size for b in blocks if b.birth <= time <= b.death) for time in range(12)]
        assert size <= max(live) * 1.2 and size == max(
            at + one.size for one, at in zip(blocks, offsets, strict=True)
        )


def test_three_rows_of_the_input_and_one_of_the_output_are_kept():
    """Worked by hand: 8 x 8 pixels, a depthwise convolution of 3 x 3 between two of 1 x 1.

    The image arrives row by row: 1 row of 8 * 3 bytes. The expanded tensor: 3 rows of 8 * 6 bytes, each
    with one more pixel before it, into which the convolution writes its output. The result: 8 * 8 * 2.
    """
    image = values((3, 8, 8), name="images")
    expand = convolution(image, 6, "expand")
    depthwise = convolution(expand.output, 6, "depthwise", 3, 1, depthwise=True)
    project = convolution(depthwise.output, 2, "project")
    plan = planner.plan(Graph(image, (expand, depthwise, project)), "camera")
    assert plan.arena == 8 * 3 + 3 * (8 * 6 + 6) + 8 * 8 * 2
    ring = next(each for each in plan.blocks if "expand" in each.tensors)
    assert ring.tensors == {"expand": (1, 0, 6), "depthwise": (1, -1, 0)}


def test_an_output_grows_into_rows_that_are_done():
    """4 x 4 pixels of 2 channels become 2 x 2 of 4: the first row of 8 bytes lies before the image."""
    image = values((2, 4, 4), name="images")
    plan = planner.plan(Graph(image, (convolution(image, 4, "y", 1, 2),)), "rows")
    assert plan.arena == 8 + 4 * 4 * 2
