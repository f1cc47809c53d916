"""The choice of the layers with weights of 4 bits."""

import pytest
import torch
from torch.ao.quantization import disable_observer

from common.compression import mixed_precision, weight_bits
from common.compression.mixed_precision import Layer
from common.system.errors import UserError
from tests.compression.networks import CPU
from tests.compression.test_weight_bits import IMAGES, prepared

ROWS = [Layer("stem", 0.5, 100), Layer("wide", 0.1, 800), Layer("filter", 0.3, 50), Layer("head", 0.08, 400)]


def test_the_least_divergence_for_each_byte_comes_first():
    assert mixed_precision.choose(ROWS, 2000, limit=2000) == []
    assert mixed_precision.choose(ROWS, 2000, limit=1999) == ["wide"]
    assert mixed_precision.choose(ROWS, 2000, limit=1200) == ["wide"]
    assert mixed_precision.choose(ROWS, 2000, limit=1199) == ["wide", "head"]
    assert mixed_precision.choose(ROWS, 2000, limit=650) == ["wide", "head", "stem", "filter"]


def test_without_a_limit_a_fifth_of_the_divergence_is_allowed():
    assert mixed_precision.choose(ROWS, 2000, limit=None) == ["wide", "head"]


def test_a_limit_that_4_bits_everywhere_do_not_reach_is_refused():
    with pytest.raises(UserError, match="650 bytes is the least"):
        mixed_precision.choose(ROWS, 2000, limit=649)


def test_layers_are_measured_one_at_a_time_and_stay_as_they_are():
    traced = prepared(narrow=())
    state = {key: value.clone() for key, value in traced.state_dict().items()}
    rows = mixed_precision.measure(traced, [(IMAGES, None)], CPU)
    assert all(torch.equal(value, state[key]) for key, value in traced.state_dict().items())
    assert [row.name for row in rows] == ["0", "3", "5", "9"]
    assert [row.saved + mixed_precision.ENTRY for row in rows] == [108, 36, 48, 30]
    traced.apply(disable_observer)
    with torch.no_grad():
        expected = traced(IMAGES).log_softmax(1).double()
        weight_bits.use_4_bits(traced.get_submodule("5"))
        actual = traced(IMAGES).log_softmax(1).double()
    divergence = (expected.exp() * (expected - actual)).sum(1).mean()
    assert rows[2].divergence == pytest.approx(float(divergence), rel=0.01) and rows[2].divergence > 0


def test_the_summary_names_the_layers_of_8_bits():
    text = mixed_precision.summary(ROWS, ["wide", "head"])
    assert (
        text
        == "2 layers have 4 bits; 8 bits, and the divergence that 4 would add: stem (0.5000), filter (0.3000)"
    )
