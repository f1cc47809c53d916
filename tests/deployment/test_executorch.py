"""ExecuTorch files: the integers of the graph, in PyTorch, and in ExecuTorch where it is installed."""

import importlib.util
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.deployment import executorch_model, predictor
from common.deployment.executorch_model import ExecuTorchModel
from common.deployment.executorch_network import Network
from common.integer import operators as ops
from common.integer import reference
from common.integer.graph import Graph
from common.models import lineage
from common.system.errors import UserError
from tests.deployment.graphs import CLASSES, SIDE, small_graph
from tests.integer import test_runtimes
from tests.integer.graphs import values

needs_executorch = pytest.mark.skipif(
    not importlib.util.find_spec("executorch"),
    reason=f"the optional package executorch {executorch_model.VERSION} is not installed",
)
KINDS = [
    kind for kind in test_runtimes.KINDS if kind not in ("tanh", "hardsigmoid", "gelu", "silu", "leaky_relu")
]


def checkpoint():
    """The content of an int8 checkpoint of `small_graph`."""
    content = lineage.new_checkpoint("net", ["a", "b", "c", "d", "Ägyptische Mau"], SIDE)
    metrics = {"params": 1, "macs": 2}
    return content | {"name": "net", "stage": "quantized", "int8": {"backend": "qnnpack"}, "metrics": metrics}


def drawn(kind, rng):
    """A graph of a kind of operator, and images."""
    found = test_runtimes.KINDS[kind](rng, test_runtimes.image(rng))
    steps = found if isinstance(found, tuple) else (found,)
    source = steps[-1].inputs[0]
    return Graph(source, steps), torch.from_numpy(rng.integers(-128, 128, (2, *source.shape)).astype(np.int8))


def in_pytorch(graph, integers):
    """What the form for `torch.export` computes: int8 [N, ...]."""
    images = reference.dequantize(integers, graph.input)
    return reference.quantize(torch.cat([Network(graph)(image) for image in images.split(1)]), graph.output)


def in_executorch(graph, integers):
    """What ExecuTorch computes: int8 [N, ...]."""
    from executorch.kernels import quantized  # noqa: F401
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(executorch_model.lower(graph, ""))
    method = program.load_method("forward")
    images = reference.dequantize(integers, graph.input)
    logits = [method.execute([image.contiguous()])[0] for image in images.split(1)]
    return reference.quantize(torch.cat(logits), graph.output)


@pytest.mark.parametrize("kind", test_runtimes.KINDS)
def test_an_operator_is_that_of_the_reference_in_pytorch(kind):
    rng = np.random.default_rng(0)
    for _ in range(test_runtimes.DRAWS):
        graph, integers = drawn(kind, rng)
        difference = in_pytorch(graph, integers).int() - reference.run(graph, integers).int()
        # PyTorch adds products in float32, which can move a sum over a half
        assert difference.abs().max() <= 1 and (difference == 0).double().mean() > 0.98


@needs_executorch
@pytest.mark.parametrize("kind", KINDS)
def test_an_operator_has_the_integers_of_the_reference_in_executorch(kind):
    graph, integers = drawn(kind, np.random.default_rng(1))
    assert torch.equal(in_executorch(graph, integers), reference.run(graph, integers))


def halves(side):
    """A mean of images, all of which lie halfway between two integers."""
    lower, count = np.arange(-128, 127), int(np.prod(side))
    integers = np.repeat(lower[:, None], count, 1) + (np.arange(count) < count // 2)
    source = values((len(lower), *side), 0.0123, 33)
    step = ops.AveragePool((source,), replace(source, name="y", shape=(len(lower), 1, 1)), side, side)
    return Graph(source, (step,)), torch.from_numpy(integers.reshape(1, -1, *side).astype(np.int8))


@pytest.mark.parametrize("side", [(2, 1), (4, 4), (5, 6), (14, 14), (56, 56)], ids=str)
def test_halves_of_means_are_rounded_away_from_0(side):
    graph, integers = halves(side)
    lower = np.arange(-128, 127)
    assert in_pytorch(graph, integers).flatten().tolist() == np.where(lower >= 0, lower + 1, lower).tolist()


@needs_executorch
def test_halves_of_means_and_a_relu_that_keeps_the_scale_are_those_of_the_reference_in_executorch():
    graph, integers = halves((4, 4))
    mean = graph.output
    table = np.arange(-128, 128).clip(min=mean.zero_point).astype(np.int8)
    relu = ops.Table((mean,), replace(mean, name="relu"), "relu", table)
    for steps in (graph.operators, (*graph.operators, relu)):
        longer = Graph(graph.input, steps)
        assert torch.equal(in_executorch(longer, integers), reference.run(longer, integers))


@needs_executorch
def test_a_file_has_the_logits_of_the_reference_and_its_metadata(tmp_path, capsys):
    graph = small_graph()
    with executorch_model.export(checkpoint(), graph, tmp_path / "net.pte") as model:
        assert not (tmp_path / "net.pte").exists()
        integers = torch.from_numpy(
            np.random.default_rng(0).integers(-128, 128, (9, 3, SIDE, SIDE)).astype(np.int8)
        )
        expected = reference.dequantize(reference.run(graph, integers), graph.output)
        assert torch.equal(model(reference.dequantize(integers, graph.input)), expected)
        assert len(expected.unique()) > 10
    assert "note: ExecuTorch's portable kernels compute" in (note := capsys.readouterr().out)
    assert "1 x aten.index.Tensor" in note
    opened = predictor.load(tmp_path / "net.pte", None, 1)
    assert opened.content["classes"] == checkpoint()["classes"] and opened.content["image_size"] == SIDE
    assert opened.kind == "int8 ExecuTorch" and len(opened.content["classes"]) == CLASSES
    assert [path.name for path in tmp_path.iterdir()] == ["net.pte"]


@needs_executorch
def test_a_damaged_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "net.pte"
    with executorch_model.export(checkpoint(), small_graph(), path):
        pass
    content, generator = path.read_bytes(), random.Random(0)
    for _ in range(50):
        file = bytearray(content)
        file[generator.randrange(len(file))] ^= 1 << generator.randrange(8)
        path.write_bytes(file)
        with pytest.raises(UserError, match=r"net\.pte was (changed|not written by export\.py)"):
            ExecuTorchModel(path)


@pytest.mark.parametrize(
    "content", [b"", b"ET12", b'"checksum": "' + b"0" * 64 + b'"'], ids=["empty", "part", "wrong"]
)
def test_another_file_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "net.pte").write_bytes(content)
    with pytest.raises(UserError, match=r"net\.pte was (changed|not written by export\.py)") as error:
        predictor.load(tmp_path / "net.pte", None, 1)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"^cannot read .*no\.pte: No such file or directory$"):
        ExecuTorchModel(tmp_path / "no.pte")


def test_without_executorch_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    expected = rf"net\.pte needs the package executorch: pip install executorch=={executorch_model.VERSION}$"
    with (
        pytest.raises(UserError, match=expected),
        executorch_model.export(checkpoint(), small_graph(), tmp_path / "net.pte"),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_float_checkpoint_is_refused(tmp_path):
    with (
        pytest.raises(
            UserError, match=r"net\.pte is not written: only int8 checkpoints have a form in ExecuTorch"
        ),
        executorch_model.export(checkpoint() | {"int8": None}, torch.nn.Identity(), tmp_path / "net.pte"),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_an_operator_without_a_form_is_named():
    source = values((4, 3, 3))
    step = ops.AveragePool((source,), values((4, 2, 2), name="pooled"), (2, 2), (2, 2), (0, 1, 0, 1))
    with pytest.raises(
        UserError, match=r"^pooled, average pooling that is padded by \(0, 1, 0, 1\), has no form"
    ):
        torch.export.export(Network(Graph(source, (step,))), (torch.zeros(1, 4, 3, 3),))
