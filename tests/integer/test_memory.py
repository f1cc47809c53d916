"""The peak of the activations of a graph, against tensors that are added by hand."""

import numpy as np

from common.integer.graph import Graph, Tensor
from common.integer.memory import peak_bytes
from common.integer.operators import Add, AveragePool, Constant, Reshape, Table


def tensor(name, *shape):
    return Tensor(name, shape, 0.5, 0)


def table(source, name, function="sigmoid"):
    output = tensor(name, *source.shape)
    return Table((source,), output, function=function, values=np.zeros(256, np.int8))


def test_a_tensor_is_kept_until_it_is_read_for_the_last_time():
    images = tensor("input", 3, 4, 4)  # 48 bytes
    first = table(images, "a")
    second = table(first.output, "b")
    total = Add((first.output, second.output), tensor("c", 3, 4, 4))
    # the image is gone when b is written; a waits for the sum: a, b and c
    assert peak_bytes(Graph(images, (first, second, total))) == 3 * 48
    assert peak_bytes(Graph(images, (first, second))) == 2 * 48


def test_a_reshape_needs_no_memory_and_a_constant_none_either():
    images = tensor("input", 2, 3, 3)  # 18 bytes
    flat = Reshape((images,), tensor("flat", 18))
    constant = Constant((), tensor("constant", 18), values=np.zeros(18, np.int8))
    total = Add((flat.output, constant.output), tensor("sum", 18))
    assert peak_bytes(Graph(images, (flat, constant, total))) == 2 * 18


def test_the_memory_of_a_reshape_is_kept_for_those_who_read_it():
    images = tensor("input", 4, 1, 1)
    flat = Reshape((images,), tensor("flat", 4))
    other = table(flat.output, "a")
    pooled = AveragePool((images,), tensor("pooled", 4, 1, 1), kernel=(1, 1), stride=(1, 1))
    total = Add((flat.output, other.output), tensor("sum", 4))
    # the image, as "flat" until the sum, and a, and what is pooled or the sum
    assert peak_bytes(Graph(images, (flat, other, pooled, total))) == 3 * 4


def test_a_relu_needs_no_memory_unless_its_input_is_read_again():
    images = tensor("input", 4, 1, 1)
    first = table(images, "a")
    relu = table(first.output, "b", "relu")
    last = table(relu.output, "c")
    assert peak_bytes(Graph(images, (first, relu, last))) == 2 * 4
    total = Add((first.output, relu.output), tensor("sum", 4, 1, 1))
    assert peak_bytes(Graph(images, (first, relu, total))) == 3 * 4
