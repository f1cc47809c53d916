"""A stored graph: the same after it was read, small, checked, readable without torch's quantized modules."""

import copy
import io
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from common.compression import int8_state
from common.compression.target_devices import TARGET_DEVICES
from common.deployment import integer_model
from common.integer import from_fx, plain, reference
from common.system.errors import UserError
from tests.conftest import REPOSITORY
from tests.integer.networks import SIDE, Net, int8


class Various(Net):
    def forward(self, images):
        x = F.relu(self.stem(images))
        x = torch.cat([x * self.scale, F.silu(x)], 1).chunk(2, 1)[1]
        x = F.avg_pool2d(self.norm(x) + self.conv(x), 3, 2, padding=1)
        return self.linear(F.max_pool2d(x, 2).mean((2, 3)))


@pytest.fixture(scope="module")
def stored():
    """A graph, its description, the weights beside it, and images."""
    converted, images = int8(Various(lambda _, x: x))
    graph, state = from_fx.read(converted.int8, SIDE), int8_state.extract(converted.int8)
    return graph, plain.to_plain(graph, state), state, images


def logits(graph, images):
    return reference.dequantize(reference.run(graph, reference.quantize(images, graph.input)), graph.output)


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_a_graph_is_the_same_after_it_was_stored(stored):
    graph, content, state, images = stored
    read = torch.load(io.BytesIO(saved({"graph": content, "state": state})), weights_only=True)
    again = plain.from_plain(read["graph"], read["state"])
    kinds = {type(each).__name__ for each in graph.operators}
    assert len(kinds) >= 9 and again.input == graph.input
    for expected, actual in zip(graph.operators, again.operators, strict=True):
        assert type(expected) is type(actual)
        for name, value in vars(expected).items():
            same = np.array_equal if isinstance(value, np.ndarray) else lambda a, b: a == b
            assert same(value, getattr(actual, name)), (expected.output.name, name)
    assert torch.equal(logits(again, images), logits(graph, images))


def test_a_sequence_is_the_same_after_it_was_stored():
    class Sequence(Net):
        def __init__(self):
            super().__init__(lambda _, x: x)
            self.over_channels = nn.Conv1d(1, 1, 3, padding=1, bias=False)

        def forward(self, images):
            x = self.stem(images)
            return self.over_channels(x.mean((2, 3), keepdim=True).squeeze(-1).transpose(1, 2)).flatten(1)

    converted, images = int8(Sequence())
    graph, state = from_fx.read(converted.int8, SIDE), int8_state.extract(converted.int8)
    content = plain.to_plain(graph, state)
    assert [row["kind"] for row in content["operators"] if "layer" in row] == ["Convolution", "Convolution"]
    assert torch.equal(logits(plain.from_plain(content, state), images), logits(graph, images))


def test_weights_are_found_whatever_the_name_of_their_layer_is(stored):
    graph, _, state, _ = stored
    renamed = {key.replace("stem", "Block_1A.Stem"): value for key, value in state.items()}
    content = plain.to_plain(graph, renamed)
    assert content["operators"][0]["layer"] == "Block_1A.Stem"
    assert np.array_equal(plain.from_plain(content, renamed).operators[0].weight, graph.operators[0].weight)


def test_weights_are_not_stored_twice(stored):
    graph, content, state, _ = stored
    named = [row["layer"] for row in content["operators"] if "layer" in row]
    assert named == ["stem", "conv", "linear"]
    weights = sum(each.weight.size for each in graph.operators if hasattr(each, "weight"))
    described = sum(len(each.numpy().tobytes()) for row in content["operators"] for each in row.values()
                    if isinstance(each, torch.Tensor) and row["kind"] != "Table")  # fmt: skip
    assert described < weights / 4  # of the batch norm and of the parameter
    state = copy.deepcopy(state)
    state["stem.weight"]["int8"] += 1  # not those of the graph: they are stored
    assert "layer" not in plain.to_plain(graph, state)["operators"][0]


def damaged(content, path, value):
    """A copy in which the entry at a path is replaced, or removed where the value is missing."""
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["operators"], None),
        (["operators"], []),
        (["operators", 0], None),
        (["operators", 0, "kind"], "Softmax"),
        (["operators", 0, "kind"], None),
        (["operators", 0, "inputs"], ["nowhere"]),
        (["operators", 0, "inputs"], 5),
        (["operators", 0, "layer"], "nowhere"),
        (["operators", 0, "layer"], "linear"),
        (["operators", 0, "stride"], [0, 0]),
        (["operators", 0, "stride"], "two"),
        (["operators", 0, "padding"], [1, 1]),
        (["operators", 0, "groups"], 3),
        (["operators", 0, "output", "scale"], float("nan")),
        (["operators", 0, "output", "scale"], "0.5"),
        (["operators", 0, "output", "zero_point"], 300),
        (["operators", 0, "output", "shape"], [8, 8]),
        (["operators", 0, "output", "shape"], [8, 8.5, 8]),
        (["operators", 0, "output"], None),
        (["operators", 0, "another"], 1),
        (["input"], None),
        (["input", "shape"], [3, 20, 20]),
        (["input", "name"], "x"),
    ],
)
def test_a_damaged_description_is_refused_in_one_line(stored, path, value):
    _, content, state, _ = stored
    with pytest.raises(UserError, match=r"^the graph of integers is not valid: ") as caught:
        plain.from_plain(damaged(content, path, value), state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, [], {}, 3, "graph", {"input": {}, "operators": []}])
def test_what_is_no_description_is_refused(content):
    with pytest.raises(UserError, match=r"^the graph of integers is not valid: "):
        plain.from_plain(content, {})


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=3),
    st.builds(lambda: torch.zeros(2)), st.builds(list), st.builds(dict), st.just([1, 2, 3]),
)  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_damage_is_refused_or_changes_no_type(stored, data):
    _, content, state, _ = stored
    path, place = [], content
    while isinstance(place, dict | list) and len(place):
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        path.append(data.draw(st.sampled_from(keys)))
        place = place[path[-1]]
        if path[0] != "operators" and data.draw(st.booleans()):
            break
    try:
        plain.from_plain(damaged(content, path, data.draw(SCALARS)), state)
    except UserError as error:
        assert str(error).startswith("the graph of integers is not valid: ")


def test_a_file_is_read_where_torch_has_no_quantized_modules(tmp_path):
    model = Various(lambda _, x: x)
    converted, images = int8(model)
    converted.network = integer_model.IntegerModel(from_fx.read(converted.int8, SIDE))
    content = integer_model.to_content(converted, model, TARGET_DEVICES["embedded"])
    torch.save(content | {"images": images, "logits": converted(images)}, tmp_path / "int8.pt")
    program = """
        import importlib.abc, sys
        import torch

        class Hidden(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name.startswith(("torch.ao", "torch.quantization", "torch.nn.quantized")):
                    raise ImportError(name)

        for name in [name for name in sys.modules if name.startswith(("torch.ao", "torch.quantization"))]:
            del sys.modules[name]
        for name in ("ao", "quantization"):
            vars(torch).pop(name, None)
        sys.meta_path.insert(0, Hidden())

        def refuse(*_, **__):
            raise RuntimeError("no quantized kernels")

        torch.quantize_per_tensor = torch.quantize_per_channel = refuse

        from common.integer import plain, reference

        content = torch.load(sys.argv[1], weights_only=True)
        graph = plain.from_plain(content["int8"]["graph"], content["state_dict"])
        integers = reference.run(graph, reference.quantize(content["images"], graph.input))
        assert torch.equal(reference.dequantize(integers, graph.output), content["logits"])
        try:
            import torch.ao.nn.quantized
        except ImportError:
            print("equal")
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "int8.pt")]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert result.stdout == "equal\n", result.stderr
