"""Each operator refuses what does not fit when it is made."""

import numpy as np
import pytest

from common.integer import operators as ops
from tests.integer.graphs import constant, values, weighted

IMAGE, VECTOR = values((4, 5, 6), 0.5, 3), values(4, 0.5, 3)


def output(shape, scale=0.5, zero_point=3):
    return values(shape, scale, zero_point, "y")


def refused(message):
    return pytest.raises(ValueError, match=f"y has {message}")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight", np.ones((2, 4), np.int16), "weights of"),
        ("weight_scales", np.ones(2), "weights of"),  # float64
        ("bias", np.zeros(2, np.int64), "weights of"),
        ("weight_scales", np.ones(1, np.float32), "not 2 scales and biases"),
        ("bias", np.zeros(3, np.int32), "not 2 scales and biases"),
        ("weight_scales", np.array([1, 0], np.float32), "scales of weights that are not positive"),
        ("weight_scales", np.array([1, -1], np.float32), "scales of weights that are not positive"),
        ("weight_scales", np.array([1, np.inf], np.float32), "scales of weights that are not positive"),
        ("weight_scales", np.array([np.nan, 1], np.float32), "scales of weights that are not positive"),
        ("weight", np.ones((2, 3), np.int8), "a weight of"),
        ("weight", np.ones((2, 4, 1, 1), np.int8), "a weight of"),
    ],
)
def test_weights_scales_and_biases_fit_together(name, value, message):
    correct = weighted(np.ones((2, 4)))
    ops.Linear((VECTOR,), output(2), **correct)
    with refused(message):
        ops.Linear((VECTOR,), output(2), **(correct | {name: value}))


def test_sums_fit_into_int32():
    # 4 * 127 * 255 = 129,540 from the products at most: the rest of 2^31 - 1 is for the bias
    largest = 2**31 - 1 - 129_540
    for sign in (1, -1):
        ops.Linear((VECTOR,), output(1), **weighted(np.full((1, 4), -127), bias=sign * largest))
        with refused("sums that do not fit into int32"):
            ops.Linear((VECTOR,), output(1), **weighted(np.full((1, 4), -127), bias=sign * (largest + 1)))


def test_a_linear_layer_has_one_output_for_each_row():
    with refused("a weight of"):
        ops.Linear((IMAGE,), output(2), **weighted(np.ones((2, 4, 5, 6))))
    with refused("another shape than"):
        ops.Linear((VECTOR,), output(3), **weighted(np.ones((2, 4))))


def test_a_convolution_has_the_channels_and_the_size_that_follow():
    weight = weighted(np.ones((6, 4, 3, 3)))
    ops.Convolution((IMAGE,), output((6, 3, 4)), **weight)
    with refused("another shape than"):
        ops.Convolution((IMAGE,), output((6, 3, 3)), **weight)
    with refused("another shape than"):
        ops.Convolution((IMAGE,), output((6, 3, 4)), **weight, padding=(1, 1, 1, 1))
    with refused(r"a weight of \(6, 4, 3, 3\) for 4 channels"):
        ops.Convolution((IMAGE,), output((6, 3, 4)), **weight, groups=2)
    with refused("a weight of"):
        ops.Convolution((IMAGE,), output((4, 5, 6)), **weighted(np.ones((4, 4, 1, 1))), groups=0)
    with refused(r"a weight of \(5, 2, 1, 1\) for 4 channels"):  # 5 outputs in 2 groups
        ops.Convolution((IMAGE,), output((5, 5, 6)), **weighted(np.ones((5, 2, 1, 1))), groups=2)
    with refused("a window of"):
        ops.Convolution((VECTOR,), output(4), **weighted(np.ones((4, 4, 1, 1))))


@pytest.mark.parametrize(
    "attributes",
    [{"stride": (0, 1)}, {"stride": (1, -1)}, {"dilation": (1, 0)}, {"padding": (-1, 1, 0, 0)}],
)
def test_strides_and_dilations_are_positive_and_paddings_not_negative(attributes):
    with refused("a window of"):
        ops.Convolution((IMAGE,), output((4, 5, 6)), **weighted(np.ones((4, 4, 1, 1))), **attributes)


def test_a_kernel_is_no_larger_than_the_padded_image():
    with pytest.raises(ValueError, match="y has another shape"):
        ops.Convolution((IMAGE,), output((4, 1, 1)), **weighted(np.ones((4, 4, 7, 7))))


def test_depthwise_means_one_input_channel_for_each_output():
    depthwise = ops.Convolution((IMAGE,), output((8, 5, 6)), **weighted(np.ones((8, 1, 1, 1))), groups=4)
    grouped = ops.Convolution((IMAGE,), output((8, 5, 6)), **weighted(np.ones((8, 2, 1, 1))), groups=2)
    gray = ops.Convolution((values((1, 2, 2)),), output((8, 2, 2)), **weighted(np.ones((8, 1, 1, 1))))
    assert [each.is_depthwise for each in (depthwise, grouped, gray)] == [True, False, False]


@pytest.mark.parametrize("kind", [ops.Add, ops.Multiply])
def test_two_inputs_have_one_shape_once_repeated(kind):
    image = values((4, 1, 1), 2, 1, "other")
    kind((IMAGE, image), output((4, 5, 6), 0.1, 0))
    with refused("1 inputs"):
        kind((IMAGE,), output((4, 5, 6)))
    with refused("another shape"):
        kind((IMAGE, image), output((4, 1, 1)))
    with refused("inputs of"):
        kind((IMAGE, values((3, 1, 1), name="other")), output((4, 5, 6)))
    with refused("inputs of"):  # a vector is no image of one row
        kind((IMAGE, values(4, name="other")), output((4, 5, 6)))


def test_a_constant_has_int8_values_and_no_input():
    assert constant([1, 2]).output.shape == (2,)
    with refused("inputs, or no int8 values"):
        ops.Constant((VECTOR,), output(4), np.zeros(4, np.int8))
    with refused("inputs, or no int8 values"):
        ops.Constant((), output(4), np.zeros(4, np.int32))
    with refused("another shape"):
        ops.Constant((), output(4), np.zeros(5, np.int8))


def test_concatenated_inputs_have_one_size_and_the_scale_of_the_output():
    ops.Concatenate((IMAGE, IMAGE), output((8, 5, 6)))
    with refused("another shape"):
        ops.Concatenate((IMAGE, IMAGE), output((4, 5, 6)))
    for other in (values((4, 5, 6), 0.25, 3, "other"), values((4, 5, 6), 0.5, 4, "other")):
        with refused("another scale or zero point than its inputs"):
            ops.Concatenate((IMAGE, other), output((8, 5, 6)))
    with refused("inputs of two sizes"):
        ops.Concatenate((IMAGE, values((4, 6, 6), 0.5, 3, "other")), output((8, 5, 6)))


@pytest.mark.parametrize("kind", [ops.AveragePool, ops.MaxPool])
def test_each_window_of_a_pool_touches_the_image(kind):
    kind((IMAGE,), output((4, 3, 3)), (2, 2), (2, 2), (0, 1, 0, 0))
    with refused("another shape"):
        kind((IMAGE,), output((4, 3, 3)), (2, 2), (2, 2))
    with refused("windows outside of the image"):
        kind((IMAGE,), output((4, 4, 3)), (2, 2), (2, 2), (2, 2, 0, 0))
    with refused("another scale or zero point"):
        kind((IMAGE,), output((4, 5, 6), 0.25), (1, 1), (1, 1))
    with refused("a window of"):
        kind((IMAGE,), output((4, 5, 6)), (1, 1), (0, 1))
    with refused("a window of"):
        kind((IMAGE,), output((4, 6, 6)), (0, 1), (1, 1))


def test_a_pad_adds_its_padding():
    ops.Pad((IMAGE,), output((4, 6, 11)), (1, 0, 2, 3))
    with refused("another shape"):
        ops.Pad((IMAGE,), output((4, 8, 9)), (2, 3, 1, 0))
    with refused("another scale"):
        ops.Pad((IMAGE,), output((4, 5, 6), 0.25), (0, 0, 0, 0))
    with refused("a padding of"):
        ops.Pad((IMAGE,), output((4, 4, 6)), (-1, 0, 0, 0))


def test_a_table_has_256_integers():
    ops.Table((VECTOR,), output(4, 0.1, 0), "zero", np.zeros(256, np.int8))
    for table in (np.zeros(255, np.int8), np.zeros((1, 256), np.int8), np.zeros(256, np.uint8)):
        with refused(r"a table that is not int8 \[256\]"):
            ops.Table((VECTOR,), output(4, 0.1, 0), "zero", table)
    with refused("another shape"):
        ops.Table((VECTOR,), output(5, 0.1, 0), "zero", np.zeros(256, np.int8))


def test_a_requantization_changes_only_the_scale():
    ops.Requantize((VECTOR,), output(4, 0.1, 0))
    with refused("another shape"):
        ops.Requantize((VECTOR,), output((4, 1, 1), 0.1, 0))


def test_a_selection_is_inside_of_its_input():
    ops.Select((IMAGE,), output((2, 1, 3)), ((3, 0), (4,), (5, 5, 0)))
    ops.Select((VECTOR,), output(2), ((3, 0),))
    for indices in (((4,), (0,), (0,)), ((0,), (-1,), (0,)), ((0,), (0,), (6,))):
        with refused("an index outside of"):
            ops.Select((IMAGE,), output((1, 1, 1)), indices)
    with refused("another shape"):
        ops.Select((IMAGE,), output((1, 1, 2)), ((0,), (0,), (0,)))
    with refused("indices of 1 axes"):
        ops.Select((IMAGE,), output(1), ((0,),))
    with refused("another scale"):
        ops.Select((VECTOR,), output(1, 0.25), ((0,),))


def test_a_reshape_keeps_the_number_of_values():
    ops.Reshape((IMAGE,), output(120))
    ops.Reshape((IMAGE,), output((2, 10, 6)))
    with refused("another number of values than its input"):
        ops.Reshape((IMAGE,), output(119))
    with refused("another scale"):
        ops.Reshape((IMAGE,), output(120, 0.25))


def test_operators_of_one_input_refuse_two():
    with refused("2 inputs"):
        ops.Requantize((VECTOR, VECTOR), output(4))
    with refused("2 inputs"):
        ops.Linear((VECTOR, VECTOR), output(2), **weighted(np.ones((2, 4))))
    with refused("0 inputs"):
        ops.Concatenate((), output(4))


def test_how_many_windows_fit():
    # 7 rows: 0-2, 2-4, 4-6; with one row above and two below 10: also 6-8; dilated by 2 the window has 5 rows
    assert ops.windows((7, 7), (3, 3), (2, 1), (0, 0, 0, 0)) == (3, 5)
    assert ops.windows((7, 7), (3, 3), (2, 1), (1, 2, 0, 0)) == (4, 5)
    assert ops.windows((7, 7), (3, 3), (2, 1), (0, 0, 0, 0), (2, 2)) == (2, 3)
