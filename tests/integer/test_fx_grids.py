"""Int8 models are read without torch's quantized kernels: the scales are torch's, the graphs the same."""

import copy

import pytest
import torch

from common.compression import int8_plain, int8_state
from common.compression.recorder import Recorder
from common.integer import from_fx
from common.integer.fx_grids import ZERO_POINT, GridRunner
from tests.compression.networks import EMBEDDED
from tests.integer.networks import SIDE, Net, NoQuantizedKernels, differences, int8
from tests.integer.test_from_fx import FORMS, FUNCTIONS

MORE = {
    "x + large number": lambda _, x: x + 100.0,
    "x - large number": lambda _, x: x + -100.0,
    "x * negative number": lambda _, x: x * -0.3,
    "x * 0": lambda _, x: x * 0.0,
}


@pytest.mark.parametrize("name", FORMS | MORE)
def test_a_model_without_kernels_has_the_scales_of_torch_and_the_same_graph(name):
    form = (FORMS | MORE)[name]
    network = form if isinstance(form, Net) else Net(form)
    if name in FUNCTIONS or name in MORE:
        function = network.middle
        network.middle = lambda net, x: net.conv(function(net, x))
    float_model = copy.deepcopy(network)
    converted = int8(network)[0].int8
    state = int8_state.extract(converted)
    with NoQuantizedKernels():
        plain = int8_plain.build(float_model, EMBEDDED, SIDE, state)
        runner = GridRunner(plain)
        with torch.inference_mode():
            runner.run(torch.zeros(1, 3, SIDE, SIDE))
        graph = from_fx.read(plain, SIDE)
    recorder = Recorder(converted)
    with torch.inference_mode():
        recorder.run(torch.zeros(1, 3, SIDE, SIDE))
    expected = {
        key: (torch.tensor(value.q_scale()).item(), value.q_zero_point() - ZERO_POINT)
        for key, value in recorder.values.items()
        if value.is_quantized
    }
    actual = {node.name: grid for node, grid in runner.grids.items()}
    assert len(expected) >= 2 and expected.items() <= actual.items()
    assert differences(from_fx.read(converted, SIDE), graph) == []


def test_quantized_kernels_are_noticed():
    converted = int8(Net(FORMS["flatten"]))[0].int8
    with pytest.raises(AssertionError, match="was called"), NoQuantizedKernels():
        converted(torch.zeros(1, 3, SIDE, SIDE))
