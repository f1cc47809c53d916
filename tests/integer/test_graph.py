"""A graph refuses what does not fit when it is made."""

import dataclasses

import numpy as np
import pytest

from common.integer import operators as ops
from common.integer.graph import Graph, Operator, Tensor
from tests.integer.graphs import values


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 3), (2, 3), (1, 3, 8, 8)])
def test_shapes_are_those_of_one_image_or_vector(shape):
    with pytest.raises(ValueError, match=r"^x has the shape \("):
        Tensor("x", shape, 1.0, 0)


@pytest.mark.parametrize("scale", [0.1, 0.0, -1.0, float("inf"), float("nan"), 1e-50, 1e39])
def test_scales_are_positive_numbers_of_float32(scale):
    assert float(np.float32(0.1)) != 0.1
    with pytest.raises(ValueError, match="x has the scale"):
        Tensor("x", (3,), scale, 0)
    assert Tensor("x", (3,), float(np.float32(0.1)), 0).grid == (float(np.float32(0.1)), 0)


@pytest.mark.parametrize("zero_point", [-129, 128, 0.5])
def test_zero_points_are_int8(zero_point):
    with pytest.raises(ValueError, match=f"x has the zero point {zero_point}"):
        Tensor("x", (3,), 1.0, zero_point)
    assert [Tensor("x", (3,), 1.0, limit).zero_point for limit in (-128, 127)] == [-128, 127]


def test_operators_read_what_is_written_before_them():
    source = values(2)
    first = ops.Requantize((source,), values(2, 2, name="first"))
    second = ops.Requantize((first.output,), values(2, 3, name="second"))
    assert Graph(source, (first, second)).output == second.output
    with pytest.raises(ValueError, match="first has no operator before that writes it"):
        Graph(source, (second, first))
    with pytest.raises(ValueError, match="x has no operator before that writes it"):
        Graph(values(2, 5), (first,))  # the same name with another scale
    with pytest.raises(ValueError, match="x has no operator"):
        Graph(source, ())


def test_names_are_unique():
    source = values(2)
    first = ops.Requantize((source,), values(2, 2, name="first"))
    with pytest.raises(ValueError, match="first has a name that is taken"):
        Graph(source, (first, first))
    with pytest.raises(ValueError, match="x has a name that is taken"):
        Graph(source, (ops.Requantize((source,), values(2, 2, name="x")),))


def test_nothing_changes_after_the_check():
    operator = Operator((values(2),), values(2, name="y"))
    for frozen, name in (
        (values(2), "scale"),
        (operator, "output"),
        (Graph(values(2), (operator,)), "input"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, name, 1)
