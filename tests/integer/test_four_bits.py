"""Random layers with weights of 4 bits: the integers of each runtime are those of the reference.

ONNX Runtime rounds once. TensorFlow Lite for Microcontrollers and LiteRT's reference kernels round twice.
XNNPACK has no kernels for 4 bits: LiteRT runs its own in their place, which round in both ways.
"""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema

from common.deployment import litert, onnx_graph, onnx_writer
from common.integer import nibbles, reference
from common.integer import operators as ops
from common.integer.graph import Graph
from tests.integer.graphs import values, weighted
from tests.integer.test_runtimes import KINDS, image, linear, onnx_runtime, reference_kernels, xnnpack

DRAWS = 12


def drawn(rng, kind):
    """A layer, with the weights that another draw has, from -7 to 7."""
    vector = kind == "linear"
    step = linear(rng, image(rng, vector=True)) if vector else KINDS[kind](rng, image(rng))
    weight = (step.weight.astype(np.int16) % 15 - 7).astype(np.int8)
    weight.flat[0] = 7
    return replace(step, weight=weight, weight_bits=4)


def micro(graph, integers):
    """What TensorFlow Lite for Microcontrollers computes."""
    runtime = pytest.importorskip("tflite_micro", reason="tflite-micro is not installed").runtime
    interpreter = runtime.Interpreter.from_bytes(litert.convert(graph, {}), arena_size=2**20)
    found = []
    for image_ in integers:
        interpreter.set_input(image_.movedim(0, -1)[None].contiguous().numpy(), 0)
        interpreter.invoke()
        found.append(torch.from_numpy(interpreter.get_output(0).copy()).movedim(-1, 1))
    return torch.cat(found)


@pytest.mark.parametrize("kind", ["convolution", "depthwise", "linear"])
@pytest.mark.parametrize(
    ("runtime", "rounding"),
    [(onnx_runtime, "once"), (reference_kernels, "twice"), (micro, "twice")],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_a_layer_of_4_bits_has_the_same_integers_everywhere(kind, runtime, rounding):
    rng, differing = np.random.default_rng(0), 0
    for _ in range(DRAWS):
        step = drawn(rng, kind)
        graph = Graph(step.source, (step,))
        integers = torch.from_numpy(rng.integers(-128, 128, (3, *graph.input.shape)).astype(np.int8))
        once, twice = (reference.run(graph, integers, each) for each in reference.ROUNDINGS)
        assert torch.equal(runtime(graph, integers), once if rounding == "once" else twice)
        differing += int((once != twice).sum())
    assert differing


@pytest.mark.parametrize("kind", ["convolution", "depthwise", "linear"])
def test_litert_s_default_kernels_for_4_bits_are_one_step_off_at_most(kind):
    rng, differing, total = np.random.default_rng(1), 0, 0
    for _ in range(DRAWS):
        step = drawn(rng, kind)
        integers = torch.from_numpy(rng.integers(-128, 128, (3, *step.source.shape)).astype(np.int8))
        graph = Graph(step.source, (step,))
        difference = xnnpack(graph, integers).int() - reference.run(graph, integers, "twice").int()
        assert difference.abs().max() <= 1
        differing, total = differing + difference.count_nonzero(), total + difference.numel()
    assert differing < 0.01 * total


def test_halves_of_a_byte():
    assert nibbles.pack(np.array([1, -1, 7, -7, 3], np.int8)).tolist() == [0xF1, 0x97, 0x03]
    assert nibbles.unpack(np.array([0xF1, 0x97, 0x03], np.uint8), (5, 1)).tolist() == [
        [1],
        [-1],
        [7],
        [-7],
        [3],
    ]
    with pytest.raises(ValueError, match="2 bytes for 5 values"):
        nibbles.unpack(np.zeros(2, np.uint8), (5,))


def test_what_has_4_bits():
    assert [nibbles.fit(np.array([0, each], np.int8)) for each in (7, -7, 8, -8, 0, -128)] == [
        *(True, True, False, False, False, False)
    ]


@pytest.mark.parametrize(("bits", "weight", "fault"), [(4, 8, "4 bits"), (4, -8, "4 bits"), (2, 1, "2 bits")])
def test_a_layer_refuses_weights_that_do_not_fit(bits, weight, fault):
    layer = weighted([[weight]])
    with pytest.raises(ValueError, match=f"weights that do not fit {fault}"):
        ops.Linear((values(1),), values(1, name="y"), **layer, weight_bits=bits)


def test_files_have_two_weights_in_a_byte():
    step = drawn(np.random.default_rng(3), "convolution")
    graph = Graph(step.source, (step,))
    (tensor,) = (
        each for each in onnx_writer.build(graph).graph.initializer if each.dims == list(step.weight.shape)
    )
    assert (tensor.data_type, tensor.raw_data) == (onnx.TensorProto.INT4, nibbles.pack(step.weight).tobytes())
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(litert.convert(graph, {}), 0))
    (tensor,) = (each for each in model.subgraphs[0].tensors if each.name.endswith(b"_weight"))
    assert tensor.type == schema.TensorType.INT4
    assert len(model.buffers[tensor.buffer].data) == (step.weight.size + 1) // 2


@pytest.mark.parametrize(("bits", "versions"), [(4, (21, 10)), (8, (13, 7))])
def test_an_onnx_file_has_the_oldest_versions_that_its_weights_allow(bits, versions):
    step = replace(drawn(np.random.default_rng(3), "convolution"), weight_bits=bits)
    proto = onnx_writer.build(Graph(step.source, (step,)))
    onnx_graph.lower_versions(proto)
    assert (proto.opset_import[0].version, proto.ir_version) == versions
