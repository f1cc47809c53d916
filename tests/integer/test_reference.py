"""Every operator against integers that are worked out by hand; `test_runtimes` has the random ones."""

import itertools

import numpy as np
import pytest
import torch

from common.integer import operators as ops
from common.integer import reference
from common.integer.graph import Graph
from tests.integer.graphs import computed, constant, values, weighted

BOTH = pytest.mark.parametrize("rounding", reference.ROUNDINGS)


def requantized(integers, multiplier, rounding, zero_points=(0, 0)):
    """One value after another, times a multiplier that float32 represents."""
    source = values(len(integers), multiplier, zero_points[0])
    step = ops.Requantize((source,), values(len(integers), 1, zero_points[1], "y"))
    return computed(integers, step, rounding=rounding)


def test_an_image_is_divided_by_the_scale_and_rounded_half_to_even():
    source = values((3, 1, 2), 0.5, 10)
    # / 0.5: 0.5, 1.5, 2.5, -0.5, 200, -200; half to even 0, 2, 2, 0; + 10, from -128 to 127
    images = torch.tensor([0.25, 0.75, 1.25, -0.25, 100, -100]).view(1, 3, 1, 2)
    assert reference.quantize(images, source).flatten().tolist() == [10, 12, 12, 10, 127, -128]
    # a division, as in QuantizeLinear: 0.045 / 0.01 is 4.5000005; 0.045 * 100 is 4.5, which gives 4
    images = torch.full((1, 3, 1, 2), 0.045)
    assert reference.quantize(images, values((3, 1, 2), 0.01)).unique().tolist() == [5]


def test_integers_stand_for_scale_times_their_distance_from_the_zero_point():
    integers = torch.tensor([[-128, 0, 3, 127]], dtype=torch.int8)
    real = reference.dequantize(integers, values(4, 0.25, 3))
    assert real.tolist() == [[-32.75, -0.75, 0, 31]] and real.dtype == torch.float32


@pytest.mark.parametrize(
    ("multiplier", "once", "twice"),
    [
        # of the integers   -6, -3, -2, -1, 1, 2, 3, 6
        # times 1/2: -3, -1.5, -1, -0.5, 0.5, 1, 1.5, 3; q = 2^30 without a shift: (n + 1) // 2
        (0.5, [-3, -2, -1, 0, 0, 1, 2, 3], [-3, -1, -1, 0, 1, 1, 2, 3]),
        # times 1/4: -1.5, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.5
        # q = 2^30, shifted by 1: (n + 1) // 2 = -3, -1, -1, 0, 1, 1, 2, 3, then halves away from 0.
        # So 0.25 becomes 1 / 2 and then 1: one step further from 0 than the nearest integer
        (0.25, [-2, -1, 0, 0, 0, 0, 1, 2], [-2, -1, -1, 0, 1, 1, 1, 2]),
        # times 5/2: -15, -7.5, -5, -2.5, 2.5, 5, 7.5, 15; q = 5/8 * 2^31, shifted left by 2: one rounding
        (2.5, [-15, -8, -5, -2, 2, 5, 8, 15], [-15, -7, -5, -2, 3, 5, 8, 15]),
        # times 3/8: -2.25, -1.125, -0.75, -0.375, 0.375, 0.75, 1.125, 2.25
        # q = 3/4 * 2^31, shifted by 1: n * 3/4 = -4.5, -2.25, -1.5, -0.75, 0.75, 1.5, 2.25, 4.5
        # half up: -4, -2, -1, -1, 1, 2, 2, 5; then half of it away from 0: -2, -1, -1, -1, 1, 1, 1, 3
        (0.375, [-2, -1, -1, 0, 0, 1, 1, 2], [-2, -1, -1, -1, 1, 1, 1, 3]),
    ],
)
def test_a_product_is_rounded_once_or_twice(multiplier, once, twice):
    integers = [-6, -3, -2, -1, 1, 2, 3, 6]
    assert requantized(integers, multiplier, "once") == once
    assert requantized(integers, multiplier, "twice") == twice


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        ((1e6, 1e-6), [-128, -128, 5, 127, 127]),  # times 1e12
        ((1e-6, 1e6), [5, 5, 5, 5, 5]),  # times 1e-12
        ((2**20, 1), [-128, -128, 5, 127, 127]),
        ((1, 2**20), [5, 5, 5, 5, 5]),
        ((1, 1), [-123, -122, 5, 6, 127]),  # the zero point moves from 0 to 5, and 127 + 5 is too much
    ],
)
@BOTH
def test_extreme_scales_saturate_or_vanish(scales, expected, rounding):
    source, output = values(5, scales[0]), values(5, scales[1], 5, "y")
    step = ops.Requantize((source,), output)
    assert computed([-128, -127, 0, 1, 127], step, rounding=rounding) == expected


@BOTH
def test_zero_points_are_subtracted_before_and_added_after(rounding):
    # (-1 - 3) * 1/2 - 10 = -12, (3 - 3) / 2 - 10 = -10, (127 - 3) / 2 - 10 = 52
    assert requantized([-1, 3, 127], 0.5, rounding, (3, -10)) == [-12, -10, 52]


@BOTH
def test_a_convolution_sums_products_adds_its_bias_and_scales(rounding):
    source = values((1, 2, 2), 0.5, 1)
    # centred 1, 2, 3, 4; channel 0: 1 * 1 + 2 * 2 + 3 * 3 + 4 * 4 - 2 = 28
    # channel 1: -(1 + 2 + 3 + 4) + 2 = -8
    # times 0.5 * 0.25 / 0.125 = 1, and 0.5 * 0.5 / 0.125 = 2: 28 + 3 and -16 + 3
    step = ops.Convolution(
        (source,), values((2, 1, 1), 0.125, 3, "y"),
        np.array([[[[1, 2], [3, 4]]], [[[-1, -1], [-1, -1]]]], np.int8),
        np.array([0.25, 0.5], np.float32), np.array([-2, 2], np.int32),
    )  # fmt: skip
    assert computed([[[2, 3], [4, 5]]], step, rounding=rounding) == [[[31]], [[-13]]]


@BOTH
def test_a_convolution_pads_each_side_by_itself_with_its_zero_point(rounding):
    source = values((1, 2, 3), 1, 7)
    # centred 1 2 3 / 4 5 6; one row of zeros above, two columns on the left; kernel 2 x 2 of ones
    # 0 0 0 0 0 | windows at columns 0, 2:
    # 0 0 1 2 3 | rows 0, 1: 0 and 1 + 2 = 3;
    # 0 0 4 5 6 | rows 1, 2: 0 and 1 + 2 + 4 + 5 = 12
    step = ops.Convolution(
        (source,), values((1, 2, 2), 1, -3, "y"), **weighted([[[[1, 1], [1, 1]]]]),
        stride=(1, 2), padding=(1, 0, 2, 0),
    )  # fmt: skip
    assert computed([[[8, 9, 10], [11, 12, 13]]], step, rounding=rounding) == [[[-3, 0], [-3, 9]]]
    # below and on the right: the last window has 6 alone
    step = ops.Convolution(
        (source,), values((1, 2, 2), 1, 0, "y"), **weighted([[[[1, 1], [1, 1]]]]),
        stride=(1, 2), padding=(0, 1, 0, 1),
    )  # fmt: skip
    assert computed([[[8, 9, 10], [11, 12, 13]]], step, rounding=rounding) == [[[12, 9], [9, 6]]]


@BOTH
def test_a_convolution_with_dilation_skips_rows_and_columns(rounding):
    image = np.arange(15).reshape(1, 3, 5)
    step = ops.Convolution(
        (values((1, 3, 5)),), values((1, 1, 2), name="y"), **weighted([[[[1, 10], [2, 5]]]]), dilation=(2, 3)
    )
    # 0 + 10 * 3 + 2 * 10 + 5 * 13 = 115; 1 + 10 * 4 + 2 * 11 + 5 * 14 = 133, more than 127
    assert computed(image, step, rounding=rounding) == [[[115, 127]]]


@BOTH
def test_a_convolution_of_groups_reads_its_own_channels(rounding):
    image = np.array([1, 2, 3, 4]).reshape(4, 1, 1)
    step = ops.Convolution(
        (values((4, 1, 1)),), values((2, 1, 1), name="y"),
        **weighted(np.array([[1, 2], [3, 4]]).reshape(2, 2, 1, 1)), groups=2,
    )  # fmt: skip
    # 1 * 1 + 2 * 2 = 5, 3 * 3 + 4 * 4 = 25
    assert computed(image, step, rounding=rounding) == [[[5]], [[25]]]


@BOTH
def test_sums_beyond_the_integers_of_float32_are_exact(rounding):
    # 127 * 255 * 701 = 22,701,885, odd and above 2^24; with a bias of one less: 1
    source = values(701, 1, -128)
    step = ops.Linear((source,), values(1, 1, 0, "y"), **weighted(np.full((1, 701), 127), bias=-22_701_884))
    assert computed([127] * 701, step, rounding=rounding) == [1]


@BOTH
def test_a_linear_layer_multiplies_with_its_rows(rounding):
    step = ops.Linear((values(3, 1, -1),), values(2, 1, 0, "y"), **weighted([[1, 2, 3], [-4, 5, -6]], bias=7))
    # centred 2, 3, 4: 2 + 6 + 12 + 7 = 27; -8 + 15 - 24 + 7 = -10
    assert computed([1, 2, 3], step, rounding=rounding) == [27, -10]


@BOTH
def test_outputs_saturate_and_a_relu_ends_at_the_zero_point(rounding):
    source, weight = values(1), weighted([[127], [-127], [1], [-1]])
    # 254 and -254, 2 and -2; zero point 20
    plain, relu = (
        ops.Linear((source,), values(4, 1, 20, "y"), **weight, relu=relu) for relu in (False, True)
    )
    assert computed([2], plain, rounding=rounding) == [127, -128, 22, 18]
    assert computed([2], relu, rounding=rounding) == [127, 20, 22, 20]


def test_a_sum_has_the_scales_of_both():
    # (a * 0.5 + b * 0.25) / 0.5 with zero points 1, 2 and output zero point -4
    source, other = values(4, 0.5, 1), constant([3, 4, 5, -128], 0.25, 2)
    step = ops.Add((source, other.output), values(4, 0.5, -4, "y"))
    # a - 1: 1, -2, 1, -129; b - 2: 1, 2, 3, -130
    # 1.5, -1, 2.5, -194; half to even 2, -1, 2; - 4
    assert computed([2, -1, 2, -128], other, step) == [-2, -5, -2, -128]
    # twice: in steps of 2^-20 both are times 1/2 and 1/4, exact; the sums 0.75, -0.5, 1.25 times 2^20 are
    # times 2^-20 * 2: half away from 0: 2, -1, 3
    assert computed([2, -1, 2, -128], other, step, rounding="twice") == [-2, -5, -1, -128]
    relu = ops.Add((source, other.output), values(4, 0.5, -4, "y"), relu=True)
    assert computed([2, -1, 2, -128], other, relu) == [-2, -4, -2, -4]


def test_a_product_has_the_product_of_the_scales():
    source, other = values(4, 0.5, 1), constant([3, 4, 5, -128], 0.25, 2)
    step = ops.Multiply((source, other.output), values(4, 0.25, -4, "y"))
    # 1 * 1, -2 * 2, 1 * 3, -129 * -130 = 16,770; times 0.5 * 0.25 / 0.25 = 0.5: 0.5, -2, 1.5, 8,385
    assert computed([2, -1, 2, -128], other, step) == [-4, -6, -2, 127]
    # q = 2^30 without a shift: halves go up
    assert computed([2, -1, 2, -128], other, step, rounding="twice") == [-3, -6, -2, 127]
    relu = ops.Multiply((source, other.output), values(4, 0.25, -4, "y"), relu=True)
    assert computed([2, -1, 2, -128], other, relu) == [-4, -4, -2, 127]


@pytest.mark.parametrize("kind", [ops.Add, ops.Multiply])
@BOTH
def test_fewer_values_are_repeated(kind, rounding):
    image, scales = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]]), np.array([[[10]], [[-3]]])
    other = constant(scales)
    step = kind((values((2, 2, 2)), other.output), values((2, 2, 2), name="y"))
    expected = image + scales if kind is ops.Add else image * scales
    assert computed(image, other, step, rounding=rounding) == expected.tolist()
    column = constant(np.array([[[1], [2]]]))  # [1, H, 1]
    step = kind((values((2, 2, 2)), column.output), values((2, 2, 2), name="y"))
    expected = image + column.values if kind is ops.Add else image * column.values
    assert computed(image, column, step, rounding=rounding) == expected.tolist()


@BOTH
def test_a_constant_is_the_same_for_each_image(rounding):
    other = constant([5, -6])
    step = ops.Add((values(2), other.output), values(2, name="y"))
    graph = Graph(values(2), (other, step))
    images = torch.tensor([[1, 2], [3, 4], [-128, 127]], dtype=torch.int8)
    assert reference.run(graph, images, rounding).tolist() == [[6, -4], [8, -2], [-123, 121]]


@BOTH
def test_a_mean_counts_only_what_is_inside(rounding):
    image = [[[1, 2, 4], [3, 4, 8], [10, 11, 5]]]
    step = ops.AveragePool(
        (values((1, 3, 3), 0.3, 2),), values((1, 2, 2), 0.3, 2, "y"), (2, 2), (2, 2), (0, 1, 0, 1)
    )
    # (1 + 2 + 3 + 4) / 4 = 2.5, (4 + 8) / 2 = 6, (10 + 11) / 2 = 10.5, 5: halves away from 0
    assert computed(image, step, rounding=rounding) == [[[3, 6], [11, 5]]]
    negative = (-np.array(image)).tolist()
    assert computed(negative, step, rounding=rounding) == [[[-3, -6], [-11, -5]]]


@BOTH
def test_a_maximum_is_one_of_the_values_inside(rounding):
    image = [[[-5, -7, -128], [-9, -6, -100]], [[127, 1, 2], [3, 4, 5]]]
    step = ops.MaxPool((values((2, 2, 3)),), values((2, 2, 2), name="y"), (2, 2), (1, 2), (1, 0, 0, 1))
    # rows above the image and columns on its right do not count
    expected = [[[-5, -128], [-5, -100]], [[127, 2], [127, 5]]]
    assert computed(image, step, rounding=rounding) == expected


@BOTH
def test_what_only_moves_integers(rounding):
    image = np.array([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]])
    source = values((2, 2, 3), 0.1, -4)

    def moved(kind, shape, *inputs, **attributes):
        step = kind((source, *inputs), values(shape, 0.1, -4, "y"), **attributes)
        return computed(image, step, rounding=rounding)

    padded = np.pad(image, ((0, 0), (1, 0), (0, 2)), constant_values=-4)
    assert moved(ops.Pad, (2, 3, 5), padding=(1, 0, 0, 2)) == padded.tolist()
    chosen = image[[1, 0, 1]][:, [1]][:, :, [2, 2, 0, 1]]
    indices = ((1, 0, 1), (1,), (2, 2, 0, 1))
    assert moved(ops.Select, (3, 1, 4), indices=indices) == chosen.tolist()
    assert moved(ops.Reshape, (12,)) == list(range(1, 13))
    assert moved(ops.Reshape, (3, 4, 1)) == image.reshape(3, 4, 1).tolist()
    assert moved(ops.Concatenate, (4, 2, 3), source) == np.concatenate([image, image]).tolist()


@BOTH
def test_a_table_has_the_output_of_each_integer(rounding):
    table = np.arange(127, -129, -1).astype(np.int8)  # -128 becomes 127, and so on
    step = ops.Table((values(4),), values(4, 0.2, 3, "y"), "reverse", table)
    assert computed([-128, -1, 0, 127], step, rounding=rounding) == [127, 0, -1, -128]


def test_an_operator_can_read_what_an_earlier_one_wrote():
    source = values(2)
    double = ops.Add((source, source), values(2, name="double"))
    triple = ops.Add((double.output, source), values(2, name="triple"))
    graph = Graph(source, (double, triple, ops.Add((triple.output, double.output), values(2, name="y"))))
    images = torch.tensor([[1, -7]], dtype=torch.int8)
    found = {step.output.name: integers.tolist() for step, integers in reference.steps(graph, images)}
    assert found == {"double": [[2, -14]], "triple": [[3, -21]], "y": [[5, -35]]}


def test_an_odd_shape_has_the_sums_of_a_loop():
    rng = np.random.default_rng(0)
    image, weight = rng.integers(-128, 128, (3, 5, 7)), rng.integers(-127, 128, (2, 3, 3, 2))
    zero, stride, padding, dilation = 9, (2, 3), (1, 2, 0, 1), (2, 1)
    padded = np.pad(image - zero, ((0, 0), padding[:2], padding[2:]))
    size = ops.windows((5, 7), (3, 2), stride, padding, dilation)
    expected = np.zeros((2, *size), int)
    for output, row, column in np.ndindex(expected.shape):
        for channel, y, x in itertools.product(range(3), range(3), range(2)):
            place = row * stride[0] + y * dilation[0], column * stride[1] + x * dilation[1]
            expected[output, row, column] += padded[channel, *place] * weight[output, channel, y, x]
    step = ops.Convolution(
        (values(image.shape, 1, zero),), values(expected.shape, 1024, 0, "y"), **weighted(weight),
        stride=stride, padding=padding, dilation=dilation,
    )  # fmt: skip
    assert computed(image, step) == np.round(expected / 1024).tolist()
    # an integer division by 2^10: gemmlowp's q = 2^30 halves it, half up, then the rest half away from 0
    halves = (expected + 1) // 2
    wanted = np.sign(halves) * ((np.abs(halves) + 256) // 512)
    assert computed(image, step, rounding="twice") == wanted.tolist()


def test_an_unknown_operator_has_no_formula():
    with pytest.raises(TypeError, match="Operator has no formula"):
        computed([1], ops.Operator((values(1),), values(1, name="y")))
